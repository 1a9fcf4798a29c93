"""Block nodes and I/O limits on real QEMUs without a guest."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import KIB, MIB, SIZE, Lab, lab, machine
from drover.errors import ArgumentError, CommandError
from drover.ops.throttle import Limits

pytestmark = pytest.mark.live

KINDS = [("7.2", "blocking"), ("10.0", "asyncio")]


@pytest.fixture(params=KINDS, ids="-".join)
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with lab(*request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=KINDS, ids="-".join)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with machine(*request.param, tmp_path) as found:
        yield found


# -- the tree --------------------------------------------------------------------------------------------------------


def test_the_tree(guest: Lab) -> None:
    base = guest.node("base")
    guest.vm.throttle_group_add("slow", Limits(bps_total=MIB))
    top = guest.image("top", "-b", str(base), "-F", "raw", format="qcow2")
    guest.open("top", top, "qcow2", backing="base")
    guest.vm.blockdev_add({"driver": "throttle", "node-name": "thr", "throttle-group": "slow", "file": "top"})
    guest.plug("sd0", "thr")
    guest.node("cd", **{"read-only": True})
    guest.vm.execute("device_add", {"driver": "scsi-cd", "drive": "cd", "id": "cd0", "bus": "scsi0.0"})
    null = [{"driver": "null-co", "node-name": f"n{number}", "size": MIB} for number in (0, 1)]
    guest.vm.blockdev_add({"driver": "quorum", "node-name": "two", "vote-threshold": 1, "children": null})
    guest.vm.bitmap_add("top", "since")

    tree = guest.vm.query_block_tree()
    assert [node.name for node in tree.nodes["thr"].walk()] == ["thr", "top", "top-file", "base", "base-file"]
    thr, found = tree.of_device("sd0"), tree.nodes["top"]
    assert (thr.name, thr.driver, thr.throttle_group) == ("thr", "throttle", "slow")
    assert thr.children["file"] is found
    assert (found.driver, found.filename, found.size, found.read_only) == ("qcow2", str(top), SIZE, False)
    assert 0 < found.allocated < SIZE
    assert found.backing is tree.nodes["base"]
    assert [bitmap.name for bitmap in found.bitmaps] == ["since"]
    assert (tree.nodes["cd"].read_only, tree.nodes["cd"].devices) == (True, ("cd0",))
    assert {role: node.name for role, node in tree.nodes["two"].children.items()} == {
        "children.0": "n0",
        "children.1": "n1",
    }
    assert {node.name for node in tree.roots} == {"thr", "cd", "two"}
    assert [node.name for node in tree.parents("top")] == ["thr"]
    assert tree.of_device("nix") is None
    assert found.active is (None if guest.vm.version < (10, 0) else True)


def test_who_uses_a_node(tmp_path: Path) -> None:
    """A virtio-blk device, one without an id, an export, and a filter that a job put in between."""
    with lab("10.0", "blocking", tmp_path, machine="pc") as guest:
        for node in ("a", "b", "c"):
            guest.node(node)
        guest.vm.execute("device_add", {"driver": "virtio-blk-pci", "drive": "a", "id": "vd0"})
        guest.vm.execute("device_add", {"driver": "virtio-blk-pci", "drive": "b", "share-rw": True})
        guest.vm.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}})
        guest.vm.execute("block-export-add", {"type": "nbd", "id": "e0", "node-name": "b"})
        guest.vm.blockdev_mirror("a", "c", speed=KIB, wait=False)
        tree = guest.vm.query_block_tree()
        assert tree.of_device("vd0").name == "a"  # and not the job's filter
        assert [node.driver for node in tree.parents("a")] == ["mirror_top"]
        assert tree.nodes["b"].devices == ("/machine/peripheral-anon/device[0]/virtio-backend",)
        assert tree.nodes["b"].exports == ("e0",)
        guest.vm.job_cancel("mirror-a")
        limits = Limits(iops_read=100, iops_write=50, iops_read_max=200, iops_read_max_length=3, iops_size=4 * KIB)
        guest.vm.set_disk_throttle("vd0", limits)  # QEMU knows it by its path only
        assert guest.vm.query_disk_throttle("vd0") == limits


# -- add, reopen, remove ---------------------------------------------------------------------------------------------


def test_nothing_is_guessed(qemu: Lab) -> None:
    path = qemu.image("a", format="qcow2")
    file = {"driver": "file", "filename": str(path)}
    for wrong in (
        {"driver": "qcow2", "node-name": "a", "file": file},  # its header could name any file as its backing one
        {"driver": "qcow2", "file": file, "backing": None},
        {"node-name": "a", "file": file},
        {"driver": "throttle", "node-name": "a", "throttle-group": "g", "file": {"driver": "qcow2", "file": file}},
    ):
        with pytest.raises(ArgumentError):
            qemu.vm.blockdev_add(wrong)
    qemu.vm.blockdev_add({"driver": "qcow2", "node-name": "a", "file": file, "backing": None})
    with pytest.raises(CommandError):
        qemu.vm.blockdev_add({"driver": "raw", "node-name": "a", "file": file})
    qemu.vm.blockdev_del("a")
    with pytest.raises(CommandError):
        qemu.vm.blockdev_del("a")
    assert qemu.names() == set()


def test_a_node_is_opened_anew(qemu: Lab) -> None:
    qemu.node("a", **{"read-only": True})
    qemu.node("b", "qcow2")
    assert qemu.vm.query_block_tree().nodes["a"].read_only
    with pytest.raises(ArgumentError):
        qemu.vm.blockdev_reopen({"driver": "qcow2", "node-name": "b", "file": "b-file"})
    with pytest.raises(CommandError):
        qemu.vm.blockdev_reopen({"driver": "qcow2", "node-name": "a", "file": "a-file", "backing": None})
    options = {"driver": "raw", "node-name": "b", "read-only": True, "file": "b-file"}
    file = {"driver": "file", "node-name": "a-file", "filename": str(qemu.folder / "a"), "read-only": False}
    with pytest.raises(CommandError):  # one of two, so none
        qemu.vm.blockdev_reopen(file, options)
    assert qemu.vm.query_block_tree().nodes["a-file"].read_only
    qemu.vm.blockdev_reopen(file, {"driver": "raw", "node-name": "a", "read-only": False, "file": "a-file"})
    assert not qemu.vm.query_block_tree().nodes["a"].read_only


def test_a_chain_is_removed_but_for_what_others_use(qemu: Lab) -> None:
    base = qemu.node("base")
    for name in ("one", "two"):
        path = qemu.image(name, "-b", str(base), "-F", "raw", format="qcow2")
        file = {"driver": "file", "filename": str(path)}
        qemu.vm.blockdev_add({"driver": "qcow2", "node-name": name, "file": file, "backing": "base"})
    with pytest.raises(CommandError):
        qemu.vm.remove_chain("base")
    assert qemu.names() == {"base", "base-file", "one", "two"}
    gone = qemu.vm.remove_chain("one")
    assert gone[0] == "one"
    assert qemu.names() == {"base", "base-file", "two"}
    qemu.vm.remove_chain("two")
    assert qemu.names() == set()
    with pytest.raises(ArgumentError):
        qemu.vm.remove_chain("two")


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_group_slows_down(qemu: Lab) -> None:
    limits = Limits(bps_total=MIB, bps_total_max=2 * MIB, iops_read=1000)
    qemu.vm.throttle_group_add("slow", limits)
    assert qemu.vm.query_throttle_group("slow") == limits
    with pytest.raises(CommandError):
        qemu.vm.throttle_group_add("slow", limits)
    qemu.node("a")
    qemu.vm.blockdev_add({"driver": "throttle", "node-name": "thr", "throttle-group": "slow", "file": "a"})
    with pytest.raises(CommandError):
        qemu.vm.throttle_group_del("slow")
    qemu.vm.throttle_group_set("slow", Limits(bps_write=MIB))
    assert qemu.vm.query_throttle_group("slow") == Limits(bps_write=MIB)
    begun = time.monotonic()
    for _ in range(4):
        qemu.write("thr", 1, 0, 256 * KIB)
    slow = time.monotonic() - begun
    assert slow > 0.4  # the first write is free, three wait a quarter of a second each
    qemu.vm.throttle_group_set("slow", Limits())
    assert qemu.vm.query_throttle_group("slow") == Limits()
    qemu.vm.blockdev_del("thr")
    qemu.vm.throttle_group_del("slow")
    with pytest.raises(CommandError):
        qemu.vm.query_throttle_group("slow")


def test_a_device_is_limited_and_set_free(guest: Lab) -> None:
    guest.node("a")
    guest.plug("sd0", "a")
    assert guest.vm.query_disk_throttle("sd0") == Limits()
    limits = Limits(bps_total=10 * MIB, bps_total_max=20 * MIB, bps_total_max_length=5, iops_total=100)
    guest.vm.set_disk_throttle("sd0", limits, group="shared")
    assert guest.vm.query_disk_throttle("sd0") == limits
    guest.vm.set_disk_throttle("sd0", Limits())
    assert guest.vm.query_disk_throttle("sd0") == Limits()
    for verb in (lambda: guest.vm.set_disk_throttle("nix", Limits()), lambda: guest.vm.query_disk_throttle("nix")):
        with pytest.raises(ArgumentError):
            verb()


def test_qemu_takes_what_we_take(qemu: Lab) -> None:
    """And refuses what we refuse: the rules are QEMU's."""
    top = 10**15
    for limits in (
        Limits(bps_total=top),
        Limits(bps_read=1, bps_write=top, iops_total=1, iops_size=top),
        Limits(iops_write=1, iops_write_max=1, iops_write_max_length=2**32 - 1),
        Limits(bps_total=1, bps_read=0, bps_total_max=2),
    ):
        qemu.vm.throttle_group_add("ok", limits)
        assert qemu.vm.query_throttle_group("ok") == limits
        qemu.vm.throttle_group_del("ok")
    for wrong in (
        {"bps-total": 1, "bps-read": 1},
        {"iops-total": 1, "iops-write": 1},
        {"bps-total": -1},
        {"bps-total": top + 1},
        {"bps-total": 1, "bps-total-max": 10, "bps-total-max-length": 0},
        {"bps-total": 10, "bps-total-max": 5},
        {"bps-total-max": 5},
        {"bps-total": 1, "bps-total-max-length": 2},
        {"iops-read": 1, "iops-read-max": 2, "iops-read-max-length": top},
        {"iops-read": 1, "iops-read-max": 2, "iops-read-max-length": 2**32},
        {"iops-size": 1},
    ):
        with pytest.raises(CommandError):
            qemu.vm.execute("object-add", {"qom-type": "throttle-group", "id": "bad", "limits": wrong})
        ours = Limits(**{name.replace("-", "_"): value for name, value in wrong.items()})
        with pytest.raises(ArgumentError):
            qemu.vm.throttle_group_add("bad", ours)
    with pytest.raises(ArgumentError):  # QEMU takes this one for a very large number
        qemu.vm.throttle_group_add("bad", Limits(iops_total=1, iops_size=-1))
