"""Memory into a file, failed and cancelled at each step: the machine can be saved again, and migrated, as before."""

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.errors import MigrationError, MigrationFailed, MonitorTimeout
from drover.monitor.drive import drive
from drover.ops import saving
from drover.ops.fdset import Held
from drover.ops.migration import MigrationInfo
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.scripted import Fault, ScriptedPort
from steps import Case, assert_nothing_held, descriptors, failure


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory").write_bytes(bytes(4096))


@pytest.fixture(params=["7.2", "10.0"])
def model(request: pytest.FixtureRequest) -> QemuModel:
    return stopped(request.param)


def stopped(version: str, *script: str) -> QemuModel:
    """A machine that stands still, and what becomes of its save."""
    model = QemuModel(version=version)
    model.status = "paused"
    model.migration.script.extend(script or ("active", "device", "completed"))
    model.migration.capabilities["auto-converge"] = True  # another migration was to come, or came to nothing
    return model


async def save(port: Port, progress: Any = None) -> object:
    with Held(os.open("memory", os.O_WRONLY)) as held:
        return await saving.save_memory(port, held, offset=4096, progress=progress)


def load(port: Port) -> Coroutine[Any, Any, object]:
    async def act() -> object:
        with Held(os.open("memory", os.O_RDONLY)) as held:
            return await saving.load_memory(port, held, form="stream", offset=4096)

    return act()


def is_as_before(model: QemuModel) -> None:
    """Nothing is left of a save."""
    assert {name for name, is_on in model.migration.capabilities.items() if is_on} <= {"auto-converge"}
    assert model.migration.parameters["max-bandwidth"] == 128 << 20
    assert (model.fds, model.fdsets) == (set(), {})
    assert model.migration.state in ("none", "cancelled", "failed", "completed")


def test_newer_ones_give_each_page_its_place(model: QemuModel) -> None:
    seen: list[MigrationInfo] = []
    form = drive(save(ScriptedPort(model), seen.append))
    assert form == ("stream" if model.version == "7.2" else "mapped-ram")
    assert [info.status for info in seen] == ["active", "device", "completed"]
    assert model.status == "postmigrate"
    assert (model.fds, model.fdsets) == (set(), {})


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_all_of_it_or_nothing(version: str, fault: Fault) -> None:
    counted = ScriptedPort(stopped(version))
    drive(save(counted))
    for step in range(len(counted.steps)):
        model, fds = stopped(version), descriptors()
        port = ScriptedPort(model, fault, step)
        error = failure(Case(save), port)
        assert descriptors() == fds
        assert_nothing_held(port)
        if error is not None and fault is not Fault.CLOSED:
            assert not getattr(error, "__notes__", []), f"{fault.name} at step {step} of {port.steps}"
            is_as_before(model)


def test_one_that_fails_says_why(model: QemuModel) -> None:
    model.migration.script.clear()
    model.migration.script.extend(["active", "failed"])
    model.migration.error = "No space left on device"
    with pytest.raises(MigrationFailed, match="No space left"):
        drive(save(ScriptedPort(model)))
    is_as_before(model)


def test_whoever_looks_on_may_end_it(model: QemuModel) -> None:
    def enough(info: MigrationInfo) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        drive(save(ScriptedPort(model), enough))
    is_as_before(model)
    model.migration.script.clear()
    drive(saving.drop_save(ScriptedPort(model)))  # may be repeated
    is_as_before(model)


def test_a_machine_is_read_by_its_events_alone(model: QemuModel) -> None:
    """QEMU 7.2 answers nothing while it reads."""
    model.status = "inmigrate"
    port = ScriptedPort(model)
    port.events.add("MIGRATION", {"status": "completed"}, 0)  # of before
    with pytest.raises(MonitorTimeout):
        drive(load(port))
    assert port.clock >= saving.LOAD_TIMEOUT


def test_one_that_was_read_and_does_not_stand_ready_is_told(model: QemuModel) -> None:
    model.status = "inmigrate"
    port, execute = ScriptedPort(model), model.execute

    def run(command: str, arguments: Any = None, has_fd: bool = False) -> Any:
        done = execute(command, arguments, has_fd)
        if command == "migrate-incoming":
            model.migration.script.clear()
            model.migration.move("completed")
            model.status = "internal-error"
        return done

    model.execute = run  # type: ignore[method-assign]
    with pytest.raises(MigrationError, match="internal-error"):
        drive(load(port))
