"""Disks on their way to another QEMU: the flows of both sides, failed and cancelled at each of their steps."""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ArgumentError, CommandError, JobCancelled, JobError, JobFailed, JobStalled, MonitorTimeout
from drover.monitor.drive import drive
from drover.ops import bitmaps, blanks, mirrors
from drover.ops.mirrors import Mirror, MirrorProgress, MirrorWatch, StillFile
from drover.ops.nbd import Nbd
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.nbd_model import NbdServerModel
from drover.testing.scripted import Fault, ScriptedPort
from steps import Case, failure

Flow = Callable[[Port], Coroutine[Any, Any, object]]

ADDRESS = "target:10809"
SERVER = Nbd(address=ADDRESS)
DISKS = (Mirror(name="disk1", node="disk1"), Mirror(name="disk2", node="disk2"))
_HERE = os.stat(__file__)
BENEATH = Mirror(name="disk1-back1", file=StillFile(__file__, _HERE.st_dev, _HERE.st_ino))
ALL = (*DISKS, BENEATH)
VERSIONS = ["7.2", "10.0"]


def prepare(version: str = "7.2") -> QemuModel:
    model = QemuModel(version=version)
    model.nbd_servers[ADDRESS] = NbdServerModel({mirror.name: (1 << 20, False) for mirror in ALL})
    for name in ("disk1", "disk2", "disk1-back1"):
        model.nodes[f"{name}-file"] = {"driver": "file"}
        model.nodes[name] = {"driver": "raw", "file": f"{name}-file"}
        model.sizes[name] = model.sizes[f"{name}-file"] = 1 << 20
    return model


def start(port: Port) -> Coroutine[Any, Any, object]:
    return mirrors.start_mirrors(port, ALL, SERVER, speeds={"disk2": 1 << 20})


async def begin(port: Port) -> None:
    await start(port)
    await mirrors.watch_mirrors(port, ALL, timeout=60)


def finish(port: Port) -> Coroutine[Any, Any, object]:
    return mirrors.finish_mirrors(port, ALL)


def cancel(port: Port) -> Coroutine[Any, Any, object]:
    return mirrors.cancel_mirrors(port, ALL)


def each_step(flow: Flow, before: Flow | None, version: str) -> int:
    model = prepare(version)
    if before is not None:
        drive(before(ScriptedPort(model)))
    port = ScriptedPort(model)
    drive(flow(port))
    return len(port.steps)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("version", VERSIONS)
def test_of_each_mirror_all_begins_or_nothing_stays_and_the_next_one_goes_on(version: str, fault: Fault) -> None:
    for step in range(each_step(start, None, version)):
        model = prepare(version)
        port = ScriptedPort(model, fault, step)
        error = failure(Case(start), port)
        where = f"{fault.name} at step {step} of {port.steps}"
        begun = [mirror for mirror in ALL if mirror.job in model.block.jobs]
        assert begun == list(ALL[: len(begun)]), where
        if fault is not Fault.CLOSED:  # then nobody can undo anything
            left = {name for name in model.nodes if ".-" in name}
            assert left == {node for mirror in begun for node in nodes_of(mirror)}, where
            assert not getattr(error, "__notes__", []), where
        drive(start(ScriptedPort(model)))
        assert set(model.block.jobs) == {mirror.job for mirror in ALL}, where
        assert (model.fds, model.fdsets) == (set(), {}) or fault is Fault.CLOSED, where
        assert not port.reservations._held


def nodes_of(mirror: Mirror) -> list[str]:
    return [mirror.client, mirror.view] if mirror.still else [mirror.client]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flow", [begin, finish])
def test_what_was_cut_off_is_repeated_to_its_end(flow: Flow, version: str, fault: Fault) -> None:
    before = None if flow is begin else begin
    for step in range(each_step(flow, before, version)):
        model = prepare(version)
        if before is not None:
            drive(before(ScriptedPort(model)))
        port = ScriptedPort(model, fault, step)
        failure(Case(flow), port)
        drive(flow(ScriptedPort(model)))
        states = {job["status"] for job in model.block.jobs.values()}
        assert states == {"ready" if flow is begin else "concluded"}, f"{fault.name} at step {step} of {port.steps}"
        assert not any(job.get("error") for job in model.block.jobs.values())


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("before", [start, begin], ids=["begun", "in step"])
@pytest.mark.parametrize("ended", [False, True])
def test_cancelling_leaves_nothing_however_often_it_is_cut_off(before: Flow, ended: bool, fault: Fault) -> None:
    async def prior(port: Port) -> None:
        await before(port)
        if ended:
            await begin(port)
            await finish(port)

    clean = prepare().left()
    for step in range(each_step(cancel, prior, "7.2")):
        model = prepare()
        drive(prior(ScriptedPort(model)))
        port = ScriptedPort(model, fault, step)
        error = failure(Case(cancel), port)
        if error is not None:
            drive(cancel(ScriptedPort(model)))
        assert model.left() == clean, f"{fault.name} at step {step} of {port.steps}"
    drive(cancel(ScriptedPort(model)))
    assert model.left() == clean


