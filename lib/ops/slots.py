"""Free places for devices: PCI slots from ``query-pci``, SCSI targets from the units that there are. All of it pure.

On the i440fx machine (``pc``) the root bus ``pci.0`` takes hotplug itself. On q35 the
root bus ``pcie.0`` does not: each root port offers one slot, a bridge behind one
offers thirty-one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

from bitarray import bitarray

from ..errors import ArgumentError, NoFreeSlot
from .reservations import Reservations

PCI_SLOTS: Final = 32
SCSI_TARGETS: Final = 256  # of virtio-scsi (VIRTIO_SCSI_MAX_TARGET)
SCSI_LUNS: Final = 16384  # of each (VIRTIO_SCSI_MAX_LUN)


class BusKind(NamedTuple):
    """What kind of bus a device provides: which slots of it take hotplug.

    :ivar first: the first usable slot
    :ivar slots: how many there are; 0 for a bus that takes no hotplug
    """

    first: int
    slots: int


_ROOT_PORT = BusKind(0, 1)
# Slot 0 of a conventional bridge belongs to its hotplug controller (SHPC), where it has one.
_BRIDGE = BusKind(1, PCI_SLOTS - 1)
_CLOSED = BusKind(0, 0)

# (vendor, device) of the bridges that QEMU has.
BRIDGES: Final[Mapping[tuple[int, int], BusKind]] = {
    (0x1B36, 0x000C): _ROOT_PORT,  # pcie-root-port
    (0x8086, 0x3420): _ROOT_PORT,  # ioh3420
    (0x104C, 0x8233): _ROOT_PORT,  # xio3130-downstream
    (0x104C, 0x8232): _CLOSED,  # x3130-upstream
    (0x1B36, 0x0001): _BRIDGE,  # pci-bridge
    (0x1B36, 0x000E): _BRIDGE,  # pcie-pci-bridge
    (0x8086, 0x244E): _BRIDGE,  # i82801b11-bridge
}

# (vendor, device) of the host bridges: the root bus's name and kind.
ROOTS: Final[Mapping[tuple[int, int], tuple[str, BusKind]]] = {
    (0x8086, 0x1237): ("pci.0", BusKind(1, PCI_SLOTS - 1)),  # i440fx
    (0x8086, 0x29C0): ("pcie.0", _CLOSED),  # q35
}


class Place(NamedTuple):
    """Where a device goes, as ``device_add`` wants it."""

    bus: str
    slot: int

    @property
    def addr(self) -> str:
        """The ``addr`` property: slot and function, in hexadecimal."""
        return f"{self.slot:02x}.0"


class PciBus(NamedTuple):
    """A PCI bus: its name, its kind, and one bit a slot, set where it is taken."""

    name: str
    kind: BusKind
    used: bitarray

    @property
    def usable(self) -> range:
        """The slots that take hotplug."""
        return range(self.kind.first, self.kind.first + self.kind.slots)

    def free(self) -> Iterator[int]:
        """Slots that take hotplug and are free, lowest first."""
        stop = self.kind.first + self.kind.slots
        return self.used.search(bitarray("0"), self.kind.first, stop) if self.kind.slots else iter(())


def pci_buses(query_pci: Sequence[Mapping[str, Any]]) -> list[PciBus]:
    """All buses that can be named, from the reply of ``query-pci``, root first, then in slot order."""
    buses: list[PciBus] = []
    for root in query_pci:
        devices = root["devices"]
        known = [ROOTS[key] for key in map(_identity, devices) if key in ROOTS]
        if known:
            name, kind = known[0]
            _collect(PciBus(name, kind, _taken(devices)), devices, buses)
    return buses


def _collect(bus: PciBus, devices: Sequence[Mapping[str, Any]], into: list[PciBus]) -> None:
    into.append(bus)
    for device in devices:
        if "pci_bridge" not in device:
            continue
        behind = device["pci_bridge"].get("devices", [])
        # A bridge's bus is addressed by the bridge's id; one without an id cannot be.
        kind = BRIDGES.get(_identity(device), _CLOSED) if device.get("qdev_id") else _CLOSED
        _collect(PciBus(device.get("qdev_id", ""), kind, _taken(behind)), behind, into)


def _identity(device: Mapping[str, Any]) -> tuple[int, int]:
    return device["id"]["vendor"], device["id"]["device"]


def _taken(devices: Iterable[Mapping[str, Any]]) -> bitarray:
    used = bitarray(PCI_SLOTS)
    used.setall(0)
    for device in devices:
        used[device["slot"]] = 1
    return used


def enumerated(query_pci: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the firmware has numbered the buses; before that ``query-pci`` shows not all that is behind bridges.

    QEMU finds what is behind a bridge by the number of its bus. SeaBIOS gives all of them the number 255 before it
    numbers one after the other: for as long, each bridge that is left is shown with what is behind the first.
    """
    bridges = list[Mapping[str, Any]]()

    def collect(devices: Iterable[Mapping[str, Any]]) -> None:
        for device in devices:
            if "pci_bridge" in device:
                bridges.append(device["pci_bridge"])
                collect(device["pci_bridge"].get("devices", ()))

    for root in query_pci:
        collect(root["devices"])
    numbers = {bridge["bus"]["secondary"] for bridge in bridges}
    return len(numbers) == len(bridges) and 0 not in numbers and all("devices" in bridge for bridge in bridges)


