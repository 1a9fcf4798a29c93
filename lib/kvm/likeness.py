"""Whether a file here is the same as one on another node: the very same, on storage in common, or one with the same
content.

*The very same*: names, sizes and inode numbers prove nothing, and a mistake costs the disk. So one node locks a byte
of the file, chosen by chance, far beyond its end and what QEMU locks; the other looks whether it finds that lock, and
none on the next byte. File systems that nodes have in common carry locks from one to the other, or have QEMU's own
locks fail as well. The lock goes with its holder. Of block devices this proves nothing but within one host.

*The same content*: by a digest that leaves out what is zero, so that holes cost nothing, and where they are is all the
same.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import ImageError
from .copying import More, data_parts, lock_of, locked_by_others, written_by_others

# Where the byte is: beyond any file, and beyond QEMU's own (100 to 300).
_FIRST: Final = 1 << 60
_CHOICES: Final = 1 << 40
_CHUNK: Final = 1 << 20  # bytes that get a digest of their own
_ZEROES: Final = bytes(_CHUNK)
# Of files whose digests are remembered; each takes some 200 bytes.
_REMEMBERED: Final = 1000

_Key = tuple[int, int, int, int, int]
_known: OrderedDict[_Key, str] = OrderedDict()
_lock: Final = Lock()


class Seen(Struct, frozen=True, kw_only=True):
    """What there is under a path, on this node.

    :ivar kind: ``file``, ``device`` or ``other``; empty: nothing
    :ivar length: in bytes, of a file or a block device
    :ivar same: it is the very file that was marked on the other node
    :ivar folder: whether there is the folder for it
    :ivar storage: of which file system, by its number on this node
    :ivar free: bytes that are free there
    :ivar barred: it cannot be written to; where there is nothing, no file can be made
    :ivar written: a QEMU has it open to write to it
    :ivar buffered: its file system knows nothing but the host's cache (no O_DIRECT)
    :ivar trouble: why it cannot be looked at; empty: it can
    """

    kind: str = ""
    length: int = 0
    same: bool = False
    folder: bool = False
    storage: int = 0
    free: int = 0
    barred: bool = False
    written: bool = False
    buffered: bool = False
    trouble: str = ""


@contextmanager
def marked(paths: Sequence[str]) -> Iterator[dict[str, int]]:
    """Mark files for the block, so that another node may know them.

    :returns: of each file that could be marked, where; to be looked for by :func:`see`
    """
    marks: dict[str, int] = {}
    with ExitStack() as opened:
        for path in dict.fromkeys(paths):
            place = _FIRST + secrets.randbelow(_CHOICES) * 2
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                opened.callback(os.close, fd)
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_of(fcntl.F_RDLCK, place))
            except OSError:  # not there, or on a file system without locks: nobody can know it by them
                continue
            marks[path] = place
        yield marks


def see(path: str, mark: int | None = None) -> Seen:
    """Tell what is there, and whether it is the one that was marked.

    :param mark: what :func:`marked` says of the file; None where it could not be marked
    :raises OSError: it cannot be looked at
    """
    folder = os.path.dirname(os.path.realpath(path))
    there = os.path.isdir(folder)
    room = os.statvfs(folder) if there else None
    found = Seen(
        folder=there, storage=os.stat(folder).st_dev if there else 0, free=room.f_bavail * room.f_frsize if room else 0,
        barred=there and not os.access(folder, os.W_OK | os.X_OK),
        buffered=there and _is_buffered(folder, os.O_TMPFILE | os.O_RDWR),
    )  # fmt: skip
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        # a link that leads nowhere is something, too: no file can be made in its place
        return replace(found, kind="other" if os.path.lexists(path) else "")
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        return replace(found, kind="other")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        length = os.lseek(fd, 0, os.SEEK_END)
        same = mark is not None and locked_by_others(fd, mark) and not locked_by_others(fd, mark + 1)
        return replace(
            found, kind="file" if kind == stat.S_IFREG else "device", length=length, same=same,
            barred=not os.access(path, os.W_OK), written=_is_written(fd), buffered=_is_buffered(path, os.O_RDONLY),
        )  # fmt: skip
    finally:
        os.close(fd)


def _is_buffered(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _is_written(fd: int) -> bool:
    with suppress(OSError):  # a file system without locks
        return written_by_others(fd)
    return False


def digest(path: str, more: More = lambda size: None) -> str:
    """A file's content, as a digest: the same for two files of one length that hold the same, wherever their holes are.

    It is remembered as long as the file does not change.

    :param more: told of the bytes that are read, as they are
    :raises OSError: it cannot be read
    :raises ImageError: it changed meanwhile
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        key = _key(fd)
        with _lock:
            known = _known.get(key)
        if known is None:
            known = _digest(fd, key[2], more)
            if _key(fd) != key:
                raise ImageError(path, "it changed while it was read: it is no image that nobody writes to")
            _remember(key, known)
        return known
    finally:
        os.close(fd)


def _key(fd: int) -> _Key:
    status = os.fstat(fd)
    length = os.lseek(fd, 0, os.SEEK_END)
    return status.st_dev, status.st_ino, length, status.st_mtime_ns, status.st_ctime_ns


def _digest(fd: int, length: int, more: More) -> str:
    """Of the length, and of each chunk that is not all zeroes: its place and its own digest."""
    whole = hashlib.sha256(length.to_bytes(8, "big"))
    buffer = memoryview(bytearray(_CHUNK))
    for place in _chunks(fd, length):
        size = _fill(fd, buffer, place)
        data = buffer[:size]
        if data != _ZEROES[:size]:
            whole.update(place.to_bytes(8, "big") + hashlib.sha256(data).digest())
        more(size)
    return f"sha256-sparse:{whole.hexdigest()}"


def _chunks(fd: int, length: int) -> Iterator[int]:
    """Where the chunks begin in which there is data."""
    last = -1
    # a block device does not tell of holes
    for begin, end in data_parts(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else [(0, length)]:
        first = begin // _CHUNK
        for number in range(max(first, last + 1), -(-end // _CHUNK)):
            yield number * _CHUNK
            last = number


def _fill(fd: int, buffer: memoryview, place: int) -> int:
    size = 0
    while size < len(buffer) and (count := os.preadv(fd, [buffer[size:]], place + size)):
        size += count
    return size


def _remember(key: _Key, value: str) -> None:
    with _lock:
        _known[key] = value
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
