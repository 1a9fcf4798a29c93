"""Migration, as one QEMU sees it: start, watch, and the end that is observed.

A migration has two sides, and this file drives one at a time; who drives both
(``drover demo``, later ``lib/migration``) must know:

- ``migrate`` that returns has only begun, and may have failed already.
- "completed" on the source proves nothing without the ``return-path`` capability, which
  is why :func:`wait_migration` refuses to take it for an end then.
- The only source state that QEMU never leaves by itself is completed with the run
  state ``postmigrate``; only then, with the target completed and paused, may the
  target run (``cont``).
"""

from collections.abc import Callable, Collection
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, MigrationCancelled, MigrationError, MigrationFailed, MonitorTimeout
from ..qmp.ready import ready
from .migration_settings import get_migration_capabilities
from .port import Port
from .power import Status, query_status
from .undo import Revert, Undo

# Without the `events` capability nothing tells of a change; with it this is only the beat of the progress.
POLL: Final = 0.2
# Cancelling joins QEMU's migration thread, which may sit in a send to a peer that does not read.
CANCEL_TIMEOUT: Final = 30.0

# From "completed" to the run state that belongs to it QEMU has only its own lock to wait for.
SETTLE_TIMEOUT: Final = 10.0
SETTLE_POLL: Final = 0.01

ENDED: Final = frozenset({"completed", "failed", "cancelled"})


class RamProgress(Struct, frozen=True, rename="kebab"):
    """How far the memory has come. Bytes, unless said otherwise.

    :ivar transferred: sent so far
    :ivar remaining: still to send, as far as known now
    :ivar total: all of the guest's memory
    :ivar dirty_pages_rate: pages a second that the guest makes dirty
    :ivar dirty_sync_count: rounds over the memory
    :ivar mbps: megabits a second now
    """

    transferred: int = 0
    remaining: int = 0
    total: int = 0
    duplicate: int = 0
    normal: int = 0
    normal_bytes: int = 0
    dirty_pages_rate: int = 0
    dirty_sync_count: int = 0
    page_size: int = 4096
    mbps: float = 0.0
    multifd_bytes: int = 0
    precopy_bytes: int = 0
    postcopy_bytes: int = 0
    downtime_bytes: int = 0
    postcopy_requests: int = 0


class MigrationInfo(Struct, frozen=True, rename="kebab"):
    """The state of a migration on one side (``query-migrate``). Times in milliseconds.

    :ivar status: ``none`` before the first one
    :ivar expected_downtime: how long the guest would stand still if it switched over now
    :ivar downtime: how long it did stand still
    :ivar error_desc: QEMU's own explanation of a failure
    :ivar socket_address: where a target listens
    """

    status: str = "none"
    ram: RamProgress = RamProgress()
    total_time: int = 0
    setup_time: int = 0
    downtime: int = 0
    expected_downtime: int = 0
    cpu_throttle_percentage: int = 0
    error_desc: str = ""
    blocked_reasons: list[str] = []
    socket_address: list[dict[str, Any]] = []


Progress = Callable[[MigrationInfo], None]


async def query_migrate(port: Port) -> MigrationInfo:
    """Return the state of the migration, going out or coming in (``query-migrate``)."""
    return convert(await port.execute("query-migrate"), MigrationInfo)


async def query_both(port: Port) -> tuple[MigrationInfo, str]:
    """Return the state of the migration, and the run state that belongs to it (``query-status``): asked at once."""
    info, status = await port.execute_many([("query-migrate", None), ("query-status", None)])
    return convert(info, MigrationInfo), status["status"]


async def migrate(port: Port, uri: str | None = None, *, fd: int | None = None) -> None:
    """Begin to send this machine (``migrate``). Returns when it has begun: :func:`wait_migration` tells the end.

    :param uri: where to: ``unix:/path``, ``tcp:host:port``, ``tcp:[address]:port``
    :param fd: a connected socket or pipe to send it over instead
    :raises ArgumentError: neither or both of `uri` and `fd`
    :raises CommandError: QEMU refuses to begin
    """
    await begin("migrate", port, uri, fd)


async def migrate_incoming(port: Port, uri: str | None = None, *, fd: int | None = None) -> MigrationInfo:
    """Begin to wait for a machine, in a QEMU that was started with ``-incoming defer``.

    :param uri: where to listen: ``unix:/path``, ``tcp:host:port``; port 0 lets the host choose
    :param fd: a connected socket or pipe to receive from instead
    :returns: the state; ``socket_address`` says where it really listens
    """
    await begin("migrate-incoming", port, uri, fd)
    return await query_migrate(port)


async def begin(command: str, port: Port, uri: str | None = None, fd: int | None = None) -> None:
    """Begin to send, or to receive.

    :param command: ``migrate`` or ``migrate-incoming``
    :param uri: over what, or `fd`: a descriptor instead
    """
    if (uri is None) == (fd is None):
        raise ArgumentError("uri", uri, "either an address, or a descriptor in `fd`")
    if fd is None:
        await port.execute(command, {"uri": uri})
        return
    name = f"drover-{command}"
    async with Undo(port) as undo:
        await undo.step("getfd", {"fdname": name}, fd=fd, undo=Revert("closefd", {"fdname": name}, may_be_gone=True))
        await port.execute(command, {"uri": f"fd:{name}"})
        undo.keep()


