"""Logs that others write to by a descriptor of ours: kept within bounds, also while they are written to.

They are opened for appending, so whoever writes goes on at the end, wherever that has come to be. Of a log that is too
long the middle is taken out: how a run began is worth as much as what came last. What was taken out last is beside it,
in a file of the same name with ``.1`` behind it.
"""

import ctypes
import errno
import os
import re
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

# Bytes of a log, and of what is beside it. A guest that boots prints some 50 kB to its console.
LIMIT: Final = 4 << 20
# The beginning that is kept is one part of so many, and what is kept of the end at least one of so many.
_HEAD_PART: Final = 16
_TAIL_PART: Final = 4
_MARK_SIZE: Final = 128  # bytes of the line that stands for the middle
_COLLAPSE: Final = 0x08  # FALLOC_FL_COLLAPSE_RANGE of <linux/falloc.h>
_CHUNK: Final = 1 << 20  # bytes
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_BEGIN: Final = re.compile(r"^drover: run \d+ begins at [^\n]*\n", re.MULTILINE)


def opened(lent: ExitStack, path: Path) -> int:
    """Open the log of a run that begins; our copy of the descriptor is closed by `lent`.

    Nobody may be writing to it. If the last runs left so much in it that the beginning of this one would be taken out,
    that is put aside.
    """
    bound(path)
    with suppress(FileNotFoundError):
        if path.stat().st_size > LIMIT // _HEAD_PART // 2:
            os.replace(path, _beside(path))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    lent.callback(os.close, fd)
    return fd


def begin(fd: int, generation: int) -> None:
    """Write down in a log that a run begins: what stands before it is not of that run."""
    os.write(fd, f"drover: run {generation} begins at {_now()}\n".encode())


def of_last_run(text: str) -> str:
    """What a log, or the end of it, has of the last run."""
    begins = list(_BEGIN.finditer(text))
    return text[begins[-1].end() :] if begins else text


class Piece(NamedTuple):
    """A part of a log.

    :ivar start: the byte that it begins at
    :ivar next: the one behind it
    :ivar size: of the log, in bytes
    """

    start: int
    next: int
    size: int
    data: bytes


def piece(path: Path, *, after: int = 0, tail: int = 0, limit: int) -> Piece:
    """A part of a log; of one that is not there nothing.

    :param after: the byte that it begins at. Where the log is shorter by now, for its middle was taken out, its end
    :param tail: so many bytes before its end instead, if it is not 0
    :param limit: bytes at most
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Piece(0, 0, 0, b"")
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - tail) if tail else min(after, size)
        data = os.pread(fd, limit, start)
        return Piece(start, start + len(data), max(size, start + len(data)), data)
    finally:
        os.close(fd)


def tail(path: Path, limit: int) -> bytes:
    """The end of a log, from the beginning of a line on.

    :param limit: bytes at most
    """
    found = piece(path, tail=limit, limit=limit)
    return found.data if found.start == 0 else found.data.partition(b"\n")[2]


def take_over(path: Path, data: bytes) -> None:
    """Have a log go on with what was written elsewhere, once: where it ends with that already, it has it."""
    if not data or piece(path, tail=len(data), limit=len(data)).data == data:
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def bound(path: Path, limit: int = LIMIT) -> int:
    """Take the middle out of a log if it is too long; others may be writing to it.

    On a file system that can take a range out of a file (ext4, XFS) nothing else is lost. On others it may be what is
    written in the microseconds between the last copy and the cut.

    :param limit: in bytes, for it and for what is beside it
    :returns: how many bytes were taken out
    :raises OSError: it cannot be read or cut
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(fd).st_size
        if size <= limit:
            return 0
        block = os.fstatvfs(fd).f_bsize
        start = max(limit // _HEAD_PART // block, 1) * block
        end = start + (size - start - limit // _TAIL_PART) // block * block
        _put_aside(fd, path, max(start - _MARK_SIZE, end - limit), end)
        if not _collapse(fd, start, end - start):
            # all is put aside, for all goes
            end = _put_aside(fd, path, max(start - _MARK_SIZE, size - limit), None)
            os.ftruncate(fd, start)
        os.pwrite(fd, _mark(path), start - _MARK_SIZE)
        return end - start
    finally:
        os.close(fd)


def _mark(path: Path) -> bytes:
    text = f"\n-- drover took out what was here, the last time at {_now()}; the newest of it: {path.name}.1"
    return text.encode()[: _MARK_SIZE - 1].ljust(_MARK_SIZE - 1) + b"\n"


def _put_aside(fd: int, path: Path, start: int, end: int | None) -> int:
    """Copy a part of a log, in the place of what was put aside before; without room for it, do without.

    :param end: where the part ends; None: where the log does, at the last look
    :returns: where it ended
    """
    new, at = path.with_name(f".{path.name}.1.new"), start
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb", buffering=0) as copy:
            while data := os.pread(fd, _CHUNK if end is None else min(_CHUNK, end - at), at):
                at += copy.write(data)
        os.replace(new, _beside(path))
    except OSError as error:
        new.unlink(missing_ok=True)
        if error.errno not in _NO_ROOM:
            raise
        return os.fstat(fd).st_size if end is None else end
    return at


def _collapse(fd: int, start: int, length: int) -> bool:
    """Take a range out of a file, for who writes to it at one stroke. False: this file system cannot."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(fd, _COLLAPSE, start, length) == 0)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z")
