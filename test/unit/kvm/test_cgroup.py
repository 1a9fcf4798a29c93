"""Control groups: real ones where the kernel has them, and directories that look like them."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import GroupBusy
from drover.kvm.cgroup import Cgroup, Limits
from drover.kvm.tree import Tree


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
    group.limit(Limits(memory=1 << 30, cpus=1.5, threads=100))
    assert {notice.split(".")[0] for notice in group.notices} == lacking
    group.notices.clear()
    group.limit(Limits())
    assert group.notices == []


def test_limits_as_the_kernel_takes_them(tmp_path: Path) -> None:
    group = Cgroup(tmp_path)
    for name in ("memory.max", "cpu.max", "pids.max"):
        (tmp_path / name).touch()
    group.limit(Limits(memory=1 << 30, cpus=1.5, threads=100))
    assert group.notices == []
    files = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert files == {"memory.max": "1073741824", "cpu.max": "150000 100000", "pids.max": "100"}
