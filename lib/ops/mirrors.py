"""Disks on their way to another QEMU: mirrored to what it exports over NBD, until both sides are the same and stay so.

One QEMU at a time, here the one that the machine leaves; :mod:`.blanks` is the other one. Everything is named after
the export, so whoever comes later, as a daemon that was started anew, finds what there is, and each flow may be
repeated: it does what is still to be done.

- A disk of the guest's is mirrored with ``write-blocking`` at the end, so that it stays in step: from the start where
  QEMU cannot change that (before 8.2).
- An image beneath a disk, to which nobody writes, is copied *as a file*, byte by byte, whatever it has in it:
  compressed clusters, bitmaps, snapshots. QEMU gets it once more for that, apart from the disk's own nodes: to add a
  node above one that a guest uses in an I/O thread kills 7.2 (``qemu_mutex_unlock_impl``).

What is tried on 7.2 and 10.0:

- A target that dies silently, or is cut off, leaves the guest's writes waiting, and no error comes: whoever watches
  sees that nothing moves. Then everything that has QEMU wait for its requests hangs its main loop: ``stop``, the end of
  a migration, ``job-cancel``. So the connection is cut first, out of band, by ``yank``; the job fails then, and the
  guest goes on where it is.
- ``sync`` is always ``top``. Without a backing file it says the same as ``full``, but does not have the target written
  with zeroes first, which is new and reads as zeroes anyway; what is no cluster in a qcow2 image becomes none there.
- A mirror that is ready ends by ``block-job-cancel``, with both sides the same and the machine where it is.
  ``block-job-complete`` would have the machine go over to the target. Its job stays ``concluded``: that is how it is
  known later that it went well.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct, convert
from msgspec.structs import replace

from ..errors import (
    ArgumentError,
    CommandError,
    DroverError,
    JobCancelled,
    JobError,
    JobFailed,
    JobStalled,
    MonitorTimeout,
)
from . import image
from .blockjobs import blockdev_mirror, set_copy_mode
from .fdset import Held, add_file
from .inventory import query_block_nodes
from .jobs import POLL, BlockJob, Job, JobProgress, Meter, check_speed, job_cancel, job_dismiss, wait_job
from .nbd import Nbd, blockdev_add_nbd
from .port import Port
from .rescue import YankInstance, query_yank, yank
from .undo import Undo

# Seconds for which nothing may move while there is something to do: less than the 30 s after which a guest's SCSI
# driver takes a request for lost, and more than a busy disk takes for a flush.
STALL: Final = 20.0
# The same for a copy that no guest waits for: a host that writes out much of its cache may be busy for long.
STILL_STALL: Final = 60.0
# Bytes in flight of each. QEMU sends so much at once, and then nothing for as long as its speed allows: with its own
# 16 MiB, and the 1 MiB/s that the budget gives at the least, nothing moves for 16 s at a time. 4 MiB fill a link of
# 400 MiB/s whose round trip is 10 ms.
BUFFER: Final = 4 << 20
# Seconds for the end of mirrors that are ready: the guest stands still meanwhile. It is a round trip and a flush.
FINISH_TIMEOUT: Final = 10.0
# Seconds for each job that is cancelled: its connection is cut, so there is nobody to wait for but the host's disk.
CANCEL_TIMEOUT: Final = 30.0
# A mirror is in `standby` for a moment whenever its disk is drained.
_READY: Final = frozenset({"ready", "standby"})
_EVENTS: Final = ("JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR")


class StillFile(Struct, frozen=True):
    """A file to which nobody writes.

    :ivar device, inode: which one it is, that QEMU has open: under its name there may be another one since
    """

    path: str
    device: int
    inode: int


class Mirror(Struct, frozen=True, kw_only=True):
    """An image that goes to another QEMU.

    :ivar name: of the export there; the job and the nodes here are named after it
    :ivar node: a disk's root node
    :ivar file: instead of it: nobody writes to the image, and it is copied as a file
    """

    name: str
    node: str = ""
    file: "StillFile | None" = None

    @property
    def job(self) -> str:
        """The job's id."""
        return f"move-{self.name}"

    @property
    def client(self) -> str:
        """The node that stands for the export."""
        return f"{self.name}.-nbd"

    @property
    def view(self) -> str:
        """The node of the file of what is still."""
        return f"{self.name}.-raw"

    @property
    def still(self) -> bool:
        """Nobody writes to it."""
        return self.file is not None


