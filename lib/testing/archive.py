"""What building a guest's images takes: tools that are named when they are missing, and archives."""

import fcntl
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drover.errors import DroverError

Entry = tuple[str, int, bytes]  # path in the archive, mode with type, contents

# The kernel package is 26 MB. Beyond this the mirror is stuck, and an error helps more than patience.
COMMAND_TIMEOUT = 300.0


class ImageError(DroverError):
    """The guest image could not be built. The message says what to install or to run."""


def tool(name: str, package: str) -> str:
    """Return the path of a program.

    :raise ImageError: it is missing; the Debian package that has it is named
    """
    if path := shutil.which(name):
        return path
    raise ImageError(f"{name} is missing: install the Debian package {package}")


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return what it printed.

    :raise ImageError: it failed, and what it said
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{' '.join(command)}: did not end within {COMMAND_TIMEOUT:g} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise ImageError(f"{' '.join(command)}: failed ({done.returncode}): {said}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes heed, too."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A folder to build in, removed at the end."""
    # Beside its destination, so that the final rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache, ignore_cleanup_errors=True) as path:
        yield Path(path)


def newc(entries: Sequence[Entry]) -> bytes:
    """Return a cpio archive in the kernel's format (buffer-format.rst of its documentation): owner root, time 0."""
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