def test_connections_are_cut_before_anything_that_could_hang() -> None:
    model = prepare()
    drive(begin(ScriptedPort(model)))
    port = ScriptedPort(model)
    drive(cancel(port))
    assert port.steps[:4] == ["query-yank", "yank", "yank", "yank"]
    assert port.steps.index("job-cancel") > 4


@pytest.mark.parametrize("version", VERSIONS)
def test_the_guest_waits_for_its_writes_in_the_end(version: str) -> None:
    model = prepare(version)
    port = ScriptedPort(model)
    drive(begin(port))
    modes = {name: job["copy-mode"] for name, job in model.block.started.items()}
    if version == "7.2":
        assert modes == {"move-disk1": "write-blocking", "move-disk2": "write-blocking", BENEATH.job: "background"}
        assert "block-job-change" not in port.steps
    else:
        assert set(modes.values()) == {"background"}
        assert model.mirrors.blocking == {"move-disk1", "move-disk2"}
    assert {job["sync"] for job in model.block.started.values()} == {"top"}
    assert model.block.started["move-disk2"]["speed"] == 1 << 20
    looks = drive(mirrors.look_at_mirrors(port, ALL))
    assert all(look.in_step and not look.ended for look in looks)
    assert not drive(mirrors.have_begun(port, [Mirror(name="other", node="other")]))


def test_a_file_in_whose_place_another_one_was_put_is_not_copied(tmp_path: Path) -> None:
    model = prepare()
    port = ScriptedPort(model)
    other = StillFile(str(tmp_path / "image"), _HERE.st_dev, _HERE.st_ino)
    with pytest.raises(FileNotFoundError):
        drive(mirrors.start_mirrors(port, [Mirror(name="disk1-back1", file=other)], SERVER))
    Path(other.path).touch()
    with pytest.raises(ArgumentError, match="another one was put in its place"):
        drive(mirrors.start_mirrors(port, [Mirror(name="disk1-back1", file=other)], SERVER))
    assert model.left() == prepare().left()


def test_speeds_of_those_that_run() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(start(port))
    drive(mirrors.set_mirror_speeds(port, {"disk1": 5 << 20, "gone": 1 << 20}))
    assert model.mirrors.speeds == {"move-disk1": 5 << 20}
    for flow in (
        mirrors.set_mirror_speeds(port, {"disk1": -1}),
        mirrors.start_mirrors(port, ALL, SERVER, speeds={"x": -1}),
    ):
        with pytest.raises(ArgumentError):
            drive(flow)


def test_one_that_fails_is_told() -> None:
    for text, kind in (("Input/output error", JobFailed), ("Operation canceled", JobCancelled)):
        model = prepare()
        port = ScriptedPort(model)
        drive(start(port))
        model.block.jobs["move-disk2"]["error"] = text
        for flow in (begin(port), finish(port), mirrors.look_at_mirrors(port, ALL)):
            with pytest.raises(kind) as caught:
                drive(flow)
            assert caught.value.job == "move-disk2"


def test_one_that_is_not_there_or_not_ready_is_not_finished() -> None:
    port = ScriptedPort(prepare())
    with pytest.raises(JobError, match="not begun, or is lost"):
        drive(finish(port))
    drive(mirrors.start_mirrors(port, DISKS, SERVER))
    port.model.block.jobs["move-disk1"]["status"] = "running"
    with pytest.raises(JobError, match="is running, and not ready"):
        drive(mirrors.finish_mirrors(port, DISKS))
    assert "block-job-cancel" not in port.steps


