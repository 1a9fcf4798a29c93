"""Locks as the live picture sees them."""

import fcntl
from pathlib import Path

from drover.kvm.lock import locked
from drover.node.model import is_locked


def test_the_kernel_knows_who_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not is_locked(path)
    with locked(tmp_path, "a", "test"):
        assert is_locked(path)
    assert not is_locked(path)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert is_locked(path)
        other = tmp_path / "b.lock"
        other.touch()
        assert not is_locked(other)
