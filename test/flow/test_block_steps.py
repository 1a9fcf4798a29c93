"""Flows on block nodes, failed and cancelled at each of their steps.

Unlike hotplug they have a moment from which there is no way back, and waits that ask again
after a time-out. What holds at each step: either it happened as a whole, or nothing of it stays.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.errors import DroverError, JobCancelled, JobError, JobFailed, MonitorTimeout
from drover.monitor.drive import drive
from drover.ops import blockjobs, disk, jobs, snapshots
from drover.ops.port import Port
from drover.ops.snapshots import Overlay
from drover.testing.model import QemuModel
from drover.testing.scripted import Fault, ScriptedPort

Flow = Callable[[Port], Coroutine[Any, Any, object]]

IMAGE = "image.raw"
NEW = ("new1", "new2")


def snapshot(port: Port) -> Coroutine[Any, Any, object]:
    overlays = (Overlay(node=node, name=new, path=new) for node, new in zip(("disk1", "disk2"), NEW, strict=True))
    return snapshots.snapshot_disks(port, *overlays, timeout=60)


def mirror(port: Port) -> Coroutine[Any, Any, object]:
    return blockjobs.blockdev_mirror(port, "disk1", "disk2", timeout=60, cancel_on_leave=True)


def back_up(port: Port) -> Coroutine[Any, Any, object]:
    return blockjobs.blockdev_backup(port, "disk1", "disk2", timeout=60, cancel_on_leave=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(IMAGE).write_bytes(bytes(1 << 20))


def prepare() -> QemuModel:
    model = QemuModel()
    for name, driver in (("disk1", "virtio-blk"), ("disk2", "virtio-scsi")):
        drive(disk.hot_add_disk(ScriptedPort(model), IMAGE, id=name, cache="writeback", driver=driver))
    for new in NEW:
        Path(new).unlink(missing_ok=True)
    return model


def count(flow: Flow) -> int:
    port = ScriptedPort(prepare())
    drive(flow(port))
    return len(port.steps)


def run(flow: Flow, port: ScriptedPort) -> BaseException | None:
    try:
        drive(flow(port))
    except (DroverError, OSError, asyncio.CancelledError) as error:
        return error
    return None


def drives(model: QemuModel) -> list[str]:
    return [device["drive"] for device in model.devices.values() if "drive" in device]


@pytest.mark.parametrize("fault", Fault)
def test_a_snapshot_is_of_both_disks_or_of_none(fault: Fault) -> None:
    taken = 0
    for step in range(count(snapshot)):
        model = prepare()
        before, fds = model.left(), sorted(os.listdir("/proc/self/fd"))
        port = ScriptedPort(model, fault, step)
        error = run(snapshot, port)
        where = f"{fault.name} at step {step} of {port.steps}"
        assert sorted(os.listdir("/proc/self/fd")) == fds, where
        notes = getattr(error, "__notes__", [])
        images = [new for new in NEW if Path(new).exists()]
        if drives(model) == list(NEW):
            taken += 1
            assert images == list(NEW), where
            assert set(NEW) < set(model.nodes), where
            assert error is None or fault is Fault.CLOSED or "the snapshot was taken" in notes[0], where
            assert error is None or fault not in (Fault.LOST, Fault.LATE), "it was not asked whether it was taken"
        elif fault is not Fault.CLOSED:  # then nobody can undo anything, nor say that an image is of no use
            assert error is not None, where
            assert not notes, where
            assert images == [], where
            assert model.left() == before, where
    assert taken or fault in (Fault.REFUSED, Fault.CLOSED, Fault.CANCELLED_EARLY)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("flow", [mirror, back_up])
def test_a_job_that_is_not_waited_for_does_not_stay(flow: Flow, fault: Fault) -> None:
    for step in range(count(flow)):
        model = prepare()
        before = model.left()
        port = ScriptedPort(model, fault, step)
        error = run(flow, port)
        where = f"{fault.name} at step {step} of {port.steps}"
        if error is not None and fault is not Fault.CLOSED:
            assert model.left() == before, where
        elif error is None:
            assert model.left()["jobs"] == ({"mirror-disk1"} if flow is mirror else set()), where


@pytest.mark.parametrize("at", [1, 3])
def test_a_wait_asks_again_where_qemu_does_not_answer(at: int) -> None:
    """As while a whole machine is saved, which holds up its main loop."""
    model = prepare()
    port = ScriptedPort(model, Fault.LATE, at)
    job = drive(back_up(port))
    assert port.struck
    assert port.steps[at] == "query-jobs"
    assert (job.status, model.left()["jobs"]) == ("concluded", set())


def test_the_end_of_a_wait_is_not_told_without_asking() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(blockjobs.blockdev_mirror(port, "disk1", "disk2", wait=False))
    with pytest.raises(MonitorTimeout, match="now ready"):
        drive(jobs.wait_job(port, "mirror-disk1", timeout=30))
    assert port.clock == 30
    assert port.steps[-1] == "query-jobs"


# -- a job that has gone, by its events ------------------------------------------------------------------------------


def tell(port: ScriptedPort, *events: tuple[str, dict[str, Any]]) -> None:
    for name, data in events:
        port.model.emit(name, data)


def status(value: str, job: str = "j") -> tuple[str, dict[str, Any]]:
    return "JOB_STATUS_CHANGE", {"id": job, "status": value}


def end(name: str, job: str = "j", **more: str) -> tuple[str, dict[str, Any]]:
    return f"BLOCK_JOB_{name}", {"device": job, "type": "backup", "len": 5, "offset": 5, "speed": 0} | more


def gone(*events: tuple[str, dict[str, Any]], since: int | None = None) -> jobs.Job:
    port = ScriptedPort(QemuModel())
    tell(port, *events)
    return drive(jobs.wait_job(port, "j", since=since))


def test_the_newest_job_of_an_id_counts() -> None:
    failed, done = end("COMPLETED", error="No space left on device"), end("COMPLETED")
    one, two = [status("created"), failed, status("null")], [status("created"), done, status("null")]
    assert gone(*one, *two) == jobs.Job("j", "backup", "concluded", 5, 5)
    with pytest.raises(JobFailed, match="No space"):
        gone(*two, *one)
    with pytest.raises(JobFailed, match="No space"):
        gone(*two, *one, end("COMPLETED", job="other"))
    with pytest.raises(JobError, match="does not exist"):
        gone(*one, since=3)


def test_a_cancelled_job_is_told_from_a_failed_one() -> None:
    with pytest.raises(JobCancelled) as caught:
        gone(status("created"), end("CANCELLED"), status("null"))
    assert (caught.value.job, caught.value.type) == ("j", "backup")


def test_a_job_that_is_none_of_block_nodes() -> None:
    """It has no event of its own for its end, and its error goes with who dismisses it."""
    seen = [status(name) for name in ("created", "running", "aborting", "concluded", "null")]
    with pytest.raises(JobFailed, match="dismissed with its error by somebody else"):
        gone(*seen)
    well = [status(name) for name in ("created", "running", "concluded", "null")]
    assert gone(*seen, *well).status == "concluded"
    with pytest.raises(JobError, match="does not exist"):
        gone(status("created"))
