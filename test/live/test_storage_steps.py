"""Disks that go along with a machine, with real QEMUs of both versions and no guest: each way that it may go."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blocks import content
from drover import QmpConnection
from drover.errors import ArgumentError, ConnectionClosed, JobError, JobFailed, JobStalled, MonitorTimeout, NbdError
from drover.kvm.spec import BackingImage, Disk
from drover.migration import disks
from drover.migration.storage import How
from drover.ops.jobs import query_jobs
from drover.ops.mirrors import MirrorProgress
from moving import MIB, SIZE, Moving, bitmaps, compressed, made, moving
from remote import Authority

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

VERSIONS = [("7.2", "7.2"), ("10.0", "10.0")]
each_version = pytest.mark.parametrize("versions", VERSIONS, ids=["7.2", "10.0"])


class Enough(Exception):
    """Somebody has seen enough."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the machine's images are."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def overlay(here: Path, **more: Any) -> Disk:
    """A disk on a base."""
    compressed(here / "base", "write -P 7 8M 8M")
    made(here / "top", "qcow2", "write -P 6 20M 20M", backing=("base", "qcow2"))
    base = BackingImage(source=str(here / "base"), format="qcow2")
    return Disk(id="d", source=str(here / "top"), format="qcow2", bus="virtio-blk", backing=(base,), **more)


def raw(here: Path) -> Disk:
    """A raw disk."""
    made(here / "raw", "raw", "write -P 3 30M 20M")
    return Disk(id="r", source=str(here / "raw"), format="raw", bus="virtio-scsi")


def state(vm: QmpConnection) -> dict[str, Any]:
    """All that a migration could leave in a QEMU."""
    return {
        "nodes": sorted(node["node-name"] for node in vm.query_block_nodes() if node["node-name"][0] != "#"),
        "jobs": vm.query_jobs(),
        "bitmaps": {node: sorted(found) for node, found in vm.query_bitmaps().items()},
        "yank": sorted(each.name for each in vm.query_yank()),
        "exports": vm.query_block_exports(),
    }


def there(it: Moving) -> list[str]:
    return sorted(path.name for path in (it.top / "there").iterdir())


@contextmanager
def unharmed(it: Moving) -> Iterator[None]:
    """After the block all is as it was before it, on both nodes, and bitmaps are stored."""
    it.one.bitmap_add("d", "kept", persistent=True)
    it.one.bitmap_add("d", "off", persistent=True, disabled=True)
    before, found = state(it.one), it.one.query_bitmaps()["d"]
    images = there(it)
    yield
    assert state(it.one) == before
    assert it.one.query_bitmaps()["d"] == found
    assert there(it) == images
    assert not it.folder.exists()
    it.one.quit()
    it.here.wait()
    assert bitmaps(it.said[0].source) == ["kept", "off"]


def stop_at(*, copied: int, of: int = 1) -> Any:
    """Leave the mirror as soon as so much has been copied, while `of` images or more go."""

    def look(progress: MirrorProgress) -> None:
        if len(progress.jobs) >= of and sum(job.current for job in progress.jobs) >= copied and progress.left:
            raise Enough

    return look


