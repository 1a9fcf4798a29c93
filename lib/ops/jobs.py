"""QEMU's background jobs: what there are, how they are steered, and their end that is observed.

A job goes through these statuses (QEMU's ``JobStatus``)::

    created -> running -> [ready ->] waiting -> pending -> concluded -> (gone)
               aborting, from any of them, -> concluded

``paused`` and ``standby`` are ``running`` and ``ready`` while it is paused. A job that
QEMU dismisses by itself takes its error along as it goes, so all that Drover starts
stay ``concluded`` until :func:`wait_job` has read how they ended. To a job that has
gone all the same, its events bear witness.

Steering is done by ``job-…``, which takes every job on every QEMU since 3.0; of the
older ``block-job-…`` only what has no such twin.
"""

import errno
import os
from collections.abc import Callable, Collection
from typing import Final

from msgspec import Struct, convert, field

from ..errors import ArgumentError, CommandError, DroverError, JobCancelled, JobError, JobFailed, MonitorTimeout
from ..qmp.messages import Event
from ..qmp.ready import ready
from .image import check_choice
from .port import DEFAULT, Port, Timeout

# Between two looks at a job's progress, in seconds. Its changes of status come as events.
POLL: Final = 0.5
# The same when nobody asks for the progress: only in case that an event was lost.
LOOK_AGAIN: Final = 10.0
# What the last look of a wait gets at least, in seconds: a time-out must not be told without having asked.
LAST_LOOK: Final = 1.0
# A job notices that it is cancelled between two requests to its storage.
CANCEL_TIMEOUT: Final = 60.0

STATUSES: Final = (
    "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting", "concluded",
)  # fmt: skip

_STATUS: Final = "JOB_STATUS_CHANGE"
_COMPLETED: Final = "BLOCK_JOB_COMPLETED"
_CANCELLED: Final = "BLOCK_JOB_CANCELLED"
_EVENTS: Final = (_STATUS, _COMPLETED, _CANCELLED, "BLOCK_JOB_ERROR", "BLOCK_JOB_READY", "BLOCK_JOB_PENDING")


class Job(Struct, frozen=True, rename="kebab"):
    """A job (``query-jobs``).

    :ivar type: such as ``mirror``, ``commit``, ``stream``, ``backup``, ``create``, ``snapshot-save``
    :ivar status: see this module
    :ivar current_progress: how far it is, in a unit of its own: bytes for what copies
    :ivar total_progress: where it is through; may grow while it runs
    :ivar error: why it failed; empty unless it did
    """

    id: str
    type: str
    status: str
    current_progress: int = 0
    total_progress: int = 0
    error: str = ""


class BlockJob(Struct, frozen=True, rename="kebab"):
    """What more QEMU tells of a job on block nodes (``query-block-jobs``). Bytes, unless said otherwise.

    :ivar len: what ``offset`` runs up to
    :ivar speed: its limit in bytes a second; 0 for none
    :ivar io_status: ``ok``, or ``failed`` or ``nospace`` where it stands still on an error
    :ivar busy: whether it does anything right now
    :ivar actively_synced: a mirror whose target has each write of the guest's before the guest knows
        (QEMU 8.2 and later); None where that is not told
    """

    id: str = field(name="device")
    type: str
    status: str
    len: int
    offset: int
    speed: int
    io_status: str
    busy: bool
    paused: bool
    ready: bool
    auto_finalize: bool
    auto_dismiss: bool
    error: str = ""
    actively_synced: bool | None = None


class JobProgress(Struct, frozen=True):
    """A look at a job that runs.

    :ivar current: how far it is; bytes for what copies
    :ivar total: where it is through, as far as known now
    :ivar rate: of `current`, per second, lately
    :ivar eta: seconds to go at that rate; None where it stands still
    """

    id: str
    type: str
    status: str
    current: int
    total: int
    rate: float
    eta: float | None


Progress = Callable[[JobProgress], None]


async def query_jobs(port: Port) -> list[Job]:
    """Return all background jobs (``query-jobs``)."""
    return convert(await port.execute("query-jobs"), list[Job])


async def query_job(port: Port, id: str) -> Job:
    """Return one job (``query-jobs``).

    :raises JobError: there is no such job
    """
    job = await _find(port, id)
    if job is None:
        raise _no_such_job(id)
    return job


async def query_block_jobs(port: Port) -> list[BlockJob]:
    """Return the jobs that work on block nodes, with what only those have (``query-block-jobs``)."""
    return convert(await port.execute("query-block-jobs"), list[BlockJob])


async def job_pause(port: Port, id: str) -> None:
    """Let a job stand still until :func:`job_resume` (``job-pause``).

    :raises JobError: there is no such job
    :raises CommandError: it cannot be paused now
    """
    await steer(port, id, "job-pause", {"id": id})


async def job_resume(port: Port, id: str) -> None:
    """Let a job go on that was paused, or that an I/O error stopped (``job-resume``).

    :raises JobError: there is no such job
    :raises CommandError: it is not paused
    """
    await steer(port, id, "job-resume", {"id": id})


