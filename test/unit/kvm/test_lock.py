"""Locks: held between processes, seen by others, and found again where their folder was removed."""

import errno
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from drover.errors import InstanceBusy
from drover.kvm.lock import Alone, is_let_go, is_locked, locked


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path, "a", "test"):
        assert is_locked(tmp_path / "a.lock")
        with pytest.raises(InstanceBusy, match=f"process {os.getpid()}"), locked(tmp_path, "a", "other", 0):
            pass
    assert not is_locked(tmp_path / "a.lock")


def test_who_lets_go_says_so_and_who_is_killed_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not is_let_go(path)  # there is none yet
    with locked(tmp_path, "a", "first"):
        assert not is_let_go(path)
        with pytest.raises(InstanceBusy), locked(tmp_path, "a", "second", 0):
            pass
        assert not is_let_go(path)  # who never had it has nothing to say
    assert is_let_go(path)
    killed = os.fork()
    if killed == 0:
        with locked(tmp_path, "a", "third", 0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert not is_let_go(path)
    assert not is_locked(path)
    with locked(tmp_path, "a", "fourth", 0):
        pass
    assert is_let_go(path)


def test_a_holder_without_room_for_words_is_not_taken_to_have_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lock"
    with locked(tmp_path, "a", "first"):
        pass
    assert is_let_go(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with locked(tmp_path, "a", "second"):
        assert not is_let_go(path)
        assert is_locked(path)
    assert not is_locked(path)


def test_who_waits_while_the_folder_goes_gets_the_lock_that_others_see(tmp_path: Path) -> None:
    folder, inside, leave = tmp_path / "locks", threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with locked(folder, "a", "second", 20):
            inside.set()
            leave.wait(20)

    with locked(folder, "a", "first"):
        second = threading.Thread(target=wait_for_it)
        second.start()
        time.sleep(0.1)  # it has the old file open
        shutil.rmtree(folder)
    assert inside.wait(20)
    with pytest.raises(InstanceBusy), locked(folder, "a", "third", 0):
        pass
    leave.set()
    second.join()


def test_alone_in_whatever_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    alone = Alone(folder, ".one", "first")
    with pytest.raises(InstanceBusy):
        Alone(folder, ".one", "second", patience=0)
    alone.renew()
    folder.rename(tmp_path / "aside")
    alone.renew()
    with pytest.raises(InstanceBusy):
        Alone(folder, ".one", "second", patience=0)
    assert not is_locked(tmp_path / "aside" / ".one.lock")
    shutil.rmtree(folder)
    other = Alone(folder, ".one", "second")
    with pytest.raises(InstanceBusy):
        alone.renew()
    other.close()
    alone.renew()
    alone.close()
    assert not is_locked(folder / ".one.lock")


def test_alone_after_one_who_was_killed(tmp_path: Path) -> None:
    """A program that it was just starting has its lock for a moment more."""
    killed = os.fork()
    if killed == 0:
        with locked(tmp_path, ".one", "first", 0):
            if os.fork() == 0:
                time.sleep(0.5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    with pytest.raises(InstanceBusy):
        Alone(tmp_path, ".one", "second", patience=0)
    alone = Alone(tmp_path, ".one", "second")
    assert is_locked(tmp_path / ".one.lock")
    alone.close()