def mark_used(buses: Iterable[PciBus], devices: Iterable[tuple[str, int]]) -> None:
    """Mark what is known from elsewhere to be taken: pairs of bus name and slot."""
    by_name = {bus.name: bus for bus in buses}
    for name, slot in devices:
        if name in by_name:
            by_name[name].used[slot] = 1


@contextmanager
def pci_place(
    reservations: Reservations,
    ticket: int,
    buses: Sequence[PciBus],
    device: str,
    bus: str | None = None,
    addr: str | None = None,
) -> Iterator[Place]:
    """Reserve a free slot for `device` until the end of the block.

    :param ticket: drawn from `reservations` before ``query-pci``
    :param bus: only on this bus; None for any that takes hotplug
    :param addr: the caller's own choice on `bus`, as in ``05.0``; it is QEMU that checks it
    :raises NoFreeSlot: all buses are full; says which
    :raises ArgumentError: there is no such bus, or it takes no hotplug
    """
    if addr is not None:
        yield Place(_named(buses, bus).name, _slot(addr))
        return
    chosen = [bus_ for bus_ in buses if bus_.kind.slots] if bus is None else [_named(buses, bus)]
    keys = [Place(entry.name, slot) for entry in chosen for slot in entry.free()]
    with ExitStack() as held:
        try:
            place = held.enter_context(reservations.hold(keys, ticket))
        except LookupError:
            raise NoFreeSlot(device, {entry.name: entry.kind.slots for entry in chosen}) from None
        yield place


def _named(buses: Sequence[PciBus], name: str | None) -> PciBus:
    for bus in buses:
        if bus.name == name and bus.kind.slots:
            return bus
    known = ", ".join(bus.name for bus in buses if bus.kind.slots) or "none"
    raise ArgumentError("bus", name, f"buses of this machine that take hotplug: {known}")


def _slot(addr: str) -> int:
    try:
        return int(addr.partition(".")[0], 16)
    except ValueError:
        raise ArgumentError("addr", addr, "a slot in hexadecimal, such as '05' or '05.0'") from None


class ScsiPlace(NamedTuple):
    """Where a SCSI disk goes: bus of a controller, target and logical unit."""

    bus: str
    target: int
    lun: int

    @property
    def addr(self) -> str:
        """Target and LUN, as in ``3:0``."""
        return f"{self.target}:{self.lun}"


@contextmanager
def scsi_place(
    reservations: Reservations,
    ticket: int,
    device: str,
    bus: str,
    used: Iterable[tuple[int, int]],
    addr: str | None = None,
) -> Iterator[ScsiPlace]:
    """Reserve a place on `bus` until the end of the block: LUN 0 of the first target that has no unit.

    :param used: targets and LUNs of the units on `bus`, asked of QEMU after `ticket` was drawn
    :param addr: the caller's own choice, as in ``3:5``; it is QEMU that checks whether it is free
    :raises NoFreeSlot: all 256 targets have a unit
    :raises ArgumentError: `addr` is no target and LUN
    """
    if addr is not None:
        yield ScsiPlace(bus, *_unit(addr))
        return
    targets = bitarray(SCSI_TARGETS)
    targets.setall(0)
    for target, _ in used:
        targets[target] = 1
    keys = (ScsiPlace(bus, target, 0) for target in targets.search(bitarray("0")))
    with ExitStack() as held:
        try:
            place = held.enter_context(reservations.hold(keys, ticket))
        except LookupError:
            raise NoFreeSlot(device, {bus: SCSI_TARGETS}) from None
        yield place


def _unit(addr: str) -> tuple[int, int]:
    target, _, lun = addr.partition(":")
    if not (target.isdecimal() and lun.isdecimal() and int(target) < SCSI_TARGETS and int(lun) < SCSI_LUNS):
        allowed = f"a SCSI target below {SCSI_TARGETS} and a LUN below {SCSI_LUNS}, such as '3:0'"
        raise ArgumentError("addr", addr, allowed)
    return int(target), int(lun)
