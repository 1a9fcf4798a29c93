"""An instance three times, side by side: as its specification wants it, as the record has it, as QEMU and host have it.

Nothing is changed here; :mod:`.repair` does that.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from msgspec import Struct

from ..errors import MonitorError, NetworkError
from ..monitor.connection import QmpConnection
from ..ops.chain import Layer
from ..ops.storage import own_nodes
from ..qmp.ready import ready
from . import net, netlink, ovs, seen
from .argv.board import MONITORS
from .argv.devices import USB_DRIVERS
from .argv.places import slot_of
from .condition import state_of
from .ending import is_over, running
from .host import Host
from .ledger import Ledger
from .process import Process
from .record import Device, Runtime
from .seen import Body, Held, Machine, Tap, limits_text
from .spec import Disk, Nic, Spec, UsbDevice, VfioDevice
from .state import State
from .strangers import chain, describe, layers, leftovers, listed, strangers

D = TypeVar("D", Disk, Nic, UsbDevice, VfioDevice)

NONE: Final = "none"
# What a repair does about a difference.
FOLLOW: Final = "the document follows QEMU"
MEND: Final = "note is taken of it"
REMOVE: Final = "it is removed"
NEXT_START: Final = "as specified at its next start"
WRITE_DOWN: Final = "it is written down"
REJOIN: Final = "it is put back on it"
MOVE: Final = "it is put back into it"
SWITCH_ON: Final = "it is switched on"
_DISK_DRIVERS: Final = {
    "virtio-blk": ("virtio-blk-pci", "virtio-blk-pci"),
    "virtio-scsi": ("scsi-hd", "scsi-cd"),
    "sata": ("ide-hd", "ide-cd"),
}
_ENDING: Final = 1.0  # seconds that a look waits for the end of a QEMU that has closed its monitors


class Fact(Struct, kw_only=True):
    """One thing that all three may tell something of; None is what one has no word for.

    :ivar what: such as ``disk disk0 image``
    :ivar qemu: what QEMU has, or the host has of it
    :ivar differs: they do not agree
    :ivar remedy: what a repair does about it; empty: nothing
    """

    what: str
    specification: str | None = None
    record: str | None = None
    qemu: str | None = None
    differs: bool = False
    remedy: str = ""


class Report(Struct, kw_only=True):
    """An instance, three times.

    :ivar state: what it does
    :ivar detail: more of that
    """

    name: str
    state: State
    detail: str = ""
    facts: list[Fact] = []

    @property
    def agrees(self) -> bool:
        """Nothing differs."""
        return not any(fact.differs for fact in self.facts)


class Look(Struct, kw_only=True):
    """All that there is to see of an instance.

    :ivar machine: by QEMU; None where it does not run or does not answer
    :ivar body: by the host; None where there is no process
    """

    state: State = State.STOPPED
    detail: str = ""
    machine: Machine | None = None
    body: Body | None = None


def look(host: Host, ledger: Ledger, timeout: float) -> Look:
    """Look at the process and ask QEMU; the lock must be held.

    :param timeout: seconds for QEMU to answer
    """
    if ledger.document.runtime is None:
        return Look()
    process = running(host, ledger)
    if process is None:
        return Look(state=State.ENDED)
    with process:
        found = Look(state=State.UNRESPONSIVE)
        try:
            found.body = seen.body(ledger, process)
            with QmpConnection(ledger.paths.socket("control"), timeout=timeout) as vm:
                found.state, found.detail = state_of(vm)
                found.machine = seen.machine(vm)
        except (MonitorError, OSError) as error:
            return _over(process, error, found)
    return found


def _over(process: Process, error: MonitorError | OSError, found: Look) -> Look:
    is_gone = is_over(process, error, _ENDING) if isinstance(error, MonitorError) else not process.alive
    if is_gone:
        return Look(state=State.ENDED)
    return Look(state=State.UNRESPONSIVE, detail=str(error), body=found.body)


def report(host: Host, ledger: Ledger, found: Look) -> Report:
    """Put the three side by side."""
    facts = list(_facts(host, ledger, found))
    return Report(name=ledger.name, state=found.state, detail=found.detail, facts=facts)


def _facts(host: Host, ledger: Ledger, found: Look) -> Iterator[Fact]:
    document = ledger.document
    if document.pending is not None:
        yield Fact(what="unfinished", record=document.pending.operation, qemu=NONE, differs=True, remedy=MEND)
    runtime = document.runtime
    if runtime is None:
        yield from _remains(ledger)
        return
    lives = found.state not in (State.ENDED, State.SHUTDOWN, State.PANICKED)
    yield _fact("state", record="runs", qemu="runs" if lives else str(found.state), remedy=MEND)
    if found.body is not None:
        yield from _process(host, ledger, runtime, found.body)
    if found.machine is None:
        if lives:
            yield Fact(what="QEMU's answer", record="it answers", qemu=found.detail, differs=True)
        return
    assert found.body is not None
    yield from _board(ledger, runtime, found.machine)
    yield from _devices(ledger, runtime, found.machine, found.body)
    yield from _leftovers(runtime, found.machine, found.body)
    for name in found.machine.given_up:
        kind = runtime.devices[name].kind if name in runtime.devices else "device"
        yield Fact(what=f"{kind} {name} driver", specification="ready", qemu="failed", differs=True)


def _fact(
    what: str,
    specification: str | None = None,
    record: str | None = None,
    qemu: str | None = None,
    remedy: str | None = None,
) -> Fact:
    """A thing, compared.

    :param remedy: for where QEMU is not as it is recorded; None: the document follows QEMU
    """
    told = {value for value in (specification, record, qemu) if value is not None}
    fact = Fact(what=what, specification=specification, record=record, qemu=qemu, differs=len(told) > 1)
    if fact.differs:
        strays = record != qemu and qemu is not None
        fact.remedy = (FOLLOW if remedy is None else remedy) if strays else NEXT_START
    return fact


# -- the process and the board ----------------------------------------------------------------------------------------


def _remains(ledger: Ledger) -> Iterator[Fact]:
    """What must not be there of an instance that does not run."""
    yield _fact("state", record="stopped", qemu="stopped")
    spec = ledger.document.spec
    for nic in spec.nics:
        name = net.tap_name(spec.uuid, nic.id)
        if nic.mode in ("macvtap", "ovs", "bridge", "routed") and netlink.state_of(name) is not None:
            yield _fact(f"leftover tap {name}", record=NONE, qemu=f"of nic {nic.id}", remedy=REMOVE)


def _process(host: Host, ledger: Ledger, runtime: Runtime, body: Body) -> Iterator[Fact]:
    uid = os.geteuid() if runtime.uid is None else runtime.uid
    yield _fact("process user", record=str(uid), qemu=str(body.uid), remedy=NEXT_START)
    asked, recorded = (_root(spec.chroot) for spec in (ledger.document.spec, runtime.spec))
    yield _fact("process root", asked, recorded, _root(body.own_root), NEXT_START)
    if runtime.cgroup:
        # the mount point is the host's business
        same = body.cgroup != "/" and runtime.cgroup.endswith(body.cgroup)
        yield _fact(
            "process control group", record=runtime.cgroup, qemu=runtime.cgroup if same else body.cgroup,
            remedy=MOVE,
        )  # fmt: skip
    wanted = wanted_sockets(runtime.spec)
    for name in wanted:
        there = "there" if name in body.sockets else "missing"
        yield _fact(f"socket {name}", record="there", qemu=there, remedy=NEXT_START)
    for name in body.sockets:
        if name not in wanted:
            yield _fact(f"leftover socket {name}", record=NONE, qemu="there", remedy=REMOVE)


def _root(own: bool) -> str:
    return "its own" if own else "the host's"


def wanted_sockets(spec: Spec) -> list[str]:
    """The sockets that are ours in the folder of a run."""
    return [*MONITORS, *(["serial"] if spec.serial else []), *(["agent"] if spec.agent else [])]


def _board(ledger: Ledger, runtime: Runtime, machine: Machine) -> Iterator[Fact]:
    spec, now = ledger.document.spec, runtime.spec
    yield _fact("machine", ledger.document.machine or None, runtime.machine, machine.type)
    wanted = None if spec.acceleration == "auto" else str(spec.acceleration)
    yield _fact("accelerator", wanted, runtime.accelerator, machine.accelerator)
    yield _fact("vCPUs", str(spec.cpu.count), str(now.cpu.count), str(machine.cpus))
    yield _fact("memory", str(spec.memory.size), str(now.memory.size), str(machine.memory))


# -- devices ----------------------------------------------------------------------------------------------------------


def _devices(ledger: Ledger, runtime: Runtime, machine: Machine, body: Body) -> Iterator[Fact]:
    spec, comes, now, has = ledger.document.spec, ledger.document.comes, runtime.spec, machine.devices
    for name in _both(spec.disks, now.disks):
        disk = _find(spec.disks, name), _find(now.disks, name)
        yield from _whole("disk", name, *disk, runtime, has.get(name), disk_driver)
        yield from _disk(f"disk {name}", *disk, has.get(name), body)
    for name in _both(spec.nics, now.nics):
        nic = _find(spec.nics, name), _find(now.nics, name)
        yield from _whole("nic", name, *nic, runtime, has.get(name), lambda nic: str(nic.model))
        yield from _nic(f"nic {name}", *nic, runtime.devices.get(name), has.get(name), body, comes=comes)
    for name in _both(spec.usb, now.usb):
        usb = _find(spec.usb, name), _find(now.usb, name)
        yield from _whole("usb", name, *usb, runtime, has.get(name), lambda usb: USB_DRIVERS[usb.type])
    for name in _both(spec.vfio, now.vfio):
        vfio = _find(spec.vfio, name), _find(now.vfio, name)
        yield from _whole("vfio", name, *vfio, runtime, has.get(name), lambda vfio: "vfio-pci")
    yield from _unlisted(runtime, machine, body)


def _unlisted(runtime: Runtime, machine: Machine, body: Body) -> Iterator[Fact]:
    """Devices that are in no list of the specification."""
    names = {device.id for device in listed(runtime.spec)}
    for name, device in runtime.devices.items():
        if name not in names:
            there = "there" if name in machine.devices else NONE
            yield _fact(f"{device.kind} {name}", record="there", qemu=there, remedy=MEND)
    for name in strangers(runtime, machine):
        if name not in names:
            held = machine.devices[name]
            remedy = WRITE_DOWN if describe(name, runtime, machine, body) else ""
            where = f"{held.driver} at {held.bus} {held.addr}".strip()
            yield Fact(what=f"device {name}", record=NONE, qemu=where, differs=True, remedy=remedy)


def _both(wanted: Sequence[D], recorded: Sequence[D]) -> list[str]:
    return list(dict.fromkeys(device.id for device in (*wanted, *recorded)))


def _find(devices: Sequence[D], id: str) -> D | None:
    return next((device for device in devices if device.id == id), None)


def _whole(
    kind: str, name: str, wanted: D | None, now: D | None, runtime: Runtime, held: Held | None,
    driver: Callable[[D], str],
) -> Iterator[Fact]:  # fmt: skip
    """Whether it is there, as which model, and where."""
    recorded = runtime.devices.get(name)
    remedy = WRITE_DOWN if recorded is None else MEND if held is None else NEXT_START
    yield _fact(
        f"{kind} {name}",
        NONE if wanted is None else driver(wanted),
        NONE if now is None or recorded is None else driver(now),
        NONE if held is None else held.driver,
        remedy=remedy,
    )
    if recorded is not None and held is not None:
        was, now_at = place_text(recorded.bus, recorded.addr), place_text(held.bus, held.addr)
        yield _fact(f"{kind} {name} place", record=was, qemu=now_at)


def place_text(bus: str, addr: str) -> str:
    """Where a device is, so that the same place has the same text."""
    _, dot, function = addr.partition(".")
    return f"{bus} {slot_of(addr):02x}.{function}" if dot else f"{bus} {addr}".strip()


def disk_driver(disk: Disk) -> str:
    """QEMU's model of a disk."""
    return _DISK_DRIVERS[disk.bus][disk.cdrom]


