"""Control groups: real ones where the kernel has them, and directories that look like them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import GroupBusy
from drover.kvm import cgroup
from drover.kvm.cgroup import Cgroup, Limits, Tree


@pytest.fixture
def member(group: Cgroup) -> Iterator[subprocess.Popen[bytes]]:
    """A process in it."""
    with subprocess.Popen(["sleep", "60"]) as process:
        group._write("cgroup.procs", str(process.pid))
        yield process
        process.kill()


def test_who_is_in_it(group: Cgroup, member: subprocess.Popen[bytes]) -> None:
    assert group.pids() == [member.pid]
    assert group.populated
    assert not group.remove()
    member.kill()
    while group.populated:  # although nobody has waited for it
        time.sleep(0.001)
    member.wait()
    assert group.pids() == []
    assert group.remove()
    assert group.remove()
    assert not group.populated
    assert group.pids() == []


def test_freezes_thaws_and_kills_what_is_frozen(group: Cgroup, member: subprocess.Popen[bytes]) -> None:
    group.freeze()
    assert group.frozen
    group.thaw()
    assert not group.frozen
    group.freeze()
    group.kill()
    assert member.wait(5) == -signal.SIGKILL
    group.kill()


def test_kills_one_by_one_on_an_old_kernel(
    group: Cgroup, member: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Cgroup._write

    def old(self: Cgroup, file: str, text: str) -> None:
        if file == "cgroup.kill":
            raise FileNotFoundError
        write(self, file, text)

    monkeypatch.setattr(Cgroup, "_write", old)
    group.kill()
    assert member.wait(5) == -signal.SIGKILL


def test_does_not_kill_who_is_not_in_it(group: Cgroup) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        group._kill_member(other.pid)
        time.sleep(0.05)
        assert other.poll() is None
        other.kill()


def test_what_does_not_happen_is_told(
    group: Cgroup, member: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroup, "_write", lambda *_: None)  # as if a thread sat in the kernel
    for act, key in ((group.freeze, "frozen"), (group.kill, "populated")):
        with pytest.raises(GroupBusy) as caught:
            act(timeout=0.05)
        assert (caught.value.key, caught.value.pids) == (key, (member.pid,))


def test_what_is_not_there_is_a_notice(tree: Tree, group: Cgroup) -> None:
    controllers = (group.path / "cgroup.controllers").read_text().split()
    lacking = {"memory", "cpu", "pids"}.difference(controllers)
    assert len(tree.notices) == len(lacking)
    notices = group.limit(Limits(memory=1 << 30, cpus=1.5, threads=100))
    assert {notice.split(".")[0] for notice in notices} == lacking
    assert group.limit(Limits()) == []


def test_limits_as_the_kernel_takes_them(tmp_path: Path) -> None:
    group = Cgroup(tmp_path)
    for name in ("memory.max", "cpu.max", "pids.max"):
        (tmp_path / name).touch()
    assert group.limit(Limits(memory=1 << 30, cpus=1.5, threads=100)) == []
    files = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert files == {"memory.max": "1073741824", "cpu.max": "150000 100000", "pids.max": "100"}


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
    mount = cgroup._mount_point()
    assert mount is not None
    monkeypatch.setattr(cgroup, "_SYSTEMD", tmp_path / "none")
    assert cgroup._ours() == (mount, "")
    monkeypatch.setattr(cgroup, "_SYSTEMD", tmp_path)
    place, why = cgroup._ours()
    assert place is None
    assert "Delegate=yes" in why
    monkeypatch.setattr(cgroup, "_mount_point", lambda: None)
    assert Tree.find().notices == ("no control groups: version 2 is not mounted",)


def test_delegation_is_by_mark_or_by_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cgroup._delegated(tmp_path)
    os.setxattr(tmp_path, "trusted.delegate", b"1")
    assert cgroup._delegated(tmp_path)
    os.removexattr(tmp_path, "trusted.delegate")
    os.chown(tmp_path, 1000, 1000)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cgroup._delegated(tmp_path)
