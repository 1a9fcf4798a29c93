"""What can be plugged into an instance that runs and out of it: an object for each kind of device.

Each says how a device of its kind is plugged in and out, where it then is, what has to go with it, and what it is in
the specification. When that is done, and what is remembered of it: :mod:`.plugs`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeVar

from msgspec import Struct, structs

from ..errors import CommandError, DroverError, NotSupported
from ..monitor.connection import QmpConnection
from ..ops.chain import Layer
from ..ops.topology import AskedBuses
from ..qmp.ready import ready
from . import net
from .argv.board import memory_backend
from .argv.devices import USB_DRIVERS, free_usb_port, usb_host
from .argv.nics import user_backend
from .argv.places import slot_of
from .pins import pin_vcpus
from .record import Device, Runtime
from .spec import Disk, Nic, Spec, UsbDevice, VfioDevice

PERIPHERAL: Final = "/machine/peripheral"


class Cpu(Struct, frozen=True, kw_only=True):
    """A vCPU that is plugged in.

    :ivar id: of the device
    """

    id: str


class Memory(Struct, frozen=True, kw_only=True):
    """Memory that is plugged in.

    :ivar id: of the device
    :ivar size: in bytes; of virtio-mem the most that it can give
    :ivar type: a DIMM, or memory of which the guest has more or less
    """

    id: str
    size: int
    type: Literal["dimm", "virtio-mem"] = "dimm"


D = TypeVar("D", Disk, Nic, UsbDevice, VfioDevice, Cpu, Memory)


class Kind(ABC, Generic[D]):
    """A kind of device.

    :ivar name: as the record and people call it
    :ivar type: of what is wanted
    """

    name: str
    type: type[D]

    @abstractmethod
    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: D,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> Device | None:
        """Plug it in: all of it, or nothing stays but what :meth:`clean` takes away.

        :param given: descriptors for it, which nobody but who asked can have
        :param asked: the question for the PCI buses, where it was sent ahead
        :returns: what :meth:`describe` would, where that is known
        """

    def outlasts(self, wanted: D) -> bool:
        """Whether what a plug makes on the host may still be there after the host's next boot."""
        return False

    def is_on_pci(self, fields: Mapping[str, Any]) -> bool:
        """Whether a plug looks for a place on the PCI buses, and takes what was asked ahead.

        :param fields: of the device, as they were told: nobody has looked whether they are right
        """
        return False

    @abstractmethod
    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        """Plug it out.

        :param timeout: seconds for the guest to let go of it
        """

    def clean(self, vm: QmpConnection, runtime: Runtime, wanted: D) -> list[str]:
        """Take away what is left of one that is not plugged in. May be repeated.

        :returns: notices
        """
        return []

    def tidy(self, vm: QmpConnection, wanted: D) -> None:
        """Take away what a plug that was cut off needed, and one that is plugged in does not. May be repeated."""

    @abstractmethod
    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: D) -> Device:
        """Where it is, by QEMU: a plug that was cut off had chosen a place, and told nobody."""

    @abstractmethod
    def find(self, spec: Spec, id: str, device: Device) -> D | None:
        """What a device is that is known to be plugged in."""

    @abstractmethod
    def added(self, spec: Spec, wanted: D, device: Device) -> Spec:
        """The specification with it."""

    @abstractmethod
    def removed(self, spec: Spec, id: str, device: Device) -> Spec:
        """The specification without it."""


class _Listed(Kind[D]):
    """One that is an entry of a list in the specification, called `field`."""

    field: str

    def find(self, spec: Spec, id: str, device: Device) -> D | None:
        """What a device is that is known to be plugged in."""
        return next((entry for entry in self._list(spec) if entry.id == id), None)

    def added(self, spec: Spec, wanted: D, device: Device) -> Spec:
        """The specification with it."""
        others: list[D] = [entry for entry in self._list(spec) if entry.id != wanted.id]
        return structs.replace(spec, **{self.field: (*others, wanted)})

    def removed(self, spec: Spec, id: str, device: Device) -> Spec:
        """The specification without it."""
        return structs.replace(spec, **{self.field: tuple(entry for entry in self._list(spec) if entry.id != id)})

    def _list(self, spec: Spec) -> tuple[D, ...]:
        found: tuple[D, ...] = getattr(spec, self.field)
        return found