async def job_complete(port: Port, id: str) -> None:
    """Let a ``ready`` job come to its end: a mirror, or the commit of an active image, pivots (``job-complete``).

    Returns when it was told to: :func:`wait_job` observes the end.

    :raises JobError: there is no such job
    :raises CommandError: it is not ready
    """
    await steer(port, id, "job-complete", {"id": id})


async def job_finalize(port: Port, id: str) -> None:
    """Let a ``pending`` job, started with ``auto-finalize: false``, make its last changes (``job-finalize``).

    :raises JobError: there is no such job
    :raises CommandError: it is not pending
    """
    await steer(port, id, "job-finalize", {"id": id})


async def job_dismiss(port: Port, id: str) -> None:
    """Remove a ``concluded`` job, and its error with it (``job-dismiss``).

    :raises JobError: there is no such job
    :raises CommandError: it has not concluded
    """
    await steer(port, id, "job-dismiss", {"id": id})


async def job_set_speed(port: Port, id: str, speed: int) -> None:
    """Limit how fast a job on block nodes copies (``block-job-set-speed``).

    :param speed: bytes a second; 0 for no limit
    :raises JobError: there is no such job
    :raises CommandError: it is none on block nodes, or takes no limit
    """
    check_speed(speed)
    await steer(port, id, "block-job-set-speed", {"device": id, "speed": speed})


def check_speed(speed: int) -> None:
    """Raise :class:`ArgumentError` unless `speed` can be a job's limit."""
    if not 0 <= speed < 1 << 63:
        raise ArgumentError("speed", speed, "bytes a second; 0 for no limit")


async def steer(port: Port, id: str, command: str, arguments: dict[str, object]) -> None:
    """Give job `id` a command.

    :raises JobError: there is no such job
    :raises CommandError: it does not take this command, or not now
    """
    try:
        await port.execute(command, arguments)
    except CommandError as error:
        # By a query: for a job that is not there `job-…` and `block-job-…` have different error classes.
        if await _find(port, id) is None:
            raise _no_such_job(id) from error
        raise


def _no_such_job(id: str) -> JobError:
    return JobError(id, "does not exist, and no event tells of its end")


async def _find(port: Port, id: str, timeout: Timeout = DEFAULT) -> Job | None:
    jobs = convert(await port.execute("query-jobs", timeout=timeout), list[Job])
    return next((job for job in jobs if job.id == id), None)


async def wait_job(
    port: Port,
    id: str,
    *,
    until: str | Collection[str] = "concluded",
    since: int | None = None,
    dismiss: bool = True,
    progress: Progress | None = None,
    timeout: float | None = None,
    poll: float = POLL,
) -> Job:
    """Wait until a job reaches a status, or has ended otherwise. How it ended is never lost.

    Who leaves this call early, by its time-out or cancelled, leaves the job as it is: it
    runs on, then stays ``concluded``, and may be waited for again. A QEMU that does not
    answer meanwhile, as while somebody saves the whole machine, is asked again until `timeout`.

    :param until: status to wait for, such as ``ready``, ``pending``, ``concluded``, or several
    :param since: ``event_mark()`` from before the job began; None takes the newest job of this id
    :param dismiss: remove a job that has concluded
    :param progress: called with each look at it
    :param timeout: seconds; None waits as long as it takes
    :param poll: seconds between two looks when no event comes and there is `progress`
    :returns: the job as it then was; ``concluded`` also where QEMU dismissed it by itself
    :raises JobFailed: it failed; ``desc`` says why
    :raises JobCancelled: it was cancelled
    :raises JobError: there is no such job, or it ended well without reaching any of `until`
    :raises MonitorTimeout: it takes longer than `timeout`; it runs on
    :raises ConnectionClosed: QEMU ended, or the connection to it; if QEMU lives, the job runs on
    """
    until = (until,) if isinstance(until, str) else until
    for status in until:
        check_choice("until", status, STATUSES)
    job, error = await _watch(port, id, until, 0 if since is None else since, progress, timeout, poll)
    if job.status == "concluded" and dismiss:
        await _dismiss(port, id, error)
    if error is not None:
        raise error
    if job.status not in until:
        raise JobError(id, f"has ended, and never was {' or '.join(until)}", job.type)
    return job


async def job_cancel(port: Port, id: str, *, timeout: float = CANCEL_TIMEOUT) -> Job:
    """Cancel a job whatever it is at, wait for its end and dismiss it (``job-cancel``).

    What it was to make is incomplete then. To end a mirror that is ready and keep the copy, see
    ``finish_mirror``.

    :param timeout: seconds to wait for the end
    :returns: how it ended: ``error`` is empty if it was through before the request came
    :raises JobError: there is no such job
    :raises MonitorTimeout: it has not ended yet
    """
    try:
        await port.execute("job-cancel", {"id": id})
    except CommandError:
        found = await _find(port, id)
        if found is not None and found.status != "concluded":
            raise
    job, failure = await _watch(port, id, ("concluded",), 0, None, timeout, POLL)
    await _dismiss(port, id, failure)
    return job


