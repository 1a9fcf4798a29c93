"""Where control groups are made: in a tree of our own, or by a systemd, which here does not answer."""

import os
import threading
from pathlib import Path

import pytest

from drover.kvm import tree as trees
from drover.kvm.tree import Tree


def test_controllers_are_handed_down(tmp_path: Path) -> None:
    tree = Tree.find(tmp_path)
    assert tree.path == tmp_path / "drover"
    for directory in (tmp_path, tmp_path / "drover"):
        assert (directory / "cgroup.subtree_control").read_text() == "+pids"  # the last one written


def test_a_place_that_cannot_be_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tree = Tree.find(tmp_path / "file")
    assert tree.path is None
    assert len(tree.notices) == 1
    assert tree.make("web1") is None


def test_finds_a_place_or_says_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mount = trees._mount_point()
    assert mount is not None
    monkeypatch.setattr(trees, "_SYSTEMD", tmp_path / "none")
    assert trees._ours(mount) == (mount, "")
    monkeypatch.setattr(trees, "_SYSTEMD", tmp_path)
    place, why = trees._ours(mount)
    assert place is None
    assert "Delegate=yes" in why
    assert "nor does systemd answer" in Tree.find().notices[0]
    monkeypatch.setattr(trees, "_mount_point", lambda: None)
    assert Tree.find().notices == ("no control groups: version 2 is not mounted",)


def test_a_move_made_ahead_changes_nothing() -> None:
    groups = Path("/proc/self/cgroup").read_text()
    tree = Tree.find()
    for _ in range(2):
        tree.expect()
    for thread in threading.enumerate():
        if thread.name == "control groups":
            thread.join(10)
            assert not thread.is_alive()
    assert Path("/proc/self/cgroup").read_text() == groups


def test_delegation_is_by_mark_or_by_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not trees._delegated(tmp_path)
    os.setxattr(tmp_path, "trusted.delegate", b"1")
    assert trees._delegated(tmp_path)
    os.removexattr(tmp_path, "trusted.delegate")
    os.chown(tmp_path, 1000, 1000)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert trees._delegated(tmp_path)
