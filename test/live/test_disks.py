"""Disks of all kinds in a real guest: chains, NBD servers, SCSI units, threads, and what the guest sees of them."""

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection
from drover.errors import ArgumentError, CommandError, NbdTimeout
from drover.ops.snapshots import Overlay
from drover.testing.machine import Machine

pytestmark = pytest.mark.live

MIB = 1 << 20


def left(vm: QmpConnection) -> dict[str, Any]:
    """All that a disk can leave behind in QEMU."""
    return {
        "devices": vm.query_devices(),
        "nodes": sorted(node["node-name"] for node in vm.query_block_nodes()),
        "fdsets": vm.execute("query-fdsets"),
    }


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def overlay(path: Path, backing: object, format: str, size: str = "8M") -> Path:
    """An image on another one that is not looked at."""
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, path, size)
    return path


def digest(booted: Machine, device: str) -> str:
    return booted.console.run(f"sha256sum /dev/{device}").split()[0]


@contextmanager
def served(image: Path, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-x", "disk", "-k", where, image]) as server:
        deadline = time.monotonic() + 20
        while not where.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server
        server.kill()


# -- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_is_the_one_that_was_said(booted: Machine, tmp_path: Path) -> None:
    """The headers name files that hold something else, and that nobody opens."""
    data, secret = os.urandom(8 * MIB), tmp_path / "secret"
    secret.write_bytes(os.urandom(8 * MIB))
    base = tmp_path / "base"
    base.write_bytes(data)
    middle = overlay(tmp_path / "middle", secret, "raw")
    top = overlay(tmp_path / "top", "/nowhere/at/all", "qcow2")
    backing = [(str(middle), "qcow2"), (str(base), "raw")]
    with QmpConnection(booted.qmp) as vm:
        before = left(vm)
        with pytest.raises(ArgumentError, match="without a backing file"):
            vm.hot_add_disk(top, id="data1", format="qcow2")
        assert left(vm) == before
        assert vm.hot_add_disk(top, id="data1", format="qcow2", backing=backing).size == 8 * MIB
        booted.console.wait_for_disk("vda")
        assert digest(booted, "vda") == hashlib.sha256(data).hexdigest()
        booted.console.run("dd if=/dev/zero of=/dev/vda bs=1M count=1 seek=2 conv=fsync")
        tree = vm.query_block_tree()
        assert [node.name for node in tree.nodes["data1"].walk()] == [
            "data1", "data1-file", "data1-back1", "data1-back1-file", "data1-back2", "data1-back2-file",
        ]  # fmt: skip
        assert {name for name, node in tree.nodes.items() if not node.read_only} == {"data1", "data1-file"}
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)
        assert left(vm) == before
    assert base.read_bytes() == data, "a base image is only read"
    qemu_img("rebase", "-u", "-b", base, "-F", "raw", middle)
    qemu_img("rebase", "-u", "-b", middle, "-F", "qcow2", top)
    qemu_img("convert", "-O", "raw", top, tmp_path / "all")
    assert (tmp_path / "all").read_bytes() == data[: 2 * MIB] + bytes(MIB) + data[3 * MIB :]


def test_two_disks_share_a_base(booted: Machine, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(os.urandom(8 * MIB))
    base.chmod(0o400)
    with QmpConnection(booted.qmp) as vm:
        before = left(vm)
        for number in (1, 2):
            top = overlay(tmp_path / f"top{number}", base, "raw")
            vm.hot_add_disk(top, id=f"d{number}", format="qcow2", backing=[(str(base), "raw")], driver="virtio-scsi")
        booted.console.wait_until(lambda view: {"sda", "sdb"} <= set(view.disks))
        assert digest(booted, "sda") == digest(booted, "sdb") == hashlib.sha256(base.read_bytes()).hexdigest()
        for number in (1, 2):
            vm.hot_remove_disk(f"d{number}")
        booted.console.wait_until(lambda view: not view.disks)
        assert left(vm) == before


def test_a_base_that_somebody_writes_to(booted: Machine, tmp_path: Path) -> None:
    """QEMU's locks say so, and nothing stays."""
    base = tmp_path / "base"
    base.write_bytes(bytes(8 * MIB))
    top = overlay(tmp_path / "top", base, "raw")
    with QmpConnection(booted.qmp) as vm:
        vm.hot_add_disk(base, id="d1")
        before = left(vm)
        with pytest.raises(CommandError, match="lock"):
            vm.hot_add_disk(top, id="d2", format="qcow2", backing=[(str(base), "raw")])
        assert left(vm) == before
        booted.console.wait_for_disk("vda")
        vm.hot_remove_disk("d1")
        booted.console.wait_for_disk("vda", present=False)


def test_a_chain_with_a_snapshot_goes_whole(booted: Machine, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(os.urandom(8 * MIB))
    top = overlay(tmp_path / "top", base, "raw")
    with QmpConnection(booted.qmp) as vm:
        before = left(vm)
        vm.hot_add_disk(top, id="d1", format="qcow2", backing=[(str(base), "raw")])
        booted.console.wait_for_disk("vda")
        vm.snapshot_disks(Overlay(node="d1", name="d1-s1", path=str(tmp_path / "new"), backing_file=str(top)))
        assert digest(booted, "vda") == hashlib.sha256(base.read_bytes()).hexdigest()
        vm.hot_remove_disk("d1")
        booted.console.wait_for_disk("vda", present=False)
        assert left(vm) == before


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("detect_zeroes", "grows"), [("off", True), ("unmap", False)])
def test_zeroes_that_the_guest_writes(booted: Machine, tmp_path: Path, detect_zeroes: str, grows: bool) -> None:
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, 64 * MIB)
    with QmpConnection(booted.qmp) as vm:
        vm.hot_add_disk(path, id="data1", detect_zeroes=detect_zeroes)
        booted.console.wait_for_disk("vda")
        booted.console.run("dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync")
        assert (path.stat().st_blocks * 512 > 8 * MIB) is grows
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)


