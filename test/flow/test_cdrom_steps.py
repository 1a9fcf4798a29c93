"""The medium of a CD drive: changed as a whole or not at all, at each step of it, and whatever the guest does."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ArgumentError, HotplugError, TrayLocked
from drover.monitor.drive import drive
from drover.ops import cdrom, disk
from drover.ops.cdrom import CdDrive
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.scripted import Fault, ScriptedPort
from qcow2 import header
from steps import SERVER, Case, assert_nothing_held, count_steps, descriptors, failure, prepare

MIB = 1 << 20


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two media, one of them a chain."""
    monkeypatch.chdir(tmp_path)
    Path("top").write_bytes(header(MIB, "a", "raw"))
    for name in ("a", "b"):
        Path(name).write_bytes(bytes(MIB))


def change(port: Port, source: str = "b", **options: Any) -> Coroutine[Any, Any, CdDrive]:
    return cdrom.change_medium(port, "cd0", source, **options)


def change_to_chain(port: Port) -> Coroutine[Any, Any, CdDrive]:
    return change(port, "top", format="qcow2", backing=[("a", "raw")])


def eject(port: Port) -> Coroutine[Any, Any, None]:
    return cdrom.eject_medium(port, "cd0")


async def drive_alone(port: Port) -> None:
    """A machine with an empty drive."""
    port.model.devices["cd0"] = {"driver": "scsi-cd", "bus": "scsi0.0", "scsi-id": 0, "lun": 0, "drive": ""}  # type: ignore[attr-defined]


async def loaded(port: Port) -> None:
    await drive_alone(port)
    await change_to_chain(port)


def medium(model: QemuModel) -> str:
    found: str = model.devices["cd0"]["drive"]
    return found


CHANGES = {
    "into an empty drive": Case(change, drive_alone),
    "for a chain": Case(change, loaded),
    "a chain": Case(change_to_chain, drive_alone),
    "out": Case(eject, loaded),
}


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("name", CHANGES)
def test_the_old_one_is_in_or_the_new_one(name: str, fault: Fault) -> None:
    case = CHANGES[name]
    after = prepare(case, "q35")
    drive(case.flow(ScriptedPort(after)))
    for step in range(count_steps(case, "q35")):
        model = prepare(case, "q35")
        before, fds = model.left(), descriptors()
        port = ScriptedPort(model, fault, step)
        error = failure(case, port)
        where = f"{fault.name} at step {step} of {port.steps}"
        assert (error is not None) == port.struck, where
        assert descriptors() == fds, where
        assert_nothing_held(port)
        if error is not None and fault is not Fault.CLOSED:  # then nobody can undo anything
            assert not getattr(error, "__notes__", []), where
            if medium(model) == before["devices"]["cd0"]["drive"]:
                assert model.left() == before, where
            else:  # only what was in it is left to be removed
                assert medium(model) == medium(after), where
        if medium(model) == medium(after) and before["devices"] != after.devices:
            drive(cdrom.eject_medium(ScriptedPort(model), "cd0"))
            assert not model.nodes, f"{where}: what an earlier change left is removed by the next"


@pytest.mark.parametrize("source", ["b", "nbd"])
def test_nodes_take_turns(source: str) -> None:
    model = prepare(Case(change, drive_alone), "q35")
    port = ScriptedPort(model)
    where = f"nbd://{SERVER}/cd" if source == "nbd" else source
    for expected in ("cd0", "cd0-next", "cd0"):
        found = drive(change(port, where))
        assert found == CdDrive(id="cd0", tray_open=False, locked=False, node=expected, size=MIB)
        assert set(model.nodes) == {expected, f"{expected}-file"}
        assert model.nodes[expected]["read-only"]
    drive(eject(port))
    assert drive(cdrom.query_cdrom(port, "cd0")) == CdDrive(id="cd0", tray_open=True, locked=False)
    drive(eject(port))
    assert not model.nodes
    assert not model.fdsets
    assert drive(change(port)).node == "cd0"


def test_a_medium_with_nodes_of_other_names() -> None:
    """Such as from the command line of somebody else's."""
    model = prepare(Case(change, drive_alone), "q35")
    model.nodes |= {"iso": {"driver": "raw", "file": "iso-f"}, "iso-f": {"driver": "file"}}
    model.sizes |= {"iso": 1, "iso-f": 1}
    model.devices["cd0"] = model.devices["cd0"] | {"drive": "iso"}
    assert drive(change(ScriptedPort(model))).node == "cd0"
    assert set(model.nodes) == {"cd0", "cd0-file"}


def test_a_guest_that_holds_the_tray_shut() -> None:
    model = prepare(Case(change, loaded), "q35")
    model.cds.locked.add("cd0")
    before = model.left()
    for flow in (change, eject):
        with pytest.raises(TrayLocked, match="holds the tray shut, for 10 s") as caught:
            drive(flow(ScriptedPort(model)))
        assert (caught.value.device, caught.value.timeout) == ("cd0", 10)
        assert model.left() == before
    assert drive(change(ScriptedPort(model), force=True)).node == "cd0-next"
    assert set(model.nodes) == {"cd0-next", "cd0-next-file"}


@pytest.mark.parametrize("heard", [True, False])
def test_a_guest_that_lets_go_after_a_while(heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(Case(change, loaded), "q35")
    model.cds.locked.add("cd0")
    port = ScriptedPort(model)
    wait = port.wait_event

    async def opens(*args: Any, **options: Any) -> Any:
        model.cds.locked.clear()
        if heard:
            model.cds._move("cd0", True)
        return await wait(*args, **options)

    monkeypatch.setattr(port, "wait_event", opens)
    assert drive(change(port)).node == "cd0-next"
    assert port.clock == (0 if heard else 1)


def test_a_tray_that_is_open_already() -> None:
    model = prepare(Case(change, loaded), "q35")
    model.execute("blockdev-open-tray", {"id": "cd0"})
    assert not drive(change(ScriptedPort(model))).tray_open


@pytest.mark.parametrize(
    ("id", "options", "field"),
    [
        ("cd0-next", {}, "id"),
        ("c" * 22, {}, "id"),
        ("cd0", {"format": "iso"}, "format"),
        ("cd0", {"backing": [("a", "raw")]}, "backing"),
    ],
)
def test_refused_before_anything_is_touched(id: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        drive(cdrom.change_medium(ScriptedPort(QemuModel()), id, "b", **options))
    assert caught.value.field == field


def test_what_is_no_drive() -> None:
    model = QemuModel()
    port = ScriptedPort(model)
    drive(disk.hot_add_disk(port, "b", id="disk1", cache="writeback"))
    for name in ("disk1", "cd7"):
        for flow in (cdrom.eject_medium(port, name), cdrom.change_medium(port, name, "b")):
            with pytest.raises(HotplugError, match="no such CD drive"):
                drive(flow)


def test_what_is_no_medium() -> None:
    model = prepare(Case(change, loaded), "q35")
    before = model.left()
    with pytest.raises(FileNotFoundError):
        drive(change(ScriptedPort(model), "nowhere"))
    with pytest.raises(ArgumentError, match="without a backing file"):
        drive(change(ScriptedPort(model), "top", format="qcow2"))
    assert model.left() == before