SLOW = {"d": 4 * MIB, "r": 4 * MIB, "d-back1": MIB // 4}


@each_version
@pytest.mark.parametrize("step", ["planned", "launched", "beneath", "disks", "in step", "sent", "synced"])
def test_cancelled_at_each_step(versions: tuple[str, str], step: str, tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it:
        with unharmed(it):
            it.make_plan()
            assert [part.how for part in it.plan.parts] == [How.MIRROR, How.COPY, How.MIRROR]
            if step != "planned":
                it.launch()
            if step == "beneath":
                with pytest.raises(Enough):
                    it.mirror(stop_at(copied=1), **SLOW)
            if step == "disks":
                with pytest.raises(Enough):
                    it.mirror(stop_at(copied=MIB, of=2), **SLOW | {"d-back1": 0})
            if step in ("in step", "sent", "synced"):
                it.mirror()
            if step in ("sent", "synced"):
                it.send()
            if step == "synced":
                it.sync()
            if step == "planned":
                return
            it.cancel()


@each_version
def test_one_who_comes_later_goes_on(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    """As a daemon that was started anew: at each point it finds what there is."""
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it:
        it.make_plan()
        it.launch()
        for look, speeds in ((stop_at(copied=1), SLOW), (stop_at(copied=MIB, of=2), SLOW)):
            with pytest.raises(Enough):
                it.mirror(look, **speeds)
            jobs = it.one.query_jobs()
            it.reconnect()
            assert [job.id for job in it.one.query_jobs()] == [job.id for job in jobs]
            it.one.set_mirror_speeds({"d-back1": 0})
        assert {job.id for job in it.one.query_jobs()} == {"move-d-back1", "move-d", "move-r"}
        it.one.set_mirror_speeds({"d": 0, "r": 0})
        begun = it.one.event_mark()
        it.mirror()
        it.mirror()
        assert not [each for each in it.one.event_log if each.number > begun and each.data.get("status") == "created"]
        it.send()
        it.sync()
        it.reconnect()
        it.sync()
        it.switch()
        it.end()
    for name, kind in (("top", "qcow2"), ("raw", "raw")):
        assert content(Path(it.other(str(here / name))), kind) == content(here / name, kind)


def rate_of(it: Moving, speed: int) -> float:
    """How fast a mirror copies at this limit, in bytes a second: over 4 s, after 2 s in which it gets used to it."""
    it.one.set_mirror_speeds({"r": speed})
    ends = []
    for seconds in (2, 4):
        time.sleep(seconds)
        ends.append((time.monotonic(), it.one.look_at_mirrors(it.plan.mirrors)[0].current))
    (since, before), (until, after) = ends
    return (after - before) / (until - since)


@each_version
def test_the_speed_is_changed_while_it_goes(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    disk = raw(here)
    made(here / "raw", "raw", "write -P 3 0 60M")
    with moving(tmp_path, [disk], versions, boot=False) as it:
        it.make_plan()
        it.launch()
        with pytest.raises(Enough):
            it.mirror(stop_at(copied=1), r=MIB)
        rates = [rate_of(it, speed * MIB) / MIB for speed in (2, 6)]
        assert 1 <= rates[0] <= 3  # in bursts of 4 MiB
        assert 4.5 <= rates[1] <= 7.5
        it.one.set_mirror_speeds({"r": 0})
        start = time.monotonic()
        it.mirror()
        assert time.monotonic() - start < 5
        it.cancel()


@each_version
def test_the_other_qemu_is_killed(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it, unharmed(it):
        it.make_plan()
        it.launch()
        with pytest.raises(Enough):
            it.mirror(stop_at(copied=MIB, of=2), **SLOW | {"d-back1": 0})
        it.there.kill()
        with pytest.raises(JobFailed, match="failed"):
            it.mirror()
        with pytest.raises(JobError):
            it.sync()
        it.cancel()


@each_version
def test_the_other_qemu_is_not_there(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it, unharmed(it):
        it.make_plan()
        it.launch()
        os.kill(it.there.pid, signal.SIGKILL)
        it.there.wait()
        with pytest.raises(NbdError):
            it.mirror()
        it.cancel()


@each_version
def test_the_other_qemu_stands_still(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    """As when the network is cut: no error comes."""
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it, unharmed(it):
        it.make_plan()
        it.launch()
        it.stall = 2.0

        def look(progress: MirrorProgress) -> None:
            if len(progress.jobs) == 2 and sum(job.current for job in progress.jobs) > MIB:
                os.kill(it.there.pid, signal.SIGSTOP)

        with pytest.raises(JobStalled):
            it.mirror(look, **SLOW | {"d-back1": 0})
        start = time.monotonic()
        it.cancel()
        assert time.monotonic() - start < 10


@each_version
def test_taken_back_after_all_was_sent(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it, unharmed(it):
        it.make_plan()
        it.launch()
        it.mirror()
        it.send()
        it.sync()
        it.one.migrate_continue()
        it.one.wait_migration(timeout=60)
        it.there.kill()
        it.one.cont()
        it.one.stop()
        it.one.perform(lambda port: disks.cancel(port, it.plan, streamed=True))
        it.drop()


@each_version
def test_the_source_is_killed(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it:
        it.make_plan()
        it.launch()
        with pytest.raises(Enough):
            it.mirror(stop_at(copied=MIB, of=2), **SLOW | {"d-back1": 0})
        it.here.kill()
        with pytest.raises(ConnectionClosed):
            it.mirror()
        it.drop()
        assert there(it) == []


@each_version
def test_a_base_that_is_found_is_not_copied(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    disk = overlay(here)
    (tmp_path / "there").mkdir()
    subprocess.run(["cp", "--sparse=always", here / "base", tmp_path / "there" / "base"], check=True)
    before = (tmp_path / "there" / "base").stat()
    with moving(tmp_path, [disk], versions, boot=False) as it:
        plan = it.make_plan()
        assert [part.how for part in plan.parts] == [How.MIRROR, How.FOUND]
        it.launch()
        it.mirror()
        assert [job.id for job in it.one.query_jobs()] == ["move-d"]
        it.send()
        it.switch()
        it.end()
    after = (tmp_path / "there" / "base").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert content(Path(it.other("top")), "qcow2") == content(here / "top", "qcow2")


def test_what_both_have_stays_where_it_is(tmp_path: Path, here: Path) -> None:
    """A disk on storage in common, with its bitmap, beside one that is not."""
    disk = overlay(here)
    with moving(tmp_path, [disk, raw(here)], ("7.2", "10.0"), boot=False) as it:
        it.one.bitmap_add("d", "kept", persistent=True)
        it.one.bitmap_add("d", "passing")
        it.paths |= {path: path for path in it.paths if "raw" not in path}
        assert [part.how for part in it.make_plan().parts] == [How.SHARED, How.SHARED, How.MIRROR]
        it.launch()
        it.mirror()
        assert [job.id for job in it.one.query_jobs()] == ["move-r"]
        it.send()
        it.switch()
        assert {name: each.persistent for name, each in it.two.query_bitmaps()["d"].items()} == {
            "kept": True,
            "passing": False,
        }
        it.end()
    assert bitmaps(str(here / "top")) == ["kept"]
    assert there(it) == ["raw"]


@each_version
def test_a_disk_that_is_only_read_is_copied_as_a_file(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    disk = overlay(here, read_only=True)
    with moving(tmp_path, [disk], versions, boot=False) as it:
        assert [part.how for part in it.make_plan().parts] == [How.COPY, How.COPY]
        it.launch()
        it.mirror()
        it.send()
        it.switch()
        it.end()
    for name in ("top", "base"):
        assert Path(it.other(name)).read_bytes() == (here / name).read_bytes()


def test_snapshots_inside_are_seen(tmp_path: Path, here: Path) -> None:
    disk = overlay(here)
    with moving(tmp_path, [disk], ("10.0", "10.0"), boot=False) as it:
        it.one.internal_snapshot("d", "before")
        (blocker,) = it.make_plan().blockers
        assert (blocker.disk, blocker.text.rpartition(": ")[2]) == ("d", "before")


@pytest.mark.parametrize("known", [True, False])
@each_version
def test_over_tls(versions: tuple[str, str], known: bool, tmp_path: Path, here: Path) -> None:
    """Who has another name in its certificate is sent away."""
    authority = Authority(tmp_path / "authority")
    with moving(tmp_path, [overlay(here), raw(here)], versions, boot=False) as it:
        it.make_plan()
        it.launch(authority, client="source" if known else "somebody")
        if not known:
            with pytest.raises(Exception, match="TLS|handshake|reset|closed|Unexpected|Failed|read"):
                it.mirror()
            it.cancel()
            assert there(it) == []
            return
        it.mirror()
        it.send()
        it.switch()
        it.end()
    for name, kind in (("top", "qcow2"), ("raw", "raw")):
        assert content(Path(it.other(name)), kind) == content(here / name, kind)


@contextmanager
def loop(path: Path) -> Iterator[str]:
    """A block device."""
    path.write_bytes(os.urandom(MIB) + bytes(SIZE - MIB))
    device = subprocess.run(
        ["losetup", "-f", "--show", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@each_version
def test_a_block_device_that_may_be_written_over(versions: tuple[str, str], tmp_path: Path, here: Path) -> None:
    (tmp_path / "there").mkdir()
    with loop(here / "one") as one, loop(tmp_path / "there" / "two") as two:
        disk = Disk(id="r", source=one, format="raw", bus="virtio-scsi")
        with moving(tmp_path, [disk], versions, boot=False) as it:
            it.paths[one] = two
            assert "cannot be seen" in it.make_plan().blockers[0].text
            assert [part.how for part in it.make_plan(overwrite=["r"]).parts] == [How.MIRROR]
            it.launch()
            it.mirror()
            it.send()
            it.switch()
            it.end()
    assert (tmp_path / "there" / "two").read_bytes() == (here / "one").read_bytes()


def test_a_wait_that_ends_leaves_it_going(tmp_path: Path, here: Path) -> None:
    with moving(tmp_path, [raw(here)], ("10.0", "7.2"), boot=False) as it:
        it.make_plan()
        it.launch()
        with pytest.raises(Enough):
            it.mirror(stop_at(copied=1), **SLOW)
        with pytest.raises(MonitorTimeout, match="bytes to go"):
            it.one.watch_mirrors(it.plan.mirrors, timeout=0.3)
        assert [job.status for job in it.one.perform(query_jobs)] == ["running"]
        it.cancel()


def test_an_image_in_whose_place_another_one_was_put_does_not_go(tmp_path: Path, here: Path) -> None:
    """As a golden image that was renewed: the machine still stands on the old one."""
    disk = overlay(here)
    with moving(tmp_path, [disk], ("7.2", "7.2"), boot=False) as it:
        subprocess.run(["cp", here / "base", here / "new"], check=True)
        os.rename(here / "new", here / "base")
        with pytest.raises(ArgumentError, match="another one was put in its place"):
            it.make_plan()
