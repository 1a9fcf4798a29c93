"""Transactions, overlays and internal snapshots on real QEMUs without a guest, compared byte by byte."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import KIB, MIB, SIZE, Lab, content, disk, lab, machine
from drover.errors import ArgumentError, CommandError, JobCancelled, JobFailed, NotSupported
from drover.ops import actions
from drover.ops.actions import Action
from drover.ops.snapshots import Overlay

pytestmark = pytest.mark.live

KINDS = [("7.2", "blocking"), ("10.0", "asyncio")]


@pytest.fixture(params=KINDS, ids="-".join)
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with lab(*request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=KINDS, ids="-".join)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """One with two disks: 'sd0' on a raw image, 'sd1' on a qcow2 one."""
    with machine(*request.param, tmp_path) as found:
        for device, node, kind in (("sd0", "a", "raw"), ("sd1", "b", "qcow2")):
            found.node(node, kind)
            found.plug(device, node)
            found.write(device, 1, 0, MIB)
        yield found


def overlays(guest: Lab, **changed: str) -> list[Overlay]:
    paths = [str(guest.folder / "a-s1"), str(guest.folder / "b-s1")]
    return [
        Overlay(node="a", name="a-s1", path=paths[0]),
        Overlay(**{"node": "b", "name": "b-s1", "path": paths[1]} | changed),
    ]


def open_fdsets(guest: Lab) -> list[object]:
    """The sets that still hold a descriptor. 7.2 closes what was removed only where the guest runs."""
    if guest.vm.version < (8, 0):
        return []
    return [fdset for fdset in guest.vm.execute("query-fdsets") if fdset["fds"]]


# -- overlays --------------------------------------------------------------------------------------------------------


def test_two_disks_at_one_moment_and_back(guest: Lab) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    guest.vm.snapshot_disks(*overlays(guest), timeout=60)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert open_fdsets(guest) == []
    for device in ("sd0", "sd1"):
        guest.write(device, 2, 512 * KIB, MIB)
        guest.io(device, "flush")
    assert guest.content("a") == guest.content("b") == disk((1, 0, MIB))
    for name in ("a-s1", "b-s1"):
        path = guest.folder / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert content(path, "qcow2") == disk((1, 0, MIB), (2, 512 * KIB, MIB))  # by the backing file that it names
    tree = guest.vm.query_block_tree()
    top = tree.of_device("sd1")
    assert (top.name, top.backing.name, top.backing.filename) == ("b-s1", "b", str(guest.folder / "b"))
    guest.vm.block_commit("a-s1", timeout=60)
    assert guest.vm.query_block_tree().of_device("sd0").name == "a"
    assert guest.content("a") == disk((1, 0, MIB), (2, 512 * KIB, MIB))
    assert guest.vm.remove_chain("a-s1") == ["a-s1", "a-s1-file"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"path": "/no/such/folder/x"}, FileNotFoundError),
        ({"name": "a"}, ArgumentError),  # the node is there already
        ({"name": "a-s1"}, ArgumentError),  # or will be
        ({"node": "nix"}, ArgumentError),
        ({"name": "b" * 27}, ArgumentError),
        ({"backing_format": "throttle"}, ArgumentError),
        ({"node": "a"}, CommandError),  # twice: the transaction itself is refused
    ],
    ids=str,
)
def test_of_both_or_of_none(guest: Lab, changed: dict[str, str], expected: type[Exception]) -> None:
    before, files = guest.names(), sorted(os.listdir(guest.folder))
    with pytest.raises(expected) as caught:
        guest.vm.snapshot_disks(*overlays(guest, **changed), timeout=60)
    assert not getattr(caught.value, "__notes__", [])
    assert guest.names() == before
    assert sorted(os.listdir(guest.folder)) == files
    assert open_fdsets(guest) == guest.vm.query_jobs() == []
    assert guest.vm.query_block_tree().of_device("sd0").name == "a"


def test_a_file_in_the_way_is_left_alone(guest: Lab) -> None:
    there = guest.folder / "b-s1"
    there.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        guest.vm.snapshot_disks(*overlays(guest))
    assert there.read_bytes() == b"precious"
    assert not (guest.folder / "a-s1").exists()


def test_a_disk_that_came_as_a_descriptor(guest: Lab) -> None:
    """QEMU does not know its path, and cannot open it anew."""
    path = guest.image("c")
    guest.vm.hot_add_disk(path, id="c", driver="virtio-scsi", cache="writeback")
    guest.vm.cont()  # 7.2 closes what was removed from a set only where the guest runs
    guest.vm.stop()
    overlay = {"node": "c", "name": "c-s1", "path": str(guest.folder / "c-s1")}
    with pytest.raises(ArgumentError, match="backing_file"):
        guest.vm.snapshot_disks(Overlay(**overlay))
    guest.vm.snapshot_disks(Overlay(**overlay, backing_file=str(path)), timeout=60)
    info = subprocess.run(["qemu-img", "info", "-U", overlay["path"]], capture_output=True, text=True, check=True)
    assert f"backing file: {path}\nbacking file format: raw" in info.stdout
    assert guest.vm.resize_disk("c", 2 * SIZE) == 2 * SIZE  # of the node that is on top now
    guest.vm.block_commit("c-s1", timeout=60)  # the base was read only meanwhile
    assert path.stat().st_size == 2 * SIZE
    assert guest.vm.remove_chain("c-s1") == ["c-s1", "c-s1-file"]
    Path(overlay["path"]).unlink()
    guest.vm.snapshot_disks(Overlay(**overlay, backing_file=str(path)), timeout=60)
    before = guest.names() - {"c-s1", "c-s1-file", "c", "c-file"}
    guest.vm.hot_remove_disk("c")
    assert guest.names() == before  # with all that it stood on


# -- transactions ----------------------------------------------------------------------------------------------------


def test_backups_of_two_disks_at_one_moment(guest: Lab) -> None:
    targets = [guest.node("ta"), guest.node("tb")]
    guest.vm.transaction(
        actions.bitmap_add("a", "since"),
        actions.bitmap_add("b", "since", granularity=4 * KIB),
        actions.backup("a", "ta", job_id="ja"),
        actions.backup("b", "tb", job_id="jb"),
    )
    for device in ("sd0", "sd1"):
        guest.write(device, 3, 0, 4 * KIB)
    for job in ("ja", "jb"):
        assert guest.vm.wait_job(job, timeout=60).type == "backup"
    for target, node in zip(targets, ("ta", "tb"), strict=True):
        guest.close(node)
        assert content(target) == disk((1, 0, MIB))
    found = guest.vm.query_bitmaps()
    assert {node: bitmaps["since"].count for node, bitmaps in found.items()} == {"a": 64 * KIB, "b": 4 * KIB}


def test_one_of_a_group_takes_the_others_along(guest: Lab) -> None:
    guest.node("ta")
    guest.node("tb")
    jobs = [actions.backup(node, f"t{node}", job_id=f"j{node}", speed=64 * KIB) for node in ("a", "b")]
    guest.vm.transaction(*jobs, grouped=True)
    guest.vm.job_cancel("ja")
    with pytest.raises(JobCancelled):
        guest.vm.wait_job("jb", timeout=60)
    assert guest.vm.query_jobs() == []


def test_all_actions_or_none(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    with pytest.raises(CommandError):
        qemu.vm.transaction(actions.bitmap_add("a", "x"), actions.bitmap_clear("b", "nix"))
    assert qemu.vm.query_bitmaps() == {}
    with pytest.raises(NotSupported, match="no-such"):
        qemu.vm.transaction(Action("no-such", {}))
    with pytest.raises(ArgumentError):
        qemu.vm.transaction()
    if qemu.vm.version < (9, 1):
        with pytest.raises(NotSupported, match="9.1"):
            qemu.vm.transaction(actions.backup("a", "b", discard_source=True))
    else:
        qemu.vm.transaction(actions.backup("a", "b", discard_source=True, job_id="j"))
        qemu.vm.wait_job("j", timeout=60)


def test_every_action(qemu: Lab) -> None:
    for node in ("a", "b", "c"):
        qemu.node(node, "qcow2")
    qemu.vm.transaction(
        actions.bitmap_add("a", "one", persistent=True),
        actions.bitmap_add("a", "two", disabled=True, granularity=512),
        actions.internal_snapshot("a", "s1"),
    )
    qemu.write("a", 1, 0, 64 * KIB)
    qemu.vm.transaction(actions.bitmap_merge("a", "two", ["one"]), actions.bitmap_clear("a", "one"))
    found = qemu.vm.query_bitmaps()["a"]
    assert (found["one"].count, found["one"].persistent, found["one"].recording) == (0, True, True)
    assert (found["two"].count, found["two"].granularity, found["two"].recording) == (64 * KIB, 512, False)
    qemu.vm.transaction(actions.bitmap_enable("a", "two"), actions.bitmap_disable("a", "one"))
    qemu.vm.transaction(actions.bitmap_remove("a", "two"), actions.bitmap_merge("a", "one", [("a", "one")]))
    assert set(qemu.vm.query_bitmaps()["a"]) == {"one"}
    qemu.vm.transaction(actions.snapshot("a", "b"))
    assert qemu.vm.query_block_tree().nodes["b"].backing.name == "a"


def test_an_overlay_that_qemu_makes(guest: Lab) -> None:
    guest.vm.transaction(actions.snapshot_file("a", str(guest.folder / "s1"), "s1"))
    top = guest.vm.query_block_tree().of_device("sd0")
    assert (top.name, top.driver, top.backing.name) == ("s1", "qcow2", "a")


def test_bitmaps_one_by_one(qemu: Lab) -> None:
    path = qemu.node("a", "qcow2")
    qemu.vm.bitmap_add("a", "x", persistent=True, granularity=4 * KIB)
    qemu.vm.bitmap_add("a", "y", disabled=True)
    qemu.write("a", 1, 0, 8 * KIB)
    qemu.vm.bitmap_disable("a", "x")
    qemu.write("a", 1, MIB, 8 * KIB)
    qemu.vm.bitmap_merge("a", "y", [("a", "x")])
    qemu.vm.bitmap_enable("a", "y")
    qemu.write("a", 1, 2 * MIB, 64 * KIB)
    found = qemu.vm.query_bitmaps()["a"]
    assert (found["x"].count, found["y"].count) == (8 * KIB, 2 * 64 * KIB)
    qemu.vm.bitmap_clear("a", "y")
    assert qemu.vm.query_bitmaps()["a"]["y"].count == 0
    qemu.vm.bitmap_remove("a", "y")
    with pytest.raises(CommandError):
        qemu.vm.bitmap_remove("a", "y")
    qemu.vm.blockdev_del("a")
    qemu.open("a", path, "qcow2")
    assert qemu.vm.query_bitmaps()["a"]["x"].count == 8 * KIB  # it was kept in the image
    qemu.node("raw")
    with pytest.raises(CommandError):
        qemu.vm.bitmap_add("raw", "x", persistent=True)


# -- inside of images ------------------------------------------------------------------------------------------------


def test_a_whole_machine_goes_back(guest: Lab) -> None:
    guest.node("c", "qcow2")
    guest.plug("sd2", "c")
    disks = ["b", "c"]
    guest.vm.cont()
    guest.write("sd2", 1, 0, MIB)
    with pytest.raises(JobFailed, match="sd0|'a'|writable"):
        guest.vm.snapshot_save("monday", ["a"], timeout=60)  # a raw image takes no snapshot
    guest.vm.snapshot_save("monday", disks, timeout=60)
    assert guest.vm.query_status().running
    guest.write("sd1", 2, 0, MIB)
    guest.write("sd2", 2, 0, MIB)
    found = guest.vm.query_snapshots()
    assert {node: [info.name for info in infos] for node, infos in found.items()} == {"b": ["monday"], "c": ["monday"]}
    assert found["b"][0].vm_state_size > 0 == found["c"][0].vm_state_size
    assert abs(found["b"][0].date_sec - time.time()) < 600
    with pytest.raises(ArgumentError, match="'b' has"):
        guest.vm.snapshot_load("tuesday", disks)
    assert guest.vm.query_status().running
    guest.vm.snapshot_load("monday", disks, timeout=60)
    assert guest.vm.query_status().running
    assert guest.content("b") == guest.content("c") == disk((1, 0, MIB))
    for _ in range(2):
        guest.vm.snapshot_delete("monday", disks, timeout=60)
    assert guest.vm.query_snapshots() == {}
    assert guest.vm.query_jobs() == []


def test_a_snapshot_inside_of_one_image(qemu: Lab) -> None:
    qemu.node("a", "qcow2")
    qemu.vm.internal_snapshot("a", "s1")
    with pytest.raises(CommandError):
        qemu.vm.internal_snapshot("a", "s1")
    assert [info.name for info in qemu.vm.query_snapshots()["a"]] == ["s1"]
    assert qemu.vm.delete_internal_snapshot("a", "s1").name == "s1"
    with pytest.raises(CommandError):
        qemu.vm.delete_internal_snapshot("a", "s1")
    for call in (
        lambda: qemu.vm.internal_snapshot("a", ""),
        lambda: qemu.vm.snapshot_save("x" * 256, ["a"]),
        lambda: qemu.vm.snapshot_save("x", []),
        lambda: qemu.vm.snapshot_save("x", "a"),
    ):
        with pytest.raises(ArgumentError):
            call()
