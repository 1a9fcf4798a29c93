"""Devices of an instance that runs: in the guest, in QEMU and in the document at once, whoever dies in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from drover import QmpConnection
from drover.errors import ArgumentError, SpecError, UnplugPending
from drover.kvm.argv.places import slot_of
from drover.kvm.instance import Instance
from drover.kvm.ledger import opened
from drover.kvm.net import tap_name
from drover.kvm.node import Node
from drover.kvm.spec import completed, parse
from drover.kvm.taps import open_tap
from instances import Guest, agree, bare, bootable
from netns import ip, own_network
from vswitch import open_vswitch

TOP = Path(__file__).resolve().parents[2]
BRIDGE = "drtest0"


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with own_network():
        yield


@pytest.fixture
def bridge() -> str:
    ip(f"link add {BRIDGE} type bridge")
    return BRIDGE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    path.touch(0o600)
    os.truncate(path, 8 << 20)
    shutil.copy(path, f"{path}.other")
    return path


def places(vm: Instance) -> dict[str, tuple[str, int]]:
    """Where its devices are: bus and slot."""
    runtime = vm.show().document.runtime
    assert runtime is not None
    return {name: (device.bus, slot_of(device.addr)) for name, device in runtime.devices.items()}


def test_disk_and_nic(node: Node, version: str, image: Path, bridge: str) -> None:
    """Seen by the guest, remembered, there again after a reboot, and gone from all three when they are taken out."""
    vm = node.create(parse(bootable(version)))
    vm.start()
    guest = Guest(vm)
    other = vm.add_disk(source=f"{image}.other", format="raw", cache="writeback")
    guest.until("ls /sys/block", "vda", there=True)
    disk = vm.add_disk(source=str(image), format="raw", serial="data-1", cache="writeback")
    guest.until("ls /sys/block", "vdb", there=True)
    assert "data-1" in guest.run("cat /sys/block/vdb/serial")
    nic = vm.add_nic(mode="bridge", link=bridge)
    guest.until("ip link", nic.mac, there=True)
    assert agree(vm) == {other.id, disk.id, nic.id}
    with pytest.raises(SpecError, match="id"):
        vm.add_disk(id=disk.id, source="/nowhere", format="raw")
    with pytest.raises(ArgumentError, match=f"one of its disk devices: {other.id}, {disk.id}"):
        vm.remove_disk("nosuch")
    with pytest.raises(FileNotFoundError):
        vm.add_disk(source="/nowhere", format="raw")
    assert agree(vm) == {other.id, disk.id, nic.id}
    guest.close()
    vm.remove_disk(other.id)
    before = places(vm)
    vm.reboot()
    assert places(vm) == before
    guest = Guest(vm)
    guest.until("ls /sys/block", "vda", there=True)
    vm.remove_disk(disk.id)
    guest.until("ls /sys/block", "vda", there=False)
    vm.remove_nic(nic.id)
    guest.until("ip link", nic.mac, there=False)
    assert agree(vm) == set()
    guest.close()


def test_guest_that_does_not_let_go(node: Node, version: str, image: Path) -> None:
    """The disk is the instance's until the guest's next reset, and then it is gone."""
    vm = node.create(parse(bare(version)))
    vm.start()
    disk = vm.add_disk(source=str(image), format="raw", cache="writeback")
    with pytest.raises(UnplugPending):
        vm.remove_disk(disk.id, timeout=0.3)
    assert agree(vm) == {disk.id}
    vm.reset()
    vm.mend()
    assert agree(vm) == set()


# -- we die -----------------------------------------------------------------------------------------------------------

DYING = """
import json, os, signal, sys
from pathlib import Path
from drover.kvm import net, record
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.monitor.base import FacePort

state, run, verb, step, fields = sys.argv[1:]
count = 0

def counted(real):
    def act(*args, **kwargs):
        tick()
        result = real(*args, **kwargs)
        tick()
        return result
    return act

def tick():
    global count
    count += 1
    if count == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

