"""Disk hotplug: an image that we open goes to QEMU as a descriptor, a block node on it, a device on that.

A disk has one id for its device and its block node, as in Ganeti. QEMU never opens
the path itself, so it needs no right to; and our own descriptor is closed as soon as
QEMU has its copy, for an open copy would keep the image locked after QEMU's death.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, CommandError, HotplugError
from . import image
from .chain import Chain, Layer, open_chain
from .fdset import add_fd
from .inventory import PERIPHERAL, query_block_nodes
from .nic import check_id
from .nodes import remove_chain
from .port import Port
from .slots import pci_place, scsi_place
from .topology import find_scsi_bus, query_pci_buses, query_scsi_targets
from .undo import Revert, Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

BUSES: Final = ("virtio-blk", "virtio-scsi")
# A node name is shorter than this (BDRV's node_name[32]), and its file node's has "-file" more.
_ID_LENGTH: Final = 26


class Disk(Struct, frozen=True, kw_only=True):
    """A plugged disk.

    :ivar id: of the device and of its block node
    :ivar bus: where it is: PCI bus, or SCSI bus of its controller
    :ivar addr: PCI slot and function, or SCSI target and LUN as ``3:0``
    :ivar size: in bytes
    """

    id: str
    bus: str
    addr: str
    size: int


def _check(id: str, format: str, driver: str, cache: str, discard: str, aio: str) -> None:
    check_id(id)
    if len(id) > _ID_LENGTH:
        raise ArgumentError("id", id, f"at most {_ID_LENGTH} characters")
    image.check_choice("format", format, image.FORMATS)
    image.check_choice("driver", driver, BUSES)
    image.check_choice("cache", cache, image.CACHES)
    image.check_choice("discard", discard, image.DISCARDS)
    image.check_choice("aio", aio, image.AIOS)
    if aio == "native" and not image.CACHES[cache][0]:
        raise ArgumentError("aio", aio, "with cache none or directsync only: it needs O_DIRECT")


async def hot_add_disk(
    port: Port,
    path: str | os.PathLike[str],
    *,
    id: str,
    format: str = "raw",
    driver: str = "virtio-blk",
    read_only: bool = False,
    cache: str = "none",
    discard: str = "unmap",
    aio: str = "threads",
    serial: str | None = None,
    bus: str | None = None,
    addr: str | None = None,
    options: dict[str, Any] | None = None,
) -> Disk:
    """Plug an image into the running machine as a disk.

    All happens or nothing: what was done is undone in reverse if a step fails.

    :param path: a file or a block device; opened here, passed to QEMU as a descriptor
    :param id: for the device and its block node
    :param format: ``raw`` or ``qcow2``; said, never probed: a guest could write any header into a raw disk
    :param driver: ``virtio-blk``, or ``virtio-scsi`` on a controller that the machine has
    :param cache: ``none``, ``writeback``, ``writethrough``, ``directsync`` or ``unsafe``
    :param discard: whether the guest's discards reach the image: ``unmap`` or ``ignore``
    :param aio: ``threads``, ``native`` (needs O_DIRECT) or ``io_uring``
    :param serial: what the guest sees as the disk's serial number
    :param bus: PCI bus, or SCSI bus such as ``scsi0.0``; None for the first with room
    :param addr: PCI slot on `bus`, such as ``05``; None for the first that is free
    :param options: more properties of the device, as JSON values
    :returns: what was plugged and where
    :raises ArgumentError: an argument or the image is wrong; nothing was touched
    :raises OSError: the image cannot be opened; nothing was touched
    :raises NoFreeSlot: no bus has room
    :raises CommandError: QEMU refused a step
    """
    _check(id, format, driver, cache, discard, aio)
    with port.reservations.name(id):
        async with _place(port, id, driver, bus, addr) as (place_bus, place_addr, place):
            opening = partial(open_chain, [Layer(path, format)], read_only=read_only, cache=cache)
            with await port.offload(opening, Chain.close) as chain:
                async with Undo(port) as undo:
                    fdset = await add_fd(undo, chain.images[0].held, id)
                    name = f"/dev/fdset/{fdset}"
                    nodes = image.block_nodes(
                        id,
                        format,
                        chain.images[0].driver,
                        name,
                        read_only=read_only,
                        cache=cache,
                        discard=discard,
                        aio=aio,
                    )
                    for node in nodes:
                        back = Revert("blockdev-del", {"node-name": node["node-name"]})
                        await undo.step("blockdev-add", node, undo=back)
                    device = place | {"drive": id, "id": id, "write-cache": "on" if image.CACHES[cache][2] else "off"}
                    if serial is not None:
                        device["serial"] = serial
                    await undo.step(
                        "device_add", device | (options or {}), undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT)
                    )
                    # The file's node has a copy of its own by now; the set would only keep the image open.
                    await port.execute("remove-fd", {"fdset-id": fdset})
                    size = await _size(port, id)
                    undo.keep()
    return Disk(id=id, bus=place_bus, addr=place_addr, size=size)


@asynccontextmanager
async def _place(
    port: Port, id: str, driver: str, bus: str | None, addr: str | None
) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Reserve a place; gives bus, address, and the properties that put the device there."""
    ticket = port.reservations.ticket()
    if driver == "virtio-blk":
        buses = await query_pci_buses(port)
        with pci_place(port.reservations, ticket, buses, id, bus, addr) as place:
            yield place.bus, place.addr, {"driver": "virtio-blk-pci", "bus": place.bus, "addr": place.addr}
        return
    if addr is not None:
        raise ArgumentError("addr", addr, "only with driver virtio-blk; a SCSI target is chosen here")
    scsi_bus = bus or await find_scsi_bus(port)
    with scsi_place(port.reservations, ticket, id, scsi_bus, await query_scsi_targets(port, scsi_bus)) as (_, target):
        where = {"driver": "scsi-hd", "bus": scsi_bus, "channel": 0, "scsi-id": target, "lun": 0}
        yield scsi_bus, f"{target}:0", where


