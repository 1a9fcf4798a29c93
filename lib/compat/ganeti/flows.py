"""Ganeti's hotplug in Drover's order: with Ganeti's payloads and names, and with a way back.

What differs from :mod:`drover.ops.nic` and :mod:`drover.ops.disk`: the caller says
where the device goes, and composes the block node.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...errors import CommandError, HotplugError, NoFreeSlot
from ...ops import image
from ...ops.inventory import query_block_nodes
from ...ops.port import Port
from ...ops.topology import query_pci_buses
from ...ops.undo import Revert, Undo
from ...ops.unplug import UNDO_TIMEOUT, unplug

log = logging.getLogger("drover.compat.ganeti")

Payload = dict[str, Any]


async def add_nic(port: Port, tap_fds: Sequence[int], vhost_fds: Sequence[int] | None, device: Payload) -> None:
    """Plug a NIC: all of it, or nothing stays.

    :param tap_fds: descriptors of a tap, one for each pair of queues; they stay the caller's to close
    :param vhost_fds: descriptors of ``/dev/vhost-net``; None for a NIC without vhost
    :param device: the arguments of ``device_add``; its ``netdev`` names the netdev to make
    :raises CommandError: QEMU refused a step
    """
    name = device["netdev"]
    with port.reservations.name(name):
        async with Undo(port) as undo:
            netdev = {"type": "tap", "id": name, "fds": await _pass_fds(undo, tap_fds, f"{name}-")}
            if vhost_fds is not None:
                netdev |= {"vhost": True, "vhostfds": await _pass_fds(undo, vhost_fds, f"{name}-vhost-")}
            await undo.step("netdev_add", netdev, undo=Revert("netdev_del", {"id": name}))
            await _add_device(undo, port, device, name)
            undo.keep()


async def _pass_fds(undo: Undo, fds: Sequence[int], prefix: str) -> str:
    names = [f"{prefix}{number}" for number in range(len(fds))]
    for name, fd in zip(names, fds, strict=True):
        # A netdev takes its descriptors out of the monitor, so they may be gone by then.
        close = Revert("closefd", {"fdname": name}, may_be_gone=True)
        await undo.step("getfd", {"fdname": name}, fd=fd, undo=close)
    return ":".join(names)


async def _add_device(undo: Undo, port: Port, device: Payload, name: str) -> None:
    name = device.get("id", name)
    await undo.step("device_add", device, undo=lambda _: unplug(port, name, timeout=UNDO_TIMEOUT))


async def add_disk(port: Port, node: Payload, device: Payload, *, open_file: bool, direct: bool) -> None:
    """Plug a disk: all of it, or nothing stays.

    :param node: the arguments of ``blockdev-add``
    :param device: the arguments of ``device_add``
    :param open_file: open the node's file here, and give QEMU the descriptor instead of the path
    :param direct: open it with O_DIRECT
    :raises OSError: the file cannot be opened; nothing was touched
    :raises ArgumentError: it is neither a file nor a block device; nothing was touched
    :raises CommandError: QEMU refused a step
    """
    name = node["node-name"]
    with port.reservations.name(name):
        fdset = None
        fds = [await _open(port, node["file"]["filename"], direct)] if open_file else []
        try:
            async with Undo(port) as undo:
                if fds:
                    fdset = await _pass_file(undo, fds)
                    node = node | {"file": node["file"] | {"filename": f"/dev/fdset/{fdset}"}}
                await undo.step("blockdev-add", node, undo=Revert("blockdev-del", {"node-name": name}))
                await _add_device(undo, port, device, name)
                undo.keep()
        finally:
            _close(fds)
        if fdset is not None:
            await _forget_file(port, fdset)


async def add_drive(port: Port, path: str, device: Payload, add: Callable[[str], object], *, open_file: bool) -> None:
    """Plug a disk on a drive that somebody else adds, by HMP.

    :param path: what QEMU is to open; or a file that is opened here, with `open_file`
    :param device: the arguments of ``device_add``
    :param add: adds the drive; called with what QEMU is to open. It stays if a later step fails
    """
    name = device["drive"]
    with port.reservations.name(name):
        fds = [await _open(port, path, False)] if open_file else []
        try:
            async with Undo(port) as undo:
                fdset = await _pass_file(undo, fds) if fds else None
                await port.offload(partial(add, path if fdset is None else f"/dev/fdset/{fdset}"))
                await _add_device(undo, port, device, name)
                undo.keep()
        finally:
            _close(fds)
        if fdset is not None:
            await _forget_file(port, fdset)


async def _open(port: Port, path: str, direct: bool) -> int:
    return await port.offload(partial(image.open_image, path, read_only=False, direct=direct), os.close)


async def _pass_file(undo: Undo, fds: list[int]) -> int:
    added = await undo.step(
        "add-fd",
        fd=fds[0],
        undo=lambda added: Revert("remove-fd", {"fdset-id": added["fdset-id"]}, may_be_gone=True),
    )
    _close(fds)  # our copy would keep the image locked after QEMU's death
    fdset: int = added["fdset-id"]
    return fdset


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


async def _forget_file(port: Port, fdset: int) -> None:
    try:
        await port.execute("remove-fd", {"fdset-id": fdset})
    except CommandError as error:
        # The node has a copy of its own: the disk works, and to fail here would hide that it is there.
        log.info("removing fdset %s failed: %s", fdset, error)


async def remove_nic(port: Port, name: str, timeout: float) -> None:
    """Take a NIC from the guest; its netdev goes when the guest has let go of the device.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest said no; the NIC works on
    :raises UnplugPending: the guest said nothing; device and netdev stay until its next reset
    :raises HotplugError: there is no such NIC
    """
    with port.reservations.name(name):
        was_plugged = await unplug(port, name, timeout=timeout)
        try:
            await port.execute("netdev_del", {"id": name})
        except CommandError as error:
            if error.error_class != "DeviceNotFound":
                raise
            if not was_plugged:
                raise HotplugError(name, "there is no such NIC") from error


async def remove_disk(port: Port, name: str, timeout: float) -> None:
    """Take a disk from the guest; its block node goes when the guest has let go of the device.

    Parameters and errors are those of :func:`remove_nic`.
    """
    with port.reservations.name(name):
        was_plugged = await unplug(port, name, timeout=timeout)
        try:
            await port.execute("blockdev-del", {"node-name": name})
        except CommandError as error:
            if any(node["node-name"] == name for node in await query_block_nodes(port)):
                raise
            if not was_plugged:  # else QEMU took it along, as it does with a -drive
                raise HotplugError(name, "there is no such disk") from error


async def free_pci_slot(port: Port) -> int:
    """The lowest free slot of the root bus.

    :raises NoFreeSlot: it is full, or takes no hotplug
    """
    buses = await query_pci_buses(port)
    for slot in buses[0].free() if buses else ():
        return slot
    raise NoFreeSlot("new device", {bus.name: bus.kind.slots for bus in buses[:1]})