@pytest.mark.parametrize("driver", ["virtio-blk", "virtio-scsi"])
def test_error_policies_are_the_devices(booted: Machine, tmp_path: Path, driver: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    with QmpConnection(booted.qmp) as vm:
        vm.hot_add_disk(path, id="data1", driver=driver, werror="stop", rerror="ignore")
        found = [vm.qom_get("/machine/peripheral/data1", name) for name in ("werror", "rerror")]
        assert found == ["stop", "ignore"]
        booted.console.wait_until(lambda view: len(view.disks) == 1)
        vm.hot_remove_disk("data1")
        booted.console.wait_until(lambda view: not view.disks)


def test_a_disk_in_a_thread_of_its_own(booted: Machine, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(8 * MIB))
    with QmpConnection(booted.qmp) as vm:
        before = left(vm)
        vm.object_add("iothread", "io1")
        with pytest.raises(ArgumentError, match="an I/O thread of this machine: io1"):
            vm.hot_add_disk(path, id="data1", iothread="io2")
        vm.hot_add_disk(path, id="data1", iothread="io1")
        booted.console.wait_for_disk("vda")
        assert digest(booted, "vda") == hashlib.sha256(path.read_bytes()).hexdigest()
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)
        vm.object_del("io1")
        assert left(vm) == before


# -- servers ---------------------------------------------------------------------------------------------------------


def test_a_disk_on_a_server(booted: Machine, tmp_path: Path) -> None:
    image, where = tmp_path / "data", tmp_path / "nbd"
    image.write_bytes(os.urandom(8 * MIB))
    with QmpConnection(booted.qmp) as vm, served(image, where):
        before = left(vm)
        disk = vm.hot_add_disk(f"nbd+unix:///disk?socket={where}", id="data1", driver="virtio-scsi")
        assert disk.size == 8 * MIB
        booted.console.wait_for_disk("sda")
        assert digest(booted, "sda") == hashlib.sha256(image.read_bytes()).hexdigest()
        booted.console.run("dd if=/dev/zero of=/dev/sda bs=1M count=1 conv=fsync")
        assert image.read_bytes()[:MIB] == bytes(MIB)
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("sda", present=False)
        assert left(vm) == before


def test_a_server_that_hangs_does_not_hang_qemu(booted: Machine, tmp_path: Path) -> None:
    image, where = tmp_path / "data", tmp_path / "nbd"
    image.write_bytes(bytes(MIB))
    with QmpConnection(booted.qmp) as vm, served(image, where) as server:
        server.send_signal(19)
        before = left(vm)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("drover.ops.storage.shake_hands.__kwdefaults__", {"timeout": 0.5})
            with pytest.raises(NbdTimeout):
                vm.hot_add_disk(f"nbd+unix:///disk?socket={where}", id="data1")
        assert left(vm) == before


# -- SCSI units ------------------------------------------------------------------------------------------------------


def scsi_places(booted: Machine) -> list[str]:
    """Where the guest has its SCSI disks: target and LUN."""
    found = booted.console.run("ls /sys/class/scsi_disk 2>/dev/null || true").split()
    return sorted(":".join(name.split(":")[2:]) for name in found)


def test_units_of_one_target(booted: Machine, tmp_path: Path) -> None:
    """Of one that has a LUN 0, and of one that has none."""
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    places = ["3:0", "3:1", "3:7", "9:255", "9:300"]
    with QmpConnection(booted.qmp) as vm:
        before = left(vm)
        for number, addr in enumerate(places):
            disk = vm.hot_add_disk(path, id=f"s{number}", driver="virtio-scsi", addr=addr, read_only=True)
            assert (disk.bus, disk.addr) == ("scsi0.0", addr)
        booted.console.wait_until(lambda view: len(view.disks) == 5)
        flat = 0x4000  # SAM's other way to write a LUN, which Linux shows as it is
        assert scsi_places(booted) == sorted([*places[:4], f"9:{flat + 300}"])
        with pytest.raises(CommandError):
            vm.hot_add_disk(path, id="s9", driver="virtio-scsi", addr="3:7", read_only=True)
        assert vm.hot_add_disk(path, id="s9", driver="virtio-scsi", read_only=True).addr == "0:0"
        booted.console.wait_until(lambda view: len(view.disks) == 6)
        for number in (*range(5), 9):
            vm.hot_remove_disk(f"s{number}")
        booted.console.wait_until(lambda view: not view.disks)
        assert left(vm) == before
