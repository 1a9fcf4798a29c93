"""The file with the memory of a machine that stands still: a page that says whose it is, then what QEMU wrote.

It is made under a name that nobody guesses, and gets its own when all of it is on the disk. It is read by a descriptor
that is open before QEMU is there, so QEMU's own user need not be let into the folder.
"""

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import MemoryUnusable
from ..qmp.ready import ready
from .record import Saved, sync_folder
from .spec import Disk, Spec

OFFSET: Final = 4096  # bytes before the memory: a page, so that QEMU's own stay aligned
_MAGIC: Final = b"drover memory 1\n"
_HINT: Final = 40  # characters of the file's name that its first one shows


class Head(Struct, frozen=True, kw_only=True):
    """What the file says of itself.

    :ivar uuid: of the instance
    :ivar key: of this very save: no other file has it
    """

    uuid: str
    key: str


def head_of(saved: Saved) -> Head:
    """What the file says of itself in which an instance's memory is."""
    return Head(uuid=saved.parcel.spec.uuid, key=saved.key)


def new_key() -> str:
    """What no other file has."""
    return secrets.token_hex(16)


def first_name(path: Path, key: str) -> Path:
    """The name of the file while it is being made."""
    return path.with_name(f".{path.name[:_HINT]}.{key}.new")


def begin(path: Path, head: Head) -> int:
    """Make the file.

    :param path: its first name
    :returns: a descriptor to write the memory to, which is where that begins
    :raises OSError: it could not be made
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, (_MAGIC + msgspec.json.encode(head)).ljust(OFFSET, b"\n")) != OFFSET:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        os.close(fd)
        path.unlink()
        error.filename = os.fspath(path)
        raise
    return fd


def place(first: Path, path: Path, *, instead: bool) -> int:
    """All was written: see it on the disk, and give the file its name.

    :param instead: of one that may be there, which is of no use any more
    :returns: bytes of the disk that it takes
    :raises FileExistsError: there is something; it stays as it is
    """
    fd = os.open(first, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        size = os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
    if instead:
        os.rename(first, path)
    else:
        os.link(first, path, follow_symlinks=False)
        os.unlink(first)
    sync_folder(path.parent)
    return size


def remove(path: Path, head: Head) -> None:
    """Remove a file that was made, by both names that it may bear; nothing where another one has its name by now.

    :param path: its own name
    :raises OSError: it could not be removed
    """
    first_name(path, head.key).unlink(missing_ok=True)
    if _head_of(path) == head:
        path.unlink(missing_ok=True)


def opened(name: str, path: Path, head: Head) -> int:
    """Open the file, to read.

    :param name: of the instance, for the error
    :returns: a descriptor, which is where the memory begins
    :raises MemoryUnusable: it is not there, or is another one
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise MemoryUnusable(name, os.fspath(path), error.strerror or "it cannot be opened") from error
    if _read(fd) != head:
        os.close(fd)
        raise MemoryUnusable(name, os.fspath(path), "it is not what was saved of this machine last")
    os.lseek(fd, OFFSET, os.SEEK_SET)
    return fd


def is_there(path: Path, head: Head) -> bool:
    """Whether it is."""
    return _head_of(path) == head


def _head_of(path: Path) -> Head | None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return _read(fd)
        finally:
            os.close(fd)
    return None


def _read(fd: int) -> Head | None:
    data = os.pread(fd, OFFSET, 0)
    with suppress(msgspec.MsgspecError):
        if data.startswith(_MAGIC):
            return msgspec.json.decode(data.removeprefix(_MAGIC), type=Head)
    return None


# -- the disks --------------------------------------------------------------------------------------------------------


def stamps(spec: Spec) -> dict[str, str]:
    """By which is known whether somebody has written to a disk: of those that are files, by id."""
    found = {}
    for disk in spec.disks:
        with suppress(OSError):
            if stamp := _stamp(disk):
                found[disk.id] = stamp
    return found


def changed(spec: Spec, before: dict[str, str]) -> list[str]:
    """The ids of disks that are not as they were."""
    now = stamps(spec)
    return [name for name, stamp in before.items() if now.get(name) != stamp]


def _stamp(disk: Disk) -> str:
    if not disk.local or disk.read_only or disk.cdrom:
        return ""
    found = os.stat(disk.source)
    return f"{found.st_size}:{found.st_mtime_ns}" if os.path.isfile(disk.source) else ""


ready(Head)