class _Disks(_Listed[Disk]):
    name, type, field = "disk", Disk, "disks"

    def is_on_pci(self, fields: Mapping[str, Any]) -> bool:
        return fields.get("bus", "auto") in ("auto", "virtio-blk")

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: Disk,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> Device:
        """Plug it in, with a thread of its own where it wants one that is not there yet."""
        if wanted.cdrom or wanted.bus == "sata":
            raise NotSupported("a CD drive, or bus 'sata', in a machine that runs", by="QEMU")
        if wanted.iothread and wanted.iothread not in {thread.id for thread in vm.query_iothreads()}:
            vm.object_add("iothread", wanted.iothread)
        added = vm.hot_add_disk(
            wanted.source, id=wanted.id, format=wanted.format or "raw",
            backing=[Layer(image.source, image.format) for image in wanted.backing],
            driver=wanted.bus, read_only=wanted.read_only, cache=wanted.cache, discard=wanted.discard,
            detect_zeroes=wanted.detect_zeroes, aio=wanted.aio, serial=wanted.serial or None,
            werror=wanted.werror, rerror=wanted.rerror, iothread=wanted.iothread or None, asked=asked,
        )  # fmt: skip
        if wanted.throttle is not None:
            vm.set_disk_throttle(wanted.id, wanted.throttle.limits)
        addr = added.addr if wanted.bus == "virtio-scsi" else _short(added.addr)
        return Device(kind=self.name, bus=added.bus, addr=addr)

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        vm.hot_remove_disk(id, timeout=timeout)

    def clean(self, vm: QmpConnection, runtime: Runtime, wanted: Disk) -> list[str]:
        vm.remove_leftovers(wanted.id)
        used = {disk.iothread for disk in runtime.spec.disks if disk.id != wanted.id}
        if wanted.iothread and wanted.iothread not in used:
            try:
                vm.object_del(wanted.iothread)
            except CommandError:
                pass  # there is none, or something that is not of the specification uses it
        return []

    def tidy(self, vm: QmpConnection, wanted: Disk) -> None:
        vm.remove_fdsets([wanted.id])

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: Disk) -> Device:
        if wanted.bus == "virtio-blk":
            bus, addr = place_of(vm, wanted.id)
            return Device(kind=self.name, bus=bus, addr=addr)
        target, lun = (vm.qom_get(f"{PERIPHERAL}/{wanted.id}", name) for name in ("scsi-id", "lun"))
        return Device(kind=self.name, bus=_bus(vm, wanted.id), addr=f"{target}:{lun}")


class _Nics(_Listed[Nic]):
    name, type, field = "nic", Nic, "nics"

    def outlasts(self, wanted: Nic) -> bool:
        return wanted.mode == "ovs" or bool(wanted.script_up)  # a port in its database; what a script has made

    def is_on_pci(self, fields: Mapping[str, Any]) -> bool:
        return True

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: Nic,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> Device:
        return plug_nic(vm, runtime, wanted, given=given, asked=asked)

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        vm.hot_remove_nic(id, timeout=timeout)

    def clean(self, vm: QmpConnection, runtime: Runtime, wanted: Nic) -> list[str]:
        vm.remove_leftovers(wanted.id, queues=wanted.queues)
        return release_nic(runtime, wanted)

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: Nic) -> Device:
        tap = tap_of(runtime, wanted.id) if wanted.on_tap else ""
        bus, addr = place_of(vm, wanted.id)
        return Device(kind=self.name, bus=bus, addr=addr, tap=tap)


class _Usb(_Listed[UsbDevice]):
    name, type, field = "usb", UsbDevice, "usb"

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: UsbDevice,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> None:
        # QEMU would choose one, and tell nobody; and the other side of a migration has to have it there
        port = free_usb_port([device.addr for device in runtime.devices.values() if device.kind == self.name])
        vm.hot_add_usb(USB_DRIVERS[wanted.type], id=wanted.id, usb_port=port, options=usb_host(wanted))

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        vm.hot_remove_usb(id, timeout=timeout)

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: UsbDevice) -> Device:
        port = str(vm.qom_get(f"{PERIPHERAL}/{wanted.id}", "port"))
        return Device(kind=self.name, bus=_bus(vm, wanted.id), addr=port)