async def _dismiss(port: Port, id: str, error: JobError | None) -> None:
    try:
        await job_dismiss(port, id)
    except JobError:
        pass  # QEMU or somebody else did
    except DroverError as failure:
        if error is None:
            raise
        error.add_note(f"and it was not dismissed: {failure}")


async def _watch(
    port: Port,
    id: str,
    until: Collection[str],
    since: int,
    progress: Progress | None,
    timeout: float | None,
    poll: float,
) -> tuple[Job, JobError | None]:
    """Look, then wait for an event or the next look, until the job is there or has ended; and what went wrong."""
    deadline = None if timeout is None else port.now() + timeout
    meter = Meter(port.now)
    beat = LOOK_AGAIN if progress is None else poll
    what = f"job '{id}'"
    while True:
        mark = port.event_mark()
        try:
            job = await _find(port, id, DEFAULT if deadline is None else max(LAST_LOOK, deadline - port.now()))
        except MonitorTimeout as error:
            if deadline is not None and port.now() >= deadline:
                raise MonitorTimeout(what, timeout) from error
        else:
            if job is None:
                return await _gone(port, id, since)
            what = f"job '{id}' (now {job.status})"
            if progress is not None:
                progress(meter.read(job))
            if job.status == "concluded":
                return job, await _error_of(port, job, since)
            if job.status in until:
                return job, None
        left = beat if deadline is None else min(beat, deadline - port.now())
        if left <= 0:
            raise MonitorTimeout(what, timeout)
        try:
            await port.wait_event(_EVENTS, since=mark, match=lambda event: _is_about(event, id), timeout=left)
        except MonitorTimeout:
            continue


def _is_about(event: Event, id: str) -> bool:
    return event.data.get("id" if event.name in (_STATUS, "BLOCK_JOB_PENDING") else "device") == id


class Meter:
    """Rate and time to go, from one look to the next.

    :param now: the clock, in seconds
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: tuple[float, int] | None = None
        self._rate = 0.0

    def read(self, job: Job) -> JobProgress:
        """A look at the job."""
        now, current, total = self._now(), job.current_progress, job.total_progress
        if self._last is not None and now > self._last[0]:
            lately = max(0.0, (current - self._last[1]) / (now - self._last[0]))
            self._rate = (self._rate + lately) / 2 if self._rate else lately
        self._last = now, current
        eta = max(0, total - current) / self._rate if self._rate else None
        return JobProgress(job.id, job.type, job.status, current, total, self._rate, eta)


async def _error_of(port: Port, job: Job, since: int) -> JobError | None:
    if not job.error:
        return None
    end = await _last_end(port, job.id, since)
    # What is no block job sends no such event; then QEMU's word for ECANCELED is all there is.
    cancelled = end.name == _CANCELLED if end is not None else job.error == os.strerror(errno.ECANCELED)
    if cancelled:
        return JobCancelled(job.id, "was cancelled", job.type)
    return JobFailed(job.id, "failed", job.type, job.error)


async def _gone(port: Port, id: str, since: int) -> tuple[Job, JobError | None]:
    """How a job ended that is no longer there, by its events."""
    end = await _last_end(port, id, since)
    if end is not None:
        data = end.data
        error = os.strerror(errno.ECANCELED) if end.name == _CANCELLED else data.get("error", "")
        job = Job(id, data["type"], "concluded", data["offset"], data["len"], error)
        return job, await _error_of(port, job, since)
    aborted = await _last(port, id, since, (_STATUS,), ("aborting",))
    concluded = await _last(port, id, since, (_STATUS,), ("concluded",))
    if concluded is None:
        raise _no_such_job(id)
    job = Job(id, "", "concluded")
    begun = await _last(port, id, since, (_STATUS,), ("created",))
    if aborted is None or (begun is not None and begun.number > aborted.number):
        return job, None
    return job, JobFailed(id, "failed, and was dismissed with its error by somebody else")


async def _last_end(port: Port, id: str, since: int) -> Event | None:
    """The newest event that tells the end of block job `id`, unless another one of this id began after it."""
    end = await _last(port, id, since, (_COMPLETED, _CANCELLED))
    begun = await _last(port, id, since, (_STATUS,), ("created",))
    return None if end is not None and begun is not None and begun.number > end.number else end


async def _last(
    port: Port, id: str, since: int, names: Collection[str], statuses: Collection[str] = ()
) -> Event | None:
    """The newest event of this kind that is in the log."""

    def fits(event: Event) -> bool:
        return _is_about(event, id) and (not statuses or event.data.get("status") in statuses)

    found = None
    while True:  # as often as the log holds such events
        try:
            found = await port.wait_event(names, since=since, match=fits, timeout=0)
        except MonitorTimeout:
            return found
        since = found.number


ready(BlockJob, Job)
