"""Memory that comes and goes while the machine runs: DIMMs, and virtio-mem, which grows and shrinks."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, CommandError, HotplugError, MonitorTimeout, NoFreeSlot, NotSupported
from ..qmp.messages import Event
from ..qmp.ready import ready
from .image import check_choice
from .inventory import PERIPHERAL, query_memory_devices
from .nic import check_id
from .port import Port
from .qom import qom_get, qom_list
from .slots import pci_place
from .topology import query_pci_buses
from .undo import Revert, Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

BACKENDS: Final = ("memory-backend-ram", "memory-backend-memfd")
MIB: Final = 1 << 20
# QEMU plugs memory in whole huge pages, so that the guest can have some.
GRAIN: Final = 2 * MIB
# How long a guest may take to hand out or give back memory that virtio-mem asks for.
RESIZE_TIMEOUT: Final = 60.0
# The first QEMU whose virtio-mem can be taken out of an x86 machine.
_VIRTIO_MEM_UNPLUG: Final = (8, 2)


class MemoryDevice(Struct, frozen=True, kw_only=True, rename="kebab"):
    """Memory that is plugged in. Sizes are in bytes.

    :ivar kind: ``dimm``, ``virtio-mem``, ``nvdimm`` …
    :ivar id: of the device; empty where it was given none
    :ivar memdev: QOM path of what it is made of
    :ivar size: what the guest has of it
    :ivar at: where it begins in the guest's address space
    :ivar node: NUMA node
    :ivar slot: of a DIMM; None for others
    :ivar max_size, requested_size, block_size: of virtio-mem: the most, what the guest is asked for, and in which steps
    """

    kind: str
    memdev: str
    size: int
    id: str = ""
    at: int = 0
    node: int = 0
    slot: int | None = None
    max_size: int | None = None
    requested_size: int | None = None
    block_size: int | None = None


async def list_memory_devices(port: Port) -> list[MemoryDevice]:
    """Return the memory that is plugged in (``query-memory-devices``), as far as it is made of a backend."""
    return memory_devices_among(await query_memory_devices(port))


def memory_devices_among(entries: Iterable[dict[str, Any]]) -> list[MemoryDevice]:
    """The same, by what QEMU answers to ``query-memory-devices``."""
    known = [entry for entry in entries if {"memdev", "size"} <= entry["data"].keys()]
    return [convert(_told(entry), MemoryDevice) for entry in known]


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = entry["data"]
    return data | {"kind": entry["type"], "at": data.get("addr", data.get("memaddr", 0))}


async def _find(port: Port, id: str) -> MemoryDevice:
    for device in await list_memory_devices(port):
        if device.id == id:
            return device
    raise HotplugError(id, "there is no such memory")


# -- DIMMs -----------------------------------------------------------------------------------------------------------


async def hot_add_dimm(
    port: Port, *, id: str, size: int, node: int = 0, backend: str = BACKENDS[0], options: dict[str, Any] | None = None
) -> MemoryDevice:
    """Plug in a DIMM. All happens or nothing. Whether the guest uses it is up to the guest: Linux wants 128 MiB steps.

    :param id: for the device; its backend is called `id` with ``-mem`` behind it
    :param size: in bytes, a multiple of 2 MiB
    :param node: NUMA node
    :param options: more properties of the backend, such as ``{"prealloc": True}``
    :returns: what was plugged in
    :raises ArgumentError: an argument is wrong, or the machine's maximum would be passed; nothing was touched
    :raises NoFreeSlot: all slots are taken
    :raises NotSupported: the machine was started without room for memory (``-m …,slots=N,maxmem=SIZE``)
    :raises CommandError: QEMU refused a step
    """
    _check(id, size)
    check_choice("backend", backend, BACKENDS)
    with port.reservations.name(id), port.reservations.name("(a DIMM's slot)"):
        await _check_room(port, id, size)
        async with Undo(port) as undo:
            memory = await _add_backend(undo, backend, id, size, options)
            device = {"driver": "pc-dimm", "id": id, "memdev": memory, "node": node}
            await undo.step("device_add", device, undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT))
            found = await _find(port, id)
            undo.keep()
    return found


def _check(id: str, size: int) -> None:
    check_id(id)
    if size <= 0 or size % GRAIN:
        raise ArgumentError("size", size, "a positive multiple of 2 MiB, in bytes")


async def _add_backend(undo: Undo, backend: str, id: str, size: int, options: dict[str, Any] | None) -> str:
    name = f"{id}-mem"
    arguments = {"qom-type": backend, "id": name, "size": size} | (options or {})
    await undo.step("object-add", arguments, undo=Revert("object-del", {"id": name}))
    return name


async def _check_room(port: Port, id: str, size: int) -> None:
    """By the machine's own `memory` (QEMU 7.1 and later); before, QEMU's refusal has to do."""
    if "memory" not in {entry.name for entry in await qom_list(port, "/machine")}:
        return
    room = await qom_get(port, "/machine", "memory")
    slots, most = room.get("slots", 0), room.get("max-size", 0)
    if not slots:
        raise NotSupported("memory hotplug in this machine", "-m SIZE,slots=N,maxmem=SIZE at its start")
    devices = await list_memory_devices(port)
    if sum(device.slot is not None for device in devices) >= slots:
        raise NoFreeSlot(id, {"memory slots": slots})
    left = most - room["size"] - sum(device.max_size or device.size for device in devices)
    if size > left:
        raise ArgumentError("size", size, f"{max(0, left)} bytes at most: the machine's maximum is {most}")


async def hot_remove_dimm(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a DIMM from the running guest; its backend goes when the guest has let go of it. May be repeated.

    :param timeout: seconds for the guest to act
    :raises UnplugRefused: the guest cannot do without it; it stays
    :raises UnplugPending: the guest said nothing; it stays until its next reset
    :raises HotplugError: there is no such memory
    """
    await _remove(port, id, timeout)


