"""Disks and network cards of an instance that runs: plugged in and out, and remembered.

What is to be done is written down before its first step. Whoever finds it unfinished asks QEMU: a device that is there
was added, and is written down; of one that is not there, nothing stays.
"""

from collections.abc import Callable
from typing import Any

from msgspec import convert, json, structs, to_builtins

from ..errors import ArgumentError, CommandError, DroverError, HotplugError, MonitorError, NotSupported
from ..monitor.connection import QmpConnection
from ..ops.chain import Layer
from ..ops.throttle import Limits
from . import net
from .ledger import Ledger
from .record import Device, Runtime
from .spec import Disk, Nic, Spec, completed, dump, parse

ADD_DISK, ADD_NIC, REMOVE_DISK, REMOVE_NIC = "add-disk", "add-nic", "remove-disk", "remove-nic"


def add_disk(ledger: Ledger, vm: QmpConnection, disk: dict[str, Any]) -> Disk:
    """Plug a disk in; it stays in the specification.

    :param disk: its fields, as in a specification
    :returns: it, with what follows from the rest, such as its id
    :raises SpecError: its fields are wrong, or do not go with the others'
    """
    wanted = _checked(ledger, "disks", disk).disks[-1]
    if wanted.cdrom or wanted.bus == "sata":
        raise NotSupported("a CD drive, or bus 'sata', in a machine that runs", by="QEMU")
    ledger.begin(ADD_DISK, id=wanted.id, disk=to_builtins(wanted))
    try:
        _plug_disk(vm, wanted)
    except (DroverError, OSError) as error:
        _settle(ledger, vm, error)
    _settle(ledger, vm)
    return wanted


def remove_disk(ledger: Ledger, vm: QmpConnection, id: str, timeout: float) -> None:
    """Take a disk out, from the specification too. Its image is not touched.

    :param timeout: seconds for the guest to let go of it
    :raises UnplugRefused: the guest keeps it
    :raises UnplugPending: the guest says nothing; it goes at its next reset, and until then is written down
    """
    _known(ledger, id, "disk")
    ledger.begin(REMOVE_DISK, id=id)
    try:
        vm.hot_remove_disk(id, timeout=timeout)
    except DroverError as error:
        _settle(ledger, vm, error)
    _settle(ledger, vm)


def add_nic(ledger: Ledger, vm: QmpConnection, nic: dict[str, Any]) -> Nic:
    """Plug a network card in; it stays in the specification.

    :param nic: its fields, as in a specification; its mode is one that stands on a tap
    :raises SpecError: its fields are wrong, or do not go with the others'
    """
    wanted = _checked(ledger, "nics", nic).nics[-1]
    if wanted.mode in ("user", "fd"):
        raise NotSupported(f"a NIC of mode '{wanted.mode}' in a machine that runs", by="this Drover")
    ledger.begin(ADD_NIC, id=wanted.id, nic=to_builtins(wanted))
    try:
        _plug_nic(ledger, vm, wanted)
    except (DroverError, OSError) as error:
        _settle(ledger, vm, error)
    _settle(ledger, vm)
    return wanted


def remove_nic(ledger: Ledger, vm: QmpConnection, id: str, timeout: float) -> None:
    """Take a network card out, from the specification too. See :func:`remove_disk` for what is raised."""
    _known(ledger, id, "nic")
    ledger.begin(REMOVE_NIC, id=id)
    try:
        vm.hot_remove_nic(id, timeout=timeout)
    except DroverError as error:
        _settle(ledger, vm, error)
    _settle(ledger, vm)


