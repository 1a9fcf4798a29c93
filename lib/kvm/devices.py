"""What can be done with the devices of an instance that runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from ..errors import ArgumentError, DeviceNotFound, HotplugError, InstanceTimeout
from ..monitor.connection import QmpConnection
from ..ops.balloon import BALLOON_TIMEOUT
from ..ops.cdrom import EJECT_TIMEOUT
from ..ops.memory import RESIZE_TIMEOUT
from ..ops.unplug import UNPLUG_TIMEOUT
from ..ops.virtio import DriverState
from . import changes, plugs
from .condition import Ahead
from .kinds import CPU, DISK, MEMORY, NIC, USB, VFIO, Cpu, Cpus, Memory
from .ledger import Ledger
from .record import runtime_of
from .spec import Disk, Nic, UsbDevice, VfioDevice
from .view import check_visible

# Seconds for the guest to see a device and have its driver ready; on a root port Linux takes up to 5.
DRIVER_TIMEOUT: Final = 15.0
_GIVEN_UP: Final = (
    "it is plugged in, and the guest's driver has given up on it: mostly as there are no interrupt vectors left, of "
    "which each vCPU brings some; disks on virtio-scsi need none of their own"
)


class Devices(ABC):
    """The devices of one instance. What is plugged in or out is so in its specification too, from then on.

    Each of these raises :class:`~drover.errors.WrongState` if it does not run.
    """

    @abstractmethod
    def _running(
        self, operation: str, *, moving: bool = False, ahead: Ahead | None = None
    ) -> AbstractContextManager[tuple[Ledger, QmpConnection]]:
        """Its document under its lock, mended, and a connection to its QEMU."""

    # -- disks --------------------------------------------------------------------------------------------------------

    def add_disk(self, **fields: Any) -> Disk:
        """Plug a disk in.

        :param fields: of the disk, as in a specification
        :returns: it, with its id
        :raises SpecError: the fields are wrong, or do not go with the other devices'
        :raises HotplugError: it could not be added; nothing of it stays
        """
        plug = plugs.Plug(DISK, fields)
        with self._running("add-disk", ahead=plug.ask) as (ledger, vm):
            disk: Disk = plugs.add_one(ledger, vm, plug, "disks")
            return disk

    def remove_disk(self, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Take a disk out. Its image is not touched.

        :param timeout: seconds for the guest to let go of it
        :raises UnplugRefused: the guest keeps it
        :raises UnplugPending: the guest says nothing; it goes at its next reset, and is the instance's until then
        """
        with self._running("remove-disk") as (ledger, vm):
            plugs.remove(ledger, vm, DISK, id, timeout)

    def resize_disk(self, id: str, size: int, *, shrink: bool = False, dry_run: bool = False) -> int:
        """Make a disk larger, and tell the guest. Of a block device, which grew before, only the guest is told.

        :param size: in bytes, in whole sectors of 512
        :param shrink: let it be smaller than it is: what is beyond is lost
        :param dry_run: only see whether it may be so large
        :returns: its size now
        :raises ArgumentError: there is no such disk, or it is larger than that
        :raises CommandError: its storage cannot be so large
        """
        with self._running("resize-disk") as (ledger, vm):
            plugs.known(ledger, id, DISK.name)
            now = vm.query_disk_size(id)
            if size < now and not shrink:
                raise ArgumentError("size", size, f"at least the {now} bytes that it has, unless it is to be cut off")
            return now if dry_run else vm.resize_disk(id, size)

    def set_throttle(self, id: str, **limits: int) -> None:
        """Give a disk other limits, all at once: what is not said is no limit.

        :param limits: of a :class:`~drover.kvm.spec.Throttle`, such as ``iops_total=500``
        :raises SpecError: they are wrong
        """
        with self._running("set-throttle") as (ledger, vm):
            plugs.known(ledger, id, DISK.name)
            disk: Disk = plugs.another(ledger, "disks", id, {"throttle": limits or None})
            plugs.change(ledger, vm, changes.THROTTLE, id=id, throttle=disk.throttle)

    def change_medium(
        self, id: str, source: str, *, format: str = "raw", force: bool = False, timeout: float = EJECT_TIMEOUT
    ) -> None:
        """Put a medium into a CD drive, in place of the one that is in it, if any.

        :param source: an image, as in a specification; empty only takes out what is in it
        :param force: even if the guest holds the tray shut
        :param timeout: seconds for the guest to let the tray open
        :raises TrayLocked: the guest holds the tray shut; the old medium is in
        :raises DeviceNotFound: there is no such drive
        """
        with self._running("change-medium") as (ledger, vm):
            drives = [disk.id for disk in runtime_of(ledger.document).spec.disks if disk.cdrom]
            if id not in drives:
                raise DeviceNotFound(ledger.name, id, f"one of its CD drives: {', '.join(drives) or 'none'}")
            fields = {"source": source, "format": format if source else None, "backing": None}
            disk: Disk = plugs.another(ledger, "disks", id, fields)
            check_visible(runtime_of(ledger.document), disk)
            node = vm.tidy_cdrom(id).node
            plugs.change(ledger, vm, changes.MEDIUM, id=id, disk=disk, force=force, timeout=timeout, node=node)

    # -- network cards ------------------------------------------------------------------------------------------------

    def add_nic(self, *, fds: Sequence[int] = (), **fields: Any) -> Nic:
        """Plug a network card in; see :meth:`add_disk`.

        :param fds: mode ``fd``: descriptors of a tap, one for each pair of queues; they stay yours to close
        """
        plug = plugs.Plug(NIC, fields)
        with self._running("add-nic", ahead=plug.ask) as (ledger, vm):
            nic: Nic = plugs.add_one(ledger, vm, plug, "nics", fds)
            return nic

    def remove_nic(self, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Take a network card out; see :meth:`remove_disk`."""
        with self._running("remove-nic") as (ledger, vm):
            plugs.remove(ledger, vm, NIC, id, timeout)

    def set_link(self, id: str, *, up: bool) -> None:
        """Plug in the cable of a network card, or unplug it, as the guest sees it."""
        with self._running("set-link") as (ledger, vm):
            plugs.known(ledger, id, NIC.name)
            plugs.change(ledger, vm, changes.LINK, id=id, state="up" if up else "down")

    def change_nic(self, id: str, *, fds: Sequence[int] = (), **fields: Any) -> Nic:
        """Connect a network card to something else; it keeps its address.

        From one bridge to another the guest keeps the card, and sees its link go down and up. Else it sees the card go
        and come again, at the same place. Where that fails, all is as it was.

        :param fds: mode ``fd``: descriptors of a tap; they stay yours to close
        :param fields: that are to be other ones, as in a specification; None is as if it had not been said
        :raises SpecError: they are wrong
        :raises UnplugPending: the guest does not let go of the card
        """
        with self._running("change-nic") as (ledger, vm):
            plugs.known(ledger, id, NIC.name)
            nic: Nic = plugs.another(ledger, "nics", id, fields)
            plugs.change(ledger, vm, changes.BACKEND, fds, id=id, nic=nic)
            return nic

    # -- others -------------------------------------------------------------------------------------------------------

    def add_usb(self, **fields: Any) -> UsbDevice:
        """Plug a USB device in; see :meth:`add_disk`."""
        plug = plugs.Plug(USB, fields)
        with self._running("add-usb", ahead=plug.ask) as (ledger, vm):
            device: UsbDevice = plugs.add_one(ledger, vm, plug, "usb")
            return device

    def remove_usb(self, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Take a USB device out; the guest is not asked."""
        with self._running("remove-usb") as (ledger, vm):
            plugs.remove(ledger, vm, USB, id, timeout)

    def add_vfio(self, **fields: Any) -> VfioDevice:
        """Give the guest a PCI device of the host; see :meth:`add_disk`."""
        plug = plugs.Plug(VFIO, fields)
        with self._running("add-vfio", ahead=plug.ask) as (ledger, vm):
            device: VfioDevice = plugs.add_one(ledger, vm, plug, "vfio")
            return device

    def remove_vfio(self, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Take a PCI device of the host from the guest; see :meth:`remove_disk`."""
        with self._running("remove-vfio") as (ledger, vm):
            plugs.remove(ledger, vm, VFIO, id, timeout)

    def set_vcpus(self, count: int, *, timeout: float = UNPLUG_TIMEOUT, even_under_tcg: bool = False) -> int:
        """Plug vCPUs in or out until there are so many. Those that were there at the start stay.

        :param count: up to ``cpu.max`` of the specification
        :param timeout: seconds for the guest to let go of each
        :param even_under_tcg: also without KVM, though QEMU may abort over it, and the machine be lost
        :returns: how many there are
        :raises NotSupported: it runs without KVM
        """
        with self._running("set-vcpus") as (ledger, vm):
            runtime = runtime_of(ledger.document)
            plugged = [name for name, device in runtime.devices.items() if device.kind == CPU.name]
            now = len(vm.query_cpus())
            if not now - len(plugged) <= count <= runtime.spec.cpu.max:
                raise ArgumentError("count", count, f"{now - len(plugged)} to {runtime.spec.cpu.max}")
            kind = Cpus(even_under_tcg)
            for _ in range(count - now):
                free = next(name for n in range(now, 2 * now + count) if (name := f"cpu{n}") not in runtime.devices)
                plugs.add(ledger, vm, kind, Cpu(id=free))
            for name in reversed(plugged[count - now :] if count < now else ()):
                plugs.remove(ledger, vm, kind, name, timeout)
            return count

    def add_memory(self, size: int, *, type: str = "dimm") -> Memory:
        """Plug memory in.

        :param size: in bytes, in steps of 2 MiB (Linux uses a DIMM in steps of 128 MiB)
        :param type: ``dimm``; or ``virtio-mem``, of which the guest has nothing before :meth:`resize_memory`
        :returns: it, with its id
        :raises ArgumentError: it would be more than ``memory.max``
        :raises NotSupported: the instance was started without ``memory.slots``
        """
        if type not in ("dimm", "virtio-mem"):
            raise ArgumentError("type", type, "dimm or virtio-mem")
        with self._running("add-memory") as (ledger, vm):
            taken = runtime_of(ledger.document).devices
            prefix = "dimm" if type == "dimm" else "vmem"
            free = next(name for n in range(len(taken) + 1) if (name := f"{prefix}{n}") not in taken)
            memory = Memory(id=free, size=size, type="dimm" if type == "dimm" else "virtio-mem")
            plugs.add(ledger, vm, MEMORY, memory)
            return memory

    def remove_memory(self, id: str, *, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Take memory out; see :meth:`remove_disk`."""
        with self._running("remove-memory") as (ledger, vm):
            plugs.remove(ledger, vm, MEMORY, id, timeout)

    def resize_memory(self, id: str, size: int, *, timeout: float = RESIZE_TIMEOUT) -> int:
        """Give the guest so much of a virtio-mem device's memory; a request, which stays.

        :param size: in bytes
        :param timeout: seconds for the guest to act
        :returns: what it has of it now, in bytes
        """
        with self._running("resize-memory") as (ledger, vm):
            plugs.known(ledger, id, MEMORY.name)
            now = vm.resize_virtio_mem(id, size, timeout=timeout)
            plugs.settle(ledger, vm)
            return now

    def wait_driver(self, id: str, timeout: float = DRIVER_TIMEOUT) -> None:
        """Wait until the guest's driver is ready for a virtio device; nothing for others, of which QEMU tells nothing.

        :param timeout: in seconds
        :raises HotplugError: the guest's driver has given up on it; it stays plugged in
        :raises InstanceTimeout: none has come
        """
        with self._running("wait-driver") as (ledger, vm):
            state = vm.wait_driver(id, timeout)
            if state is DriverState.FAILED:
                raise HotplugError(id, _GIVEN_UP)
            if state is DriverState.WAITING:
                raise InstanceTimeout(ledger.name, f"the guest has no driver ready for {id}", timeout)

    def balloon(self, size: int, *, timeout: float = BALLOON_TIMEOUT) -> int:
        """Ask the guest to have so much memory, by its balloon; until its next start.

        :param size: in bytes
        :param timeout: seconds for the guest to act
        :returns: what it has now, in bytes
        """
        with self._running("balloon") as (_, vm):
            return vm.balloon(size, timeout=timeout)
