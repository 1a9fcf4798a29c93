"""Many of everything: disks on one machine, guests on one host, plugs one after another."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import HotplugError, NoFreeSlot
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import Guest, agree, bootable, temporary_node
from netns import ip, own_network

pytestmark = [pytest.mark.live, pytest.mark.slow]

TOP = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    with own_network(), temporary_node() as node:
        yield node


def images(folder: Path, count: int) -> list[str]:
    """So many images of 1 MiB."""
    paths = [folder / f"{number}.raw" for number in range(count)]
    for path in paths:
        path.touch(0o600)
        os.truncate(path, MIB)
    return [str(path) for path in paths]


def count_disks(guest: Guest, prefix: str, count: int) -> None:
    guest.until(f"ls /sys/block | grep -c ^{prefix} | sed 's/^/n=/;s/$/=/'", f"n={count}=", there=True)


def test_64_virtio_blk_disks(node: Node, version: str, tmp_path: Path) -> None:
    """Each on a root port of its own, seen by the guest; where all are taken, the answer says so."""
    more = {"memory": {"size": "512MiB"}, "machine": {"root_ports": 64}, "cpu": {"count": 2}}
    vm = node.create(parse(bootable(version, **more)))
    vm.start()
    guest = Guest(vm)
    *fitting, last = images(tmp_path, 65)
    for source in fitting:
        vm.add_disk(source=source, format="raw", cache="writeback")
    count_disks(guest, "vd", 64)
    with pytest.raises(NoFreeSlot):
        vm.add_disk(source=last, format="raw", cache="writeback")
    assert len(agree(vm)) == 64
    guest.close()


def test_more_than_the_guest_has_vectors_for(node: Node, version: str, tmp_path: Path) -> None:
    """With one vCPU: the answer says so, and so does `verify`; the disk can be taken out again."""
    vm = node.create(parse(bootable(version, memory={"size": "512MiB"}, machine={"root_ports": 80})))
    vm.start()
    guest = Guest(vm)
    given_up = ""

    def plug_all() -> None:
        nonlocal given_up
        for source in images(tmp_path, 80):
            given_up = vm.add_disk(source=source, format="raw", cache="writeback").id
            vm.wait_driver(given_up)

    with pytest.raises(HotplugError, match="no interrupt vectors left"):
        plug_all()
    assert [fact.what for fact in vm.verify().facts if fact.qemu == "failed"] == [f"disk {given_up} driver"]
    vm.remove_disk(given_up)
    assert vm.verify().agrees
    guest.close()


def test_64_from_the_start(node: Node, version: str, tmp_path: Path) -> None:
    disks = [{"source": source, "format": "raw", "cache": "writeback"} for source in images(tmp_path, 64)]
    vm = node.create(parse(bootable(version, disks=disks, memory={"size": "512MiB"})))
    vm.start()
    guest = Guest(vm)
    count_disks(guest, "vd", 64)
    guest.close()
    assert len(agree(vm)) == 64


def test_128_virtio_scsi_disks(node: Node, version: str, tmp_path: Path) -> None:
    vm = node.create(parse(bootable(version, memory={"size": "512MiB"})))
    vm.start()
    guest = Guest(vm)
    for source in images(tmp_path, 128):
        vm.add_disk(source=source, format="raw", cache="writeback", bus="virtio-scsi")
    count_disks(guest, "sd", 128)
    assert len(agree(vm)) == 128
    guest.close()


# -- one after another ------------------------------------------------------------------------------------------------


def held(vm: Instance) -> dict[str, int]:
    """What QEMU has of descriptors, sets of them, nodes and devices."""
    runtime = vm.show().document.runtime
    assert runtime is not None
    with QmpConnection(vm.host.paths.instance(vm.name).socket("people")) as people:
        found = {
            "sets": len(people.execute("query-fdsets")),
            "nodes": len(people.query_block_nodes()),
            "devices": len(people.query_devices()),
            "slots": sum(bus["qdev_id"] == "" for bus in people.query_pci()[0]["devices"]),
        }
    return found | {"fds": descriptors(runtime.pid)}


def descriptors(pid: int) -> int:
    """How many a QEMU has when it has closed our last connections, which takes it a moment."""
    looks = []
    for _ in range(20):
        looks.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(0.05)
    return min(looks)


def test_a_thousand_plugs(node: Node, version: str, tmp_path: Path) -> None:
    """Nothing grows: not the manager, by memory and descriptors; not QEMU, by all that it has."""
    ip("link add drtest0 type bridge")
    vm = node.create(parse(bootable(version)))
    vm.start()
    Guest(vm).close()
    [source] = images(tmp_path, 1)
    for cycle in range(1000):
        if cycle == 100:
            before, ours = held(vm), len(os.listdir("/proc/self/fd"))
            memory = resident()
        disk = vm.add_disk(source=source, format="raw", cache="writeback")
        nic = vm.add_nic(mode="bridge", link="drtest0")
        vm.remove_disk(disk.id, timeout=60)
        vm.remove_nic(nic.id, timeout=60)
    after = held(vm)
    assert {name: count for name, count in after.items() if count > before[name]} == {}
    assert len(os.listdir("/proc/self/fd")) == ours
    assert resident() - memory < 2 * MIB
    assert agree(vm) == set()
    assert "master drtest0" not in ip("link")


def resident() -> int:
    """Bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# -- many guests ------------------------------------------------------------------------------------------------------


def test_20_guests(node: Node, version: str) -> None:
    """Started by a process that dies by SIGKILL; listed and adopted by another, and all of them run."""
    for number in range(20):
        node.create(parse(bootable(version, f"vm{number}")))
    code = (
        "import os, sys; from pathlib import Path\n"
        "from drover.kvm.node import Node; from drover.kvm.paths import Paths\n"
        "node = Node(Paths(Path(sys.argv[1]), Path(sys.argv[2])))\n"
        "for name in node.names: node.instance(name).start()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    paths = node.host.paths
    words = [sys.executable, "-c", code, str(paths.state), str(paths.run)]
    env = os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}
    done = subprocess.run(words, env=env, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    for report in node.adopt(timeout=60):
        assert (report.error, report.notices) == (None, []), report.name
    assert {report.condition and report.condition.state for report in node.survey(timeout=60)} == {State.RUNNING}
    for name in node.names:
        guest = Guest(node.instance(name), booting=False)
        assert "6.1" in guest.run("uname -r")
        guest.close()
