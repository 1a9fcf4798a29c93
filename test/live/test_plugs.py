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

from drover.errors import ArgumentError, SpecError, UnplugPending
from drover.kvm.argv.places import slot_of
from drover.kvm.instance import Instance
from drover.kvm.net import tap_name
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.taps import open_tap
from instances import VERSIONS, Guest, agree, bare, bootable, temporary_node

TOP = Path(__file__).resolve().parents[2]
BRIDGE = "drtest0"


@pytest.fixture
def node() -> Iterator[Node]:
    with temporary_node() as node:
        yield node


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def bridge() -> Iterator[str]:
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    yield BRIDGE
    subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


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

record.replace = counted(record.replace)
FacePort.submit = counted(FacePort.submit)
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
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


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
    assert min(steps.values()) > 20
    guest.close()


def test_tap_of_somebody_else(node: Node, bridge: str) -> None:
    """Nothing of it stays when the tap cannot be made."""
    vm = node.create(parse(bare("7.2")))
    vm.start()
    name = tap_name(vm.show().document.spec.uuid, "nic0")
    with open_tap(name), pytest.raises(Exception, match="use"):
        vm.add_nic(mode="bridge", link=bridge)
    assert agree(vm) == set()
