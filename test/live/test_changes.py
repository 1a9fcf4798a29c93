"""Changes of an instance that runs, but for disks and cards that come and go: in guest, QEMU and document at once."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import ArgumentError, CommandError, NotSupported, SpecError
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.record import Runtime
from drover.kvm.spec import Throttle, parse
from drover.kvm.taps import open_tap
from instances import SHELL, Guest, agree, bare, bootable
from netns import ip, own_network

MIB = 1 << 20
BRIDGES = ("drtest0", "drtest1")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with own_network():
        yield


@pytest.fixture
def bridges() -> tuple[str, str]:
    for name in BRIDGES:
        ip(f"link add {name} type bridge")
    return BRIDGES


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    path.touch(0o600)
    os.truncate(path, 8 * MIB)
    return path


def runtime(vm: Instance) -> Runtime:
    found = vm.show().document.runtime
    assert found is not None
    return found


def monitor(vm: Instance) -> QmpConnection:
    """A connection of one's own."""
    return QmpConnection(vm.host.paths.instance(vm.name).socket("people"))


def port_of(bridge: str) -> set[str]:
    return {line.split()[0] for line in ip(f"-brief link show master {bridge}").splitlines()}


def wait_for_memory(guest: Guest, size: int) -> None:
    """Until the guest has more than so much, in MiB."""
    guest.until(f"awk '/MemTotal/ && $2 > {size * 1024} {{print \"mo\" \"re\"}}' /proc/meminfo", "more", there=True)


def test_memory_and_vcpus(node: Node, version: str) -> None:
    """The guest has them, and so it has at its next start."""
    sizes = {"size": 256 * MIB, "max": 1024 * MIB, "slots": 4}
    takes = f"{SHELL} memhp_default_state=online_movable"
    vm = node.create(parse(bootable(version, cmdline=takes, memory=sizes, cpu={"count": 1, "max": 3})))
    vm.start()
    guest = Guest(vm)
    dimm = vm.add_memory(128 * MIB)
    vmem = vm.add_memory(256 * MIB, type="virtio-mem")
    assert (dimm.id, vmem.id) == ("dimm0", "vmem0")
    guest.until("dmesg", "virtio_mem", there=True)
    wait_for_memory(guest, 250)
    assert vm.resize_memory("vmem0", 128 * MIB) == 128 * MIB
    for spec in (vm.show().document.spec, runtime(vm).spec):
        assert spec.memory.size == 512 * MIB
    wait_for_memory(guest, 380)
    with pytest.raises(ArgumentError, match="size"):
        vm.add_memory(1024 * MIB)
    with pytest.raises(ArgumentError, match="type"):
        vm.add_memory(MIB, type="nvdimm")
    assert vm.resize_memory("vmem0", 0) == 0
    with pytest.raises(NotSupported, match="KVM"):
        vm.set_vcpus(2)
    with pytest.raises(ArgumentError, match="1 to 3"):
        vm.set_vcpus(4)
    assert vm.show().document.spec.cpu.count == 1
    if version != "7.2":
        vm.set_vcpus(2, even_under_tcg=True)
        guest.until("ls /sys/devices/system/cpu", "cpu1", there=True)
        assert vm.show().document.spec.cpu.count == 2
    assert agree(vm) == set()
    guest.close()
    vm.reboot(timeout=30)
    with monitor(vm) as qmp:
        assert qmp.query_memory().base_memory == 384 * MIB
        assert len(qmp.query_cpus()) == (1 if version == "7.2" else 2)
    assert {device.kind for device in runtime(vm).devices.values()} == set()


def test_usb(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, machine={"usb": True})))
    vm.start(paused=True)
    assert vm.add_usb(type="keyboard").id == "usb1"
    assert vm.add_usb(type="mouse").id == "usb2"
    vm.remove_usb("usb1")
    with monitor(vm) as qmp:
        assert {device.id: device.driver for device in qmp.query_usb()} == {"usb2": "usb-mouse"}
    assert [device.id for device in vm.show().document.spec.usb] == ["usb2"]
    vm.reboot(timeout=0)
    with monitor(vm) as qmp:
        assert [device.id for device in qmp.query_usb()] == ["usb2"]
    with pytest.raises(CommandError):  # the host has no such device
        vm.add_vfio(host="0000:00:1f.7")
    with pytest.raises(SpecError, match="vfio"):
        vm.add_vfio(id="x")
    assert vm.show().document.spec.vfio == ()


def test_medium(node: Node, version: str, image: Path, tmp_path: Path) -> None:
    """Of a CD drive: changed, taken out, and the same at the next start."""
    other = tmp_path / "other.iso"
    other.write_bytes(bytes(4 * MIB))
    drive = {"id": "cd", "kind": "cdrom", "source": str(image), "format": "raw"}
    vm = node.create(parse(bare(version, disks=[drive])))
    vm.start()
    for source, size in ((str(other), 4 * MIB), ("", 0), (str(image), 8 * MIB)):
        vm.change_medium("cd", source)
        for spec in (vm.show().document.spec, runtime(vm).spec):
            assert spec.disks[0].source == source
        with monitor(vm) as qmp:
            assert qmp.query_cdrom("cd").size == size
            assert len(qmp.query_block_nodes()) == (2 if source else 0)
    with pytest.raises(FileNotFoundError):
        vm.change_medium("cd", "/nowhere")
    assert vm.show().document.spec.disks[0].source == str(image)
    vm.change_medium("cd", "")
    vm.reboot(timeout=0)
    with monitor(vm) as qmp:
        assert qmp.query_cdrom("cd").size == 0


