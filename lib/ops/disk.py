"""Disk hotplug: block nodes over images that we open or a server that we asked, and a device on them.

A disk has one id for its device and its topmost block node, as in Ganeti.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, CommandError, HotplugError
from . import image
from .chain import Layer
from .inventory import PERIPHERAL, QUERY_NODES, query_block_nodes, query_iothreads
from .port import Port
from .slots import pci_place, scsi_place
from .storage import Source, Storage, find_top, opened, remove_nodes
from .topology import AskedBuses, find_scsi_bus, query_pci_buses, query_scsi_units
from .undo import Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

BUSES: Final = ("virtio-blk", "virtio-scsi")
WRITE_ERRORS: Final = ("auto", "report", "ignore", "enospc", "stop")
READ_ERRORS: Final = ("auto", "report", "ignore", "stop")


class Disk(Struct, frozen=True, kw_only=True):
    """A plugged disk.

    :ivar id: of the device and of its topmost block node
    :ivar bus: where it is: PCI bus, or SCSI bus of its controller
    :ivar addr: PCI slot and function, or SCSI target and LUN as ``3:0``
    :ivar size: in bytes
    """

    id: str
    bus: str
    addr: str
    size: int


async def hot_add_disk(
    port: Port,
    source: Source,
    *,
    id: str,
    format: str = "raw",
    backing: Sequence[Layer | tuple[str, str]] = (),
    driver: str = "virtio-blk",
    read_only: bool = False,
    cache: str = "none",
    discard: str = "unmap",
    detect_zeroes: str = "off",
    aio: str = "threads",
    serial: str | None = None,
    werror: str | None = None,
    rerror: str | None = None,
    iothread: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    options: dict[str, Any] | None = None,
    asked: AskedBuses | None = None,
) -> Disk:
    """Plug an image into the running machine as a disk.

    All happens or nothing: what was done is undone in reverse if a step fails.

    :param source: a file or a block device, opened here and passed to QEMU as a descriptor; or an NBD server, as
        :class:`~drover.ops.nbd.Nbd` or by its URI, which must have answered us before QEMU dials it
    :param id: for the device and its topmost block node
    :param format: ``raw`` or ``qcow2``; said, never probed: a guest could write any header into a raw disk
    :param backing: the images that it stands on, as pairs of path and format, from top to bottom: all of them, for
        no name in a header is followed. They are opened here too, and only read
    :param driver: ``virtio-blk``, or ``virtio-scsi`` on a controller that the machine has
    :param cache: ``none``, ``writeback``, ``writethrough``, ``directsync`` or ``unsafe``
    :param discard: whether the guest's discards reach the image: ``unmap`` or ``ignore``
    :param detect_zeroes: whether zeroes that the guest writes are written as such: ``off``; else quicker (``on``), or
        as a hole (``unmap``)
    :param aio: ``threads``, ``native`` (needs O_DIRECT) or ``io_uring``
    :param serial: what the guest sees as the disk's serial number
    :param werror: when a write fails: ``report`` it to the guest, ``ignore`` it, ``stop`` the machine, or stop it for
        want of space and report the rest (``enospc``, which QEMU does by itself: ``auto``)
    :param rerror: when a read fails: ``report`` (so does ``auto``), ``ignore`` or ``stop``
    :param iothread: id of an I/O thread that there is, for virtio-blk; a SCSI disk runs in its controller's
    :param bus: PCI bus, or SCSI bus such as ``scsi0.0``; None for the first with room
    :param addr: PCI slot on `bus`, such as ``05``; or SCSI target and LUN, such as ``3:5``; None for the first that
        is free
    :param options: more properties of the device, as JSON values
    :param asked: what :func:`~drover.ops.topology.ask_pci_buses` has asked ahead, for virtio-blk
    :returns: what was plugged and where
    :raises ArgumentError: an argument or an image is wrong; nothing was touched
    :raises OSError: an image cannot be opened; nothing was touched
    :raises NbdError: the server is of no use; nothing was touched
    :raises NoFreeSlot: no bus has room
    :raises CommandError: QEMU refused a step
    """
    storage = Storage(
        source=source,
        format=format,
        backing=[Layer(*layer) for layer in backing],
        read_only=read_only,
        cache=cache,
        discard=discard,
        aio=aio,
        detect_zeroes=detect_zeroes,
    )
    storage.check(id)
    device: dict[str, Any] = {"id": id, "drive": id, "write-cache": "on" if image.CACHES[cache][2] else "off"}
    chosen = {"serial": serial, "werror": werror, "rerror": rerror, "iothread": iothread}
    device |= {name: value for name, value in chosen.items() if value is not None}
    await _check(port, driver, device)
    with port.reservations.name(id):
        async with _place(port, id, driver, bus, addr, asked) as place, opened(port, storage) as ready:
            async with Undo(port) as undo:
                await ready.make(undo, id)
                plugged = undo.send(
                    "device_add",
                    place.properties | device | (options or {}),
                    undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT),
                )
                _, nodes, *_ = await undo.results(plugged, undo.send(*QUERY_NODES), *ready.release(undo))
                size = _size_among(nodes, id)
                undo.keep()
    return Disk(id=id, bus=place.bus, addr=place.addr, size=size)


async def _check(port: Port, driver: str, device: dict[str, Any]) -> None:
    image.check_choice("driver", driver, BUSES)
    image.check_choice("werror", device.get("werror", "auto"), WRITE_ERRORS)
    image.check_choice("rerror", device.get("rerror", "auto"), READ_ERRORS)
    if (iothread := device.get("iothread")) is None:
        return
    if driver != "virtio-blk":
        raise ArgumentError("iothread", iothread, "only with virtio-blk; a SCSI disk runs in that of its controller")
    known = [thread.id for thread in await query_iothreads(port)]
    if iothread not in known:
        raise ArgumentError("iothread", iothread, f"an I/O thread of this machine: {', '.join(known) or 'it has none'}")


class _Place(Struct, frozen=True):
    bus: str
    addr: str
    properties: dict[str, Any]  # that put a device there


@asynccontextmanager
async def _place(
    port: Port, id: str, driver: str, bus: str | None, addr: str | None, asked: AskedBuses | None
) -> AsyncIterator[_Place]:
    ticket = port.reservations.ticket() if asked is None else asked.ticket
    if driver == "virtio-blk":
        buses = await query_pci_buses(port, asked)
        with pci_place(port.reservations, ticket, buses, id, bus, addr) as slot:
            yield _Place(slot.bus, slot.addr, {"driver": "virtio-blk-pci", "bus": slot.bus, "addr": slot.addr})
        return
    scsi_bus = bus or await find_scsi_bus(port)
    used = await query_scsi_units(port, scsi_bus)
    with scsi_place(port.reservations, ticket, id, scsi_bus, used, addr) as unit:
        where = {"driver": "scsi-hd", "bus": unit.bus, "channel": 0, "scsi-id": unit.target, "lun": unit.lun}
        yield _Place(unit.bus, unit.addr, where)


async def _size(port: Port, node: str) -> int:
    return _size_among(await query_block_nodes(port), node)


def _size_among(nodes: Sequence[Mapping[str, Any]], node: str) -> int:
    for info in nodes:
        if info["node-name"] == node:
            size: int = info["image"]["virtual-size"]
            return size
    raise HotplugError(node, "there is no such disk")


async def query_disk_size(port: Port, id: str) -> int:
    """Return the size of a disk that is plugged, in bytes.

    :raises HotplugError: there is no such disk
    """
    top = await _top_node(port, id)
    if top is None:
        raise HotplugError(id, "there is no such disk")
    return await _size(port, top)


async def resize_disk(port: Port, id: str, size: int) -> int:
    """Tell the guest that its disk has a new size; a raw file or qcow2 image grows or shrinks with it.

    :param size: in bytes; less than now cuts off what is beyond, so the caller must want that
    :returns: the size that QEMU reports afterwards, in bytes
    :raises HotplugError: there is no such disk
    :raises CommandError: the storage cannot take that size
    """
    if size <= 0 or size % 512:
        raise ArgumentError("size", size, "bytes, in whole sectors of 512")
    top = await _top_node(port, id)
    if top is None:
        raise HotplugError(id, "there is no such disk")
    await port.execute("block_resize", {"node-name": top, "size": size})
    return await _size(port, top)


async def hot_remove_disk(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a disk from the running guest; its block nodes go when the guest has let go of the device.

    All that it stands on goes, but for what others use; after a snapshot that begins at
    the overlay. May be repeated: a disk whose device has gone meanwhile only loses its nodes.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest said no; the disk works on
    :raises UnplugPending: the guest said nothing; device and nodes stay until its next reset
    :raises HotplugError: there is no such disk
    """
    with port.reservations.name(id):
        top = await _top_node(port, id)
        was_plugged = await unplug(port, id, timeout=timeout)
        if not await remove_nodes(port, id, top) and not was_plugged:
            raise HotplugError(id, "there is no such disk")


async def _top_node(port: Port, id: str) -> str | None:
    """The node under device `id`; that which is left of it if the device has gone; None where there is none."""
    try:
        drive: str = await port.execute("qom-get", {"path": f"{PERIPHERAL}/{id}", "property": "drive"})
    except CommandError as error:
        if error.error_class != "DeviceNotFound":
            raise HotplugError(id, "this device is no disk") from error
        return await find_top(port, id)
    return drive or None
