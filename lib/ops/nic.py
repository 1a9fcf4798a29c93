"""NIC hotplug: descriptors of tap devices to QEMU, a netdev on them or another one, a device on that.

A NIC has one id for its device and its netdev, as in Ganeti.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, CommandError, HotplugError
from ..qmp.life import Call
from .inventory import PERIPHERAL
from .migration_settings import get_migration_parameters
from .port import Port
from .slots import Place, pci_place
from .topology import AskedBuses, query_pci_buses
from .undo import Revert, Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

# QEMU's own rule (`id_wellformed`): a letter, then letters, digits, '-', '.', '_'.
_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
# virtio-net's models can have several queues; the emulated cards cannot.
_VIRTIO: Final = frozenset({"virtio-net-pci", "virtio-net-pci-non-transitional", "virtio-net-pci-transitional"})


class Nic(Struct, frozen=True, kw_only=True):
    """A plugged NIC.

    :ivar id: of the device and of its netdev
    :ivar bus: PCI bus, and `addr`, slot and function on it
    :ivar mac: its address
    :ivar queues: pairs of queues
    """

    id: str
    bus: str
    addr: str
    mac: str
    queues: int


def check_id(value: str) -> str:
    """Return `value` if QEMU takes it as an id.

    :raises ArgumentError: it does not
    """
    if not _ID.fullmatch(value):
        raise ArgumentError("id", value, "a letter, then letters, digits, '-', '.' or '_'")
    return value


def _check(
    id: str, tap_fds: Sequence[int], vhost_fds: Sequence[int], mac: str | None, model: str, backend: object
) -> None:
    check_id(id)
    if backend is not None and (tap_fds or vhost_fds):
        raise ArgumentError("backend", backend, "none beside descriptors of a tap")
    if backend is None and not tap_fds:
        raise ArgumentError("tap_fds", list(tap_fds), "one descriptor of a tap device for each pair of queues")
    if vhost_fds and len(vhost_fds) != len(tap_fds):
        raise ArgumentError("vhost_fds", list(vhost_fds), f"none, or as many as tap_fds ({len(tap_fds)})")
    if mac is not None and not _MAC.fullmatch(mac):
        raise ArgumentError("mac", mac, "six octets in hexadecimal with colons")
    if mac is not None and int(mac[:2], 16) & 1:
        raise ArgumentError("mac", mac, "a unicast address: the first octet must be even")
    if len(tap_fds) > 1 and model not in _VIRTIO:
        raise ArgumentError("tap_fds", list(tap_fds), f"one only: {model} has a single pair of queues")


async def hot_add_nic(
    port: Port,
    id: str,
    *,
    tap_fds: Sequence[int] = (),
    vhost_fds: Sequence[int] = (),
    backend: Mapping[str, Any] | None = None,
    mac: str | None = None,
    model: str = "virtio-net-pci",
    bus: str | None = None,
    addr: str | None = None,
    options: dict[str, Any] | None = None,
    asked: AskedBuses | None = None,
) -> Nic:
    """Plug a NIC into the running machine: one that stands on tap devices, or on another back end.

    All happens or nothing: what was done is undone in reverse if a step fails.

    :param id: for the device and its netdev
    :param tap_fds: open tap descriptors, one for each pair of queues; they stay yours to close
    :param vhost_fds: open ``/dev/vhost-net`` descriptors, as many, for the kernel's back end
    :param backend: instead of taps: what ``netdev_add`` is to make, but for its id, such as ``{"type": "user"}``
    :param mac: the address; QEMU chooses one where it is not said
    :param model: device model
    :param bus: PCI bus; None for the first with a free slot
    :param addr: slot on `bus`, such as ``05``; None for the first that is free
    :param options: more properties of the device, as JSON values (``{"host_mtu": 9000}``)
    :param asked: what :func:`~drover.ops.topology.ask_pci_buses` has asked ahead
    :returns: what was plugged and where
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NoFreeSlot: no bus has room
    :raises CommandError: QEMU refused a step
    """
    _check(id, tap_fds, vhost_fds, mac, model, backend)
    queues = len(tap_fds) or 1
    with port.reservations.name(id):
        ticket = port.reservations.ticket() if asked is None else asked.ticket
        buses = await query_pci_buses(port, asked)
        with pci_place(port.reservations, ticket, buses, id, bus, addr) as place:
            async with Undo(port) as undo:
                passed, netdev = _pass_taps(undo, id, tap_fds, vhost_fds) if backend is None else ([], backend)
                made = undo.send("netdev_add", {**netdev, "id": id}, undo=Revert("netdev_del", {"id": id}))
                await undo.results(*passed, made)
                device = _device(id, model, place, mac, queues, options)
                plugged = undo.send("device_add", device, undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT))
                told = undo.send("qom-get", {"path": f"{PERIPHERAL}/{id}", "property": "mac"})
                _, actual = await undo.results(plugged, told)
                undo.keep()
    return Nic(id=id, bus=place.bus, addr=place.addr, mac=actual, queues=queues)


def _pass_taps(
    undo: Undo, id: str, tap_fds: Sequence[int], vhost_fds: Sequence[int]
) -> tuple[list[Call], dict[str, Any]]:
    """Pass descriptors; return the commands, and the back end that stands on them."""
    calls = list[Call]()
    names: dict[str, list[str]] = {"fds": [], "vhostfds": []}
    for kind, fds in (("fds", tap_fds), ("vhostfds", vhost_fds)):
        for number, fd in enumerate(fds):
            name = f"{id}.{kind}{number}"
            # A netdev takes its descriptors out of the monitor, so they may be gone by then.
            close = Revert("closefd", {"fdname": name}, may_be_gone=True)
            calls.append(undo.send("getfd", {"fdname": name}, fd=fd, undo=close))
            names[kind].append(name)
    netdev: dict[str, Any] = {"type": "tap", "fds": ":".join(names["fds"])}
    if vhost_fds:
        # Without vhostforce QEMU 7.2 only warns when a vhost descriptor is no good, and then aborts over it.
        netdev |= {"vhost": True, "vhostforce": True, "vhostfds": ":".join(names["vhostfds"])}
    return calls, netdev


def _device(
    id: str, model: str, place: Place, mac: str | None, queues: int, options: dict[str, Any] | None
) -> dict[str, Any]:
    device: dict[str, Any] = {"driver": model, "id": id, "netdev": id, "bus": place.bus, "addr": place.addr}
    if mac is not None:
        device["mac"] = mac
    if queues > 1:
        # a vector for each queue of each pair, one for the control queue, one for the configuration
        device |= {"mq": True, "vectors": 2 * queues + 2}
    return device | (options or {})


async def hot_remove_nic(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a NIC from the running guest; its netdev goes when the guest has let go of the device.

    May be repeated: a NIC whose device has gone meanwhile only loses its netdev.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest said no; the NIC works on
    :raises UnplugPending: the guest said nothing; device and netdev stay until its next reset
    :raises HotplugError: there is no such NIC
    """
    with port.reservations.name(id):
        netdev = await _netdev_of(port, id)
        was_plugged = await unplug(port, id, timeout=timeout)
        try:
            await port.execute("netdev_del", {"id": netdev})
        except CommandError as error:
            if error.error_class != "DeviceNotFound":
                raise
            if not was_plugged:
                raise HotplugError(id, "there is no such NIC") from error


async def _netdev_of(port: Port, id: str) -> str:
    try:
        netdev: str = await port.execute("qom-get", {"path": f"{PERIPHERAL}/{id}", "property": "netdev"})
    except CommandError as error:
        if error.error_class == "DeviceNotFound":
            return id  # gone already: its netdev has the same id, if it was added here
        raise HotplugError(id, "this device is no NIC") from error
    return netdev


async def set_link(port: Port, name: str, *, up: bool) -> None:
    """Plug in a NIC's cable, or unplug it, as the guest sees it (``set_link``).

    :param name: id of the NIC, or of its network backend
    :raises CommandError: there is none
    """
    await port.execute("set_link", {"name": name, "up": up})


async def announce_arrival(port: Port) -> None:
    """Have a machine's NICs tell the switches, over and over, where they are now (``announce-self``).

    How often and when is what the migration parameters ``announce-…`` say.

    :raises CommandError: QEMU refuses
    """
    parameters = await get_migration_parameters(port)
    how = {name: parameters[f"announce-{name}"] for name in ("initial", "max", "rounds", "step")}
    if how["rounds"]:
        await port.execute("announce-self", how)
