"""Disks that go along with a machine: what :mod:`.storage` has planned is done here, on either node.

In this order, which the driver keeps. Each may be repeated, by whoever comes after a crash:

1. The other node: :func:`make_images`; QEMU is started with them (``-S -incoming defer``); :func:`serve`.
2. Where it runs: :func:`mirror`. In the middle of it, it has the other node :func:`go_over_to_disks`.
3. The memory goes; whoever drives looks at the mirrors now and then (:class:`drover.ops.mirrors.MirrorWatch`). The
   machine stands still in ``pre-switchover``. Where it runs: :func:`sync`. The rest is sent.
4. The other node, once the machine has arrived, and before that is told to anybody: :func:`close`. Once it runs:
   :func:`keep_images`.

The way back: where it runs, :func:`cancel`; on the other node, once its QEMU is dead, :func:`drop_images`.
"""

import errno
import fcntl
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import ImageError
from ..kvm import aside
from ..kvm.copying import keep_from_writing
from ..kvm.images import make_blank
from ..ops import blanks, mirrors
from ..ops.bitmaps import renew_bitmaps
from ..ops.mirrors import MirrorProgress
from ..ops.nbd import Nbd
from ..ops.port import Port
from .storage import SECTOR, How, Part, Plan, streamed_bitmaps

Speeds = Callable[[Sequence[mirrors.Mirror]], Mapping[str, int]]
LOOK: Final = 1.0  # s between two looks at mirrors that are in step

# -- the other node: images --------------------------------------------------------------------------------------------


def make_images(plan: Plan, folder: Path, *, qemu_img: str = "qemu-img") -> None:
    """Make the images that are to be filled: all of them, or none stays. What an earlier try has left goes first.

    Nothing is ever overwritten: what is under one of their names and is not of an earlier try, is an error.

    :param folder: where it is kept what was made, until :func:`keep_images` or :func:`drop_images`; none is there
    :param qemu_img: the program
    :raises FileExistsError: something is there already
    :raises OSError: one cannot be made
    :raises ImageError: qemu-img could not make one
    """
    drop_images(folder)
    files = aside.begin(folder, [part.path for part in plan.made])
    try:
        for part, file in zip(plan.made, files, strict=True):
            _make(part, file.first, _backing(plan, part), qemu_img)
        aside.place(files)
    except BaseException:
        drop_images(folder)
        raise


def _backing(plan: Plan, part: Part) -> tuple[str, str] | None:
    """What the new image records: the same name, unless that image is elsewhere."""
    backing = part.image.backing
    if backing is None:
        return None
    here = os.path.join(os.path.dirname(part.image.path), backing[0])
    moved = {other.image.path: other.path for other in plan.parts if other.path != other.image.path}
    return moved.get(os.path.normpath(here), backing[0]), backing[1]


