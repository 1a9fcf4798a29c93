"""Specification, record and QEMU side by side: what differs is found, and brought together without a disk touched."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from drover import QmpConnection
from drover.kvm.instance import Instance
from drover.kvm.ledger import opened
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from drover.kvm.verify import Fact, Report
from drover.ops.throttle import Limits
from instances import Guest, bare, bootable

BRIDGE, OTHER = "drtest0", "drtest1"


@pytest.fixture
def bridges() -> Iterator[None]:
    for name in (BRIDGE, OTHER):
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield
    for name in (BRIDGE, OTHER):
        subprocess.run(["ip", "link", "delete", name], check=True)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.raw" for number in range(3)]
    for path in paths:
        path.touch(0o600)
        os.truncate(path, 8 << 20)
    return list(map(str, paths))


def people(vm: Instance) -> QmpConnection:
    """The way by which somebody does things behind our back."""
    return QmpConnection(vm.host.paths.instance(vm.name).socket("people"))


def differing(report: Report) -> dict[str, Fact]:
    return {fact.what: fact for fact in report.facts if fact.differs}


def disk(path: str, name: str) -> dict[str, object]:
    return {"id": name, "source": path, "format": "raw", "cache": "writeback"}


def test_behind_our_back(node: Node, version: str, images: list[str], bridges: None) -> None:
    """A disk in, a disk out, a limit, a tap off its bridge: all told, then all agree, and so does the next start."""
    nics = [{"id": "lan", "mode": "bridge", "link": BRIDGE}]
    usb = [{"id": "pen", "type": "tablet"}]
    disks = [disk(images[0], "stays"), disk(images[1], "goes")]
    vm = node.create(parse(bootable(version, disks=disks, nics=nics, usb=usb)))
    vm.start()
    guest = Guest(vm)
    assert differing(vm.verify()) == {}
    with people(vm) as qmp:
        qmp.hot_remove_disk("goes")
        qmp.hot_add_disk(images[2], id="comes", format="raw", cache="writeback")
        qmp.set_disk_throttle("stays", Limits(iops_total=100))
        qmp.hot_add_usb("usb-mouse", id="rat")
    runtime = vm.show().document.runtime
    assert runtime is not None
    tap = runtime.devices["lan"].tap
    subprocess.run(["ip", "link", "set", tap, "master", OTHER, "down"], check=True)
    found = differing(vm.verify())
    assert set(found) == {
        "disk goes", "device comes", "disk stays throttle", "nic lan tap", "nic lan bridge", "device rat"
    }  # fmt: skip
    assert {what for what, fact in found.items() if not fact.remedy} == set()
    assert (found["disk goes"].record, found["disk goes"].qemu) == ("virtio-blk-pci", "none")
    assert found["disk stays throttle"].qemu == "iops_total 100"
    assert found["nic lan bridge"].qemu == OTHER
    assert vm.verify().facts == vm.verify().facts
    done = vm.repair()
    assert {"goes was taken out", f"{tap} was put back on {BRIDGE}", f"{tap} was switched on"} <= set(done)
    assert differing(vm.verify()) == {}
    assert Path(f"/sys/class/net/{tap}/master").resolve().name == BRIDGE
    spec = vm.show().document.spec
    assert {it.id: it.source for it in spec.disks} == {"stays": images[0], "comes": images[2]}
    assert spec.disks[0].throttle is not None
    assert [it.id for it in spec.usb] == ["pen", "rat"]
    guest.close()
    vm.reboot()  # it comes back as it was
    guest = Guest(vm)
    guest.until("ls /sys/block", "vdb", there=True)
    guest.close()
    assert vm.verify().agrees


def test_edited_document(node: Node, version: str, images: list[str]) -> None:
    """What the record says wrongly follows QEMU, and what the specification says anew is for the next start."""
    vm = node.create(parse(bare(version, disks=[disk(images[0], "d"), disk(images[1], "e")], nics=[{"id": "n"}])))
    vm.start()
    with opened(node.host.paths, "vm", "test") as ledger:
        runtime = ledger.document.runtime
        assert runtime is not None
        runtime.machine, runtime.accelerator = "pc-i440fx-1.0", "kvm"
        runtime.devices["d"].bus = "rp9"
        del runtime.devices["e"]
        cpu, nics = replace(runtime.spec.cpu, count=3, max=3), [replace(runtime.spec.nics[0], mac="52:54:00:00:00:01")]
        ledger.document.spec = runtime.spec = replace(runtime.spec, cpu=cpu, nics=tuple(nics))
        ledger.document.spec = replace(ledger.document.spec, memory=replace(runtime.spec.memory, size=128 << 20))
        ledger.save()
    found = differing(vm.verify())
    assert set(found) == {
        "machine", "accelerator", "disk d place", "disk e", "vCPUs", "nic n address", "memory"
    }  # fmt: skip
    assert (found["memory"].specification, found["memory"].qemu) == (str(128 << 20), str(64 << 20))
    assert found["memory"].remedy == "as specified at its next start"
    vm.repair()
    assert set(differing(vm.verify())) == {"memory"}
    document = vm.show().document
    assert document.runtime is not None
    assert (document.spec.cpu.count, document.spec.memory.size) == (1, 128 << 20)
    assert document.spec.nics[0].mac == document.runtime.spec.nics[0].mac != "52:54:00:00:00:01"


def test_leftovers(node: Node, version: str, images: list[str], bridges: None) -> None:
    """What was left lying about goes; what somebody made for himself is told, and stays."""
    vm = node.create(parse(bare(version)))
    vm.start()
    with people(vm) as qmp:
        file = {"driver": "null-co", "node-name": "left-file", "size": 1 << 20}
        qmp.blockdev_add(file)
        qmp.blockdev_add({"driver": "raw", "node-name": "left", "file": "left-file"})
        qmp.blockdev_add({**file, "node-name": "mine"})
        qmp.execute("netdev_add", {"type": "user", "id": "nonet"})
        with open(images[0], "rb") as image:
            qmp.execute("add-fd", {"opaque": "drover:nobody"}, fd=image.fileno())
        found = differing(vm.verify())  # without any monitor, QEMU may drop the set by itself
    names = ("node left", "node left-file", "node mine", "netdev nonet", "fdset")
    assert {what.rstrip(" 0123456789") for what in found} == {f"leftover {name}" for name in names}
    assert found["leftover node mine"].remedy == ""
    vm.repair()
    assert set(differing(vm.verify())) == {"leftover node mine"}


def test_snapshot_of_somebody(node: Node, version: str, images: list[str], tmp_path: Path) -> None:
    """The images that QEMU writes to are those of the next start: else what was written since would be lost."""
    vm = node.create(parse(bare(version, disks=[disk(images[0], "d")])))
    vm.start()
    runtime = vm.show().document.runtime
    assert runtime is not None
    overlay = vm.host.paths.instance("vm").private / "overlay"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", images[0], "-F", "raw", overlay], check=True)
    os.chown(overlay, runtime.uid or 0, 0)
    with people(vm) as qmp:
        qmp.execute("blockdev-add", {"driver": "file", "node-name": "o-file", "filename": str(overlay)})
        qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": "o", "file": "o-file", "backing": None})
        qmp.execute("blockdev-snapshot", {"node": "d", "overlay": "o"})
    found = differing(vm.verify())
    assert found["disk d image"].qemu == f"{overlay} (qcow2) on {images[0]} (raw)"
    vm.repair()
    assert set(differing(vm.verify())) == {"disk d node"}
    [kept] = vm.show().document.spec.disks
    assert (kept.source, kept.format, [it.source for it in kept.backing]) == (str(overlay), "qcow2", [images[0]])


def test_one_that_hangs_or_is_gone(node: Node, images: list[str]) -> None:
    """Silence is told as such, and an end that nobody saw."""
    vm = node.create(parse(bare("10.0")))
    assert vm.verify().agrees
    vm.start()
    runtime = vm.show().document.runtime
    assert runtime is not None
    os.kill(runtime.pid, 19)
    report = vm.verify(timeout=0.3)
    assert (report.state, set(differing(report))) == (State.UNRESPONSIVE, {"QEMU's answer"})
    os.kill(runtime.pid, 9)
    report = vm.verify()
    while report.state is State.UNRESPONSIVE:
        report = vm.verify()
    assert (report.state, set(differing(report))) == (State.ENDED, {"state"})
    assert any("signal 9" in text or "crash" in text for text in vm.repair())
    assert vm.verify().agrees
