"""Block jobs on real QEMUs without a guest: what they copy is compared byte by byte."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import KIB, MIB, SIZE, Lab, content, disk, lab, machine
from drover.errors import (
    ArgumentError,
    CommandError,
    ConnectionClosed,
    JobCancelled,
    JobError,
    JobFailed,
    MonitorTimeout,
    NotSupported,
)
from drover.ops import actions
from drover.ops.jobs import JobProgress

pytestmark = pytest.mark.live

KINDS = [("7.2", "blocking"), ("7.2", "asyncio"), ("10.0", "blocking"), ("10.0", "asyncio")]
# So slow that a job of a few MiB lasts longer than any test looks at it.
SLOW = 64 * KIB


@pytest.fixture(params=KINDS, ids="-".join)
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with lab(*request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=[KINDS[0], KINDS[3]], ids="-".join)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """One with a disk 'sd0' on node 'a'."""
    with machine(*request.param, tmp_path) as found:
        found.node("a")
        found.plug("sd0", "a")
        yield found


def full_disk(qemu: Lab) -> None:
    """Node 'full' has an error for each write beyond its first MiB."""
    rule = {"event": "pwritev", "errno": 28, "once": False, "sector": 2 * MIB // 512, "immediately": True}
    file = {"driver": "file", "filename": str(qemu.image("full"))}
    debug = {"driver": "blkdebug", "image": file, "inject-error": [rule | {"event": "none", "iotype": "write"}]}
    debug["inject-error"][0].pop("immediately")
    qemu.vm.execute("blockdev-add", {"driver": "raw", "node-name": "full", "file": debug})


# -- mirror ----------------------------------------------------------------------------------------------------------


def test_a_mirror_pivots(guest: Lab) -> None:
    looks: list[JobProgress] = []
    target = guest.node("b", "qcow2")
    guest.write("sd0", 0xAB, MIB, MIB)
    mark = guest.vm.event_mark()
    job = guest.vm.blockdev_mirror("a", "b", timeout=60, progress=looks.append)
    assert (job.id, job.type, job.status) == ("mirror-a", "mirror", "ready")
    assert looks[-1].current == looks[-1].total == SIZE
    guest.write("sd0", 0xCD, 0, 64 * KIB)  # a change while it is ready
    assert guest.vm.finish_mirror("mirror-a", pivot=True, timeout=60).error == ""
    seen = [status for status in guest.statuses("mirror-a", mark) if status != "standby"]  # while it is drained
    assert list(dict.fromkeys(seen)) == ["created", "running", "ready", "waiting", "pending", "concluded", "null"]
    assert guest.vm.query_jobs() == guest.vm.query_block_jobs() == []
    before = disk((0xAB, MIB, MIB), (0xCD, 0, 64 * KIB))
    assert guest.content("a") == guest.content("b") == before
    guest.close("a")  # nothing stands on it any more
    guest.write("sd0", 1, 0, KIB)
    guest.io("sd0", "flush")
    assert content(target, "qcow2") == disk((0xAB, MIB, MIB), (0xCD, 0, 64 * KIB), (1, 0, KIB))


def test_a_mirror_ends_with_its_copy_and_stays(guest: Lab) -> None:
    target = guest.node("b", "qcow2")
    guest.write("sd0", 1, 0, MIB)
    guest.vm.blockdev_mirror("a", "b", job_id="m1", copy_mode="write-blocking", timeout=60)
    guest.write("sd0", 2, 2 * MIB, MIB)
    guest.vm.finish_mirror("m1", pivot=False, timeout=60)
    guest.write("sd0", 3, 0, 64 * KIB)
    guest.close("b")
    assert content(target, "qcow2") == disk((1, 0, MIB), (2, 2 * MIB, MIB))
    assert guest.content("a") == disk((1, 0, MIB), (2, 2 * MIB, MIB), (3, 0, 64 * KIB))


def test_a_mirror_is_cancelled(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.write("a", 1, 0, SIZE)
    job = qemu.vm.blockdev_mirror("a", "b", speed=SLOW, wait=False)
    assert job.status in ("created", "running")
    ended = qemu.vm.job_cancel(job.id)
    assert (ended.status, ended.error) == ("concluded", "Operation canceled")
    assert qemu.vm.query_jobs() == []
    with pytest.raises(JobCancelled, match="mirror job 'mirror-a' was cancelled"):
        qemu.vm.wait_job(job.id)  # its events tell, though it has gone
    assert qemu.vm.job_cancel(job.id).error == "Operation canceled"


def test_what_fails_tells_why(qemu: Lab) -> None:
    qemu.node("a")
    full_disk(qemu)
    qemu.write("a", 1, 0, SIZE)
    with pytest.raises(JobFailed) as caught:
        qemu.vm.blockdev_mirror("a", "full", timeout=60)
    assert (caught.value.job, caught.value.type) == ("mirror-a", "mirror")
    assert caught.value.desc == "No space left on device"
    with pytest.raises(JobFailed, match="No space"):
        qemu.vm.blockdev_backup("a", "full", timeout=60)
    assert qemu.vm.query_jobs() == []


def test_an_error_is_not_lost_with_a_job_that_dismisses_itself(qemu: Lab) -> None:
    qemu.node("a")
    full_disk(qemu)
    qemu.write("a", 1, 0, SIZE)
    mark = qemu.vm.event_mark()
    qemu.vm.execute("blockdev-mirror", {"job-id": "j", "device": "a", "target": "full", "sync": "full"})
    with pytest.raises(JobFailed, match="No space"):
        qemu.vm.wait_job("j", since=mark, timeout=60)
    with pytest.raises(JobFailed, match="No space"):
        qemu.vm.wait_job("j")
    qemu.node("b")
    qemu.vm.execute("blockdev-backup", {"job-id": "j", "device": "a", "target": "b", "sync": "full"})
    assert qemu.vm.wait_job("j", timeout=60).total_progress == SIZE  # the newest job of this id


def test_a_job_that_stops_on_an_error_goes_on(qemu: Lab) -> None:
    qemu.node("a")
    full_disk(qemu)
    qemu.write("a", 1, 0, SIZE)
    qemu.vm.blockdev_mirror("a", "full", on_target_error="stop", wait=False)
    assert qemu.vm.wait_job("mirror-a", until=["paused"], timeout=60).status == "paused"
    assert qemu.vm.query_block_jobs()[0].io_status != "ok"
    with pytest.raises(MonitorTimeout, match="now paused"):
        qemu.vm.wait_job("mirror-a", timeout=0.2)
    qemu.vm.job_resume("mirror-a")
    assert qemu.vm.wait_job("mirror-a", until=["paused"], timeout=60).status == "paused"
    qemu.vm.job_cancel("mirror-a")


def test_the_copy_mode_of_a_running_mirror(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.vm.blockdev_mirror("a", "b", timeout=60)
    if qemu.vm.version < (8, 2):
        with pytest.raises(NotSupported, match=r"needs QEMU 8\.2 or later"):
            qemu.vm.set_copy_mode("mirror-a", "write-blocking")
    else:
        qemu.vm.set_copy_mode("mirror-a", "write-blocking")
        qemu.write("a", 1, 0, MIB)
        deadline = time.monotonic() + 20
        while not qemu.vm.query_block_jobs()[0].actively_synced:
            assert time.monotonic() < deadline
    qemu.vm.finish_mirror("mirror-a", pivot=False, timeout=60)


# -- the wait --------------------------------------------------------------------------------------------------------


def test_a_wait_that_times_out_leaves_the_job_unless_told(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.write("a", 1, 0, SIZE)
    with pytest.raises(MonitorTimeout, match="now running"):
        qemu.vm.blockdev_backup("a", "b", job_id="j", speed=SLOW, timeout=0.2)
    assert qemu.vm.query_job("j").status == "running"
    qemu.vm.job_set_speed("j", 0)
    assert qemu.vm.wait_job("j", timeout=60).status == "concluded"
    with pytest.raises(MonitorTimeout):
        qemu.vm.blockdev_backup("a", "b", job_id="j", speed=SLOW, timeout=0.2, cancel_on_leave=True)
    assert qemu.vm.query_jobs() == []


def test_a_concluded_job_waits_for_who_left(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.vm.blockdev_backup("a", "b", job_id="j", wait=False)
    assert qemu.vm.wait_job("j", dismiss=False, timeout=60).status == "concluded"
    assert qemu.vm.query_job("j").status == "concluded"
    assert qemu.vm.job_cancel("j").error == ""  # it was through before
    assert qemu.vm.query_jobs() == []


def test_jobs_that_end_while_nobody_is_connected(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    full_disk(qemu)
    qemu.write("a", 1, 0, SIZE)
    qemu.vm.blockdev_backup("a", "full", job_id="bad", speed=4 * MIB, wait=False)
    qemu.node("c")  # of one node, one job
    qemu.vm.blockdev_mirror("c", "b", job_id="good", wait=False)
    qemu.vm.close()
    time.sleep(1)
    qemu.vm.connect()
    with pytest.raises(JobFailed, match="No space"):
        qemu.vm.wait_job("bad", timeout=60)
    qemu.vm.finish_mirror("good", pivot=False, timeout=60)
    assert qemu.vm.query_jobs() == []


def test_progress_rate_and_time_to_go(qemu: Lab) -> None:
    looks: list[JobProgress] = []
    qemu.node("a", size=2 * MIB)
    qemu.node("b", size=2 * MIB)
    qemu.write("a", 1, 0, 2 * MIB)
    qemu.vm.blockdev_backup("a", "b", job_id="j", speed=MIB, wait=False)
    qemu.vm.wait_job("j", progress=looks.append, timeout=60, poll=0.05)
    assert [look.current for look in looks] == sorted(look.current for look in looks)
    assert looks[-1].current == looks[-1].total == 2 * MIB
    assert any(look.rate > 0 and look.eta is not None for look in looks)


def test_a_paused_job_and_steering_what_is_not_there(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.write("a", 1, 0, SIZE)
    qemu.vm.blockdev_backup("a", "b", job_id="j", speed=SLOW, wait=False)
    qemu.vm.job_pause("j")
    assert qemu.vm.wait_job("j", until=["paused"], timeout=60).status == "paused"
    with pytest.raises(CommandError):
        qemu.vm.job_pause("j")
    with pytest.raises(CommandError):
        qemu.vm.job_complete("j")
    with pytest.raises(CommandError):
        qemu.vm.job_dismiss("j")
    qemu.vm.job_resume("j")
    qemu.vm.job_set_speed("j", 0)
    with pytest.raises(JobError, match="never was ready"):
        qemu.vm.wait_job("j", until=["ready"], timeout=60)
    for steer in ("job_pause", "job_resume", "job_complete", "job_finalize", "job_dismiss", "job_cancel", "wait_job"):
        with pytest.raises(JobError, match="does not exist"):
            getattr(qemu.vm, steer)("nix")
    with pytest.raises(JobError, match="does not exist"):
        qemu.vm.job_set_speed("nix", 1)
    with pytest.raises(JobError, match="does not exist"):
        qemu.vm.finish_mirror("nix", pivot=True)
    qemu.vm.blockdev_backup("a", "b", job_id="j", speed=SLOW, wait=False)
    with pytest.raises(MonitorTimeout):
        qemu.vm.finish_mirror("j", pivot=False, timeout=0.1)  # never ready, and so not cancelled either
    assert qemu.vm.query_job("j").status == "running"
    qemu.vm.job_cancel("j")


def test_qemu_dies_under_a_wait(qemu: Lab) -> None:
    qemu.node("a")
    qemu.node("b")
    qemu.write("a", 1, 0, SIZE)
    killer = threading.Timer(0.3, qemu.process.kill)
    killer.start()
    with pytest.raises(ConnectionClosed):
        qemu.vm.blockdev_backup("a", "b", speed=SLOW, timeout=60, cancel_on_leave=True)
    killer.join()


@pytest.mark.parametrize("qemu", [kind for kind in KINDS if "blocking" not in kind], ids="-".join, indirect=True)
def test_who_is_cancelled_leaves_the_job_or_takes_it_along(qemu: Lab) -> None:
    """Only a coroutine is cancelled."""
    qemu.node("a")
    qemu.node("b")
    qemu.write("a", 1, 0, SIZE)

    async def cancelled(**options: bool) -> None:
        task = asyncio.ensure_future(qemu.vm.vm.blockdev_backup("a", "b", job_id="j", speed=SLOW, **options))
        while not await qemu.vm.vm.query_jobs():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    qemu.face.run(cancelled())
    assert qemu.vm.query_job("j").status == "running"
    qemu.vm.job_cancel("j")
    qemu.face.run(cancelled(cancel_on_leave=True))
    assert qemu.vm.query_jobs() == []


# -- commit, stream, create ------------------------------------------------------------------------------------------


def chain(qemu: Lab) -> list[Path]:
    """base <- mid <- top, each with a piece of its own."""
    paths = [qemu.node("base")]
    qemu.write("base", 1, 0, MIB)
    for below, name, pattern in (("base", "mid", 2), ("mid", "top", 3)):
        below_format = "raw" if below == "base" else "qcow2"
        path = qemu.image(name, "-b", str(paths[-1]), "-F", below_format, format="qcow2")
        paths.append(path)
        qemu.open(name, path, "qcow2", backing=below)
        qemu.write(name, pattern, (pattern - 1) * MIB, MIB)
    return paths


CHAIN = disk((1, 0, MIB), (2, MIB, MIB), (3, 2 * MIB, MIB))


def test_the_active_image_is_committed(qemu: Lab) -> None:
    base, _, _ = chain(qemu)
    job = qemu.vm.block_commit("top", timeout=60)
    assert (job.type, job.status) == ("commit", "concluded")
    assert qemu.vm.query_jobs() == []
    assert content(base) == CHAIN
    qemu.vm.execute("blockdev-del", {"node-name": "top"})  # the base does not stand under it any more
    qemu.vm.execute("blockdev-del", {"node-name": "mid"})


def test_an_image_within_a_chain_is_committed(qemu: Lab) -> None:
    base, _, top = chain(qemu)
    assert qemu.vm.block_commit("top", top="mid", base="base", timeout=60).type == "commit"
    assert content(base) == disk((1, 0, MIB), (2, MIB, MIB))
    assert qemu.content("top") == CHAIN
    assert b"base" in top.read_bytes()[:4096]  # its header names its new backing file


def test_a_chain_is_streamed_into_its_top(qemu: Lab) -> None:
    base, mid, _ = chain(qemu)
    assert qemu.vm.block_stream("top", timeout=60).type == "stream"
    base.unlink()
    mid.unlink()
    assert qemu.content("top") == CHAIN


def test_what_the_version_lacks(qemu: Lab) -> None:
    chain(qemu)
    qemu.node("b")
    if qemu.vm.version < (9, 0):
        for verb in (qemu.vm.block_stream, qemu.vm.block_commit):
            with pytest.raises(NotSupported, match=r"backing-mask-protocol .*needs QEMU 9\.0 or later"):
                verb("top", backing_mask_protocol=True)
        with pytest.raises(NotSupported, match=r"discard-source .*needs QEMU 9\.1 or later"):
            qemu.vm.blockdev_backup("top", "b", discard_source=True)
        assert qemu.vm.query_jobs() == []
    else:
        qemu.vm.blockdev_backup("top", "b", discard_source=True, timeout=60)
        qemu.vm.block_stream("top", base="base", backing_mask_protocol=True, timeout=60)


def test_an_image_is_made_by_a_job(qemu: Lab) -> None:
    path = qemu.folder / "new"
    qemu.vm.blockdev_create({"driver": "file", "filename": str(path), "size": 0}, timeout=60)
    qemu.vm.execute("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(path)})
    qemu.vm.blockdev_create({"driver": "qcow2", "file": "f", "size": SIZE}, timeout=60)
    assert content(path, "qcow2") == disk()
    with pytest.raises(JobFailed, match="No such file"):
        qemu.vm.blockdev_create({"driver": "file", "filename": "/no/such/folder/x", "size": 0}, timeout=60)
    assert qemu.vm.query_jobs() == []


# -- backup ----------------------------------------------------------------------------------------------------------


def test_a_chain_of_backups_is_restored(qemu: Lab) -> None:
    """Full, then two increments, each on top of the one before: each is what the disk was at its moment."""
    qemu.node("disk1", "qcow2")
    qemu.write("disk1", 1, 0, MIB)
    full = qemu.node("full", "qcow2")
    qemu.vm.bitmap_add("disk1", "changes", persistent=True)
    qemu.vm.blockdev_backup("disk1", "full", timeout=60)
    qemu.close("full")
    below, moments = full, [qemu.content("disk1")]
    backups = [full]
    for number in (2, 3):
        qemu.write("disk1", number, number * 512 * KIB, MIB)
        noted = qemu.vm.query_bitmaps()["disk1"]["changes"]
        assert (noted.count, noted.persistent, noted.recording, noted.busy) == (MIB, True, True, False)
        path = qemu.image(f"inc{number}", "-b", str(below), "-F", "qcow2", format="qcow2")
        qemu.open(f"inc{number}", path, "qcow2")
        qemu.vm.blockdev_backup("disk1", f"inc{number}", sync="incremental", bitmap="changes", timeout=60)
        qemu.close(f"inc{number}")
        moments.append(qemu.content("disk1"))
        backups.append(path)
        below = path
    assert [content(path, "qcow2") for path in backups] == moments
    assert len(set(moments)) == 3
    assert qemu.vm.query_bitmaps()["disk1"]["changes"].count == 0


def test_arguments_are_checked_before_anything_happens(qemu: Lab) -> None:
    wrong = [
        lambda: qemu.vm.blockdev_mirror("a", "b", sync="incremental"),
        lambda: qemu.vm.blockdev_mirror("a", "b", copy_mode="active"),
        lambda: qemu.vm.blockdev_mirror("a", "b", granularity=3000),
        lambda: qemu.vm.blockdev_mirror("a", "b", speed=-1),
        lambda: qemu.vm.blockdev_mirror("#block1", "b"),
        lambda: qemu.vm.blockdev_backup("a", "b", sync="incremental"),
        lambda: qemu.vm.blockdev_backup("a", "b", sync="incremental", bitmap="x", bitmap_mode="never"),
        lambda: qemu.vm.blockdev_backup("a", "b", bitmap_mode="never"),
        lambda: qemu.vm.blockdev_backup("a", "b", on_source_error="auto"),
        lambda: qemu.vm.block_stream("a", base="b", bottom="c"),
        lambda: qemu.vm.block_commit("a", on_error="?"),
        lambda: qemu.vm.blockdev_create({"size": 1}),
        lambda: qemu.vm.job_set_speed("j", -1),
        lambda: qemu.vm.wait_job("j", until="finished"),
        lambda: qemu.vm.bitmap_add("a", ""),
        lambda: qemu.vm.bitmap_merge("a", "b", "c"),
        lambda: actions.bitmap_merge("a", "b", []),
    ]
    mark = qemu.vm.event_mark()
    for call in wrong:
        with pytest.raises(ArgumentError):
            call()
    assert qemu.vm.event_mark() == mark
