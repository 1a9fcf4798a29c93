"""Where each device goes: all addresses are said, so that the machine is the same at each start and on each node.

On q35 what can be unplugged is on root ports, which come eight in a slot of ``pcie.0``; on pc it is on
``pci.0`` itself, and then on bridges. What stays has a slot of its own from the upper end down, whether or
not the others are there: a device more in a specification moves none of those.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ...errors import ArgumentError
from ...ops.slots import PCI_SLOTS, Place

# Slots of the devices that stay. On q35 1f is QEMU's, on pc 01.
FIXED: Final[Mapping[str, int]] = {
    "vserial": 0x1E,
    "balloon": 0x1D,
    "rng": 0x1C,
    "xhci": 0x1B,
    "vsock": 0x1A,
    "watchdog": 0x19,
    "scsi0": 0x18,
    "scsi1": 0x17,
    "scsi2": 0x16,
    "scsi3": 0x15,
    "br0": 0x14,
    "br1": 0x13,
    "br2": 0x12,
    "br3": 0x11,
    "ahci": 0x10,
}
_VIDEO: Final = {True: 0x01, False: 0x02}  # q35, pc: where firmware and guests are used to it
_FIRST_PORT: Final = 0x02
_FIRST_FREE: Final = 0x03  # of pc
PORTS_PER_SLOT: Final = 8
MAX_ROOT_PORTS: Final = (min(FIXED.values()) - _FIRST_PORT) * PORTS_PER_SLOT


class Places:
    """Places of one machine.

    :param q35: it has PCI Express
    :param pluggable: ids of the devices that can be unplugged, in the order in which they get their places
    :param fixed: names of the devices that stay, of :data:`FIXED`
    :param spare: root ports for hotplug
    :param bridges: their number
    :param before: bus and address where devices were before, by their ids
    :param root_ports: exactly so many; None: as many as it takes
    :ivar root_ports: their number
    :raises ArgumentError: there is no room
    """

    def __init__(
        self,
        *,
        q35: bool,
        pluggable: Sequence[str],
        fixed: Iterable[str],
        spare: int,
        bridges: int,
        before: Mapping[str, tuple[str, str]],
        root_ports: int | None = None,
    ) -> None:
        self.root = "pcie.0" if q35 else "pci.0"
        self._q35 = q35
        self._bridges = bridges
        wanted = {name: Place(bus, slot_of(addr)) for name, (bus, addr) in before.items() if name in pluggable}
        if root_ports is None:
            root_ports = self._count_ports(len(pluggable) + spare, wanted.values()) if q35 else 0
        self.root_ports = root_ports
        self._taken = self._assign(pluggable, wanted, list(self._all({FIXED[name] for name in fixed})))

    @staticmethod
    def _count_ports(least: int, wanted: Iterable[Place]) -> int:
        numbers = [int(place.bus[2:]) for place in wanted if place.bus.startswith("rp") and place.bus[2:].isdecimal()]
        ports = max([least, *(number + 1 for number in numbers if number < MAX_ROOT_PORTS)])
        if ports > MAX_ROOT_PORTS:
            allowed = f"possible: with those of disks and cards that is more than {MAX_ROOT_PORTS}"
            raise ArgumentError("machine.root_ports", ports, allowed)
        return ports

    def _all(self, fixed: Container[int]) -> Iterator[Place]:
        """All places for what can be unplugged, in the order in which they are taken."""
        if self._q35:
            yield from (Place(f"rp{n}", 0) for n in range(self.root_ports))
        else:
            yield from (Place(self.root, slot) for slot in range(_FIRST_FREE, PCI_SLOTS) if slot not in fixed)
        # slot 0 of a bridge is its hotplug controller's
        yield from (Place(f"br{n}", slot) for n in range(self._bridges) for slot in range(1, PCI_SLOTS))

    def _assign(
        self, pluggable: Sequence[str], wanted: Mapping[str, Place], every: Sequence[Place]
    ) -> dict[str, Place]:
        kept = {name: place for name, place in wanted.items() if place in every}
        free = (place for place in every if place not in kept.values())
        places = {}
        for name in pluggable:
            place = kept.get(name) or next(free, None)
            if place is None:
                raise ArgumentError("machine.bridges", self._bridges, f"enough: no PCI slot is left for {name}")
            places[name] = place
        return places

    def of(self, id: str) -> dict[str, str]:
        """The properties that put a device where it can be unplugged."""
        place = self._taken[id]
        return {"bus": place.bus, "addr": place.addr}

    def fixed(self, name: str) -> dict[str, str]:
        """The properties that put a device that stays at its place."""
        return {"bus": self.root, "addr": f"{FIXED[name]:02x}.0"}

    def video(self) -> dict[str, str]:
        """Those for the graphics card."""
        return {"bus": self.root, "addr": f"{_VIDEO[self._q35]:02x}.0"}

    def root_port(self, number: int) -> dict[str, Any]:
        """Those for a root port."""
        slot, function = divmod(number, PORTS_PER_SLOT)
        several = {"multifunction": True} if function == 0 else {}
        return {"bus": self.root, "addr": f"{_FIRST_PORT + slot:02x}.{function}", **several}


def slot_of(addr: str) -> int:
    """The slot of an address such as ``05.0``; -1 where it is none, as of a disk that was on SCSI then."""
    slot = addr.partition(".")[0]
    try:
        return int(slot, 16)
    except ValueError:
        return -1