class MirrorLook(Struct, frozen=True, kw_only=True):
    """How far a mirror is. Bytes, unless said otherwise.

    :ivar speed: its limit in bytes a second; 0 for none
    :ivar in_step: both sides are the same, and stay so
    :ivar ended: it has ended, with both sides the same
    """

    mirror: Mirror
    status: str
    current: int
    total: int
    speed: int = 0
    in_step: bool = False
    ended: bool = False


class MirrorProgress(Struct, frozen=True):
    """A look at all mirrors.

    :ivar jobs: each one's progress: by their rates a link's budget is shared
    """

    jobs: tuple[JobProgress, ...]

    @property
    def left(self) -> int:
        """Bytes that are still to be copied, as far as known now."""
        return sum(max(0, job.total - job.current) for job in self.jobs)


async def start_mirrors(port: Port, mirrors: Sequence[Mirror], server: Nbd, *, speeds: Mapping[str, int] = {}) -> None:
    """Begin to mirror; those that have begun go on. Returns when they have begun: :func:`watch_mirrors` waits.

    The server is asked before QEMU dials it, as :func:`.nbd.blockdev_add_nbd` does. Of one mirror all happens, or
    nothing stays; those before it stay.

    :param server: where the other QEMU exports them; its `export` does not count
    :param speeds: by the mirrors' names, in bytes a second; 0, as of those that are not named, for no limit. What the
        guest writes is not held back by it
    :raises NbdError: the server is of no use; QEMU was not told of it
    :raises ArgumentError: a file is not the one that it was
    :raises OSError: a file cannot be opened
    :raises CommandError: QEMU refuses to begin
    """
    _check_speeds(speeds)
    known = await _jobs(port)
    for mirror in mirrors:
        if mirror.job not in known:
            await _start(port, mirror, replace(server, export=mirror.name), speeds.get(mirror.name, 0))


async def _start(port: Port, mirror: Mirror, server: Nbd, speed: int) -> None:
    await _remove_nodes(port, mirror)  # of one who died in between
    blocking = not mirror.still and not await _can_change(port)
    async with Undo(port) as undo:
        if mirror.file is not None:
            with await port.offload(partial(_open, mirror.file), Held.close) as held:
                await add_file(port, undo, held, mirror.view, mirror.name, read_only=True)
        await blockdev_add_nbd(
            port, mirror.client, server.address, server.export, tls_creds=server.tls_creds,
            tls_hostname=server.tls_hostname,
        )  # fmt: skip
        undo.remember("the client's node", lambda: port.execute("blockdev-del", {"node-name": mirror.client}))
        await blockdev_mirror(
            port, mirror.view if mirror.still else mirror.node, mirror.client, job_id=mirror.job, sync="top",
            copy_mode="write-blocking" if blocking else "background", speed=speed, buf_size=BUFFER, wait=False,
            cancel_on_leave=True,
        )  # fmt: skip
        undo.keep()


def _open(file: StillFile) -> Held:
    held = Held(image.open_image(file.path, read_only=True, direct=False))
    there = os.fstat(held.fd)
    if (there.st_dev, there.st_ino) != (file.device, file.inode):
        held.close()
        raise ArgumentError("path", file.path, "the image that the machine has open: another one was put in its place")
    return held


async def _can_change(port: Port) -> bool:
    return "block-job-change" in await port.supported_commands()


async def have_begun(port: Port, mirrors: Sequence[Mirror]) -> bool:
    """Whether there is any of these mirrors, whatever it is at."""
    known = await _jobs(port)
    return any(mirror.job in known for mirror in mirrors)


async def look_at_mirrors(port: Port, mirrors: Sequence[Mirror]) -> list[MirrorLook]:
    """Return how far mirrors are; to be asked now and then also when they are in step, for one may fail later.

    :raises JobFailed: one failed: what is on the other side is no copy. The guest goes on here
    :raises JobCancelled: somebody cancelled one
    :raises JobError: there is no such mirror
    """
    jobs, block_jobs = await port.execute_many([("query-jobs", None), ("query-block-jobs", None)])
    known = {job.id: job for job in convert(jobs, list[Job])}
    more = {job.id: job for job in convert(block_jobs, list[BlockJob])}
    return [_look(mirror, known.get(mirror.job), more.get(mirror.job)) for mirror in mirrors]


