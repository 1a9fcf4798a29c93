"""CD drives: the medium is changed while the guest runs. The drive itself stays.

A guest that uses a medium holds the tray shut; QEMU then passes the wish on, says ``{}``
all the same, and only what it tells of the drive shows whether the tray opened. The new medium is opened
before the old one goes, so a change that fails leaves the old one in. Its nodes are
called ``ID`` or ``ID-next`` in turn.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from ..errors import HotplugError, MonitorTimeout, TrayLocked
from .chain import Layer
from .fdset import remove_fdsets
from .inventory import query_block
from .nodes import remove_chain
from .port import Port
from .storage import NEXT, Source, Storage, opened, remove_medium
from .undo import Revert, Undo

# Seconds. A guest asks its drive each two seconds or so whether somebody wants the medium out.
EJECT_TIMEOUT: Final = 10.0
# Seconds. A guest that has let go of the medium need not open the tray: asked again, QEMU does.
RETRY_AFTER: Final = 1.0


class CdDrive(Struct, frozen=True, kw_only=True):
    """A CD drive.

    :ivar id: of the device
    :ivar tray_open: whether its tray is
    :ivar locked: whether the guest holds it shut
    :ivar node: the topmost block node of the medium; None where there is none in it
    :ivar size: of the medium, in bytes; 0 where there is none in it
    """

    id: str
    tray_open: bool
    locked: bool
    node: str | None = None
    size: int = 0


async def query_cdrom(port: Port, id: str) -> CdDrive:
    """Return the state of a CD drive (``query-block``).

    :raises HotplugError: there is no drive of this id that can change its medium
    """
    entry = next((entry for entry in await query_block(port) if entry.get("qdev") == id), None)
    if entry is None or not entry["removable"]:
        raise HotplugError(id, "there is no such CD drive")
    inserted: dict[str, Any] | None = entry.get("inserted")
    return CdDrive(
        id=id,
        tray_open=entry.get("tray_open", False),
        locked=entry["locked"],
        node=inserted["node-name"] if inserted else None,
        size=inserted["image"]["virtual-size"] if inserted else 0,
    )


async def change_medium(
    port: Port,
    id: str,
    source: Source,
    *,
    format: str = "raw",
    backing: Sequence[Layer | tuple[str, str]] = (),
    cache: str = "writeback",
    force: bool = False,
    timeout: float = EJECT_TIMEOUT,
) -> CdDrive:
    """Put a medium into a CD drive, in place of the one that is in it, if any. The tray is closed afterwards.

    It happens as a whole, or the drive is as it was. All parameters but those below are as of
    :func:`~drover.ops.disk.hot_add_disk`; the medium is only read.

    :param id: of the drive: ``scsi-cd`` or ``ide-cd`` (SATA)
    :param cache: the host's, which is best for what several machines read
    :param force: open the tray even if the guest holds it shut: it sees a medium that was torn out
    :param timeout: seconds for the guest to let the tray open
    :returns: the drive
    :raises TrayLocked: the guest holds the tray shut; the old medium is in
    :raises HotplugError: there is no such drive
    :raises ArgumentError: an argument or an image is wrong; nothing was touched
    :raises OSError: an image cannot be opened; nothing was touched
    :raises NbdError: the server is of no use; nothing was touched
    """
    storage = Storage(
        source=source, format=format, backing=[Layer(*layer) for layer in backing], read_only=True, cache=cache
    )
    storage.check(id, NEXT)
    with port.reservations.name(id):
        drive = await tidy_cdrom(port, id)
        new = _next(id) if drive.node == id else id
        async with opened(port, storage) as ready, Undo(port) as undo:
            await ready.add(undo, new)
            await _open(port, undo, drive, force, timeout)
            if drive.node is not None:
                await _take_out(undo, drive)
            put = {"id": id, "node-name": new}
            await undo.step("blockdev-insert-medium", put, undo=Revert("blockdev-remove-medium", {"id": id}))
            back = Revert("blockdev-open-tray", {"id": id, "force": True})
            await undo.step("blockdev-close-tray", {"id": id}, undo=back)
            undo.keep()
        await _forget(port, drive)
        return await query_cdrom(port, id)


async def eject_medium(port: Port, id: str, *, force: bool = False, timeout: float = EJECT_TIMEOUT) -> None:
    """Take the medium out of a CD drive and close its files; the tray stays open. An empty drive is only opened.

    :param force: even if the guest holds the tray shut: it sees a medium that was torn out
    :param timeout: seconds for the guest to let the tray open
    :raises TrayLocked: the guest holds the tray shut; the medium is in
    :raises HotplugError: there is no such drive
    """
    with port.reservations.name(id):
        drive = await tidy_cdrom(port, id)
        async with Undo(port) as undo:
            await _open(port, undo, drive, force, timeout)
            if drive.node is not None:
                await _take_out(undo, drive)
            undo.keep()
        await _forget(port, drive)


def _next(id: str) -> str:
    return id + NEXT


async def tidy_cdrom(port: Port, id: str) -> CdDrive:
    """Return the state of a CD drive, rid of what an earlier change that was broken off has left. May be repeated.

    :raises HotplugError: there is no drive of this id that can change its medium
    """
    drive = await query_cdrom(port, id)
    for name in (id, _next(id)):
        if name != drive.node:
            await remove_medium(port, name)
    await remove_fdsets(port, [id, _next(id)])
    return drive


async def _open(port: Port, undo: Undo, drive: CdDrive, force: bool, timeout: float) -> None:
    if drive.tray_open:
        return
    wish = {"id": drive.id, "force": force}
    deadline = port.now() + timeout
    await undo.step("blockdev-open-tray", wish, undo=Revert("blockdev-close-tray", {"id": drive.id}))
    while True:
        mark = port.event_mark()
        if (await query_cdrom(port, drive.id)).tray_open:
            return
        left = deadline - port.now()
        if left <= 0:
            raise TrayLocked(drive.id, timeout)
        if not await _opened(port, drive.id, mark, min(left, RETRY_AFTER)):
            await port.execute("blockdev-open-tray", wish)


async def _opened(port: Port, id: str, mark: int, timeout: float) -> bool:
    try:
        await port.wait_event(
            ("DEVICE_TRAY_MOVED",),
            since=mark,
            match=lambda event: event.data["id"] == id and event.data["tray-open"],
            timeout=timeout,
        )
    except MonitorTimeout:
        return False
    return True


async def _take_out(undo: Undo, drive: CdDrive) -> None:
    back = Revert("blockdev-insert-medium", {"id": drive.id, "node-name": drive.node})
    await undo.step("blockdev-remove-medium", {"id": drive.id}, undo=back)


async def _forget(port: Port, drive: CdDrive) -> None:
    """Remove the nodes of the medium that was in it."""
    if drive.node in (drive.id, _next(drive.id)):
        await remove_medium(port, drive.node)
    elif drive.node is not None:
        await remove_chain(port, drive.node)
