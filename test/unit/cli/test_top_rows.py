"""The rows of `drover top`, and how tables fit."""

from typing import Any

import pytest

from drover.cli.output import fitted
from drover.cli.text import harmless
from drover.cli.top_rows import COLUMNS, ordered, rows


def told(name: str, state: str = "running", detail: str = "") -> dict[str, Any]:
    return {"name": name, "state": state, "detail": detail}


def used(name: str, **more: Any) -> dict[str, Any]:
    disk = {"read_rate": None, "write_rate": None}
    return {
        "name": name, "cpu_percent": None, "resident": 1 << 20, "balloon": None, "disks": [disk, disk], "nics": [],
        "migration": None,
    } | more  # fmt: skip


MIGRATION = {"status": "active", "total": 200, "remaining": 50, "rate": 2048.0}
FOUND = rows(
    [told("c"), told("a", "stopped"), told("b", detail="x\x1b[31m")],
    [used("c", cpu_percent=12.34, migration=MIGRATION), used("b", disks=[{"read_rate": 1024.0, "write_rate": 0.0}])],
    {"b": "is paused"},
    {"b": 3},
)


def test_rows() -> None:
    """Of the list and of what each uses; what is not known is empty."""
    c, a, b = FOUND
    assert dict(zip(COLUMNS, c.cells, strict=True)) | {"CPU": "12.3%", "MIGRATION": "75% 2.0 KiB/s"} == dict(
        zip(COLUMNS, c.cells, strict=True)
    )
    assert a.cells == ("a", "stopped", *[""] * 10)
    assert (b.read, b.written, b.last) == (1024.0, 0.0, "is paused")
    assert (b.events, b.cells[COLUMNS.index("EVENTS")]) == (3, "3")
    assert "\x1b" not in b.detail


@pytest.mark.parametrize(
    ("by", "names"),
    [("name", "abc"), ("cpu", "cab"), ("disk", "bac"), ("state", "bca"), ("memory", "bca"), ("events", "bac")],
)
def test_order(by: str, names: str) -> None:
    assert "".join(row.name for row in ordered(FOUND, by)) == names


def test_turned_round_and_filtered() -> None:
    assert [row.name for row in ordered(FOUND, "name", reverse=True)] == ["c", "b", "a"]
    assert [row.name for row in ordered(FOUND, "name", only="STOP")] == ["a"]


def test_a_table_fits() -> None:
    """The widest column loses first, and none becomes too narrow to be read."""
    assert fitted([10, 10], 80) == [10, 10]
    assert fitted([10, 100, 30], 80) == [10, 36, 30]
    assert fitted([20, 20, 20], 10) == [8, 8, 8]


def test_texts_of_others() -> None:
    """Nothing in them is obeyed by a terminal."""
    assert harmless("a\x1b]0;title\x07b\nc\u009b1m") == "a\ufffd]0;title\ufffdb c\ufffd1m"
