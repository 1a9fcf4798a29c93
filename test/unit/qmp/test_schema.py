"""The index over query-qmp-schema, on what real QEMUs said of themselves."""

import pytest

from drover.qmp.schema import Schema
from drover.testing.recorded import recorded_schema


@pytest.fixture(scope="module")
def old() -> Schema:
    return Schema(recorded_schema("7.2"))


@pytest.fixture(scope="module")
def new() -> Schema:
    return Schema(recorded_schema("10.0"))


def test_commands_and_events(old: Schema, new: Schema) -> None:
    assert len(old.commands) == 216
    assert old.has_command("migrate")
    assert not old.has_command("STOP")
    assert old.has_event("STOP")
    assert not old.has_event("migrate")
    assert new.commands - old.commands >= {"block-job-change", "query-migrationthreads"}
    assert "DEVICE_DELETED" in new.events


@pytest.mark.parametrize(
    ("command", "path", "in_old", "in_new"),
    [
        ("migrate", "uri", True, True),
        ("migrate", "channels", False, True),
        ("migrate", "channels.addr.transport", False, True),
        ("migrate-incoming", "exit-on-error", False, True),
        ("blockdev-add", "node-name", True, True),
        ("blockdev-add", "file.filename", True, True),
        ("blockdev-add", "cache.direct", True, True),
        ("blockdev-add", "active", False, True),
        ("netdev_add", "vhostfds", True, True),
        ("migrate-set-capabilities", "capabilities.state", True, True),
        ("migrate", "nothing", False, False),
        ("no-such-command", "x", False, False),
    ],
)
def test_arguments(old: Schema, new: Schema, command: str, path: str, in_old: bool, in_new: bool) -> None:
    assert old.has_argument(command, path) == in_old
    assert new.has_argument(command, path) == in_new


def test_values_features_results_and_members(old: Schema, new: Schema) -> None:
    assert old.has_value("migrate-set-capabilities", "capabilities.capability", "multifd")
    assert not old.has_value("migrate-set-capabilities", "capabilities.capability", "mapped-ram")
    assert new.has_value("migrate-set-capabilities", "capabilities.capability", "mapped-ram")
    assert old.values("migrate", "uri") == frozenset()
    assert old.has_feature("block-commit", "deprecated", "top") or old.has_feature("block-commit", "deprecated", "base")
    assert not old.has_feature("stop", "deprecated")
    assert old.has_result_member("query-status", "singlestep")
    assert not new.has_result_member("query-status", "singlestep")
    assert not old.has_result_member("nope", "x")
    assert old.has_event_member("DEVICE_DELETED", "device")
    assert old.arguments("netdev_del") == {"id": True}
    assert old.arguments("migrate")["detach"] is False
    assert old.arguments("nope") == {}
