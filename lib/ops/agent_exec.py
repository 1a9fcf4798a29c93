"""Programs in the guest, run through its agent: their output at the end, or as it comes.

The agent itself hands out what a program printed only after its end, and holds 16 MiB of it. As it
comes it is had in another way: a shell of the guest sends it into files in a folder of its own, which
are read on while the program runs. The folder is removed at the end, whatever happens.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from msgspec import Struct

from ..errors import AgentError, ArgumentError, DroverError, MonitorTimeout
from ..qmp.ready import ready
from .agent_file import CHUNK, decoded, encoded, opened, read_piece
from .agent_port import AgentPort

log = logging.getLogger("drover.qga")

# Bytes that a program gets as its input: the agent takes it as one message, and its JSON parser no token
# above 64 MiB. More goes by a file.
INPUT_LIMIT: Final = 32 << 20
# Bytes that are streamed from one program: so much lies in the guest's /tmp at worst, which may be its memory.
STREAM_LIMIT: Final = 256 << 20
# Seconds between two questions whether the program has ended, or has printed more: from the first ...
FIRST_POLL: Final = 0.02
# ... to the longest, while nothing happens. A question costs the guest well below a millisecond.
LONGEST_POLL: Final = 0.5
POLL_GROWTH: Final = 1.5
# Pieces read from one of a program's outputs before its end is asked for again.
PIECES: Final = 16
# Seconds for a killed program to be gone, and for the folder to be removed.
KILL_TIMEOUT: Final = 10.0

_SHELL: Final = "/bin/sh"
_PREPARE: Final = 'umask 077; mkdir "$1" && : >"$1/out" && : >"$1/err"'
# In a session of its own the program can be killed with all that it started; the agent is in none.
_START: Final = (
    'd=$1; shift; if [ "$1" = merge ]; then exec >"$d/out" 2>&1; else exec >"$d/out" 2>"$d/err"; fi; shift; '
    'if command -v setsid >/dev/null 2>&1; then exec setsid "$@"; fi; exec "$@"'
)
_KILL: Final = 'kill -KILL "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || :'  # it may have ended just now
_REMOVE: Final = 'rm -rf -- "$1"'

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], object]


class ExecResult(Struct, frozen=True):
    """How a program in the guest ended.

    :ivar exit_code: None where a signal ended it
    :ivar signal: number of the signal that ended it (on Windows: of the exception), else None
    :ivar stdout: what it printed, where that was wanted at the end
    :ivar stderr: what it printed as errors, likewise
    :ivar stdout_truncated: there was more than the agent keeps (16 MiB), or than was allowed
    :ivar stderr_truncated: likewise
    """

    exit_code: int | None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.exit_code == 0


class _Started(Struct):
    pid: int


class _Status(Struct, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False

    def result(self) -> ExecResult:
        return ExecResult(
            None if self.signal is not None else self.exitcode,
            self.signal,
            decoded(self.out_data),
            decoded(self.err_data),
            self.out_truncated,
            self.err_truncated,
        )


async def run_program(
    port: AgentPort,
    path: str,
    args: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
) -> ExecResult:
    """Run a program in the guest and return how it ended and what it printed (``guest-exec``, ``guest-exec-status``).

    Whoever gives up on it (by `timeout`, or cancelled) has it killed, where the guest has ``/bin/sh``. Only
    where the agent does not even say that it has started, it may run on.

    :param path: the program; where it is no path, the agent looks for it on its own
    :param args: its arguments; no shell takes them apart
    :param env: its whole environment; None: that of the agent
    :param input: its standard input; None: it has none
    :param timeout: seconds for all of it; None waits for ever
    :raises CommandError: it could not be started
    :raises MonitorTimeout: it did not end in time, and was told to
    """
    _check(args, env, input)
    async with _started(port, path, args, env=env, input=input, capture=True) as program:
        return (await program.wait(timeout)).result()


async def stream_program(
    port: AgentPort,
    path: str,
    args: Sequence[str] = (),
    *,
    on_output: OnOutput,
    merge: bool = False,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    limit: int = STREAM_LIMIT,
    timeout: float | None = None,
) -> ExecResult:
    """Run a program in the guest and hand out what it prints while it runs.

    This takes a POSIX guest: ``/bin/sh``, and room in ``/tmp`` for the output. A program that
    does not exist ends with exit code 127, as in a shell. Between what it prints and what it prints as errors
    the order is not kept, unless they are merged. Whoever gives up on it has it killed, with all that it
    started where the guest has ``setsid``.

    :param path: the program; where it is no path, the shell looks for it
    :param args: its arguments; no shell takes them apart
    :param on_output: called with ``stdout`` or ``stderr`` and the next bytes; an exception of its own ends it all
    :param merge: what it prints as errors goes the way of what it prints
    :param env: its whole environment; None: that of the agent
    :param input: its standard input; None: it has none
    :param limit: bytes of output after which it is killed, and marked as truncated
    :param timeout: seconds for all of it; None waits for ever
    :returns: how it ended, without the output
    :raises CommandError: the shell could not be started
    :raises AgentError: the guest gave no folder for the output
    :raises MonitorTimeout: it did not end in time, and was told to
    """
    _check(args, env, input)
    async with _folder(port) as folder, opened(port, f"{folder}/out", "rb") as out:
        async with opened(port, f"{folder}/err", "rb") as err:
            command = ["-c", _START, "sh", folder, "merge" if merge else "both", path, *args]
            async with _started(port, _SHELL, command, env=env, input=input, capture=False) as program:
                tail = _Tail(port, {"stdout": out, "stderr": err}, on_output, limit)
                return await tail.follow(program, timeout)


class _Tail:
    """Reads files of the guest on, while what writes them runs."""

    def __init__(self, port: AgentPort, handles: Mapping[Stream, int], on_output: OnOutput, limit: int) -> None:
        self._port = port
        self._handles = handles
        self._on_output = on_output
        self._left = limit
        self._cut: Stream | None = None

    async def follow(self, program: "_Program", timeout: float | None) -> ExecResult:
        """Pass on what a program prints until it has ended, and how it did.

        :param timeout: seconds for all of it
        """
        deadline = None if timeout is None else self._port.now() + timeout
        pause = FIRST_POLL
        while True:
            status = await program.status()
            moved = False
            for stream in self._handles:
                moved = await self._read(stream, to_end=status.exited) or moved
            if self._cut is not None and not status.exited:
                status = await program.kill()
            if status.exited:
                return self._result(status)
            pause = FIRST_POLL if moved else min(LONGEST_POLL, pause * POLL_GROWTH)
            await program.pause(pause, deadline, timeout)

    def _result(self, status: _Status) -> ExecResult:
        cut = self._cut
        code = None if status.signal is not None else status.exitcode
        return ExecResult(code, status.signal, stdout_truncated=cut == "stdout", stderr_truncated=cut == "stderr")

    async def _read(self, stream: Stream, to_end: bool) -> bool:
        """Hand out what there is; False if there was nothing."""
        pieces = 0
        while self._cut is None and (to_end or pieces < PIECES):
            data = await read_piece(self._port, self._handles[stream], CHUNK)
            if not data:
                break
            pieces += 1
            if len(data) > self._left:
                self._cut, data = stream, data[: self._left]
            self._left -= len(data)
            if data:
                self._on_output(stream, data)
        return pieces > 0


class _Program:
    """A program that runs in the guest."""

    def __init__(self, port: AgentPort, path: str) -> None:
        self._port = port
        self._path = path
        self._pid: int | None = None
        self._exited = False

    async def start(self, arguments: dict[str, Any]) -> None:
        """Start it. To be shielded: whoever gives up in the middle knows no number by which to kill it."""
        self._pid = (await self._port.ask("guest-exec", _Started, arguments)).pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and its end was not seen."""
        return self._pid is not None and not self._exited

    async def status(self) -> _Status:
        """Its status; the agent forgets it once this told of its end."""
        found = await self._port.ask("guest-exec-status", _Status, {"pid": self._pid})
        self._exited = found.exited
        return found

    async def wait(self, timeout: float | None) -> _Status:
        """Wait for its end.

        :raises MonitorTimeout: it still runs
        """
        deadline = None if timeout is None else self._port.now() + timeout
        pause = FIRST_POLL
        while not (found := await self.status()).exited:
            await self.pause(pause, deadline, timeout)
            pause = min(LONGEST_POLL, pause * POLL_GROWTH)
        return found

    async def pause(self, seconds: float, deadline: float | None, timeout: float | None) -> None:
        """Let time pass, but not beyond the deadline."""
        if deadline is not None:
            seconds = min(seconds, deadline - self._port.now())
            if seconds <= 0:
                raise MonitorTimeout(f"{self._path} in the guest", timeout)
        await self._port.sleep(seconds)

    async def kill(self) -> _Status:
        """Kill it, and wait until it is gone. It is asked for first: another could have got its number."""
        found = await self.status()
        if found.exited:
            return found
        await _script(self._port, _KILL, str(self._pid))
        return await self.wait(KILL_TIMEOUT)


