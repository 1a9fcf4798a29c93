"""Which buses a machine has and what is taken on them, asked of the running QEMU."""

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ArgumentError, CommandError
from ..qmp.life import Call
from .inventory import PERIPHERAL, query_devices, query_pci
from .port import Port
from .slots import ROOTS, PciBus, enumerated, mark_used, pci_buses

# What is on these ``query-pci`` always shows.
_ROOT_BUSES = frozenset(name for name, _ in ROOTS.values())
# These are on such a bus only.
_ROOT_PORTS = frozenset({"pcie-root-port", "ioh3420"})
# virtio-scsi controllers, as QOM names their types.
_SCSI_CONTROLLERS = frozenset({"virtio-scsi-pci", "virtio-scsi-pci-non-transitional", "virtio-scsi-pci-transitional"})


class AskedBuses(NamedTuple):
    """The question for the PCI buses, sent ahead: QEMU answers while the caller does something else.

    :ivar ticket: drawn from the port's reservations before it
    """

    ticket: int
    call: Call


async def ask_pci_buses(port: Port) -> AskedBuses:
    """Send the question of :func:`query_pci_buses`, and do not wait; the answer is for one flow on this monitor."""
    return AskedBuses(port.reservations.ticket(), port.submit("query-pci"))


async def query_pci_buses(port: Port, asked: AskedBuses | None = None) -> list[PciBus]:
    """Return all PCI buses that take hotplug or could, and which of their slots are taken.

    While a machine is in its firmware ``query-pci`` shows nothing behind a bridge; then
    the devices are asked one by one where they are.

    :param asked: the question, where it was sent ahead
    """
    reply = await query_pci(port) if asked is None else await port.result(asked.call)
    buses = pci_buses(reply)
    if not enumerated(reply):
        mark_used(buses, await _places_of_devices(port, buses))
    return buses


async def _places_of_devices(port: Port, buses: Sequence[PciBus]) -> list[tuple[str, int]]:
    """Bus and slot of each device that is behind a bridge. QEMU takes its time to answer, so little is asked."""
    behind = {bus.name for bus in buses} - _ROOT_BUSES
    devices = await query_devices(port)
    paths = [f"{PERIPHERAL}/{device}" for device, kind in devices.items() if kind not in _ROOT_PORTS]
    told = await port.ask_many([("qom-get", {"path": path, "property": "parent_bus"}) for path in paths])
    # None: it is on no bus, or has just gone
    found = {path: bus.rpartition("/")[2] for path, bus in zip(paths, told, strict=True) if bus is not None}
    found = {path: bus for path, bus in found.items() if bus in behind}
    slots = await port.ask_many([("qom-get", {"path": path, "property": "addr"}) for path in found])
    return [(bus, addr >> 3) for bus, addr in zip(found.values(), slots, strict=True) if addr is not None]


async def find_scsi_bus(port: Port) -> str:
    """Return the bus of the machine's first virtio-scsi controller.

    :raises ArgumentError: it has none that has an id
    """
    for name, kind in (await query_devices(port)).items():
        if kind in _SCSI_CONTROLLERS:
            return f"{name}.0"
    raise ArgumentError("driver", "virtio-scsi", "only in a machine that has a virtio-scsi controller with an id")


async def query_scsi_units(port: Port, bus: str) -> list[tuple[int, int]]:
    """Return target and LUN of each unit on `bus`.

    :raises ArgumentError: there is no such bus
    """
    path = f"{PERIPHERAL}/{bus.rpartition('.')[0]}/virtio-backend/{bus}"
    try:
        children = await port.execute("qom-list", {"path": path})
    except CommandError as error:
        raise ArgumentError("bus", bus, "the bus of a virtio-scsi controller, such as 'scsi0.0'") from error
    links = [f"{path}/{child['name']}" for child in children if child["type"].startswith("link<scsi-")]
    found = await port.execute_many(
        [("qom-get", {"path": link, "property": name}) for link in links for name in ("scsi-id", "lun")]
    )
    return list(zip(found[::2], found[1::2], strict=True))
