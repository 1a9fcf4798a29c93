"""One lock an instance, none across them: a file lock, which holds between processes and goes with its holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from ..errors import InstanceBusy

LOCK_TIMEOUT: Final = 30.0
# Seconds to wait for the lock of a daemon that was killed: a program that it was just starting has it a moment longer.
LEFT_LOCK: Final = 3.0
_POLL: Final = 0.01
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_HOLDER_SIZE: Final = 200  # bytes of the holder's own words


@contextmanager
def locked(folder: Path, name: str, operation: str, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock of instance `name` for the block. Not to be taken twice by one caller.

    :param operation: what for; told to those who wait too long
    :param timeout: seconds to wait for it; 0 does not wait
    :raises InstanceBusy: somebody else holds it
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + timeout
    path = folder / f"{name}.lock"
    fd, held = os.open(path, _FLAGS, 0o600), False
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, _HOLDER_SIZE, 0).decode(errors="replace").rstrip()
                    raise InstanceBusy(name, holder, timeout) from None
                time.sleep(_POLL)
                continue
            if is_at(path, fd):
                break
            # the folder was removed or moved meanwhile: who comes next would not see this lock
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(fd)
            fd = os.open(path, _FLAGS, 0o600)
        held = True
        _say(fd, f"{operation} (process {os.getpid()})")
        yield
    finally:
        if held:
            _say(fd, "")
        os.close(fd)


def _say(fd: int, words: str) -> None:
    """Have those who wait read who holds it. Always as long: to make a file shorter takes ext4 a millisecond.

    Where there is no room for words nothing is to be read: it is held all the same, as the kernel knows.
    """
    try:
        os.pwrite(fd, words.encode().ljust(_HOLDER_SIZE)[:_HOLDER_SIZE], 0)
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, 0)


class Alone:
    """The lock of a program of which there is one; held wherever its folder goes, and taken anew in a new one.

    :param folder: of the locks
    :param patience: seconds to wait for the one before
    :raises InstanceBusy: there is one already
    """

    def __init__(self, folder: Path, name: str, operation: str, *, patience: float = LEFT_LOCK) -> None:
        self._path = folder / f"{name}.lock"
        self._folder, self._name, self._operation = folder, name, operation
        self._held, self._inode = self._take(patience)

    def renew(self) -> None:
        """Take it in the folder that is there now, if that is another one.

        :raises InstanceBusy: another program has, since the old one went
        :raises OSError: it cannot be made
        """
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                return
        held, self._inode = self._take(0)
        self._held.close()
        self._held = held

    def close(self) -> None:
        """Let go of it."""
        self._held.close()

    def _take(self, timeout: float) -> tuple[ExitStack, int]:
        with ExitStack() as stack:
            stack.enter_context(locked(self._folder, self._name, self._operation, timeout))
            return stack.pop_all(), self._path.stat().st_ino


def is_at(path: Path, fd: int) -> bool:
    """Whether what is open is what lies at a path now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def is_let_go(path: Path) -> bool:
    """Whether the last who held a lock has said that it lets go of it, and nobody has said since that they hold it.

    One who was killed has not: :func:`is_locked` knows.
    """
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, 1, 0) == b" "
        finally:
            os.close(fd)
    return False


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock on a file by flock(2). Asked of the kernel, not tried: that would be a lock.

    It takes 8 to 16 ms, for which the kernel waits for all its processors.
    """
    with suppress(FileNotFoundError):
        inode = str(path.stat().st_ino)
        with open("/proc/locks", encoding="ascii") as locks:
            return any(_inode(line) == inode for line in locks if " FLOCK " in line and "->" not in line)
    return False


def _inode(line: str) -> str:
    return line.split()[5].rpartition(":")[2]
