"""One lock an instance, none across them: a file lock, which holds between processes and goes with its holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import InstanceBusy

LOCK_TIMEOUT: Final = 30.0
_POLL: Final = 0.01
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
    fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, _HOLDER_SIZE, 0).decode(errors="replace")
                    raise InstanceBusy(name, holder, timeout) from None
                time.sleep(_POLL)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{operation} (process {os.getpid()})".encode()[:_HOLDER_SIZE], 0)
        yield
    finally:
        os.close(fd)