class _Vfio(_Listed[VfioDevice]):
    name, type, field = "vfio", VfioDevice, "vfio"

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: VfioDevice,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> None:
        vm.hot_add_vfio(id=wanted.id, host=wanted.host or None, mediated=wanted.mediated or None, rom=wanted.rom)

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        vm.hot_remove_vfio(id, timeout=timeout)

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: VfioDevice) -> Device:
        bus, addr = place_of(vm, wanted.id)
        return Device(kind=self.name, bus=bus, addr=addr)


class Cpus(Kind[Cpu]):
    """vCPUs: the specification only says how many there are.

    :param even_under_tcg: see :func:`drover.ops.cpu.hot_add_cpu`
    """

    name, type = "cpu", Cpu

    def __init__(self, even_under_tcg: bool = False) -> None:
        self._even_under_tcg = even_under_tcg

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: Cpu,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> None:
        """Plug it in, at the first place that is free, on the CPUs of the host that it is to run on."""
        vm.hot_add_cpu(id=wanted.id, even_under_tcg=self._even_under_tcg)
        pin_vcpus(vm, runtime.spec)

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        """Plug it out."""
        vm.hot_remove_cpu(id, timeout=timeout, even_under_tcg=self._even_under_tcg)

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: Cpu) -> Device:
        """It is on no bus."""
        return Device(kind=self.name)

    def find(self, spec: Spec, id: str, device: Device) -> Cpu:
        """What it is."""
        return Cpu(id=id)

    def added(self, spec: Spec, wanted: Cpu, device: Device) -> Spec:
        """One more of them, as far as there can be."""
        return structs.replace(spec, cpu=structs.replace(spec.cpu, count=min(spec.cpu.count + 1, spec.cpu.max)))

    def removed(self, spec: Spec, id: str, device: Device) -> Spec:
        """One less."""
        return structs.replace(spec, cpu=structs.replace(spec.cpu, count=max(1, spec.cpu.count - 1)))


class _Memory(Kind[Memory]):
    name, type = "memory", Memory

    def plug(
        self,
        vm: QmpConnection,
        runtime: Runtime,
        wanted: Memory,
        given: Sequence[int] = (),
        asked: AskedBuses | None = None,
    ) -> None:
        """Plug it in, on the same kind of memory as the machine has.

        :raises NotSupported: it is virtio-mem, and the machine's memory is shared or of huge pages
        """
        backend, options = memory_backend(runtime.spec.memory)
        if wanted.type == "dimm":
            vm.hot_add_dimm(id=wanted.id, size=wanted.size, backend=backend, options=options)
        elif options:
            raise NotSupported("virtio-mem beside shared memory or huge pages", by="this Drover")
        else:
            vm.hot_add_virtio_mem(id=wanted.id, max_size=wanted.size)

    def unplug(self, vm: QmpConnection, id: str, timeout: float) -> None:
        kinds = {device.id: device.kind for device in vm.list_memory_devices()}
        if kinds.get(id) == "virtio-mem":
            vm.hot_remove_virtio_mem(id, timeout=timeout)
        else:
            vm.hot_remove_dimm(id, timeout=timeout)

    def clean(self, vm: QmpConnection, runtime: Runtime, wanted: Memory) -> list[str]:
        try:
            vm.object_del(f"{wanted.id}-mem")
        except CommandError:
            pass  # there is none
        return []

    def describe(self, vm: QmpConnection, runtime: Runtime, wanted: Memory) -> Device:
        return Device(kind=self.name, size=self.sizes(vm)[wanted.id])

    def find(self, spec: Spec, id: str, device: Device) -> Memory:
        return Memory(id=id, size=device.size)

    def added(self, spec: Spec, wanted: Memory, device: Device) -> Spec:
        return self.grown(spec, device.size)

    def removed(self, spec: Spec, id: str, device: Device) -> Spec:
        return self.grown(spec, -device.size)

    def grown(self, spec: Spec, by: int) -> Spec:
        """The specification with so many bytes more, as far as its maximum allows."""
        size = min(spec.memory.size + by, spec.memory.max)
        return structs.replace(spec, memory=structs.replace(spec.memory, size=size))

    def sizes(self, vm: QmpConnection) -> dict[str, int]:
        """What the guest has of each, in bytes."""
        return {device.id: device.size for device in vm.list_memory_devices()}


