"""The journal of one instance, as it is written: numbered, bounded, on disk in time, and honest about what it lacks.

Events are numbered and encoded when they come, on the loop; :meth:`Journal.take` hands over what has come since, and
:meth:`Journal.commit` writes and syncs it, in a thread. A disk that is full or slow keeps nobody waiting: what finds
no room is dropped and counted, and an event ``lost`` stands in its place.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..kvm.record import sync_folder
from ..qmp.messages import Event
from .segment import ENDED, LOST, Entry, encode_lines, last_entry, segment_path, segments, whole_lines

# Bytes of all segments of one instance: some 60,000 events, which is years of a quiet machine's.
LIMIT: Final = 16 << 20
# One part of so many goes when there is no room.
_SEGMENTS: Final = 8
# Bytes that wait for the disk: more than a flood brings while one sync takes a second.
PENDING_LIMIT: Final = 4 << 20
# After an end without a last word: more numbers than can have been handed out, be it seen by a reader, and not be here
# any more, which is what was pending, twice.
SKIP: Final = 1_000_000


class Batch(Struct):
    """What is to be written at one stroke: events `first` to `last`."""

    data: bytes
    first: int
    last: int
    count: int


class _Loss(Struct):
    """What was dropped, and not told yet."""

    reason: str
    count: int
    last: int
    since: float


class Journal:
    """The journal of one instance; there is one writer at a time.

    :param folder: made when it is needed
    :param limit: bytes of all that is kept
    :raises OSError: what is there cannot be read, or what is torn not be cut off
    :ivar number: of the newest event
    :ivar at: Unix time of the newest event; 0 where there is none
    :ivar last: what was the newest event when this was opened, or a later one of ours; None where there is none
    :ivar dropped: how many events found no room since it was opened
    :ivar fault: what is wrong with the disk; None when all is well
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder = folder
        self.number = 0
        self.at = 0.0
        self.last: Entry | None = None
        self.dropped = 0
        self.fault: OSError | None = None
        self._limit = limit
        self._pending: list[bytes] = []
        self._size = self._first = self._last = self._count = 0  # of what is pending: bytes, numbers, events
        self._overflow: _Loss | None = None  # of the loop's side
        self._loss: _Loss | None = None  # of the disk's side
        self._fd = -1
        self._written = 0  # bytes of the segment that is open
        self._recover()

    # -- on the loop --------------------------------------------------------------------------------------------------

    def extend(self, events: Sequence[Event], generation: int, at: float) -> None:
        """Take events in; they are on disk after the next :meth:`commit`.

        :param generation: of the run that they are of
        :param at: Unix time when they were read
        """
        number, self.at = self.number, at
        self.number += len(events)
        if self._overflow is not None or self._size > PENDING_LIMIT:
            self._overflow = _lose(self._overflow, "too-fast", len(events), self.number, at)
            self.dropped += len(events)
            return
        self._push(
            [
                Entry(
                    number=number + place, at=at, generation=generation,
                    name=event.name, data=event.data, stamp=event.timestamp,
                )
                for place, event in enumerate(events, 1)
            ]
        )  # fmt: skip

    def note(self, name: str, data: Mapping[str, Any], generation: int = 0) -> None:
        """Take in an event of our own."""
        self._tell_overflow()
        self.number, self.at = self.number + 1, time.time()
        self.last = Entry(number=self.number, at=self.at, generation=generation, name=name, data=dict(data))
        self._push([self.last])

    @property
    def ends_in_gap(self) -> bool:
        """It is told already that something is missing after its newest event."""
        return self.last is not None and self.last.name == LOST and self.last.number == self.number

    def goes_on_with(self, generation: int) -> bool:
        """Whether nothing is missing between its newest event and the first one of a run."""
        if self.last is None:
            return self.number == 0 and generation == 1
        return self.last.number == self.number and self.has_end_of(generation - 1)

    def has_end_of(self, generation: int) -> bool:
        """Whether the end of a run is in it; of the last one that it is about."""
        return self.last is not None and self.last.name == ENDED and self.last.generation == generation

    @property
    def waits(self) -> bool:
        """There is something to write."""
        return bool(self._pending) or self._loss is not None

    def take(self) -> Batch | None:
        """What has come since the last time; to be given to :meth:`commit`, and waited for."""
        batch = Batch(b"".join(self._pending), self._first, self._last, self._count) if self._pending else None
        self._pending, self._size, self._count = [], 0, 0
        self._tell_overflow()
        return batch

    def _tell_overflow(self) -> None:
        if (loss := self._overflow) is not None:
            self._overflow = None
            self._push([_told(loss)])

    def _push(self, entries: Sequence[Entry]) -> None:
        if not self._pending:
            self._first = entries[0].number
        data = encode_lines(entries)
        self._pending.append(data)
        self._last = entries[-1].number
        self._size += len(data)
        self._count += len(entries)

    # -- in a thread --------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch | None) -> None:
        """Write what was taken, and have it on disk. What finds no room is counted, and told when there is some."""
        told = b"" if self._loss is None else encode_lines([_told(self._loss)])
        if batch is None and not told:
            return
        first = self._loss.last if self._loss is not None else batch.first if batch is not None else 0
        data = told + (batch.data if batch is not None else b"")
        done = self._write(data, first)
        if done >= len(told):
            self._loss, told = None, b""
        if batch is not None and self.fault is not None:
            count = data.count(b"\n", done) - bool(told)
            self._loss = _lose(self._loss, self.fault.strerror or str(self.fault), count, batch.last, time.time())
            self.dropped += count

    def close(self) -> None:
        """Write what is left, say that this was the end, and close."""
        while self._pending:
            self.commit(self.take())
        if self._fd >= 0:
            try:
                if self.fault is None:
                    os.write(self._fd, b"\n")
                    os.fdatasync(self._fd)
            except OSError as error:
                self.fault = error
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes, first: int) -> int:
        """Write events, and have them on disk; :attr:`fault` says what was wrong.

        What a reader may have seen stays: only what is no whole event is cut off.

        :returns: how much of it is there, in whole events
        """
        done, self.fault = 0, None
        try:
            if self._fd < 0 or self._written >= self._limit // _SEGMENTS:
                self._next_segment(first)
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:])
        except OSError as error:
            self.fault = error
        try:
            if done:
                whole = data.rfind(b"\n", 0, done) + 1
                if whole < done:
                    os.ftruncate(self._fd, self._written + whole)
                os.fdatasync(self._fd)
                done = whole
        except OSError as error:  # such as EIO: nobody knows what of it is there
            self.fault, done = error, 0
            os.ftruncate(self._fd, self._written)
        self._written += done
        return done

    def _next_segment(self, first: int) -> None:
        """Begin a segment, and let the oldest ones go for which there is no room."""
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True)
            sync_folder(self.folder.parent)
        path = segment_path(self.folder, first)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._written = fd, os.fstat(fd).st_size
        older = [(path, path.stat().st_size) for _, path in segments(self.folder)[:-1]]
        room = self._limit - self._limit // _SEGMENTS
        while older and sum(size for _, size in older) > room:
            older.pop(0)[0].unlink(missing_ok=True)
        sync_folder(self.folder)

    # -- at the begin -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the newest number, cut off what is torn, and go on in the newest segment."""
        found = segments(self.folder)
        if not found:
            return
        first, path = found[-1]
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            peaceful = self._cut()
            with open(self._fd, "rb", closefd=False) as file:
                self.last = last_entry(file)
        except OSError:
            os.close(self._fd)
            raise
        self.number = first - 1
        if self.last is not None:
            self.number, self.at = self.last.number, self.last.at
        if not peaceful:
            self.number += SKIP - 1
            told = {"reason": "killed", "since": self.at}
            self.note(LOST, told, 0 if self.last is None else self.last.generation)

    def _cut(self) -> bool:
        """Cut off what is no whole event, and the mark of a good end; whether that was there."""
        size = os.fstat(self._fd).st_size
        ends = os.pread(self._fd, 2, max(0, size - 2))
        peaceful = ends == b"\n\n" or (ends == b"\n" and size == 1)
        self._written = size - 1 if peaceful else self._good_size(size) if size else 0
        if self._written < size:
            os.ftruncate(self._fd, self._written)
        return peaceful

    def _good_size(self, size: int) -> int:
        """How much of the segment is whole events; mostly that is up to the last end of a line."""
        with open(self._fd, "rb", closefd=False) as file:
            try:
                if os.pread(self._fd, 1, size - 1) == b"\n":
                    last_entry(file)
                    return size
            except msgspec.DecodeError:
                pass
            file.seek(0)
            return whole_lines(file.read())


def _lose(loss: _Loss | None, reason: str, count: int, last: int, at: float) -> _Loss:
    if loss is None:
        return _Loss(reason, count, last, at)
    return _Loss(loss.reason, loss.count + count, last, loss.since)


def _told(loss: _Loss) -> Entry:
    """The event in the place of the last one that was dropped."""
    data = {"reason": loss.reason, "count": loss.count, "since": loss.since}
    return Entry(number=loss.last, at=time.time(), name=LOST, data=data)