@asynccontextmanager
async def _started(
    port: AgentPort,
    path: str,
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    input: bytes | None,
    capture: bool,
) -> AsyncIterator[_Program]:
    """A program that is killed at the end of the block, unless its end was seen."""
    arguments: dict[str, Any] = {"path": path, "arg": list(args), "capture-output": capture}
    if env is not None:
        arguments["env"] = [f"{name}={value}" for name, value in env.items()]
    if input is not None:
        arguments["input-data"] = encoded(input)
    program = _Program(port, path)
    try:
        await port.shield(program.start(arguments))
        yield program
    except BaseException as error:
        if program.runs:
            await port.shield(_after(error, program.kill(), f"{path} may still run in the guest"))
        raise


@asynccontextmanager
async def _folder(port: AgentPort) -> AsyncIterator[str]:
    """A folder in the guest, removed at the end of the block. Its name is ours, so that whoever gives up knows it."""
    folder = f"/tmp/drover.{secrets.token_hex(8)}"  # noqa: S108 - made for its owner alone, and never one that is there
    error: BaseException | None = None
    try:
        await port.shield(_script(port, _PREPARE, folder))
        yield folder
    except BaseException as failure:
        error = failure
        raise
    finally:
        await port.shield(_after(error, _script(port, _REMOVE, folder), f"{folder} stays in the guest"))