def test_disk_itself(node: Node, version: str, image: Path) -> None:
    """Its size, its limits, and the thread that it runs in."""
    vm = node.create(parse(bare(version)))
    vm.start()
    vm.add_disk(id="a", source=str(image), format="raw", cache="writeback", iothread="io1")
    assert vm.resize_disk("a", 16 * MIB) == 16 * MIB
    assert image.stat().st_size == 16 * MIB
    with pytest.raises(ArgumentError, match="at least"):
        vm.resize_disk("a", 8 * MIB)
    assert vm.resize_disk("a", 8 * MIB, shrink=True) == 8 * MIB
    vm.set_throttle("a", iops_total=500, bps_read=MIB)
    assert vm.show().document.spec.disks[0].throttle == Throttle(iops_total=500, bps_read=MIB)
    with pytest.raises(SpecError, match="iops"):
        vm.set_throttle("a", iops_total=500, iops_read=1)
    vm.reboot(timeout=0)
    with monitor(vm) as qmp:
        assert qmp.query_disk_throttle("a").iops_total == 500
        assert [thread.id for thread in qmp.query_iothreads()] == ["io1"]
    vm.set_throttle("a")
    assert vm.show().document.spec.disks[0].throttle is None
    vm.kill()
    vm.start(paused=True)  # it has not run: a guest's firmware may not be asked to let go yet
    vm.resume()


def test_iothread_goes_with_its_last_disk(node: Node, version: str, image: Path) -> None:
    vm = node.create(parse(bootable(version)))
    vm.start()
    guest = Guest(vm)
    other = image.with_name("other.raw")
    other.write_bytes(bytes(MIB))
    for name, source in (("a", image), ("b", other)):
        vm.add_disk(id=name, source=str(source), format="raw", cache="writeback", iothread="io1")
    guest.until("ls /sys/block", "vdb", there=True)
    for name, left in (("a", ["io1"]), ("b", [])):
        vm.remove_disk(name)
        with monitor(vm) as qmp:
            assert [thread.id for thread in qmp.query_iothreads()] == left
    with pytest.raises(FileNotFoundError):
        vm.add_disk(source="/nowhere", format="raw", iothread="io2")
    with monitor(vm) as qmp:
        assert qmp.query_iothreads() == []
    guest.close()


def test_card(node: Node, version: str, bridges: tuple[str, str]) -> None:
    """Its cable and what it is connected to change, and its address does not."""
    first, second = bridges
    vm = node.create(parse(bootable(version)))
    vm.start()
    guest = Guest(vm)
    nic = vm.add_nic(mode="bridge", link=first)
    guest.until("ip link", nic.mac, there=True)
    guest.run("ip link set eth0 up")
    guest.until("cat /sys/class/net/eth0/carrier", "1", there=True)
    vm.set_link(nic.id, up=False)
    guest.until("cat /sys/class/net/eth0/carrier", "0", there=True)
    assert vm.show().document.spec.nics[0].link_state == "down"
    vm.set_link(nic.id, up=True)
    # to another bridge: the guest keeps the card
    tap = runtime(vm).devices[nic.id].tap
    guest.run("ip addr add 192.0.2.9/24 dev eth0")
    vm.change_nic(nic.id, link=second)
    assert (port_of(first), port_of(second)) == (set(), {tap})
    assert "192.0.2.9" in guest.run("ip addr show dev eth0")
    with pytest.raises(ArgumentError, match="link"):
        vm.change_nic(nic.id, link="nosuch0")
    assert port_of(second) == {tap}
    assert vm.show().document.spec.nics[0].link == second
    # to something else: the guest gets it anew, in the same place
    place = runtime(vm).devices[nic.id]
    changed = vm.change_nic(nic.id, mode="user", link="")
    assert changed.mac == nic.mac
    guest.until("ip link", nic.mac, there=True)
    assert (runtime(vm).devices[nic.id].bus, runtime(vm).devices[nic.id].addr) == (place.bus, place.addr)
    assert agree(vm) == {nic.id}
    # and where that fails, it is what it was
    with pytest.raises(ArgumentError, match="link"):
        vm.change_nic(nic.id, mode="bridge", link="nosuch0")
    guest.until("ip link", nic.mac, there=True)
    assert vm.show().document.spec.nics[0].mode == "user"
    assert agree(vm) == {nic.id}
    vm.remove_nic(nic.id)
    assert agree(vm) == set()
    guest.close()


def test_card_on_a_tap_of_ones_own(node: Node, version: str) -> None:
    """Given as a descriptor, at a start and while it runs; it is not ours to take away."""
    vm = node.create(parse(bare(version, nics=[{"id": "a", "mode": "fd"}])))
    with pytest.raises(ArgumentError, match=r"nics\[0\].mode"):
        vm.start()
    with open_tap("drown0", new=True) as one, open_tap("drown1", new=True) as two:
        vm.start(fds={"a": one.fds})
        with pytest.raises(ArgumentError, match=r"nics\[1\].mode"):
            vm.add_nic(id="b", mode="fd")
        vm.add_nic(id="b", mode="fd", fds=two.fds)
        assert {"a", "b"} <= runtime(vm).devices.keys()
        vm.kill()
        assert {"drown0", "drown1"} <= {name for _, name in socket.if_nameindex()}


def test_limits(node: Node) -> None:
    """Set where the host's control groups can; else a notice says which is not."""
    limits = {"cpus": 1.5, "memory": "1GiB", "threads": 200}
    vm = node.create(parse(bare("7.2", limits=limits)))
    notices = vm.start(paused=True)
    group = runtime(vm).cgroup
    for file, text in (("cpu.max", "150000 100000"), ("memory.max", str(1 << 30)), ("pids.max", "200")):
        path = Path(group, file)
        if group and path.exists():
            assert path.read_text().strip() == text
        else:
            assert any(file in notice or "control group" in notice for notice in notices), notices
