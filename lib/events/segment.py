"""The files of a journal: a JSON object a line, in segments named by their first number; written by one, read by all.

A line without its end is one that is still being written, or was when somebody was killed. An empty line at the end
says that whoever wrote it ended in peace.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec import Struct

# The lock of the one who writes journals: the event daemon. No instance's name begins so.
WRITER: Final = ".watch"
# Ours among QEMU's names, which are in capitals.
LOST: Final = "lost"
ENDED: Final = "ended"

_SUFFIX: Final = ".jsonl"
_DIGITS: Final = 20
_CHUNK: Final = 1 << 16  # bytes; many lines, or a long one in a few reads
_POLL: Final = 0.05  # seconds: a flush is as far away at most
_READ_LIMIT: Final = 1000  # events of one page


class Entry(Struct, kw_only=True, omit_defaults=True, gc=False):
    """One event of an instance.

    :ivar number: grows from one to the next, and never repeats, whoever dies
    :ivar at: Unix time when it was read
    :ivar generation: of the run (:class:`drover.kvm.record.Runtime`)
    :ivar name: QEMU's, such as ``STOP``; ``lost``: here events may be missing; ``ended``: a run's end, and who ended it
    :ivar data: its members
    :ivar stamp: QEMU's own time, Unix seconds; -1 where there is none
    """

    number: int
    at: float
    generation: int = 0
    name: str
    data: dict[str, Any] = {}
    stamp: float = -1.0


def shown(entry: Entry) -> dict[str, Any]:
    """An event as programs get it that ask for it: its name is its kind, and what it has not is left out."""
    known = {"number": entry.number, "kind": entry.name, "at": entry.at, "generation": entry.generation}
    return known | {"data": entry.data} | ({"stamp": entry.stamp} if entry.stamp >= 0 else {})


class Page(Struct):
    """Some events, in order.

    :ivar first: the number of the oldest event that is kept; what was before it has gone
    """

    events: list[Entry]
    first: int


class _Number(Struct):
    number: int


encode_lines: Final = msgspec.json.Encoder().encode_lines
_decode: Final = msgspec.json.Decoder(Entry).decode
_decode_lines: Final = msgspec.json.Decoder(Entry).decode_lines
_decode_number: Final = msgspec.json.Decoder(_Number).decode


def segment_path(folder: Path, first: int) -> Path:
    """The segment that begins with an event of this number."""
    return folder / f"{first:0{_DIGITS}}{_SUFFIX}"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """All segments, the oldest first, each with the number that it begins with."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    stems = sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return [(int(stem), folder / f"{stem}{_SUFFIX}") for stem in stems if stem.isdecimal()]


def read(folder: Path, *, after: int = 0, limit: int = _READ_LIMIT) -> Page:
    """The events after one of a number, as far as they are kept. May be called while they are written.

    :param folder: the journal's, :meth:`drover.kvm.paths.Paths.events`
    :param limit: how many at most
    """
    while True:
        found = segments(folder)
        events: list[Entry] = []
        try:
            for place, (_, path) in enumerate(found):
                if len(events) < limit and (place + 1 == len(found) or found[place + 1][0] > after + 1):
                    events += _read_segment(path, after, limit - len(events))
        except FileNotFoundError:
            continue  # the oldest one went meanwhile
        return Page(events, found[0][0] if found else 1)


def newest(folder: Path) -> int:
    """The number of the newest event that is written; 0 if there never was one."""
    for first, path in reversed(segments(folder)):
        try:
            with path.open("rb") as file:
                last = last_entry(file)
        except FileNotFoundError:
            continue
        except msgspec.DecodeError:  # its writer has died, and the next one has not cut it off yet
            whole = _read_segment(path, 0, sys.maxsize)
            last = whole[-1] if whole else None
        return first - 1 if last is None else last.number
    return 0


def wait(folder: Path, *, after: int, timeout: float) -> bool:
    """Block until there is an event after one of a number.

    Who has a loop to turn asks :func:`newest` instead, when inotify tells of a change in the folder.

    :param timeout: in seconds
    :returns: whether there is one
    """
    deadline = time.monotonic() + timeout
    while newest(folder) <= after:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def last_entry(file: BinaryIO) -> Entry | None:
    """The last whole event of a segment; None where there is none.

    :raises msgspec.DecodeError: what stands there is none
    """
    end, tail = file.seek(0, os.SEEK_END), b""
    while end:
        start = max(0, end - _CHUNK)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
        lines = tail[: tail.rfind(b"\n") + 1].rstrip(b"\n")
        if b"\n" in lines or (lines and not start):
            return _decode(lines[lines.rfind(b"\n") + 1 :])
    return None


def whole_lines(data: bytes) -> int:
    """The length of the part that is whole events, of what a power failure may have left as anything."""
    end = 0
    while (stop := data.find(b"\n", end)) >= 0:
        try:
            _decode(data[end:stop])
        except msgspec.DecodeError:
            break
        end = stop + 1
    return end


def _read_segment(path: Path, after: int, limit: int) -> list[Entry]:
    with path.open("rb") as file:
        file.seek(_place_after(file, after))
        events: list[Entry] = []
        rest = b""
        while len(events) < limit and (data := file.read(_CHUNK)):
            block, _, rest = (rest + data).rpartition(b"\n")
            events += [event for event in _decoded(block) if event.number > after]
    return events[:limit]


def _decoded(block: bytes) -> list[Entry]:
    try:
        return _decode_lines(block)
    except msgspec.DecodeError:  # a power failure, or somebody's hand: the rest still counts
        good: list[Entry] = []
        for line in block.split(b"\n"):
            try:
                good.append(_decode(line))
            except msgspec.DecodeError:
                pass
        return good


def _place_after(file: BinaryIO, after: int) -> int:
    """Where a line begins before which no event has a number beyond `after`: by halving, for the numbers only grow."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while high - low > _CHUNK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        start, line = file.tell(), file.readline()
        try:
            number = _decode_number(line).number
        except msgspec.DecodeError:
            high = middle  # the end, or what is no event
            continue
        if number <= after:
            low = start
        else:
            high = middle
    return low