def _make(part: Part, first: str, backing: tuple[str, str] | None, qemu_img: str) -> None:
    image = part.image
    fd = os.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        make_blank(
            first, image.format, image.size, shown=part.path, options=image.options, backing=backing, qemu_img=qemu_img
        )
        if part.how is How.COPY:  # it is filled as a file, of whole sectors at first
            os.ftruncate(fd, -(-image.length // SECTOR) * SECTOR)
        os.fsync(fd)
    finally:
        os.close(fd)


def keep_images(folder: Path) -> None:
    """The machine runs with them: from now on they are nobody's to remove.

    :raises OSError: it could not be written down yet
    """
    aside.settle(folder)
    with suppress(FileNotFoundError):
        folder.rmdir()


def drop_images(folder: Path) -> None:
    """Remove the images that were made, and nothing that somebody else has made. Their QEMU is dead, and never ran.

    :raises ImageError: a program has one open: nothing was removed
    :raises OSError: one could not be removed; it is still known
    """
    for path in aside.unsettled(folder):
        _check_unused(path)
    aside.discard(folder)


def _check_unused(path: str) -> None:
    """See that nobody has a file open: not even a QEMU that waits, which locks nothing."""
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Somebody who opens it in this very moment has us told so, by SIGIO, which would end us; this is ignored.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # only who has it open alone may
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            # a file system without leases: there QEMU's own locks have to do
            if error.errno == errno.EAGAIN or not keep_from_writing(fd):
                raise ImageError(path, "a program has it open: it is not removed") from error
        finally:
            os.close(fd)


# -- the other node: its QEMU ------------------------------------------------------------------------------------------


async def serve(
    port: Port,
    plan: Plan,
    address: str | None = None,
    *,
    fd: int | None = None,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
) -> None:
    """Have the QEMU that waits export what is to be filled first: images beneath disks, if any, else the disks.

    :param address: where it listens, with its port
    :param fd: a socket that listens, instead
    :param tls_creds: id of a ``tls-creds-…`` object, for the server's end
    :param tls_authz: id of an ``authz-…`` object that says which clients may
    :raises CommandError: QEMU refuses
    :raises OSError: an image cannot be opened
    """
    if not (plan.copies or plan.mirrors):
        return
    # one more: who asks whether it is there before QEMU is told to dial
    most = len(plan.copies) + len(plan.mirrors) + 1
    await blanks.open_server(
        port, address, fd=fd, tls_creds=tls_creds, tls_authz=tls_authz, max_connections=most
    )  # fmt: skip
    if plan.copies and not await _disks_are_served(port, plan):
        await blanks.open_blanks(port, {part.image.name: part.path for part in plan.of(How.COPY)})
    else:
        await blanks.export_disks(port, [mirror.name for mirror in plan.mirrors])


async def go_over_to_disks(port: Port, plan: Plan) -> None:
    """What is beneath the disks is there: have QEMU read it anew with the disks, which are exported now.

    :raises CommandError: QEMU refuses
    :raises OSError: an image could not be written to its end
    """
    if not await _disks_are_served(port, plan):
        await blanks.close_blanks(port, [mirror.name for mirror in plan.copies])
        await port.offload(partial(_complete, plan.of(How.COPY)))
    await blanks.export_disks(port, [mirror.name for mirror in plan.mirrors])


async def _disks_are_served(port: Port, plan: Plan) -> bool:
    return bool(plan.mirrors) and await blanks.is_exported(port, plan.mirrors[0].name)


def _complete(parts: Sequence[Part]) -> None:
    """Files that were copied in whole sectors get their own length, and survive a crash of the host."""
    for part in parts:
        fd = os.open(part.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, part.image.length)
            os.fsync(fd)
        finally:
            os.close(fd)


async def close(port: Port, plan: Plan) -> None:
    """The machine has arrived: nobody else writes to its disks any more.

    :raises CommandError: QEMU refuses
    """
    await blanks.close_exports(port)
    await blanks.close_blanks(port, [mirror.name for mirror in plan.copies])


# -- where it runs -----------------------------------------------------------------------------------------------------


async def mirror(
    port: Port,
    plan: Plan,
    server: Nbd,
    go_over: Callable[[], Awaitable[None]],
    *,
    speeds: Speeds = lambda _: {},
    progress: Callable[[MirrorProgress], None] | None = None,
    stall: float | None = None,
) -> None:
    """Copy what goes along, until both sides are the same and stay so. What has begun goes on; so it may be repeated.

    :param server: where the other QEMU listens; its `export` does not count
    :param go_over: has the other node :func:`go_over_to_disks`; may be called again
    :param speeds: asked before some begin that run at once: bytes a second, of each by its name; to be changed by
        :func:`.mirrors.set_mirror_speeds`
    :param progress: called with each look at it
    :param stall: seconds for which it may stand still: see :class:`drover.ops.mirrors.MirrorWatch`
    :raises JobError: it failed, or does not move: :func:`cancel` is due. The guest goes on here
    :raises NbdError: the other QEMU does not answer
    :raises CommandError: QEMU refuses
    """
    disks = plan.mirrors
    if plan.copies and not await mirrors.have_begun(port, disks):
        await mirrors.start_mirrors(port, plan.copies, server, speeds=speeds(plan.copies))
        await mirrors.watch_mirrors(port, plan.copies, progress=progress, stall=stall)
        await mirrors.finish_mirrors(port, plan.copies)
        await mirrors.disconnect_mirrors(port, plan.copies)
        await go_over()
    await mirrors.start_mirrors(port, disks, server, speeds=speeds(disks))
    await mirrors.watch_mirrors(port, disks, progress=progress, stall=stall)


async def watch(port: Port, plan: Plan, *, poll: float = LOOK) -> None:
    """Look at mirrors that are in step, for as long as it is not cancelled.

    :param poll: seconds between two looks
    :raises JobError: one failed, or does not move: the machine must not go over
    """
    watched = mirrors.MirrorWatch(port, plan.mirrors)
    while True:
        await watched.look()
        await port.sleep(poll)


async def sync(port: Port, plan: Plan) -> None:
    """End the mirrors with both sides the same. The machine stands still in ``pre-switchover``.

    :raises JobError: it could not be: the machine must not go over
    :raises MonitorTimeout: it has not been yet
    """
    await mirrors.finish_mirrors(port, plan.mirrors)


async def cancel(port: Port, plan: Plan, *, streamed: bool) -> None:
    """Take everything away that was begun here, whatever it is at; bitmaps are stored again.

    Where a mirror may hang, :func:`.mirrors.cut_mirrors` comes before all that QEMU is told: this does it first. After
    all was sent, this comes when the machine runs here again: before that its images are not this QEMU's to write to.

    :param streamed: whether the migration was begun, so that QEMU may have forgotten that it stores bitmaps
    :raises MonitorTimeout: a job has not ended yet
    :raises CommandError: QEMU refuses
    """
    await mirrors.cancel_mirrors(port, [*plan.mirrors, *plan.copies])
    if not streamed:
        return
    for part in plan.parts:
        kept = {bitmap.name for bitmap in part.image.bitmaps if bitmap.persistent}
        await renew_bitmaps(port, part.image.node, [name for name in streamed_bitmaps(part) if name in kept])
