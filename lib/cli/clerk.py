"""A node daemon that is asked for changes as jobs: waited for with a bar, left to go on by Ctrl-C, or not waited for.

Nothing is asked for twice: each change has a key of its own, by which a daemon that was away meanwhile knows it.
"""

import http.client
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from drover.cli.failures import INTERRUPTED
from drover.cli.output import answer
from drover.cli.text import harmless
from drover.errors import CallFailed
from drover.node.client import Daemon

F = TypeVar("F", bound=Callable[..., Any])
Told = dict[str, Any]

ENDED: Final = frozenset({"done", "failed", "cancelled", "lost"})
# Seconds until a wait is shown: what is done sooner needs no bar, nor the time to load one.
_SOON: Final = 0.7
LOOK: Final = 1.0  # seconds between two looks at a job that is under way
_AWAY: Final = 30.0  # seconds that a daemon may be away, as when it is updated
_AGAIN: Final = 0.5  # seconds between two tries to reach it
_SECOND: Final = 2.0  # seconds for a second Ctrl-C


def no_wait_option(function: F) -> F:
    """The option ``--no-wait``."""
    text = "Only have the node daemon begin, and print the number of its job."
    return click.option("--no-wait", is_flag=True, help=text)(function)


class Clerk(Daemon):
    """Asks a daemon, and waits.

    :param daemon: which
    :param wait: for what comes of a change; else its job is printed, and the command ends
    """

    def __init__(self, daemon: Daemon, *, wait: bool) -> None:
        self._daemon = daemon
        self._wait = wait

    @property
    def where(self) -> str:
        """For people."""
        return self._daemon.where

    def answers(self) -> bool:
        """Whether it is to be asked."""
        return self._daemon.answers()

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """One, not connected yet."""
        return self._daemon.connection(timeout)

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> Any:
        """One call; what it was answered, of a change what came of it.

        :raises CallFailed: the daemon says no, or does not answer
        :raises click.exceptions.Exit: the job goes on without us
        """
        if method == "GET":
            return self._daemon.call(method, path, body, timeout=timeout)
        job = begun(self._daemon, method, path, body, timeout=timeout)
        if not self._wait:
            _tell_number(job)
            raise click.exceptions.Exit(0)
        return outcome(followed(self._daemon, job))


def begun(daemon: Daemon, method: str, path: str, body: Any, *, timeout: float = 60) -> Told:
    """The job of a change that is asked for.

    :raises CallFailed: the daemon says no, or does not answer
    """
    asked = {"Prefer": "respond-async", "Idempotency-Key": secrets.token_hex(16)}
    job: Told = _patiently(lambda: daemon.call(method, path, body, timeout=timeout, headers=asked))
    return job


def outcome(job: Told) -> Any:
    """What came of a job that has ended.

    :raises CallFailed: it is not done
    """
    if job["state"] == "done":
        return job["result"]
    error = job.get("error") or {}
    code = {"cancelled": "operation-cancelled", "lost": "job-lost"}.get(job["state"]) or str(error.get("code", ""))
    text = error.get("message") or f"job {job['id']}, {described(job)}, was {job['state']}"
    raise CallFailed(code, str(text), {"instance": job["instance"]})


def described(job: Told) -> str:
    """What a job does, in words."""
    return harmless(f"{job['kind']} {job['instance']}".strip())


def followed(daemon: Daemon, job: Told) -> Told:
    """A job when it has ended; meanwhile a bar for who waits at a terminal.

    :raises click.exceptions.Exit: Ctrl-C was pressed; a second one has cancelled it
    """
    try:
        job = look(daemon, job["id"], _SOON)
        if job["state"] in ENDED:
            return job
        from drover.cli.bar import showing  # 50 ms, for what takes long in any case

        with showing(job) as show:
            while job["state"] not in ENDED:
                job = look(daemon, job["id"], LOOK)
                show(job)
        return job
    except KeyboardInterrupt:
        _leave(daemon, job)
        raise click.exceptions.Exit(INTERRUPTED) from None


def look(daemon: Daemon, id: int, wait: float) -> Told:
    """A job, when it has ended or after `wait` seconds. A daemon that is away for a moment is waited for."""
    told: Told = _patiently(lambda: daemon.call("GET", f"/v1/jobs/{id}?wait={wait:g}", timeout=wait + 60))
    return told


def cancel(daemon: Daemon, id: int) -> Told:
    """Have a job end, where it can."""
    told: Told = daemon.call("POST", f"/v1/jobs/{id}/cancel")
    return told


def _tell_number(job: Told) -> None:
    context = click.get_current_context()
    number = job["id"]
    text = f"Job {number}, {described(job)}, is {job['state']}. drover jobs wait {number} waits for it."
    answer(context.params.get("output", "text"), text, job)


def _leave(daemon: Daemon, job: Told) -> None:
    """After a Ctrl-C: the job goes on, unless there is another one."""
    number = job["id"]
    click.echo(
        f"\nJob {number}, {described(job)}, goes on. Ctrl-C again cancels it; later: drover jobs cancel {number}\n"
        f"  drover jobs wait {number} waits for it again",
        err=True,
    )
    try:
        time.sleep(_SECOND)
    except KeyboardInterrupt:
        job = cancel(daemon, number)
        if job["state"] not in ENDED:
            job = look(daemon, number, _SECOND)
        end = "has ended" if job["state"] in ENDED else "ends as soon as it can"
        click.echo(f"\nJob {number} {end}: {job['state']}.", err=True)


def _patiently(call: Callable[[], Any]) -> Any:
    """What is answered, also by a daemon that is away for a moment: what is asked may be asked again."""
    deadline = time.monotonic() + _AWAY
    while True:
        try:
            return call()
        except CallFailed as error:
            if error.code not in ("no-answer", "daemon-ends") or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN)