def _look(mirror: Mirror, job: Job | None, more: BlockJob | None) -> MirrorLook:
    if job is None:
        raise JobError(mirror.job, "does not exist: the mirror has not begun, or is lost", "mirror")
    if job.error == os.strerror(errno.ECANCELED):
        raise JobCancelled(job.id, "was cancelled", job.type)
    if job.error:
        raise JobFailed(job.id, "failed", job.type, job.error)
    ended = job.status == "concluded"
    told = more.actively_synced if more is not None and not mirror.still else None
    return MirrorLook(
        mirror=mirror, status=job.status, current=job.current_progress, total=job.total_progress,
        speed=more.speed if more is not None else 0, ended=ended,
        in_step=ended or (job.status in _READY if told is None else told),
    )  # fmt: skip


class MirrorWatch:
    """Mirrors, watched from one look to the next: how fast they are, and whether they move.

    To be asked now and then also when they are in step: one may fail later, or its other side die.

    :param stall: seconds for which one may stand still while it has something to do; None for :data:`STALL` where the
        guest may wait for it, and else :data:`STILL_STALL`
    """

    def __init__(self, port: Port, mirrors: Sequence[Mirror], *, stall: float | None = None) -> None:
        self._port = port
        self._mirrors = mirrors
        self._stall = stall
        self._meters: dict[str, Meter] = {}
        self._moved: dict[str, tuple[tuple[int, int], float]] = {}
        self.looks: list[MirrorLook] = []
        """As they were last."""

    async def look(self) -> MirrorProgress:
        """Look at them.

        :raises JobStalled: one does not move: the other side, or the way to it, is dead. The guest's writes may wait
            for it, so :func:`cancel_mirrors` is due
        :raises JobError: as of :func:`look_at_mirrors`
        """
        self.looks = await look_at_mirrors(self._port, self._mirrors)
        return MirrorProgress(tuple(self._read(look) for look in self.looks))

    def _read(self, look: MirrorLook) -> JobProgress:
        name, now, where = look.mirror.job, self._port.now(), (look.current, look.total)
        last, since = self._moved.get(name, (None, now))
        limit = self._stall if self._stall is not None else STILL_STALL if look.mirror.still else STALL
        if look.speed:  # then nothing moves for as long as this
            limit += 2 * BUFFER / look.speed
        if last != where or look.current >= look.total:
            self._moved[name] = where, now
        elif now - since >= limit:
            raise JobStalled(name, limit, "mirror")
        job = Job(name, "mirror", look.status, look.current, look.total)
        return self._meters.setdefault(name, Meter(self._port.now)).read(job)


async def watch_mirrors(
    port: Port,
    mirrors: Sequence[Mirror],
    *,
    progress: Callable[[MirrorProgress], None] | None = None,
    timeout: float | None = None,
    stall: float | None = None,
    poll: float = POLL,
) -> None:
    """Wait until all are in step: what is on the other side is the same, and stays so.

    Who leaves early leaves them as they are: they go on, and may be waited for again.

    :param progress: called with each look
    :param timeout: seconds; None waits as long as it takes
    :param stall: see :class:`MirrorWatch`
    :param poll: seconds between two looks when no event comes
    :raises JobFailed: one failed. The guest goes on here
    :raises JobStalled: one does not move: see :meth:`MirrorWatch.look`
    :raises JobError: as of :func:`look_at_mirrors`
    :raises MonitorTimeout: it takes longer than `timeout`
    """
    deadline = None if timeout is None else port.now() + timeout
    watch = MirrorWatch(port, mirrors, stall=stall)
    changes = await _can_change(port)
    while True:
        mark = port.event_mark()
        told = await watch.look()
        if progress is not None:
            progress(told)
        if all(look.in_step for look in watch.looks):
            return
        if changes:
            await _keep_in_step(port, watch.looks)
        left = poll if deadline is None else min(poll, deadline - port.now())
        if left <= 0:
            raise MonitorTimeout(f"mirrors ({told.left} bytes to go)", timeout)
        try:
            await port.wait_event(_EVENTS, since=mark, timeout=left)
        except MonitorTimeout:
            continue