async def wait_migration(
    port: Port,
    *,
    until: Collection[str] = ("completed",),
    progress: Progress | None = None,
    timeout: float | None = None,
    poll: float = POLL,
) -> MigrationInfo:
    """Wait on the source until the migration reaches a status, or has ended otherwise.

    "completed" is only returned together with the run state ``postmigrate`` and with
    ``return-path`` on: QEMU says it without that although the target may have failed.

    :param until: statuses to wait for, such as ``pre-switchover``, ``postcopy-active``, ``completed``
    :param progress: called with each state that is seen
    :param timeout: seconds; None waits as long as it takes
    :param poll: seconds between two looks when no event comes
    :raises MigrationFailed: it failed; ``desc`` says why. The source runs on, if it ran
    :raises MigrationCancelled: it was cancelled
    :raises MigrationError: it completed without proof, or before reaching any of `until`
    :raises MonitorTimeout: it takes longer than `timeout`; it goes on
    """

    def reached(info: MigrationInfo) -> bool:
        return info.status in until or info.status in ENDED

    info = await watch(port, reached, progress, timeout, poll)
    raise_if_failed(info)
    if info.status not in until:
        raise MigrationError(f"the migration is {info.status} and never was {' or '.join(until)}", info.status)
    if info.status == "completed":
        await _prove(port)
        info = await query_migrate(port)  # total time and downtime are reckoned after it said completed
    return info


async def wait_incoming(
    port: Port, *, progress: Progress | None = None, timeout: float | None = None, poll: float = POLL
) -> Status:
    """Wait on the target until the whole machine has arrived and stands ready to run.

    :returns: the run state: ``paused`` where QEMU was started with ``-S``, and ``cont`` makes it run
    :raises MigrationFailed: it could not be loaded
    :raises ConnectionClosed: QEMU ended over it, as 7.2 does when it cannot load the machine
    :raises MonitorTimeout: it takes longer than `timeout`
    """
    deadline = None if timeout is None else port.now() + timeout
    info = await watch(port, lambda info: info.status in ENDED, progress, timeout, poll)
    raise_if_failed(info)
    while (status := await query_status(port)).status == "inmigrate":
        if deadline is not None and port.now() >= deadline:
            raise MonitorTimeout("the incoming machine to leave 'inmigrate'", timeout)
        await port.sleep(SETTLE_POLL)
    return status


async def watch(
    port: Port,
    done: Callable[[MigrationInfo], bool],
    progress: Progress | None,
    timeout: float | None,
    poll: float = POLL,
) -> MigrationInfo:
    """Look, then wait for an event or the next look, until `done`.

    :param progress: called with each state that is seen
    :param timeout: seconds; None waits as long as it takes
    :raises MonitorTimeout: it takes longer
    """
    deadline = None if timeout is None else port.now() + timeout
    while True:
        mark = port.event_mark()
        info = await query_migrate(port)
        if progress is not None:
            progress(info)
        if done(info):
            return info
        left = poll if deadline is None else min(poll, deadline - port.now())
        if left <= 0:
            raise MonitorTimeout(f"migration (now {info.status})", timeout)
        try:
            await port.wait_event(("MIGRATION",), since=mark, timeout=left)
        except MonitorTimeout:
            continue


def raise_if_failed(info: MigrationInfo) -> None:
    """See that a migration that has ended is not one that came to nothing.

    :raises MigrationFailed: it failed
    :raises MigrationCancelled: it was cancelled
    """
    if info.status == "failed":
        raise MigrationFailed("the migration failed", info.status, info.error_desc)
    if info.status == "cancelled":
        raise MigrationCancelled("the migration was cancelled", info.status, info.error_desc)


async def _prove(port: Port) -> None:
    if not (await get_migration_capabilities(port)).get("return-path"):
        raise MigrationError(
            "completed proves nothing without the capability 'return-path': ask the target", "completed"
        )
    # QEMU says completed a moment before it leaves 'finish-migrate'.
    deadline = port.now() + SETTLE_TIMEOUT
    while (status := await query_status(port)).status != "postmigrate":
        if port.now() >= deadline:
            raise MigrationError(f"the migration completed, but the source is '{status.status}'", "completed")
        await port.sleep(SETTLE_POLL)


async def migrate_continue(port: Port, *, state: str = "pre-switchover") -> None:
    """Go on from a pause that ``pause-before-switchover`` asked for (``migrate-continue``).

    :raises CommandError: the migration is not in that state
    """
    await port.execute("migrate-continue", {"state": state})


async def migrate_start_postcopy(port: Port) -> None:
    """Switch to postcopy: run on the target now, fetch the rest of the memory on demand.

    From ``migrate-continue`` on, or from here on without it, there is no way back. Needs the
    capability ``postcopy-ram`` on both sides from the beginning.
    """
    await port.execute("migrate-start-postcopy")


async def migrate_cancel(port: Port, *, timeout: float = CANCEL_TIMEOUT) -> MigrationInfo:
    """Cancel the migration on the source and wait for its end (``migrate_cancel``).

    The source runs on, if it ran. Never in postcopy: QEMU 7.2 accepts it there and loses the machine.

    :param timeout: seconds to wait for the end
    :returns: how it ended: ``cancelled``, or what it had reached before the request came
    :raises MigrationError: postcopy has begun; nothing was sent
    :raises MonitorTimeout: it has not ended yet
    """
    info = await query_migrate(port)
    if info.status.startswith("postcopy"):
        raise MigrationError("a migration in postcopy cannot be cancelled without losing the machine", info.status)
    if info.status in ENDED or info.status == "none":
        return info
    await port.execute("migrate_cancel")
    return await watch(port, lambda info: info.status in ENDED, None, timeout, POLL)


ready(MigrationInfo)
