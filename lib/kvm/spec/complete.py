"""What a document leaves out and what follows from the rest of it: said once, so that what is kept is complete."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, TypeVar
from uuid import UUID, uuid4, uuid5

from msgspec.structs import replace

from .devices import Disk, Nic, UsbDevice, VfioDevice
from .model import Spec

D = TypeVar("D", Disk, Nic, UsbDevice, VfioDevice)


def complete(spec: Spec) -> Spec:
    """Fill in ids, buses, maxima and the boot order where they are not said."""
    cpu, memory = spec.cpu, spec.memory
    return replace(
        spec,
        cpu=replace(cpu, max=cpu.max or cpu.count),
        memory=replace(memory, max=memory.max or memory.size),
        disks=_in_boot_order(spec, _with_ids([_with_bus(disk) for disk in spec.disks], "disk", 0)),
        nics=_with_ids(spec.nics, "nic", 0),
        usb=_with_ids(spec.usb, "usb", 1),
        vfio=_with_ids(spec.vfio, "vfio", 0),
    )


def completed(spec: Spec) -> Spec:
    """The specification with what is chosen once and for all: its uuid and the addresses of its cards."""
    uuid = spec.uuid or str(uuid4())
    nics = [nic if nic.mac else replace(nic, mac=_mac(uuid, nic.id)) for nic in spec.nics]
    return replace(spec, uuid=uuid, nics=tuple(nics))


def _mac(owner: str, nic: str) -> str:
    """An address that this card always gets, in the range that is QEMU's and KVM's by custom."""
    return "52:54:00:" + uuid5(UUID(owner), nic).bytes[:3].hex(":")


def _with_bus(disk: Disk) -> Disk:
    return replace(disk, bus="sata" if disk.cdrom else "virtio-blk") if disk.bus == "auto" else disk


def _with_ids(devices: Sequence[D], prefix: str, first: int) -> tuple[D, ...]:
    taken = {device.id for device in devices}
    free: Iterator[str] = (name for n in count(first) if (name := f"{prefix}{n}") not in taken)
    return tuple(device if device.id else replace(device, id=next(free)) for device in devices)


def _in_boot_order(spec: Spec, disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Where nothing has a place in the boot order, the disks have, as they are written."""
    everything: list[Any] = [*disks, *spec.nics, *spec.vfio]
    if any(device.boot_index is not None for device in everything):
        return disks
    return tuple(replace(disk, boot_index=n) for n, disk in enumerate(disks, 1))
