"""An image copied as the file that it is: its holes stay holes, and where the file system can, its blocks are shared.

No program is run on it, and nothing in it is followed. While it is copied no QEMU writes to it: we hold the locks by
which QEMUs tell each other.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

# Called with bytes: how many more there are.
More = Callable[[int], None]

_FICLONE: Final = 0x40049409  # of linux/fs.h: ioctl_ficlone(2)
# Bytes at once: few calls, and somebody who looks on, or has pressed Ctrl-C, does not wait for long.
_CHUNK: Final = 16 << 20
# Bytes after which what is written is synced: else it fills the host's memory, guests that sync wait for all of it, and
# who looks on sees the copy at its end long before that.
_SYNC: Final = 1 << 30
_BUFFER: Final = 1 << 20  # bytes, where they go through our own memory
# A way to copy that this pair of files does not have: there is another one.
_NOT_SO: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EPERM})

# How QEMUs share an image (its block/file-posix.c): who has a permission locks one byte, who grants it to nobody else
# another one. By their numbers, to write and to resize:
_HAS: Final = 100
_GRANTS_NOT: Final = 200
_WRITE: Final = (1, 3)
_FLOCK: Final = "hhqqi4x"  # struct flock: type, whence, start, length, pid


def keep_from_writing(fd: int) -> bool:
    """Keep all QEMUs from writing to an open image until `fd` is closed. False: one has it open to write."""
    try:
        for bit in _WRITE:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_of(fcntl.F_RDLCK, _GRANTS_NOT + bit))
        return not written_by_others(fd)
    except OSError:  # a file system without locks: there QEMU has none either
        return True


def written_by_others(fd: int) -> bool:
    """Whether a QEMU has an open image open, too, to write to it.

    :raises OSError: its file system has no locks
    """
    return any(locked_by_others(fd, _HAS + bit) for bit in _WRITE)


def locked_by_others(fd: int, place: int) -> bool:
    """Whether somebody else has a lock on one byte of an open file.

    :raises OSError: its file system has no locks
    """
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock_of(fcntl.F_WRLCK, place))
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK


def lock_of(kind: int, place: int) -> bytes:
    """A lock of one byte of a file, as fcntl(2) takes it."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, place, 1, 0)


def data_size(fd: int) -> int:
    """How many bytes of a file are to be copied: all but its holes."""
    return sum(end - begin for begin, end in data_parts(fd))


def copy_file(source: int, target: int, more: More) -> None:
    """Copy a file's content into an empty one, and let it survive a crash of the host.

    :param source: descriptor of the one
    :param target: descriptor of the other
    :param more: told of the bytes that are copied, as they are
    :raises OSError: it could not be, as where there is no space: the target is of no use then
    """
    if _share_blocks(source, target):
        more(data_size(source))
    else:
        os.ftruncate(target, os.fstat(source).st_size)
        for begin, end in data_parts(source):
            _copy_range(source, target, begin, end, more)
    os.fsync(target)


def data_parts(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: begin and end of each part."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole comes any more
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end


def _share_blocks(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NOT_SO:
            return False
        raise
    return True


def _copy_range(source: int, target: int, begin: int, end: int, more: More) -> None:
    while begin < end:
        copied = _copy_some(source, target, begin, min(end - begin, _CHUNK))
        if begin // _SYNC != (begin + copied) // _SYNC:
            os.fdatasync(target)
        begin += copied
        more(copied)


def _copy_some(source: int, target: int, place: int, size: int) -> int:
    try:
        if copied := os.copy_file_range(source, target, size, place, place):
            return copied
    except OSError as error:
        if error.errno not in _NOT_SO:
            raise
    data = os.pread(source, min(size, _BUFFER), place)
    if not data:
        raise OSError(errno.EIO, "it became shorter while it was copied")
    return os.pwrite(target, data, place)