def _disk(what: str, wanted: Disk | None, now: Disk | None, held: Held | None, body: Body) -> Iterator[Fact]:
    if now is None or held is None:
        return
    if held.node is not None:
        node = now.id if own_nodes(now.id, [held.node.name]) else held.node.name
        yield _fact(f"{what} node", record=now.id, qemu=node, remedy=NEXT_START)
    for aspect, text, has in (
        ("image", lambda disk: _chain_text(layers(disk)), _chain_text(chain(now, held, body))),
        ("throttle", _throttle_text, limits_text(held.limits)),
    ):
        yield _fact(f"{what} {aspect}", text(wanted) if wanted else None, text(now), has)


def _chain_text(images: Sequence[Layer]) -> str:
    return " on ".join(f"{image.path} ({image.format})" for image in images) or NONE


def _throttle_text(disk: Disk) -> str:
    return NONE if disk.throttle is None else limits_text(disk.throttle.limits)


def _nic(
    what: str, wanted: Nic | None, now: Nic | None, recorded: Device | None, held: Held | None, body: Body, *,
    comes: bool,
) -> Iterator[Fact]:  # fmt: skip
    if now is None or held is None or recorded is None:
        return
    yield _fact(f"{what} netdev", record=now.id, qemu=held.netdev or NONE, remedy=NEXT_START)
    yield _fact(f"{what} address", wanted.mac.lower() if wanted else None, now.mac.lower(), held.mac.lower())
    if not recorded.tap:
        return
    tap = body.taps.get(recorded.tap)
    has = NONE if tap is None else recorded.tap if tap.up or comes else f"{recorded.tap}, switched off"
    yield _fact(f"{what} tap", record=recorded.tap, qemu=has, remedy=NEXT_START if tap is None else SWITCH_ON)
    if tap is not None and now.mode in ("bridge", "ovs"):
        link = wanted.link if wanted else None
        yield _fact(f"{what} bridge", link, now.link, bridge_of(now, recorded.tap, tap), remedy=REJOIN)


def bridge_of(nic: Nic, name: str, tap: Tap) -> str:
    """The bridge that a tap is a port of."""
    if nic.mode == "ovs":
        with suppress(NetworkError):
            return ovs.bridge_of(name)
        return NONE
    return tap.bridge or NONE


# -- what nobody needs ------------------------------------------------------------------------------------------------


def _leftovers(runtime: Runtime, machine: Machine, body: Body) -> Iterator[Fact]:
    found = leftovers(runtime, machine, body)
    for what, (about, owner) in found.items():
        yield Fact(what=f"leftover {what}", record=NONE, qemu=about, differs=True, remedy=REMOVE if owner else "")


ready(Report)
