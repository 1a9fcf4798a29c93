"""A disk is snapshotted, merged and moved to another image while a real guest writes to it."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from drover.ops.snapshots import Overlay
from drover.testing.machine import Machine
from faces import Face

pytestmark = pytest.mark.live

MIB = 1 << 20
SIZE = 8 * MIB
# A counter, again and again, each time somewhere else.
WRITER = (
    "n=0; while [ ! -e /tmp/enough ]; do n=$((n + 1)); "
    "echo $n | dd of=/dev/vda bs=4k seek=$((n * 37 % 2000)) conv=sync,notrunc,fsync 2>/dev/null; "
    "done; echo $n > /tmp/written"
)


@pytest.mark.machines("q35")  # the block layer knows nothing of buses; each version, and both faces
def test_a_disk_moves_under_a_guest_that_writes(booted: Machine, face: Face, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("disk1.raw", "disk1-s1.qcow2", "moved.raw")}
    for name in ("disk1.raw", "moved.raw"):
        paths[name].write_bytes(bytes(SIZE))
    guest = booted.console
    with face.open(booted.qmp) as vm:
        before = vm.query_block_nodes()
        vm.hot_add_disk(paths["disk1.raw"], id="disk1", cache="writeback")
        guest.wait_for_disk("vda")
        guest.run(f"rm -f /tmp/enough /tmp/written; ({WRITER}) >/dev/null 2>&1 &")
        overlay = paths["disk1-s1.qcow2"]
        vm.snapshot_disks(
            Overlay(node="disk1", name="disk1-s1", path=str(overlay), backing_file=str(paths["disk1.raw"])), timeout=60
        )
        still = hashlib.sha256(paths["disk1.raw"].read_bytes()).digest()
        vm.resize_disk("disk1", 2 * SIZE)  # of the overlay, that is
        vm.resize_disk("disk1", SIZE)
        file = {"driver": "file", "filename": str(paths["moved.raw"])}
        vm.blockdev_add({"driver": "raw", "node-name": "moved", "file": file})
        vm.blockdev_mirror("disk1-s1", "moved", copy_mode="write-blocking", timeout=120)
        vm.finish_mirror("mirror-disk1-s1", pivot=True, timeout=120)
        assert vm.query_block_tree().of_device("disk1").name == "moved"
        assert hashlib.sha256(paths["disk1.raw"].read_bytes()).digest() == still
        assert vm.remove_chain("disk1-s1") == ["disk1-s1", "disk1-s1-file", "disk1", "disk1-file"]
        seen = guest.run(
            "sleep 0.2; touch /tmp/enough; while [ ! -s /tmp/written ]; do sleep 0.05; done;"
            "echo 3 > /proc/sys/vm/drop_caches; cat /tmp/written; sha256sum /dev/vda"
        ).split()
        assert int(seen[0]) > 2  # it did write meanwhile
        vm.hot_remove_disk("disk1")
        guest.wait_for_disk("vda", present=False)
        assert hashlib.sha256(paths["moved.raw"].read_bytes()).hexdigest() == seen[1]
        assert vm.query_block_nodes() == before
    subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
