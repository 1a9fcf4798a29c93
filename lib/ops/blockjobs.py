"""Jobs that copy: mirror, backup, commit, stream, and the making of an image.

Each verb begins its job and, unless told ``wait=False``, waits for what is worth waiting
for: a mirror until it is ready, the others until they have ended. The options of the
wait are the same for all:

- `timeout`: seconds for the wait; None waits as long as it takes.
- `progress`: called with each look at the job.
- `cancel_on_leave`: whoever leaves the call early, by a time-out or because it was cancelled,
  cancels the job as well. Without it the job runs on, stays ``concluded`` at its end, and
  ``wait_job`` tells how it ended.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from ..errors import ArgumentError, JobError, NotSupported
from . import actions
from .actions import MIRROR_SYNCS, ON_ERROR, check_granularity, check_known, given, job_name
from .image import check_choice
from .jobs import Job, Progress, check_speed, job_cancel, job_complete, query_job, steer, wait_job
from .port import Port
from .undo import Undo

COPY_MODES: Final = ("background", "write-blocking")


async def blockdev_mirror(
    port: Port,
    device: str,
    target: str,
    *,
    job_id: str | None = None,
    sync: str = "full",
    copy_mode: str = "background",
    replaces: str | None = None,
    speed: int = 0,
    granularity: int | None = None,
    buf_size: int | None = None,
    on_source_error: str = "report",
    on_target_error: str = "report",
    wait: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
    cancel_on_leave: bool = False,
) -> Job:
    """Copy a disk to another node and keep the two the same (``blockdev-mirror``); wait until they are.

    It goes on so until ``finish_mirror``.

    :param device: the disk: its device, or the root node under it
    :param target: the node to copy to, of the same size
    :param job_id: None for ``mirror-`` and `device`
    :param sync: ``full``, ``top`` (what is in the topmost image alone) or ``none`` (what is written from now on)
    :param copy_mode: ``background``; or ``write-blocking``: a write of the guest's waits until the target has it
    :param replaces: the node that the target takes the place of at the end, if not `device`
    :param speed: bytes a second; 0 for no limit
    :param granularity: bytes in which changes are noted: a power of two
    :param buf_size: bytes in flight at most
    :param on_source_error: ``report`` (the job fails), ``ignore``, ``stop`` (it pauses), or ``enospc``
        (``stop`` when there is no space, else ``report``); the guest goes on in any case
    :raises JobFailed: it failed before it was ready; what the target holds is no copy
    :raises CommandError: QEMU refuses to begin
    """
    check_choice("sync", sync, MIRROR_SYNCS)
    check_choice("copy_mode", copy_mode, COPY_MODES)
    _check_common(speed, on_source_error=on_source_error, on_target_error=on_target_error)
    job_id = job_name("mirror", device, job_id)
    arguments = given(
        device=device,
        target=target,
        sync=sync,
        copy_mode=copy_mode,
        replaces=replaces,
        speed=speed,
        granularity=check_granularity(granularity),
        buf_size=buf_size,
        on_source_error=on_source_error,
        on_target_error=on_target_error,
    )
    run = _Run(port, job_id, wait, timeout, progress, cancel_on_leave)
    return await run.begin("blockdev-mirror", arguments, ("ready",))


async def finish_mirror(
    port: Port,
    id: str,
    *,
    pivot: bool,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> Job:
    """End a mirror with its target a whole copy; waits until it is ready, and then for its end.

    :param pivot: True: the machine goes over to the target (``job-complete``). False: it stays where it is, and the
        target is what the disk was at this moment (``block-job-cancel``, which has no twin among ``job-…``)
    :param timeout: seconds for all of it
    :raises JobError: this job is no mirror
    :raises JobFailed: it failed; the machine is where it was
    :raises MonitorTimeout: its end has not been seen; ask ``wait_job``
    """
    mark = port.event_mark()
    deadline = None if timeout is None else port.now() + timeout
    job = await wait_job(port, id, until=("ready",), since=None, progress=progress, timeout=timeout)
    if job.type != "mirror":
        raise JobError(id, "is no mirror", job.type)
    if pivot:
        await job_complete(port, id)
    else:
        await steer(port, id, "block-job-cancel", {"device": id, "force": False})
    left = None if deadline is None else max(0.0, deadline - port.now())
    return await wait_job(port, id, since=mark, progress=progress, timeout=left)


async def set_copy_mode(port: Port, id: str, copy_mode: str) -> None:
    """Change how a running mirror copies (``block-job-change``, QEMU 8.2 and later).

    :param copy_mode: ``write-blocking``; QEMU knows no way back
    :raises NotSupported: this QEMU cannot
    :raises JobError: there is no such job
    :raises CommandError: it is no mirror
    """
    check_choice("copy_mode", copy_mode, COPY_MODES)
    if "block-job-change" not in await port.supported_commands():
        raise NotSupported("changing the copy mode of a mirror that runs", "QEMU 8.2 or later")
    await steer(port, id, "block-job-change", {"id": id, "type": "mirror", "copy-mode": copy_mode})


async def blockdev_backup(
    port: Port,
    device: str,
    target: str,
    *,
    job_id: str | None = None,
    sync: str = "full",
    bitmap: str | None = None,
    bitmap_mode: str | None = None,
    compress: bool = False,
    discard_source: bool = False,
    speed: int = 0,
    on_source_error: str = "report",
    on_target_error: str = "report",
    wait: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
    cancel_on_leave: bool = False,
) -> Job:
    """Copy a disk, as it is when this begins, to another node while the guest goes on (``blockdev-backup``).

    :param device: the disk: its device, or a node
    :param target: the node to copy to, of the same size
    :param job_id: None for ``backup-`` and `device`
    :param sync: ``full``, ``top``, ``none``; ``incremental``: what `bitmap` has noted; ``bitmap``: the same with a
        `bitmap_mode`
    :param bitmap: the bitmap to go by
    :param bitmap_mode: when it starts anew from this backup on: ``on-success`` (else it is as if there had been no
        backup), ``never``, ``always`` (after a failure it holds what was not copied)
    :param compress: write it compressed, if the target's format can
    :param discard_source: discard what was copied from the source (QEMU 9.1 and later)
    :param speed: bytes a second; 0 for no limit
    :param on_source_error: see ``blockdev_mirror``
    :raises JobFailed: it failed; what the target holds is no copy
    :raises CommandError: QEMU refuses to begin
    :raises NotSupported: this QEMU lacks one of the options
    """
    action = actions.backup(
        device,
        target,
        job_id=job_id,
        sync=sync,
        bitmap=bitmap,
        bitmap_mode=bitmap_mode,
        compress=compress,
        discard_source=discard_source,
        speed=speed,
        on_source_error=on_source_error,
        on_target_error=on_target_error,
    )
    run = _Run(port, action.data["job-id"], wait, timeout, progress, cancel_on_leave)
    return await run.begin(action.type, action.data, ("concluded",))


async def block_commit(
    port: Port,
    device: str,
    *,
    top: str | None = None,
    base: str | None = None,
    job_id: str | None = None,
    backing_file: str | None = None,
    backing_mask_protocol: bool | None = None,
    speed: int = 0,
    on_error: str = "report",
    wait: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
    cancel_on_leave: bool = False,
) -> Job:
    """Merge images of a disk's chain down into an older one (``block-commit``).

    When the topmost image itself is merged, the machine goes over to `base` at the end: that
    is done here, with ``wait=False`` it is left to ``job_complete``. The nodes that were merged
    are not removed.

    :param device: the disk: its device, or the root node under it
    :param top: node to merge; None for the topmost
    :param base: node to merge it into; None for the lowest
    :param job_id: None for ``commit-`` and `device`
    :param backing_file: what the image above `top` records as its new backing file; None for QEMU's own choice
    :param backing_mask_protocol: record the format ``raw`` rather than a protocol's name (QEMU 9.0 and later)
    :param speed: bytes a second; 0 for no limit
    :param on_error: ``report`` (the job fails), ``stop``, ``enospc`` or ``ignore``, see ``blockdev_mirror``
    :raises JobFailed: it failed; the chain is as it was
    :raises CommandError: QEMU refuses to begin
    :raises NotSupported: this QEMU lacks one of the options
    """
    _check_common(speed, on_error=on_error)
    job_id = job_name("commit", device, job_id)
    arguments = given(
        device=device,
        top_node=top,
        base_node=base,
        backing_file=backing_file,
        backing_mask_protocol=backing_mask_protocol,
        speed=speed,
        on_error=on_error,
    )
    run = _Run(port, job_id, wait, timeout, progress, cancel_on_leave)
    return await run.begin("block-commit", arguments, ("ready", "concluded"))


async def block_stream(
    port: Port,
    device: str,
    *,
    base: str | None = None,
    bottom: str | None = None,
    job_id: str | None = None,
    backing_file: str | None = None,
    backing_mask_protocol: bool | None = None,
    speed: int = 0,
    on_error: str = "report",
    wait: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
    cancel_on_leave: bool = False,
) -> Job:
    """Copy what older images of a chain hold up into a newer one, which then needs them no more (``block-stream``).

    The nodes that are needed no more are not removed.

    :param device: the disk, or the node to copy into
    :param base: node that stays beneath it; None for none
    :param bottom: the last node to copy from, instead of `base`
    :param job_id: None for ``stream-`` and `device`
    :param backing_file: what the image records as its new backing file; None for QEMU's own choice
    :param backing_mask_protocol: record the format ``raw`` rather than a protocol's name (QEMU 9.0 and later)
    :param speed: bytes a second; 0 for no limit
    :param on_error: see ``blockdev_mirror``
    :raises JobFailed: it failed; the chain is as it was
    :raises CommandError: QEMU refuses to begin
    :raises NotSupported: this QEMU lacks one of the options
    """
    _check_common(speed, on_error=on_error)
    if base is not None and bottom is not None:
        raise ArgumentError("bottom", bottom, "instead of base, not beside it")
    job_id = job_name("stream", device, job_id)
    arguments = given(
        device=device,
        base_node=base,
        bottom=bottom,
        backing_file=backing_file,
        backing_mask_protocol=backing_mask_protocol,
        speed=speed,
        on_error=on_error,
    )
    run = _Run(port, job_id, wait, timeout, progress, cancel_on_leave)
    return await run.begin("block-stream", arguments, ("concluded",))


async def blockdev_create(
    port: Port,
    options: Mapping[str, Any],
    *,
    job_id: str = "create",
    timeout: float | None = None,
    progress: Progress | None = None,
    cancel_on_leave: bool = False,
) -> Job:
    """Make an image, and wait until it is made (``blockdev-create``).

    :param options: as QEMU has them: ``driver``, ``size``, and ``file`` (a node) or ``filename``
    :param job_id: for as long as this takes
    :raises JobFailed: it could not be made; what there is of it is not removed
    :raises CommandError: QEMU does not take the options
    """
    if "driver" not in options:
        raise ArgumentError("options", dict(options), "with the driver, such as 'qcow2'")
    run = _Run(port, job_name("create", "", job_id), True, timeout, progress, cancel_on_leave)
    return await run.begin("blockdev-create", {"options": dict(options)}, ("concluded",))


def _check_common(speed: int, **policies: str) -> None:
    check_speed(speed)
    for field, value in policies.items():
        check_choice(field, value, ON_ERROR)


class _Run:
    """A job from its command to what is waited for."""

    def __init__(
        self, port: Port, id: str, wait: bool, timeout: float | None, progress: Progress | None, cancel: bool
    ) -> None:
        self._port = port
        self._id = id
        self._wait = wait
        self._progress = progress
        self._cancel = cancel
        self._deadline = None if timeout is None else port.now() + timeout

    async def begin(self, command: str, arguments: dict[str, Any], until: Collection[str]) -> Job:
        """Start the job, and wait until it has one of the statuses."""
        port = self._port
        if any(name in actions.SINCE for name in arguments):
            check_known(await port.schema(), command, arguments)
        arguments["job-id"] = self._id
        if command != "blockdev-create":  # whose jobs always stay
            arguments["auto-dismiss"] = False
        mark = port.event_mark()
        if not self._cancel:
            await port.execute(command, arguments)
            return await self._follow(until, mark)
        async with Undo(port) as undo:
            await undo.step(command, arguments, undo=lambda _: self._stop())
            job = await self._follow(until, mark)
            undo.keep()
        return job

    async def _follow(self, until: Collection[str], mark: int) -> Job:
        if not self._wait:
            return await query_job(self._port, self._id)
        job = await self._wait_for(until, mark)
        if job.status == "ready" and "concluded" in until:
            await job_complete(self._port, self._id)
            job = await self._wait_for(("concluded",), mark)
        return job

    async def _wait_for(self, until: Collection[str], mark: int) -> Job:
        left = None if self._deadline is None else max(0.0, self._deadline - self._port.now())
        return await wait_job(self._port, self._id, until=until, since=mark, progress=self._progress, timeout=left)

    async def _stop(self) -> None:
        try:
            await job_cancel(self._port, self._id)
        except JobError:
            pass  # it has ended by itself, which is what was wrong
