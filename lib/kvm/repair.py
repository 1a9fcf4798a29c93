"""Brings an instance that runs together again, by what QEMU has: without touching a disk, or what the guest sees."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import json, structs, to_builtins

from ..errors import CommandError, DroverError, HotplugError, SpecError
from ..monitor.connection import QmpConnection
from . import links, net, netlink, ovs
from .cgroup import PROCS
from .host import Host
from .ledger import Ledger
from .mend import mend
from .record import Device, Runtime
from .seen import Body, Machine
from .spec import Nic, Spec, completed, dump, parse
from .strangers import chain, describe, kind_of, leftovers, limits_of, listed, shaped, strangers, unknown_taps
from .verify import bridge_of, look, place_text, wanted_sockets

Change = Callable[[Spec], Spec]


def repair(host: Host, ledger: Ledger, timeout: float) -> list[str]:
    """Do what can be done. May be repeated.

    :param timeout: seconds for QEMU to answer
    :returns: what was done, and what could not be, in words
    :raises MonitorError: QEMU is there and does not answer
    """
    notices = mend(host, ledger, timeout)
    found = look(host, ledger, timeout)
    ledger.begin("repair")
    runtime = ledger.document.runtime
    if runtime is None:
        notices += _release(ledger)
    elif found.machine is not None and found.body is not None:
        with QmpConnection(ledger.paths.socket("control"), timeout=timeout) as vm:
            notices += _remove_leftovers(vm, runtime, found.machine, found.body)
        notices += _restore_host(ledger, runtime, found.body)
        notices += _follow(ledger, runtime, found.machine, found.body)
    ledger.commit()
    return notices


def _release(ledger: Ledger) -> list[str]:
    """Take away taps of an instance that does not run."""
    spec, notices = ledger.document.spec, list[str]()
    for index, nic in enumerate(spec.nics):
        name = net.tap_name(spec.uuid, nic.id)
        if nic.mode not in ("user", "fd") and netlink.state_of(name) is not None:
            notices += net.release(nic, spec.name, uuid=spec.uuid, index=index, name=name)
            notices.append(f"{name} was removed")
    return notices


def _remove_leftovers(vm: QmpConnection, runtime: Runtime, machine: Machine, body: Body) -> list[str]:
    notices = []
    queues = max((tap.queues for tap in body.taps.values()), default=1)
    for name in dict.fromkeys(owner for _, owner in leftovers(runtime, machine, body).values() if owner):
        try:
            vm.remove_leftovers(name, queues=queues)
        except (CommandError, HotplugError) as error:
            notices.append(f"what is left of {name} stays: {error}")
        else:
            notices.append(f"what was left of {name} was removed")
    return notices


# -- the host ---------------------------------------------------------------------------------------------------------


def _restore_host(ledger: Ledger, runtime: Runtime, body: Body) -> list[str]:
    notices = []
    for nic in runtime.spec.nics:
        device = runtime.devices.get(nic.id)
        if device is not None and device.tap in body.taps:
            try:
                notices += _restore_tap(runtime, nic, device.tap, body, comes=ledger.document.comes)
            except (DroverError, OSError) as error:
                notices.append(f"{device.tap} is as it was: {error}")
    if runtime.cgroup and not (body.cgroup != "/" and runtime.cgroup.endswith(body.cgroup)):
        try:
            Path(runtime.cgroup, PROCS).write_text(str(runtime.pid), encoding="ascii")
            notices.append(f"it was put back into {runtime.cgroup}")
        except OSError as error:
            notices.append(f"{runtime.cgroup}: {error.strerror}")
    for name in body.sockets:
        if name not in wanted_sockets(runtime.spec):
            ledger.paths.socket(name).unlink(missing_ok=True)
            notices.append(f"the socket {name} was removed")
    return notices


def _restore_tap(runtime: Runtime, nic: Nic, name: str, body: Body, *, comes: bool) -> list[str]:
    """:param comes: its machine is still to come, and its packets are not to come here before"""
    notices, tap = [], body.taps[name]
    if nic.mode in ("bridge", "ovs") and bridge_of(nic, name, tap) != nic.link:
        if nic.mode == "bridge":
            netlink.set_bridge(name, nic.link)
            if nic.vlan:
                netlink.set_port_vlan(name, nic.vlan)
        else:
            ovs.add_port(nic.link, name, nic.vlan, ovs.port_ids(nic, runtime.spec.uuid))
        notices.append(f"{name} was put back on {nic.link}")
    if not tap.up and not comes:
        links.set_up(name)
        notices.append(f"{name} was switched on")
    return notices


# -- the document -----------------------------------------------------------------------------------------------------


def _follow(ledger: Ledger, runtime: Runtime, machine: Machine, body: Body) -> list[str]:
    """Write down what QEMU has. The specification follows where it said what the record did: else it is for later."""
    changed = list[str]()
    if (runtime.machine, runtime.accelerator) != (machine.type, machine.accelerator):
        runtime.machine, runtime.accelerator = machine.type, machine.accelerator
        ledger.document.machine = machine.type
        changed.append(f"a {machine.type} under {machine.accelerator}")
    changed += _write_down(ledger, runtime, machine, body)
    for name, device in runtime.devices.items():
        held = machine.devices.get(name)
        if held is not None and place_text(held.bus, held.addr) != place_text(device.bus, device.addr):
            device.bus, device.addr = held.bus, held.addr
            changed.append(f"{name} at {held.bus} {held.addr}")
    for what, get, put in _aspects(runtime, machine, body):
        spec, now = ledger.document.spec, runtime.spec
        if (after := put(now)) == now:
            continue
        if get(spec) == get(now):
            ledger.document.spec = put(spec)
        runtime.spec = after
        changed.append(what)
    return [f"written down: {it}" for it in changed]


def _aspects(runtime: Runtime, machine: Machine, body: Body) -> Iterator[tuple[str, Callable[[Spec], Any], Change]]:
    """What the specification says of the machine that QEMU may know better: in words, to be read, to be changed."""
    count, size = machine.cpus, machine.memory
    yield (
        f"{count} vCPUs", lambda spec: spec.cpu.count,
        lambda spec: structs.replace(spec, cpu=structs.replace(spec.cpu, count=count, max=max(count, spec.cpu.max))),
    )  # fmt: skip
    yield (
        f"{size} bytes of memory", lambda spec: spec.memory.size,
        lambda spec: structs.replace(
            spec, memory=structs.replace(spec.memory, size=size, max=max(size, spec.memory.max))
        ),
    )  # fmt: skip
    for disk in runtime.spec.disks:
        held = machine.devices.get(disk.id)
        if held is not None and held.node is not None:
            new = shaped(disk, chain(disk, held, body)) or disk
            changes = {name: getattr(new, name) for name in ("source", "format", "backing")}
            yield f"the images of {disk.id}", *_of_device("disks", disk.id, changes)
            yield f"the limits of {disk.id}", *_of_device("disks", disk.id, {"throttle": limits_of(held)})
    for nic in runtime.spec.nics:
        held = machine.devices.get(nic.id)
        if held is not None and held.mac and held.mac.lower() != nic.mac.lower():
            yield f"the address of {nic.id}", *_of_device("nics", nic.id, {"mac": held.mac})


def _of_device(field: str, id: str, changes: dict[str, Any]) -> tuple[Callable[[Spec], Any], Change]:
    def get(spec: Spec) -> Any:
        return [[getattr(it, name) for name in changes] for it in getattr(spec, field) if it.id == id]

    def put(spec: Spec) -> Spec:
        devices = getattr(spec, field)
        changed = tuple(structs.replace(it, **changes) if it.id == id else it for it in devices)
        return structs.replace(spec, **{field: changed})

    return get, put


def _write_down(ledger: Ledger, runtime: Runtime, machine: Machine, body: Body) -> list[str]:
    """Devices that are in no record."""
    written = []
    for name in strangers(runtime, machine):
        held = machine.devices[name]
        found: Any = next((it for it in listed(runtime.spec) if it.id == name), None)
        if found is None:
            found = describe(name, runtime, machine, body)
            if found is None or (taken := _taken_in(ledger, runtime, found)) is None:
                continue
            found = taken
        _, kind = kind_of(found)
        tap = _tap(runtime, name, body) if kind == "nic" else ""
        runtime.devices[name] = Device(kind=kind, bus=held.bus, addr=held.addr, tap=tap)
        written.append(f"the {kind} {name}")
    return written


def _taken_in(ledger: Ledger, runtime: Runtime, found: Any) -> Any:
    """Put a device into both specifications; None: it does not go with the rest of the machine."""
    field, _ = kind_of(found)
    try:
        runtime.spec = _with(runtime.spec, field, found)
    except SpecError:
        return None
    try:
        ledger.document.spec = _with(ledger.document.spec, field, found)
    except SpecError:
        pass  # its owner has other plans for the next start
    return getattr(runtime.spec, field)[-1]


def _with(spec: Spec, field: str, device: Any) -> Spec:
    document = json.decode(dump(spec))
    document[field] = [*document.get(field, ()), {k: v for k, v in to_builtins(device).items() if v is not None}]
    return completed(parse(document))


def _tap(runtime: Runtime, id: str, body: Body) -> str:
    name = net.tap_name(runtime.spec.uuid, id, runtime.mark)
    return name if name in body.taps else next(iter(unknown_taps(runtime, body)), "")