def finish_plugs(ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Bring devices and document together, by what QEMU has. Idempotent.

    :returns: what was done, in words
    """
    runtime, pending = ledger.document.runtime, ledger.document.pending
    assert runtime is not None
    there, notices = vm.query_devices(), list[str]()
    if pending is not None and pending.operation in (ADD_DISK, ADD_NIC):
        notices.append(_finish_add(ledger, vm, there, str(pending.arguments["id"])))
    gone = [name for name, device in runtime.devices.items() if device.kind in ("disk", "nic") and name not in there]
    for name in gone:
        notices += _forget(ledger, vm, runtime, name)
    if notices or (pending is not None and pending.operation in (REMOVE_DISK, REMOVE_NIC)):
        ledger.commit()
    return notices


# -- how --------------------------------------------------------------------------------------------------------------


def _checked(ledger: Ledger, kind: str, fields: dict[str, Any]) -> Spec:
    """The specification of what runs, with one more device. Its uuid is what the address of a card comes from."""
    runtime = ledger.document.runtime
    assert runtime is not None
    document = json.decode(dump(runtime.spec))
    document[kind] = [*document.get(kind, ()), fields]
    return completed(parse(document))


def _plug_disk(vm: QmpConnection, disk: Disk) -> None:
    if disk.iothread and disk.iothread not in {thread.id for thread in vm.query_iothreads()}:
        vm.object_add("iothread", disk.iothread)
    vm.hot_add_disk(
        disk.source, id=disk.id, format=disk.format or "raw",
        backing=[Layer(image.source, image.format) for image in disk.backing],
        driver=disk.bus, read_only=disk.read_only, cache=disk.cache, discard=disk.discard,
        detect_zeroes=disk.detect_zeroes, aio=disk.aio, serial=disk.serial or None,
        werror=disk.werror, rerror=disk.rerror, iothread=disk.iothread or None,
    )  # fmt: skip
    if disk.throttle is not None:
        vm.set_disk_throttle(disk.id, Limits(**structs.asdict(disk.throttle)))


def _plug_nic(ledger: Ledger, vm: QmpConnection, nic: Nic) -> None:
    spec = _runtime(ledger).spec
    with net.plug(nic, spec.name, uuid=spec.uuid, index=len(spec.nics)) as plugged:
        options = {"host_mtu": nic.mtu} if nic.mtu and nic.model == "virtio-net-pci" else None
        vm.hot_add_nic(
            nic.id, tap_fds=plugged.tap_fds, vhost_fds=plugged.vhost_fds, mac=nic.mac, model=nic.model, options=options
        )


def _settle(ledger: Ledger, vm: QmpConnection, error: Exception | None = None) -> None:
    """Write down what became of it, and raise `error`, if there was one.

    Where QEMU no longer answers, the intent stays for whoever comes next.
    """
    try:
        finish_plugs(ledger, vm)
    except (MonitorError, CommandError, HotplugError) as failure:
        if error is None:
            raise
        error.add_note(f"what became of it is not known yet: {failure}")
    if error is not None:
        raise error


def _finish_add(ledger: Ledger, vm: QmpConnection, there: dict[str, str], id: str) -> str:
    runtime, pending = _runtime(ledger), ledger.document.pending
    assert pending is not None
    is_disk = pending.operation == ADD_DISK
    wanted: Disk | Nic = convert(pending.arguments["disk"], Disk) if is_disk else convert(pending.arguments["nic"], Nic)
    if id in there:
        # its place is QEMU's to tell: a plug that was cut off had chosen one, and told nobody
        runtime.devices[id] = _found(vm, runtime, id, "disk" if is_disk else "nic")
        _change_specs(ledger, lambda spec: _with(spec, wanted))
        return f"{id} was added"
    vm.remove_leftovers(id, queues=wanted.queues if isinstance(wanted, Nic) else 0)
    if isinstance(wanted, Nic):
        _release(runtime, wanted)
    return f"{id} was not added, and nothing of it is left"


def _forget(ledger: Ledger, vm: QmpConnection, runtime: Runtime, id: str) -> list[str]:
    nic = next((nic for nic in runtime.spec.nics if nic.id == id), None)
    vm.remove_leftovers(id, queues=nic.queues if nic else 0)
    notices = _release(runtime, nic) if nic and nic.mode not in ("user", "fd") else []
    del runtime.devices[id]
    _change_specs(ledger, lambda spec: _without(spec, id))
    return [f"{id} was taken out", *notices]


def _release(runtime: Runtime, nic: Nic) -> list[str]:
    spec = runtime.spec
    index = next((number for number, other in enumerate(spec.nics) if other.id == nic.id), len(spec.nics))
    return net.release(nic, spec.name, uuid=spec.uuid, index=index, name=net.tap_name(spec.uuid, nic.id))


def _found(vm: QmpConnection, runtime: Runtime, id: str, kind: str) -> Device:
    path = f"/machine/peripheral/{id}"
    bus = str(vm.qom_get(path, "parent_bus")).rpartition("/")[2]
    tap = net.tap_name(runtime.spec.uuid, id) if kind == "nic" else ""
    try:
        addr = f"{int(vm.qom_get(path, 'addr')) >> 3:x}.0"
    except CommandError:
        addr = f"{vm.qom_get(path, 'scsi-id')}:{vm.qom_get(path, 'lun')}"
    return Device(kind=kind, bus=bus, addr=addr, tap=tap)


def _change_specs(ledger: Ledger, change: Callable[[Spec], Spec]) -> None:
    runtime = _runtime(ledger)
    runtime.spec = change(runtime.spec)
    ledger.document.spec = change(ledger.document.spec)


def _with(spec: Spec, device: Disk | Nic) -> Spec:
    if isinstance(device, Disk):
        return structs.replace(spec, disks=(*(d for d in spec.disks if d.id != device.id), device))
    return structs.replace(spec, nics=(*(n for n in spec.nics if n.id != device.id), device))


def _without(spec: Spec, id: str) -> Spec:
    disks, nics = (tuple(device for device in devices if device.id != id) for devices in (spec.disks, spec.nics))
    return structs.replace(spec, disks=disks, nics=nics)


def _known(ledger: Ledger, id: str, kind: str) -> None:
    devices = _runtime(ledger).devices
    if id not in devices or devices[id].kind != kind:
        known = ", ".join(name for name, device in devices.items() if device.kind == kind) or "none"
        raise ArgumentError("id", id, f"one of its {kind}s: {known}")


def _runtime(ledger: Ledger) -> Runtime:
    assert ledger.document.runtime is not None
    return ledger.document.runtime
