"""Disks that go along with a machine: real QEMUs of both versions, and a real guest that writes all the while."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from drover.errors import JobFailed, JobStalled
from drover.kvm.spec import BackingImage, Disk
from drover.migration.storage import How
from drover.ops.mirrors import MirrorWatch
from moving import MIB, Moving, allocated, bitmaps, compressed, made, moving, sum_on_host

pytestmark = [pytest.mark.live, pytest.mark.alone, pytest.mark.timeout(300)]

PAIRS = [("7.2", "7.2"), ("7.2", "10.0"), ("10.0", "7.2"), ("10.0", "10.0")]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the machine's images are."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def chain(here: Path) -> Disk:
    """A disk that stands on two images, of which the lower one is compressed."""
    compressed(here / "base", "write -P 7 8M 8M", "write -P 9 40M 3M")
    made(here / "mid", "qcow2", "write -P 5 41M 1M", backing=("base", "qcow2"))
    made(here / "top", "qcow2", "write -P 6 60M 100k", backing=("mid", "qcow2"), options="cluster_size=128k")
    below = tuple(BackingImage(source=str(here / name), format="qcow2") for name in ("mid", "base"))
    return Disk(id="d", source=str(here / "top"), format="qcow2", bus="virtio-blk", backing=below)


def raw(here: Path) -> Disk:
    """A raw disk with holes."""
    made(here / "raw", "raw", "write -P 3 30M 2M", "write -P 4 50M 100k")
    return Disk(id="r", source=str(here / "raw"), format="raw", bus="virtio-scsi")


@pytest.mark.parametrize("thread", [False, True], ids=["main", "iothread"])
@pytest.mark.parametrize("versions", PAIRS, ids="-".join)
def test_a_machine_moves_with_its_disks(versions: tuple[str, str], thread: bool, tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [chain(here), raw(here)], versions, thread=thread) as it:
        it.one.bitmap_add("d", "kept", persistent=True)
        it.one.bitmap_add("d", "passing", granularity=1 << 20)
        it.write("vda")
        plan = it.make_plan()
        assert plan.blockers == ()
        how = {Path(part.path).name: part.how for part in plan.parts}
        assert how == {"top": How.MIRROR, "mid": How.COPY, "base": How.COPY, "raw": How.MIRROR}
        it.launch()
        it.mirror()
        for name in ("base", "mid"):
            assert Path(it.other(name)).read_bytes() == (here / name).read_bytes()
        it.send()
        held = {name: found.count for name, found in it.one.query_bitmaps()["d"].items() if name}
        it.sync()
        for name in ("top", "mid", "base", "raw"):
            assert allocated(it.other(name)) <= allocated(here / name) + MIB, name
        it.switch()
        told = it.check_written("vda", more=20)
        assert told > 20
        sums = {disk: it.sum_of(disk) for disk in ("vda", "sda")}
        found = it.two.query_bitmaps()["d"]
        assert {name: found[name].persistent for name in found} == {"kept": True, "passing": False}
        assert all(found[name].count >= held[name] > 0 and found[name].recording for name in found)
        it.end()
    assert sum_on_host(it.other("top"), "qcow2") == sums["vda"]
    assert sum_on_host(it.other("raw"), "raw") == sums["sda"]
    assert bitmaps(it.other("top")) == ["kept"]
    subprocess.run(["qemu-img", "check", "-q", it.other("top")], check=True)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["base", "mid", "raw", "top"]


def told(it: Moving) -> int:
    """How much the guest was told is written."""
    return int(it.here.console.run("cat /tmp/told"))


@pytest.mark.parametrize("versions", [("7.2", "7.2"), ("10.0", "10.0")], ids=["7.2", "10.0"])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["cut", "killed"])
def test_the_other_side_dies_while_the_guest_writes(
    versions: tuple[str, str], how: signal.Signals, tmp_path: Path, here: Path
) -> None:
    """The guest waits for a target that is silent, and goes on when the mirror is cancelled; no error reaches it."""
    with moving(tmp_path, [chain(here)], versions, thread=versions[0] == "10.0") as it:
        it.write("vda")
        it.make_plan()
        it.launch()
        it.mirror()
        os.kill(it.there.pid, how)
        watch = MirrorWatch(it.one._port, it.plan.mirrors, stall=3)
        with pytest.raises(JobStalled if how is signal.SIGSTOP else JobFailed):
            look_for_long(it, watch)
        if how is signal.SIGSTOP:
            before = told(it)
            assert told(it) == before, "it waits for the target"
        it.cancel()
        assert it.one.query_status().running
        assert it.check_written("vda", more=10) > 10
        sums = it.sum_of("vda")
        assert "I/O error" not in it.here.console.run("dmesg")
        it.end()
    assert sum_on_host(here / "top", "qcow2") == sums
    assert list((tmp_path / "there").iterdir()) == []


def look_for_long(it: Moving, watch: MirrorWatch) -> None:
    """As whoever drives it does while the memory goes."""
    for _ in range(100):
        it.one.perform(lambda _: watch.look())
        time.sleep(0.2)
