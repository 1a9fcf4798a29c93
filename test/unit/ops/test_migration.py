"""One side of a migration, on both faces: what is an end, and what only looks like one."""

import pytest

from drover.errors import MigrationCancelled, MigrationError, MigrationFailed, MonitorTimeout
from drover.monitor.drive import drive
from drover.ops import migration
from drover.ops.migration import MigrationInfo
from drover.testing.fake import FakeQemu
from drover.testing.model import QemuModel
from drover.testing.scripted import ScriptedPort
from faces import Face


def going(*statuses: str, **capabilities: bool) -> QemuModel:
    """A source whose migration goes through `statuses`, one each time it is asked."""
    model = QemuModel()
    model.migration.capabilities |= {"events": True, "return-path": True} | capabilities
    model.migration.script.extend(statuses)
    return model


def test_completed_is_returned_with_postmigrate_only(face: Face) -> None:
    model = going("active", "active", "device", "completed")
    with FakeQemu(model) as fake, face.open(fake.path) as vm:
        seen: list[MigrationInfo] = []
        info = vm.wait_migration(progress=seen.append, timeout=10, poll=0.01)
        assert info.status == "completed"
        assert [state.status for state in seen] == ["active", "active", "device", "completed"]
        assert vm.query_status().status == "postmigrate"


def test_a_source_that_never_gets_to_postmigrate_is_told() -> None:
    model = going("completed")
    model.migration.move = lambda status: setattr(model.migration, "state", status)  # type: ignore[method-assign]
    with pytest.raises(MigrationError, match="'running'"):
        drive(migration.wait_migration(ScriptedPort(model), timeout=5))


def test_without_a_return_path_completed_proves_nothing(face: Face) -> None:
    with FakeQemu(going("completed", **{"return-path": False})) as fake, face.open(fake.path) as vm:
        with pytest.raises(MigrationError, match="return-path"):
            vm.wait_migration(timeout=5)


@pytest.mark.parametrize(("end", "error"), [("failed", MigrationFailed), ("cancelled", MigrationCancelled)])
def test_other_ends_are_errors_with_qemus_own_words(face: Face, end: str, error: type[MigrationError]) -> None:
    model = going("active", end)
    model.migration.error = "Unable to write to socket: Broken pipe"
    with FakeQemu(model) as fake, face.open(fake.path) as vm:
        with pytest.raises(error, match="Broken pipe") as caught:
            vm.wait_migration(until=["pre-switchover"], timeout=5, poll=0.01)
        assert (caught.value.status, caught.value.desc) == (end, model.migration.error)


def test_an_end_before_what_was_waited_for() -> None:
    with pytest.raises(MigrationError, match="never was pre-switchover"):
        drive(migration.wait_migration(ScriptedPort(going("active", "completed")), until=["pre-switchover"]))


def test_a_migration_that_takes_longer_goes_on() -> None:
    port = ScriptedPort(going("active"))
    with pytest.raises(MonitorTimeout, match=r"migration \(now active\)"):
        drive(migration.wait_migration(port, timeout=3.0))
    assert 3.0 <= port.clock < 4.0
    port.model.migration.script.append("completed")
    assert drive(migration.wait_migration(port)).status == "completed"


def test_an_event_ends_the_wait_at_once_and_is_not_missed() -> None:
    port = ScriptedPort(going("active", "pre-switchover"))
    drive(migration.wait_migration(port, until=["pre-switchover"], poll=100.0, timeout=1000.0))
    assert port.clock <= 100.0


def test_the_target_has_arrived_when_it_left_inmigrate() -> None:
    model = going("active", "completed")
    model.status = "inmigrate"
    assert drive(migration.wait_incoming(ScriptedPort(model), timeout=5)).status == "paused"


def test_a_cancel_waits_for_the_end_and_never_in_postcopy(face: Face) -> None:
    model = going("active", "active")
    with FakeQemu(model) as fake, face.open(fake.path) as vm:
        assert vm.migrate_cancel().status == "cancelled"
        assert vm.migrate_cancel().status == "cancelled"
        assert fake.commands.count("migrate_cancel") == 1
        model.migration.state = "postcopy-active"
        with pytest.raises(MigrationError, match="losing the machine"):
            vm.migrate_cancel()
        assert fake.commands.count("migrate_cancel") == 1