def submit(port, command, *args, _real=FacePort.submit, **kwargs):
    # between two questions that change nothing nothing can go wrong
    act = _real if command.startswith(("query-", "qom-list", "qom-get")) else counted(_real)
    return act(port, command, *args, **kwargs)

record.replace = counted(record.replace)
FacePort.submit = submit
net.plug = counted(net.plug)
net.release = counted(net.release)
vm = Node(Paths(Path(state), Path(run))).instance("vm")
getattr(vm, verb)(**json.loads(fields))
"""


def die_in(node: Node, verb: str, step: int, **fields: object) -> bool:
    """Run a verb in a process that gets SIGKILL at a step: at a write, a command, a tap. Whether it did."""
    paths = node.host.paths
    words = [sys.executable, "-c", DYING, str(paths.state), str(paths.run), verb, str(step), json.dumps(fields)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}, timeout=60, check=False)
    assert done.returncode in (0, int(fields.get("link") == "nosuch0"), -signal.SIGKILL)
    return done.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "nic"])
def test_killed_at_each_step(node: Node, version: str, kind: str, image: Path, bridge: str) -> None:
    """Adding and removing, in one guest: after each death document, QEMU and guest agree."""
    vm = node.create(parse(bootable(version)))
    vm.start()
    guest = Guest(vm)
    nic = {"id": "x", "mode": "bridge", "link": bridge, "mac": "52:54:00:00:00:01"}
    disk = {"id": "x", "source": str(image), "format": "raw", "cache": "writeback"}
    fields, command, text = (nic, "ip link", nic["mac"]) if kind == "nic" else (disk, "ls /sys/block", "vda")
    steps = {}
    for verb, more in ((f"add_{kind}", fields), (f"remove_{kind}", {"id": "x"})):
        step, died = 1, True
        while died:
            if verb.startswith("remove") and "x" not in agree(vm):
                getattr(vm, f"add_{kind}")(**fields)
                guest.until(command, text, there=True)
            died = die_in(node, verb, step, **more)
            vm.mend()
            there = "x" in agree(vm)
            guest.until(command, text, there=there)
            if verb.startswith("add") and there:
                getattr(vm, f"remove_{kind}")("x")
            step += 1
        steps[verb] = step
    assert min(steps.values()) > 10
    guest.close()


def test_all_die_in_a_plug(node: Node, version: str, tmp_path: Path) -> None:
    """We, at each step, and QEMU then: a port of Open vSwitch, which not even a boot of the host removes, is gone."""
    vm = node.create(parse(bare(version)))
    step, died, ports = 1, True, set()
    with open_vswitch(tmp_path / "ovs") as switch:
        switch.add_bridge("ovs0")
        while died:
            vm.start()
            runtime = vm.show().document.runtime
            assert runtime is not None
            died = die_in(node, "add_nic", step, id="x", mode="ovs", link="ovs0")
            ports.add(switch.vsctl("list-ports", "ovs0"))
            os.kill(runtime.pid, signal.SIGKILL)
            vm.mend()
            assert switch.vsctl("list-ports", "ovs0") == ""
            reset_to(vm, bare(version))
            step += 1
    assert step > 6
    assert len(ports) == 2  # it was there at some


def test_tap_of_somebody_else(node: Node, bridge: str) -> None:
    """Nothing of it stays when the tap cannot be made."""
    vm = node.create(parse(bare("7.2")))
    vm.start()
    name = tap_name(vm.show().document.spec.uuid, "nic0")
    with open_tap(name), pytest.raises(Exception, match="use"):
        vm.add_nic(mode="bridge", link=bridge)
    assert agree(vm) == set()


CHANGED: dict[str, dict[str, object]] = {
    "set_throttle": {"id": "a", "iops_total": 500},
    "set_link": {"id": "n", "up": False},
    "change_medium": {"id": "cd", "source": ""},
    "resize_disk": {"id": "a", "size": 16 << 20},
    "add_usb": {"type": "mouse"},
    "add_memory": {"size": 128 << 20},
    "change_nic": {"id": "n", "link": "drtest1"},
    "change_nic-replug": {"id": "n", "mode": "user", "link": None},
    "change_nic-fails": {"id": "n", "mode": "macvtap", "link": "nosuch0"},  # out, not in, and back in again
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", CHANGED)
def test_change_killed_at_each_step(node: Node, version: str, verb: str, image: Path, bridge: str) -> None:
    """Document and QEMU agree after each death, on what was or on what was to be, and on nothing in between."""
    ip("link add drtest1 type bridge")
    fields = CHANGED[verb] | ({"source": f"{image}.other"} if verb == "change_medium" else {})
    drive = {"id": "cd", "kind": "cdrom", "source": str(image), "format": "raw"}
    memory = {"size": "256MiB", "max": "1GiB", "slots": 2}
    kind = bootable if verb.partition("-")[2] else bare  # the guest has to let go of the card
    vm = node.create(parse(kind(version, disks=[drive], memory=memory, machine={"usb": True})))
    step, died = 1, True
    while died:
        vm.start()
        shutil.copy(f"{image}.other", tmp := f"{image}.a")
        vm.add_disk(id="a", source=tmp, format="raw", cache="writeback")
        vm.add_nic(id="n", mode="bridge", link=bridge)
        if kind is bootable:
            guest = Guest(vm)
            guest.until("ls /sys/class/net", "eth0", there=True)
            guest.close()
        before = told(vm)
        died = die_in(node, verb.partition("-")[0], step, **fields)
        vm.mend()
        after = told(vm)
        agree(vm)
        assert (after != before) == (not verb.endswith("fails")) or died, step
        assert after["netdev"] == before["netdev"]
        assert after["master"] == BRIDGE or not verb.endswith("fails")
        vm.kill()
        reset_to(vm, kind(version, disks=[drive], memory=memory, machine={"usb": True}))
        step += 1
    assert step > 3


@pytest.mark.slow
def test_plug_after_a_change_that_was_cut_off(node: Node, version: str, image: Path, bridge: str) -> None:
    """A card that was out for a moment is put back first: what was seen of the buses before that is not true."""
    vm = node.create(parse(bootable(version)))
    vm.start()
    guest = Guest(vm)
    vm.add_nic(id="n", mode="bridge", link=bridge)
    guest.until("ls /sys/class/net", "eth0", there=True)
    step, died, before = 1, True, places(vm)["n"]
    while died:
        died = die_in(node, "change_nic", step, id="n", mode="user", link=None)
        vm.add_disk(id="x", source=str(image), format="raw", cache="writeback")
        assert agree(vm) == {"n", "x"}
        assert places(vm)["n"] == before
        guest.until("ls /sys/block", "vda", there=True)
        vm.remove_disk("x")
        guest.until("ls /sys/class/net", "eth0", there=True)
        vm.change_nic("n", mode="bridge", link=bridge)
        guest.until("ls /sys/class/net", "eth0", there=True)
        step += 1
    assert step > 6
    guest.close()


def told(vm: Instance) -> dict[str, object]:
    """What is said of it, and what QEMU says."""
    with QmpConnection(vm.host.paths.instance(vm.name).socket("people")) as qmp:
        seen = {
            "size": qmp.query_disk_size("a"),
            "limit": qmp.query_disk_throttle("a").iops_total,
            "medium": qmp.query_cdrom("cd").size,
            "usb": [device.id for device in qmp.query_usb()],
            "memory": qmp.query_memory(),
            "netdev": qmp.execute("qom-get", {"path": "/machine/peripheral/n", "property": "netdev"}),
        }
    return seen | {"spec": vm.show().document.spec, "master": master(vm)}


def master(vm: Instance) -> str:
    """The bridge that its card is on."""
    name = tap_name(vm.show().document.spec.uuid, "n")
    return "".join(bridge for bridge in (BRIDGE, "drtest1") if name in ip(f"link show master {bridge}"))


def reset_to(vm: Instance, document: dict[str, object]) -> None:
    """Make it what it was at first, which people do by editing its specification."""
    with opened(vm.host.paths, vm.name, "test") as ledger:
        ledger.document.spec = completed(replace(parse(document), uuid=ledger.document.spec.uuid))
        ledger.save()
