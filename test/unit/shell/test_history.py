"""What was typed, in a file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.shell.history import MAX_KEPT, MAX_LENGTH, PrivateHistory, _fold, _unfold, history_path


def is_secret(text: str) -> bool:
    return "hush" in text


def test_lines_come_back_newest_first(tmp_path: Path) -> None:
    """Those of several lines whole; secret, empty and endless ones were not kept."""
    path = tmp_path / "state" / "x_history"
    history = PrivateHistory(path, is_secret)
    lines = ["stop", "transaction(\n  abort\n)", "a='\\n'", "hush", "  ", "x" * (MAX_LENGTH + 1), "cont"]
    for line in lines:
        history.append_string(line)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    kept = PrivateHistory(path, is_secret).load_history_strings()
    assert list(kept) == ["cont", "a='\\n'", "transaction(\n  abort\n)", "stop"]
    assert "hush" in history.get_strings()  # as long as this shell lasts


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """Of a long one the newest lines stay."""
    path = tmp_path / "x_history"
    path.write_text("".join(f"line {number}\n" for number in range(3 * MAX_KEPT)))
    kept = list(PrivateHistory(path, is_secret).load_history_strings())
    assert (len(kept), kept[0]) == (MAX_KEPT, f"line {3 * MAX_KEPT - 1}")
    assert len(path.read_text().splitlines()) == MAX_KEPT


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is kept, and nothing fails; nor is a link followed."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    for path in (blocked / "x_history", tmp_path):
        history = PrivateHistory(path, is_secret)
        assert list(history.load_history_strings()) == []
        history.append_string("stop")
    link = tmp_path / "link"
    link.symlink_to(blocked)
    PrivateHistory(link, is_secret).append_string("stop")
    assert blocked.read_text() == ""


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rules of XDG."""
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert history_path("qmp") == Path("/s/drover/qmp_history")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert history_path("qmp") == Path("/h/.local/state/drover/qmp_history")


def test_line_ends_of_other_kinds(tmp_path: Path) -> None:
    """They end no line of the file."""
    history = PrivateHistory(tmp_path / "x", is_secret)
    for line in ("a\x0bb\x85c", "d"):
        history.append_string(line)
    assert list(PrivateHistory(tmp_path / "x", is_secret).load_history_strings()) == ["d", "a\x0bb\x85c"]


@settings(deadline=None)
@given(st.text())
def test_any_line_comes_back(text: str) -> None:
    """A line of the file is one line, and gives back what it was made of."""
    folded = _fold(text)
    assert "\n" not in folded
    assert "\r" not in folded
    assert _unfold(folded) == text
