"""Files of what was found out about QEMU binaries. They can be found out again, so nothing here has to succeed."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_POLL: Final = 0.005  # s, between two looks at a lock, which cannot be waited for with a deadline


def cache_file(cache_dir: Path, binary: str | Path, suffix: str) -> Path:
    """Where a cache keeps something of a binary.

    :param binary: its path
    :param suffix: says what
    """
    return cache_dir / f"{hashlib.sha256(os.fsencode(binary)).hexdigest()[:32]}{suffix}"


def replace(file: Path, data: bytes) -> None:
    """Write a file at once or not at all. Nothing is flushed: readers take what a crash left of it for nothing."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
        fd, name = tempfile.mkstemp(prefix=".", dir=file.parent)
        undo.callback(os.unlink, name)
        with open(fd, "wb") as aside:
            aside.write(data)
        os.replace(name, file)
        undo.pop_all()


@contextlib.contextmanager
def alone(file: Path, timeout: float) -> Iterator[None]:
    """Let one at a time find out what belongs into a file, for the others to read; but wait for nobody who hangs.

    :param timeout: how long to wait, in seconds; then, as where nothing can be written, the block is not alone
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + timeout
        while not _locked(fd) and time.monotonic() < deadline:
            time.sleep(_POLL)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