def test_one_that_does_not_move_is_told() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(start(port))
    model.block.progress = {"move-disk1": (5, 9), BENEATH.job: (5, 9)}
    model.block._scripts.clear()
    watch = MirrorWatch(port, ALL)
    for clock in (0, 10, 19.9):
        port.clock = clock
        told: MirrorProgress = drive(watch.look())
    assert told.left == 8
    model.block.progress["move-disk1"] = (6, 9)
    port.clock = 25
    drive(watch.look())
    port.clock = 44.9
    drive(watch.look())
    port.clock = 45
    with pytest.raises(JobStalled) as caught:
        drive(watch.look())
    assert (caught.value.job, caught.value.seconds, isinstance(caught.value, TimeoutError)) == ("move-disk1", 20, True)
    model.block.progress["move-disk1"] = (9, 9)
    port.clock = 59
    drive(watch.look())
    port.clock = 60
    with pytest.raises(JobStalled, match="'move-disk1-back1' has not moved for 60 s"):
        drive(watch.look())
    with pytest.raises(MonitorTimeout, match="4 bytes to go"):
        drive(mirrors.watch_mirrors(port, ALL, timeout=3))


# -- the other side --------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("by_fd", [False, True])
def test_what_is_filled_is_opened_and_closed_however_often_it_is_cut_off(
    fault: Fault, by_fd: bool, image: Path
) -> None:
    async def open_all(port: Port) -> None:
        how: dict[str, Any] = {"fd": 0} if by_fd else {"address": "127.0.0.1:10809"}
        await blanks.open_server(port, **how, max_connections=4)
        await blanks.open_blanks(port, {"disk1-back1": image})

    async def go_on(port: Port) -> None:
        await blanks.close_blanks(port, ["disk1-back1"])
        await blanks.export_disks(port, ["disk1", "disk2"])

    async def close(port: Port) -> None:
        await blanks.close_exports(port)

    clean = prepare().left()
    steps = {flow: each_step(flow, before, "7.2") for flow, before in ((open_all, None), (go_on, open_all))}
    for flow in (open_all, go_on):
        for step in range(steps[flow]):
            model = prepare()
            if flow is go_on:
                drive(open_all(ScriptedPort(model)))
            port = ScriptedPort(model, fault, step)
            failure(Case(flow), port)
            where = f"{fault.name} at step {step} of {port.steps}"
            drive(flow(ScriptedPort(model)))
            assert (model.fds, model.fdsets) == (set(), {}) or fault is Fault.CLOSED, where
            if flow is open_all:
                assert set(model.exports.exports) == {"move-disk1-back1"}, where
                assert model.exports.exports["move-disk1-back1"]["node-name"] == "disk1-back1.-new", where
                drive(go_on(ScriptedPort(model)))
            assert set(model.exports.exports) == {"move-disk1", "move-disk2"}, where
            drive(close(ScriptedPort(model)))
            drive(close(ScriptedPort(model)))
            assert model.left() == clean or fault is Fault.CLOSED, where


def test_a_server_that_cannot_be_closed_is_told() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(blanks.open_server(port, "127.0.0.1:10809"))
    drive(blanks.export_disks(port, ["disk1"]))
    assert drive(blanks.is_exported(port, "disk1"))
    with pytest.raises(CommandError):
        drive(blanks.close_exports(ScriptedPort(model, Fault.REFUSED, 0)))
    assert model.exports.listens
    with pytest.raises(ArgumentError, match="either an address, or a descriptor"):
        drive(blanks.open_server(ScriptedPort(prepare())))


# -- bitmaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", Fault)
def test_bitmaps_are_stored_again_with_what_they_hold(fault: Fault) -> None:
    def prepared() -> QemuModel:
        model = prepare()
        for name, count, recording in (("a", 5, True), ("b", 7, False), ("other", 9, True)):
            model.bitmaps.bitmaps.setdefault("disk1", {})[name] = {
                "name": name, "count": count, "granularity": 65536, "busy": False, "recording": recording,
                "persistent": True,
            }  # fmt: skip
            model.bitmaps.forgotten.add(("disk1", name))
        return model

    def renew(port: Port) -> Coroutine[Any, Any, object]:
        return bitmaps.renew_bitmaps(port, "disk1", ["a", "b", "gone"])

    port = ScriptedPort(prepared())
    drive(renew(port))
    for step in range(len(port.steps)):
        model = prepared()
        before = {name: dict(bitmap) for name, bitmap in model.bitmaps.bitmaps["disk1"].items()}
        port = ScriptedPort(model, fault, step)
        failure(Case(renew), port)
        drive(renew(ScriptedPort(model)))
        where = f"{fault.name} at step {step} of {port.steps}"
        assert model.bitmaps.bitmaps["disk1"] == before, where
        assert model.bitmaps.forgotten == {("disk1", "other")}, where