async def _size(port: Port, node: str) -> int:
    for info in await query_block_nodes(port):
        if info["node-name"] == node:
            size: int = info["image"]["virtual-size"]
            return size
    raise HotplugError(node, "there is no such disk")


async def resize_disk(port: Port, id: str, size: int) -> int:
    """Tell the guest that its disk has a new size; a raw file or qcow2 image grows or shrinks with it.

    :param size: in bytes; less than now cuts off what is beyond, so the caller must want that
    :returns: the size that QEMU reports afterwards, in bytes
    :raises HotplugError: there is no such disk
    :raises CommandError: the storage cannot take that size
    """
    if size <= 0 or size % 512:
        raise ArgumentError("size", size, "bytes, in whole sectors of 512")
    nodes = await _nodes_of(port, id)
    if not nodes:
        raise HotplugError(id, "there is no such disk")
    await port.execute("block_resize", {"node-name": nodes[0], "size": size})
    return await _size(port, nodes[0])


async def hot_remove_disk(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a disk from the running guest; its block node goes when the guest has let go of the device.

    After a snapshot another node is under the device: then that one goes with all that it
    stands on. May be repeated: a disk whose device has gone meanwhile only loses its node.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest said no; the disk works on
    :raises UnplugPending: the guest said nothing; device and node stay until its next reset
    :raises HotplugError: there is no such disk
    """
    with port.reservations.name(id):
        nodes = await _nodes_of(port, id)
        was_plugged = await unplug(port, id, timeout=timeout)
        if not nodes and not was_plugged:
            raise HotplugError(id, "there is no such disk")
        if nodes and nodes[0] not in (id, image.file_node(id)):
            await remove_chain(port, nodes[0])
            return
        for node in nodes:
            await _remove_node(port, node)


async def _nodes_of(port: Port, id: str) -> list[str]:
    """The node under device `id`, and its file's; those that are named after it if the device has gone."""
    try:
        drive: str = await port.execute("qom-get", {"path": f"{PERIPHERAL}/{id}", "property": "drive"})
    except CommandError as error:
        if error.error_class != "DeviceNotFound":
            raise HotplugError(id, "this device is no disk") from error
        drive = id
    nodes = {node["node-name"] for node in await query_block_nodes(port)}
    return [name for name in (drive, image.file_node(drive)) if name in nodes]


async def _remove_node(port: Port, node: str) -> None:
    try:
        await port.execute("blockdev-del", {"node-name": node})
    except CommandError:
        # a file's node that was made within the disk's goes with it
        if any(it["node-name"] == node for it in await query_block_nodes(port)):
            raise
