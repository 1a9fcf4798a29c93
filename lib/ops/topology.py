"""Which buses a machine has and what is taken on them, asked of the running QEMU."""

from ..errors import ArgumentError, CommandError
from .inventory import PERIPHERAL, query_devices, query_pci
from .port import Port
from .slots import PciBus, enumerated, mark_used, pci_buses

# virtio-scsi controllers, as QOM names their types.
_SCSI_CONTROLLERS = frozenset({"virtio-scsi-pci", "virtio-scsi-pci-non-transitional", "virtio-scsi-pci-transitional"})


async def query_pci_buses(port: Port) -> list[PciBus]:
    """Return all PCI buses that take hotplug or could, and which of their slots are taken.

    While a machine is in its firmware ``query-pci`` shows nothing behind a bridge; then
    the devices are asked one by one where they are.
    """
    reply = await query_pci(port)
    buses = pci_buses(reply)
    if not enumerated(reply):
        mark_used(buses, await _places_of_devices(port))
    return buses


async def _places_of_devices(port: Port) -> list[tuple[str, int]]:
    places = []
    for device in await query_devices(port):
        path = f"{PERIPHERAL}/{device}"
        try:
            bus = await port.execute("qom-get", {"path": path, "property": "parent_bus"})
            addr = await port.execute("qom-get", {"path": path, "property": "addr"})
        except CommandError:
            continue  # it is on no bus, or on one that is not PCI, or has just gone
        places.append((bus.rpartition("/")[2], addr >> 3))
    return places


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