DISK: Final = _Disks()
NIC: Final = _Nics()
USB: Final = _Usb()
VFIO: Final = _Vfio()
CPU: Final = Cpus()
MEMORY: Final = _Memory()
KINDS: Final[dict[str, Kind[Any]]] = {kind.name: kind for kind in (DISK, NIC, USB, VFIO, CPU, MEMORY)}


def plug_nic(
    vm: QmpConnection,
    runtime: Runtime,
    nic: Nic,
    *,
    given: Sequence[int] = (),
    bus: str = "",
    addr: str = "",
    asked: AskedBuses | None = None,
) -> Device:
    """Plug a network card in, and make what it stands on.

    :param given: mode ``fd``: descriptors of a tap; they stay yours to close
    :param bus: where to, and `addr` on it; empty is the first place that is free
    :param asked: the question for the PCI buses, where it was sent ahead
    :returns: it, and where it is
    """
    spec, name = runtime.spec, ""
    how: dict[str, Any] = {"mac": nic.mac, "model": nic.model, "bus": bus or None, "addr": addr or None}
    how["asked"] = asked
    # as on a command line: what is not booted from needs no ROM, whose size two nodes would have to agree on
    how["options"] = {"romfile": ""} if nic.boot_index is None else {}
    if nic.mtu and nic.model == "virtio-net-pci":
        how["options"]["host_mtu"] = nic.mtu
    if nic.mode == "user":
        added = vm.hot_add_nic(nic.id, backend=user_backend(nic), **how)
    else:
        name = tap_of(runtime, nic.id)
        with net.plug(nic, spec.name, uuid=spec.uuid, index=_index(spec, nic), name=name, given=given) as plugged:
            added = vm.hot_add_nic(nic.id, tap_fds=plugged.tap_fds, vhost_fds=plugged.vhost_fds, **how)
    if nic.link_state == "down":
        vm.set_link(nic.id, up=False)
    return Device(kind=NIC.name, bus=added.bus, addr=_short(added.addr), tap=name if nic.on_tap else "")


def tap_of(runtime: Runtime, id: str) -> str:
    """The name of a card's interface in a run."""
    return net.tap_name(runtime.spec.uuid, id, runtime.mark)


def connect_nics(runtime: Runtime) -> list[str]:
    """Let packets through the cards of a machine that has arrived, just before it runs. May be repeated.

    :returns: notices of what could not be connected: it must not keep the guest from running
    """
    notices, spec = [], runtime.spec
    for index, nic in enumerate(spec.nics):
        try:
            net.connect(nic, spec.name, uuid=spec.uuid, index=index, name=tap_of(runtime, nic.id))
        except (DroverError, OSError) as error:
            notices.append(f"nics[{index}]: {error}")
    return notices


def release_nic(runtime: Runtime, nic: Nic) -> list[str]:
    """Take away what a card stood on, on the host. May be repeated.

    :returns: notices, such as of what could not be taken away: it must not keep the rest from going
    """
    if not nic.on_tap:
        return []
    spec = runtime.spec
    index, name = _index(spec, nic), tap_of(runtime, nic.id)
    try:
        return net.release(nic, spec.name, uuid=spec.uuid, index=index, name=name)
    except (DroverError, OSError) as error:
        return [f"nics[{index}]: {error}"]


def _index(spec: Spec, nic: Nic) -> int:
    return next((number for number, other in enumerate(spec.nics) if other.id == nic.id), len(spec.nics))


def _short(addr: str) -> str:
    """A slot and function as the record has them, without a zero in front."""
    return f"{slot_of(addr):x}.0"


def _bus(vm: QmpConnection, id: str) -> str:
    return str(vm.qom_get(f"{PERIPHERAL}/{id}", "parent_bus")).rpartition("/")[2]


def place_of(vm: QmpConnection, id: str) -> tuple[str, str]:
    """A device's PCI bus and slot: both asked at once, for each answer takes QEMU half a millisecond."""
    path = f"{PERIPHERAL}/{id}"
    bus, addr = vm.execute_many([("qom-get", {"path": path, "property": name}) for name in ("parent_bus", "addr")])
    return str(bus).rpartition("/")[2], f"{int(addr) >> 3:x}.0"


ready(Memory, Cpu)