async def _remove(port: Port, id: str, timeout: float) -> None:
    with port.reservations.name(id):
        try:
            backend = (await _find(port, id)).memdev.rpartition("/")[2]
        except HotplugError:
            backend = f"{id}-mem"  # an earlier call may have been cut off behind the unplug
        was_plugged = await unplug(port, id, timeout=timeout)
        try:
            await port.execute("object-del", {"id": backend})
        except CommandError:
            if not was_plugged:
                raise HotplugError(id, "there is no such memory") from None
            raise


# -- virtio-mem ------------------------------------------------------------------------------------------------------


async def hot_add_virtio_mem(
    port: Port,
    *,
    id: str,
    max_size: int,
    node: int = 0,
    bus: str | None = None,
    addr: str | None = None,
    options: dict[str, Any] | None = None,
) -> MemoryDevice:
    """Plug in a virtio-mem device, of which the guest has nothing yet: :func:`resize_virtio_mem` gives it some.

    All happens or nothing.

    :param id: for the device; its backend is called `id` with ``-mem`` behind it
    :param max_size: the most that it may ever give, in bytes; a multiple of 2 MiB
    :param node: NUMA node
    :param bus: PCI bus; None for the first with a free slot
    :param addr: slot on `bus`; None for the first that is free
    :param options: more properties of the device
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NoFreeSlot: no bus has room
    :raises CommandError: QEMU refused a step, such as for memory beyond the machine's maximum
    """
    _check(id, max_size)
    with port.reservations.name(id):
        ticket = port.reservations.ticket()
        buses = await query_pci_buses(port)
        with pci_place(port.reservations, ticket, buses, id, bus, addr) as place:
            async with Undo(port) as undo:
                memory = await _add_backend(undo, BACKENDS[0], id, max_size, {"reserve": False})
                device = {"driver": "virtio-mem-pci", "id": id, "memdev": memory, "node": node}
                device |= {"bus": place.bus, "addr": place.addr} | (options or {})
                await undo.step("device_add", device, undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT))
                found = await _find(port, id)
                undo.keep()
    return found


async def resize_virtio_mem(port: Port, id: str, size: int, *, timeout: float = RESIZE_TIMEOUT) -> int:
    """Ask the guest to take memory of a virtio-mem device, or to give some back, and wait until it has.

    A request, which stays: what the guest has not done in time it may do later.

    :param size: what the guest is to have of it, in bytes; a multiple of the device's block size
    :param timeout: seconds for the guest to act
    :returns: what the guest has of it now, in bytes: `size`, or something else where it did not follow in time
    :raises ArgumentError: the size is beyond the device's maximum, or no multiple of its blocks
    :raises HotplugError: there is no such memory
    """
    device = await _find(port, id)
    if device.max_size is None or device.block_size is None:
        raise HotplugError(id, "this memory is no virtio-mem")
    if not 0 <= size <= device.max_size or size % device.block_size:
        raise ArgumentError("size", size, f"0 to {device.max_size} bytes in steps of {device.block_size}")
    mark, deadline = port.event_mark(), port.now() + timeout
    await port.execute("qom-set", {"path": f"{PERIPHERAL}/{id}", "property": "requested-size", "value": size})
    while (now := (await _find(port, id)).size) != size:

        def concerns(event: Event) -> bool:
            return event.data.get("id") == id or event.data.get("qom-path") == f"{PERIPHERAL}/{id}"

        try:
            event = await port.wait_event(
                ("MEMORY_DEVICE_SIZE_CHANGE",), since=mark, match=concerns, timeout=max(0.0, deadline - port.now())
            )
        except MonitorTimeout:
            return (await _find(port, id)).size
        mark = event.number
    return now


async def hot_remove_virtio_mem(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
    """Take a virtio-mem device from the running guest, which must have given back all of it.

    :param timeout: seconds for the guest to act
    :raises NotSupported: before QEMU 8.2 none can be taken out
    :raises HotplugError: there is no such memory, or the guest still has some of it
    :raises UnplugRefused: the guest said no
    :raises UnplugPending: the guest said nothing; it stays until its next reset
    """
    if port.version[:2] < _VIRTIO_MEM_UNPLUG:
        raise NotSupported("taking out virtio-mem", "QEMU 8.2 or later")
    device = await _find(port, id)
    if device.size:
        raise HotplugError(id, f"the guest still has {device.size} bytes of it: resize_virtio_mem to 0 first")
    await _remove(port, id, timeout)


ready(MemoryDevice)
