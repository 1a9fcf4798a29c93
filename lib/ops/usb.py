"""USB devices that come and go while the machine runs.

They are found by what is on the buses, never by a list of types: ``qom-list-types`` makes QEMU load
all its modules, and one that has been running since before its package was upgraded finds those of
another build, and aborts over them (assertion in ``util/module.c``; tried on 7.2 and 10.0).
"""

from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, CommandError, HotplugError
from .inventory import PERIPHERAL
from .nic import check_id
from .port import Port
from .qom import find_objects, qom_get, qom_tree
from .undo import Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

_BUS_TYPE: Final = "usb-bus"


class UsbDevice(Struct, frozen=True, kw_only=True):
    """A USB device.

    :ivar id: as it was given, or empty
    :ivar driver: QEMU's name of the device model
    :ivar path: where it is in QOM
    :ivar port: where it was to be plugged in, such as ``1`` or, behind a hub, ``1.3``; empty where QEMU chose
    :ivar attached: whether the guest can see it
    """

    id: str
    driver: str
    path: str
    port: str
    attached: bool


async def query_usb_buses(port: Port) -> list[str]:
    """Return the names of the USB buses, as ``bus`` of ``device_add`` takes them."""
    return [path.rpartition("/")[2] for path in await find_objects(port, (_BUS_TYPE,))]


async def query_usb(port: Port) -> list[UsbDevice]:
    """Return the USB devices, by QOM: QMP itself has no command for that."""
    devices = []
    for bus in (await qom_tree(port, values=False)).walk():
        for link in bus.properties.values() if bus.type == _BUS_TYPE else ():
            if link.is_link and link.name.startswith("child["):
                try:
                    devices.append(await _device(port, await qom_get(port, bus.path, link.name), link.inner))
                except CommandError:
                    continue  # it was pulled out meanwhile
    return devices


async def _device(port: Port, path: str, driver: str) -> UsbDevice:
    folder, _, name = path.rpartition("/")
    return UsbDevice(
        id=name if folder == PERIPHERAL else "",
        driver=driver,
        path=path,
        port=str(await qom_get(port, path, "port")),
        attached=bool(await qom_get(port, path, "attached")),
    )


async def hot_add_usb(
    port: Port,
    driver: str,
    *,
    id: str,
    bus: str | None = None,
    usb_port: str | None = None,
    options: dict[str, Any] | None = None,
) -> UsbDevice:
    """Plug a USB device in.

    :param driver: QEMU's name of the device model, such as ``usb-tablet``, ``usb-storage``, ``usb-host``
    :param id: for the device
    :param bus: USB bus; None for the first
    :param usb_port: where on the bus; None for the first that is free
    :param options: more properties of the device, as JSON values (``{"drive": "disk1"}``)
    :raises ArgumentError: there is no such bus
    :raises HotplugError: the machine has no USB controller, such as ``qemu-xhci``
    :raises CommandError: QEMU refused: there is no such model, or it is not for USB, or all ports are taken
    """
    check_id(id)
    with port.reservations.name(id):
        buses = await query_usb_buses(port)
        if not buses:
            raise HotplugError(id, "this machine has no USB controller: start it with one, such as qemu-xhci")
        if bus is not None and bus not in buses:
            raise ArgumentError("bus", bus, f"one of {', '.join(buses)}")
        device: dict[str, Any] = {"driver": driver, "id": id, "bus": bus or buses[0]}
        if usb_port is not None:
            device["port"] = usb_port
        async with Undo(port) as undo:
            await undo.step(
                "device_add", device | (options or {}), undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT)
            )
            found = next((entry for entry in await query_usb(port) if entry.id == id), None)
            if found is None:
                raise HotplugError(id, "QEMU took the device, and shows none")
            undo.keep()
    return found


async def hot_remove_usb(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Pull a USB device out; the guest is not asked.

    :raises HotplugError: there is no such device
    """
    with port.reservations.name(id):
        if not await unplug(port, id, timeout=timeout):
            raise HotplugError(id, "there is no such device")
