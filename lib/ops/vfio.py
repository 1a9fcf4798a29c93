"""PCI devices of the host that a guest is given while it runs, or that are taken from it."""

import re
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, HotplugError
from .nic import check_id
from .port import Port
from .slots import pci_place
from .topology import query_pci_buses
from .undo import Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

_HOST: Final = re.compile(r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


class VfioDevice(Struct, frozen=True, kw_only=True):
    """A plugged device of the host.

    :ivar id: of the device
    :ivar bus: PCI bus of the guest, and `addr`, slot and function on it
    """

    id: str
    bus: str
    addr: str


async def hot_add_vfio(
    port: Port,
    *,
    id: str,
    host: str | None = None,
    mediated: str | None = None,
    rom: bool = True,
    bus: str | None = None,
    addr: str | None = None,
    options: dict[str, Any] | None = None,
) -> VfioDevice:
    """Give the running guest a PCI device of the host (``vfio-pci``). All happens or nothing.

    The host's driver for it has to be ``vfio-pci``, and QEMU's user has to be let at its ``/dev/vfio/GROUP``. From
    then on all of the guest's memory stays where it is.

    :param id: for the device
    :param host: its address on the host, such as ``0000:3b:00.0``
    :param mediated: instead, the sysfs folder of a mediated device
    :param rom: the guest sees its option ROM
    :param bus: PCI bus of the guest; None for the first with a free slot
    :param addr: slot on `bus`; None for the first that is free
    :param options: more properties of the device, as JSON values
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NoFreeSlot: no bus has room
    :raises CommandError: QEMU refused, as where there is no such device, or it is not free
    """
    check_id(id)
    if (host is None) == (mediated is None):
        raise ArgumentError("host", host, "the device's address on the host, or else `mediated`")
    if host is not None and not _HOST.fullmatch(host):
        raise ArgumentError("host", host, "a PCI address such as 0000:3b:00.0")
    device: dict[str, Any] = {"driver": "vfio-pci", "id": id, "host": host, "sysfsdev": mediated}
    if not rom:
        device["rombar"] = 0
    said = {name: value for name, value in device.items() if value is not None} | (options or {})
    with port.reservations.name(id):
        ticket = port.reservations.ticket()
        buses = await query_pci_buses(port)
        with pci_place(port.reservations, ticket, buses, id, bus, addr) as place:
            async with Undo(port) as undo:
                there = {"bus": place.bus, "addr": place.addr}
                await undo.step("device_add", said | there, undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT))
                undo.keep()
    return VfioDevice(id=id, bus=place.bus, addr=place.addr)


async def hot_remove_vfio(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a device of the host from the running guest.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest said no; the device works on
    :raises UnplugPending: the guest said nothing; it stays until its next reset
    :raises HotplugError: there is no such device
    """
    with port.reservations.name(id):
        if not await unplug(port, id, timeout=timeout):
            raise HotplugError(id, "there is no such device")