async def _script(port: AgentPort, script: str, argument: str) -> None:
    """Run a line of shell, and wait for its end.

    :raises AgentError: it failed
    """
    arguments = {"path": _SHELL, "arg": ["-c", script, "sh", argument], "capture-output": True}
    program = _Program(port, _SHELL)
    await program.start(arguments)
    done = (await program.wait(KILL_TIMEOUT)).result()
    if not done.ok:
        raise AgentError(f"{script}: {done.stderr.decode(errors='replace').strip()}")


async def _after(error: BaseException | None, step: Any, otherwise: str) -> None:
    """Run a step of the way back; what goes wrong is noted on what sent us back."""
    try:
        await step
    except DroverError as failure:
        log.warning("%s: %s", otherwise, failure)
        if error is not None:
            error.add_note(f"{otherwise}: {failure}")


def _check(args: Sequence[str], env: Mapping[str, str] | None, input: bytes | None) -> None:
    if isinstance(args, str):
        raise ArgumentError("args", args, "a list of arguments; no shell takes them apart")
    for name in env or ():
        if not name or "=" in name:
            raise ArgumentError("env", name, "names without =")
    if input is not None and len(input) > INPUT_LIMIT:
        raise ArgumentError("input", f"{len(input)} bytes", f"up to {INPUT_LIMIT} bytes; more goes by a file")


ready(_Started, _Status)
