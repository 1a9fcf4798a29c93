"""Devices of an instance that runs: in the guest, in QEMU and in the document at once, whoever dies in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import ArgumentError, SpecError, UnplugPending
from drover.kvm.argv.places import slot_of
from drover.kvm.instance import Instance
from drover.kvm.net import tap_name
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.taps import open_tap
from instances import VERSIONS, bare, bootable, temporary_node

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


class Guest:
    """The shell on an instance's console."""

    def __init__(self, vm: Instance) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(vm.host.paths.instance(vm.name).socket("serial")))
        self._socket.settimeout(90)
        self._read("guest# ")

    def run(self, command: str) -> str:
        """What a command prints."""
        self._socket.sendall(f"{command}; echo; echo do''ne\n".encode())
        return self._read("\ndone\r\n")

    def until(self, command: str, text: str, *, there: bool) -> None:
        """Wait until `text` is, or is not, in what a command prints."""
        for _ in range(100):
            if (text in self.run(f"usleep 100000; {command}").partition("\n")[2]) == there:
                return
        raise AssertionError(f"{text} is {'not ' if there else ''}in what {command} prints")

    def close(self) -> None:
        """Leave the console."""
        self._socket.close()

    def _read(self, end: str) -> str:
        text = ""
        while end not in text:
            text += self._socket.recv(4096).decode(errors="replace")
        return text


def agree(vm: Instance) -> set[str]:
    """Document and QEMU have the same devices, and nothing else is left of others; their ids."""
    document = vm.show().document
    assert document.pending is None
    assert document.runtime is not None
    known = {name for name, device in document.runtime.devices.items() if device.kind in ("disk", "nic")}
    for spec in (document.spec, document.runtime.spec):
        assert {disk.id for disk in spec.disks} | {nic.id for nic in spec.nics} == known
    with QmpConnection(vm.host.paths.instance(vm.name).socket("people")) as qmp:
        assert known <= qmp.query_devices().keys()
        nodes = {it["node-name"] for it in qmp.query_block_nodes()}
        assert nodes == {name for disk in document.spec.disks for name in (disk.id, f"{disk.id}-file")}
        opaque = [fd["opaque"] for fdset in qmp.execute("query-fdsets") for fd in fdset["fds"]]
        assert [text for text in opaque if "console" not in text] == []
    taps = {device.tap for device in document.runtime.devices.values() if device.tap}
    assert {name for name in os.listdir("/sys/class/net") if name.startswith("dr") and name != BRIDGE} == taps
    return known


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
    with pytest.raises(ArgumentError, match=f"one of its disks: {other.id}, {disk.id}"):
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
