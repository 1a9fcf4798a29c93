"""What another node has to know of a machine that runs: by its document, and by what its QEMU says that it has."""

import re
from collections.abc import Iterable
from typing import Final

from msgspec import convert

from ..errors import NotSupported
from ..monitor.connection import QmpConnection
from ..ops.cpu import slots_among
from ..ops.inventory import QUERY_DEVICES, MemoryInfo, devices_among
from ..ops.memory import MemoryDevice, memory_devices_among
from .kinds import PERIPHERAL, place_of
from .parcel import Board, Parcel, Stick, Vcpu
from .record import Runtime
from .spec import Spec, UsbDevice

_ROOT_PORT: Final = re.compile(r"rp\d+")
# Asked at once: each answer by itself takes half a millisecond.
_QUESTIONS: Final = (
    QUERY_DEVICES,
    ("query-hotpluggable-cpus", None),
    ("query-memory-size-summary", None),
    ("query-memory-devices", None),
)
_SCSI: Final = re.compile(r"scsi\d+")


def parcel_of(runtime: Runtime, vm: QmpConnection) -> Parcel:
    """What another node has to know to receive an instance that runs.

    :raises NotSupported: it has memory of a kind that is not known here
    """
    places = {name: (device.bus, device.addr) for name, device in runtime.devices.items() if device.bus}
    return Parcel(
        spec=runtime.spec, machine=runtime.machine, version=runtime.version, accelerator=runtime.accelerator,
        generation=runtime.generation, places=places, board=_board(vm),
    )  # fmt: skip


def check_portable(runtime: Runtime) -> None:
    """See that nothing of a machine is bound to its host.

    :raises NotSupported: something is; names the device
    """
    spec = runtime.spec
    if bound := bound_devices(spec):
        named = ", ".join(f"{name} ({what})" for name, what in bound.items())
        raise NotSupported(f"migration of {spec.name} with {named}", "that to be taken out before", by="any other host")


def bound_devices(spec: Spec) -> dict[str, str]:
    """What of a machine is bound to its host: what it is, by its id."""
    bound = {device.id: "a PCI device of the host" for device in spec.vfio}
    bound |= {device.id: "a USB device of the host" for device in spec.usb if _is_host(device)}
    bound |= {nic.id: "a network card on descriptors that were given to it" for nic in spec.nics if nic.mode == "fd"}
    return bound


def _is_host(device: UsbDevice) -> bool:
    return device.type == "host"


def _board(vm: QmpConnection) -> Board:
    entries, places, memory, sticks = vm.execute_many(_QUESTIONS)
    devices = devices_among(entries)
    slots = [slot for slot in slots_among(places) if slot.qom_path is not None]
    plugged = {str(slot.qom_path).removeprefix(f"{PERIPHERAL}/"): slot for slot in slots
               if str(slot.qom_path).startswith(f"{PERIPHERAL}/")}  # fmt: skip
    vcpus = (Vcpu(id=name, driver=slot.type, place=slot.props) for name, slot in plugged.items())
    scsi = sorted((name for name in devices if _SCSI.fullmatch(name)), key=lambda name: int(name[4:]))
    return Board(
        vcpus=sum(slot.vcpus_count for slot in slots) - len(plugged),
        memory=convert(memory, MemoryInfo).base_memory,
        root_ports=sum(_ROOT_PORT.fullmatch(name) is not None for name in devices),
        scsi={name: str(vm.qom_get(f"{PERIPHERAL}/{name}", "iothread")).rpartition("/")[2] for name in scsi},
        usb="xhci" in devices,
        plugged_vcpus=tuple(vcpus),
        sticks=tuple(_sticks(vm, memory_devices_among(sticks))),
    )


def _sticks(vm: QmpConnection, devices: Iterable[MemoryDevice]) -> list[Stick]:
    found = []
    for device in devices:
        if device.kind == "dimm":
            stick = Stick(id=device.id, kind="dimm", size=device.size, used=device.size, at=device.at,
                          node=device.node, slot=device.slot or 0)  # fmt: skip
        elif device.kind == "virtio-mem":
            bus, addr = place_of(vm, device.id)
            stick = Stick(id=device.id, kind="virtio-mem", size=device.max_size or 0, used=device.size, at=device.at,
                          node=device.node, bus=bus, addr=addr)  # fmt: skip
        else:
            raise NotSupported(f"migration of memory of the kind {device.kind}, {device.id},", by="this Drover")
        found.append(stick)
    return found
