"""CD drives of a real guest, on SCSI and on SATA (IDE on `pc`): what it reads, and what it does about its tray."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection
from drover.errors import HotplugError, TrayLocked
from drover.testing.console import GuestError
from drover.testing.image import guest_image
from drover.testing.machine import Machine
from machines import qemu_of

pytestmark = pytest.mark.live

MIB = 1 << 20
# Where the guest has each drive.
DRIVES = {"cd0": "scsi-cd", "cd1": "ide-cd"}


# its kernel has all drivers, and takes a minute to boot
KINDS = ["7.2-pc", "10.0-q35", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("7.2-q35", "10.0-pc"))]


@pytest.fixture(scope="module", params=KINDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with two drives, and a kernel that has a driver for both."""
    drives = ["-device", "scsi-cd,id=cd0,bus=scsi0.0", "-device", "ide-cd,id=cd1,bus=ide.0"]
    name = request.param
    with Machine(
        qemu=qemu_of(name),
        machine=name.split("-")[1],
        name=name,
        scsi=True,
        extra=drives,
        image=guest_image(kernel="full"),
    ) as found:
        found.wait_ready()
        found.console.run("echo 500 >/sys/module/block/parameters/events_dfl_poll_msecs")
        yield found


def device_of(machine: Machine, drive: str) -> str:
    """The guest's name of a drive: by the transport that it is on."""
    for name in machine.console.run("ls /sys/block").split():
        if name.startswith("sr"):
            on_virtio = "virtio" in machine.console.run(f"readlink /sys/block/{name}")
            if on_virtio is (drive == "cd0"):
                return f"/dev/{name}"
    raise AssertionError(machine.console.run("ls -l /sys/block; dmesg | tail -50"))


def noticed(machine: Machine, device: str) -> None:
    """On SATA the guest's first read only tells it, by an error, that it has another medium."""
    machine.console.run(f"dd if={device} of=/dev/null count=1 || dd if={device} of=/dev/null count=1")


def digest(machine: Machine, device: str) -> str:
    noticed(machine, device)
    return machine.console.run(f"sha256sum {device}").split()[0]


def left(vm: QmpConnection) -> dict[str, Any]:
    nodes = sorted(node["node-name"] for node in vm.query_block_nodes())
    return {"nodes": nodes, "fdsets": vm.execute("query-fdsets")}


def filesystem(path: Path, content: bytes) -> Path:
    """A medium that the guest can mount: a CD's sectors are of 2 KiB."""
    (path.parent / "files").mkdir(exist_ok=True)
    (path.parent / "files" / "content").write_bytes(content)
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-b", "4096", "-d", path.parent / "files", path, "4M"], check=True)
    return path


@pytest.mark.parametrize("drive", DRIVES)
def test_a_medium_is_changed_and_read(machine: Machine, drive: str, tmp_path: Path) -> None:
    device = device_of(machine, drive)
    with QmpConnection(machine.qmp) as vm:
        before = left(vm)
        assert vm.query_cdrom(drive).node is None
        for number, expected in enumerate((drive, f"{drive}-next", drive)):
            path = tmp_path / f"{number}.iso"
            path.write_bytes(os.urandom(MIB * (number + 1)))
            found = vm.change_medium(drive, path)
            assert (found.node, found.size, found.tray_open) == (expected, MIB * (number + 1), False)
            assert {it["node-name"] for it in vm.query_block_nodes()} == {expected, f"{expected}-file"}
            assert not any(fdset["fds"] for fdset in vm.execute("query-fdsets"))
            assert digest(machine, device) == hashlib.sha256(path.read_bytes()).hexdigest()
            with pytest.raises(GuestError):
                machine.console.run(f"dd if=/dev/zero of={device} bs=2048 count=1 conv=fsync")
        vm.eject_medium(drive)
        assert left(vm) == before
        assert vm.query_cdrom(drive).tray_open
        with pytest.raises(GuestError, match="No medium"):
            machine.console.run(f"dd if={device} of=/dev/null bs=2048 count=1")


@pytest.mark.parametrize("drive", DRIVES)
def test_a_guest_that_uses_it_holds_the_tray_shut(machine: Machine, drive: str, tmp_path: Path) -> None:
    device = device_of(machine, drive)
    first, second = filesystem(tmp_path / "1.iso", b"one"), filesystem(tmp_path / "2.iso", b"two")
    with QmpConnection(machine.qmp) as vm:
        before = left(vm)
        vm.change_medium(drive, first)
        noticed(machine, device)
        machine.console.run(f"mount -t ext2 -o ro {device} /mnt")
        held = left(vm)
        for change in (lambda: vm.change_medium(drive, second, timeout=2), lambda: vm.eject_medium(drive, timeout=2)):
            with pytest.raises(TrayLocked):
                change()
            assert left(vm) == held
        assert vm.query_cdrom(drive).locked
        assert machine.console.run("cat /mnt/content") == "one"
        # now it lets go while we wait
        guest = threading.Thread(target=machine.console.run, args=["sleep 1; umount /mnt"])
        guest.start()
        assert vm.change_medium(drive, second, timeout=60).node == f"{drive}-next"
        guest.join()
        noticed(machine, device)
        machine.console.run(f"mount -t ext2 -o ro {device} /mnt")
        assert machine.console.run("cat /mnt/content") == "two"
        vm.change_medium(drive, first, force=True)
        machine.console.run("umount /mnt")
        noticed(machine, device)
        machine.console.run(f"mount -t ext2 -o ro {device} /mnt")
        assert machine.console.run("cat /mnt/content; umount /mnt") == "one"
        vm.eject_medium(drive)
        assert left(vm) == before


def test_what_is_no_drive(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(MIB))
    with QmpConnection(machine.qmp) as vm:
        before = left(vm)
        for name in ("scsi0", "nothing"):
            with pytest.raises(HotplugError, match="no such CD drive"):
                vm.change_medium(name, path)
        assert left(vm) == before