async def _keep_in_step(port: Port, looks: Iterable[MirrorLook]) -> None:
    """Those that have caught up are not to fall back: the guest waits for its writes from now on. May be repeated."""
    for look in looks:
        if look.status in _READY and not look.in_step and not look.mirror.still:
            await set_copy_mode(port, look.mirror.job, "write-blocking")


def _check_speeds(speeds: Mapping[str, int]) -> None:
    for speed in speeds.values():
        check_speed(speed)


async def set_mirror_speeds(port: Port, speeds: Mapping[str, int]) -> None:
    """Limit how fast mirrors copy, while they run; those that have ended are left out.

    :param speeds: by the mirrors' names, in bytes a second; 0 for no limit
    """
    _check_speeds(speeds)
    await port.ask_many(
        ("block-job-set-speed", {"device": Mirror(name=name).job, "speed": speed}) for name, speed in speeds.items()
    )


async def finish_mirrors(port: Port, mirrors: Sequence[Mirror], *, timeout: float = FINISH_TIMEOUT) -> None:
    """End mirrors with both sides the same, and the machine where it is. The guest stands still, or never writes.

    It does not before they are in step. The clients' nodes stay: on 7.2 a client that leaves kills the other QEMU where
    a disk has an I/O thread, so that one hangs up first (:func:`.blanks.close_exports`).

    :param timeout: seconds for all of it
    :raises JobFailed: one failed: what is on the other side is no copy
    :raises JobError: one is not in step, or not there
    :raises MonitorTimeout: one has not ended
    """
    deadline = port.now() + timeout
    running = []
    for look in await look_at_mirrors(port, mirrors):
        if look.status not in (*_READY, "concluded"):
            raise JobError(look.mirror.job, f"is {look.status}, and not ready", "mirror")
        if not look.ended:
            running.append(look.mirror)
    mark = port.event_mark()
    # One that has ended meanwhile refuses it; how it ended is seen next.
    await port.ask_many(("block-job-cancel", {"device": mirror.job, "force": False}) for mirror in running)
    for mirror in running:
        left = max(0.0, deadline - port.now())
        await wait_job(port, mirror.job, since=mark, dismiss=False, timeout=left)


async def cancel_mirrors(port: Port, mirrors: Sequence[Mirror], *, timeout: float = CANCEL_TIMEOUT) -> None:
    """Take everything of mirrors away, whatever they are at; what is on the other side is no copy then.

    First their connections are cut, out of band. May be repeated; it tries each, and raises the first error.

    :param timeout: seconds for each job to end
    :raises MonitorTimeout: one has not ended yet
    :raises CommandError: QEMU refuses to remove something
    """
    await cut_mirrors(port, mirrors)
    failure: DroverError | None = None
    for mirror in mirrors:
        try:
            if mirror.job in await _jobs(port):
                await job_cancel(port, mirror.job, timeout=timeout)
            if mirror.job in await _jobs(port):  # of one that failed it only notes that it could not be dismissed
                await job_dismiss(port, mirror.job)
            await _remove_nodes(port, mirror)
        except (CommandError, JobError, MonitorTimeout) as error:
            failure = failure or error
    if failure is not None:
        raise failure


async def disconnect_mirrors(port: Port, mirrors: Sequence[Mirror]) -> None:
    """Mirrors of what is `still` have ended: remove their nodes. Of their jobs it stays known that they went well."""
    for mirror in mirrors:
        await _remove_nodes(port, mirror)


async def cut_mirrors(port: Port, mirrors: Collection[Mirror]) -> None:
    """Cut the connections of mirrors at once, out of band: those that run fail, and a QEMU that hangs goes on."""
    clients = {mirror.client for mirror in mirrors}
    found = [each for each in await query_yank(port) if each.type == "block-node" and each.name in clients]
    for each in found:
        await _cut(port, each)


async def _cut(port: Port, connection: YankInstance) -> None:
    try:
        await yank(port, [connection])
    except CommandError:
        pass  # it has gone meanwhile


async def _remove_nodes(port: Port, mirror: Mirror) -> None:
    there = {node["node-name"] for node in await query_block_nodes(port)}
    for node in (mirror.client, mirror.view):
        if node in there:
            await port.execute("blockdev-del", {"node-name": node})


async def _jobs(port: Port) -> dict[str, Any]:
    return {job["id"]: job for job in await port.execute("query-jobs")}
