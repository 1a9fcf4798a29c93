"""One stream of events for any number of readers: the newest from memory, older ones from disk, each encoded once.

A reader is a number: that of the last event that it has. It asks for what comes next when it has room for more, so
nothing is kept for it meanwhile, and whoever tells waits for nobody.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec
from msgspec import Struct

# Bytes of the newest events that stay in memory: who lags by more reads the disk.
_KEPT: Final = 1 << 20
# What was read from disk last, some 100 kB each: readers who lag do so together, and have the same pages.
_PAGES: Final = 8
# Bytes that go out at one stroke, unless one event has more.
BATCH: Final = 1 << 16
# Seconds between two looks at a disk that is about to have what memory has no more, and how many.
_LAG: Final = 0.05
_LOOKS: Final = 40

# Seconds between two times that all readers are woken: each takes some 20 µs, however much there is for it.
_GAP: Final = 0.02

MISSED: Final = "missed"  # something is missing here


class Told(Struct, frozen=True, gc=False):
    """One event as readers get it.

    :ivar number: grows from one to the next; 0: it has none, and is told to one reader, or for the moment
    :ivar kind: what happened
    :ivar name: of the instance that it is about; empty where it is about none, or all
    :ivar frame: as a server-sent event
    :ivar begin: where in it the JSON begins
    """

    number: int
    kind: str
    name: str
    frame: bytes
    begin: int

    @property
    def text(self) -> bytes:
        """Its JSON."""
        return self.frame[self.begin : -2]


def told(kind: str, members: dict[str, Any], *, number: int = 0, name: str = "") -> Told:
    """An event that is told.

    :param members: of its JSON, beside ``number`` and ``kind``
    """
    numbered = {"number": number} if number else {}
    text = msgspec.json.encode(numbered | {"kind": kind} | members)
    # QEMU's names are words; what else somebody may have sent as one begins no line of its own here
    head = f"event: {kind if kind.isprintable() else repr(kind)}\ndata: "
    if number:
        head = f"id: {number}\n{head}"
    begin = head.encode(errors="replace")
    return Told(number, kind, name, b"%s%s\n\n" % (begin, text), len(begin))


class Batch:
    """Some events, in order.

    :ivar events: they
    :ivar after: the number to go on from
    """

    def __init__(self, events: Sequence[Told], after: int) -> None:
        self.events = events
        self.after = after

    @cached_property
    def frames(self) -> bytes:
        """All of them as server-sent events; made once, for however many readers."""
        return b"".join([event.frame for event in self.events])


class Older(Struct):
    """What the disk has.

    :ivar events: that come next, in order
    :ivar first: the number of the oldest that is kept
    """

    events: list[Told]
    first: int


class Stream:
    """A stream.

    :param number: of the newest event so far
    :param older: reads from disk what comes after an event of a number
    :param lags: whether the disk may yet get what it has not
    :ivar number: of the newest event
    :ivar news: set, and another one in its place, when there is more
    :ivar ended: there will be no more
    :ivar last: what is told to all who read at the end
    """

    def __init__(self, number: int, older: Callable[[int], Awaitable[Older]], lags: Callable[[], bool]) -> None:
        self.number = number
        self.news = asyncio.Event()
        self.ended = False
        self.last: Told | None = None
        self._older = older
        self._lags = lags
        self._reading: dict[int, asyncio.Task[Older]] = {}
        self._pages: deque[tuple[int, Older]] = deque(maxlen=_PAGES)  # with the number that each begins after
        self._kept: deque[Told] = deque()
        self._size = 0
        self._before = number  # the event in front of the first one that is kept
        self._origin = number  # what was told up to here is on disk, or nowhere
        self._latest = Batch((), number)
        self._woken = 0.0
        self._untold = 0  # bytes since then
        self._waking: asyncio.TimerHandle | None = None
        self._latest_of = number

    def add(self, events: Sequence[Told]) -> None:
        """Tell events."""
        for event in events:
            self._kept.append(event)
            self._size += len(event.frame)
            self._untold += len(event.frame)
        self.number = events[-1].number
        while self._size > _KEPT and len(self._kept) > 1:
            gone = self._kept.popleft()
            self._size -= len(gone.frame)
            self._before = gone.number
        self._latest_of = -1
        self._wake_soon()

    def begin_anew(self, number: int) -> None:
        """It is another one now, with other numbers."""
        self._kept.clear()
        self._pages.clear()
        self._size, self._before, self._origin, self.number = 0, number, number, number
        self._wake()

    def skip(self, number: int) -> None:
        """Give out only numbers that are greater from now on."""
        self.number = max(self.number, number)

    def end(self, last: Told | None = None) -> None:
        """There will be no more.

        :param last: told to all who read now
        """
        self.ended, self.last = True, last
        self._wake()

    async def next(self, after: int) -> Batch:
        """What comes next after an event of a number; nothing where there is nothing yet. What is missing is told."""
        for _ in range(_LOOKS):
            if self._before <= after <= self.number:
                return self._newest(after)
            older = await self._read(after)
            if after > self.number:
                return _missed("unknown-number", after, older.first - 1)
            if 0 < after < older.first - 1:
                return _missed("too-old", after, older.first - 1)
            if older.events:
                return Batch(older.events, older.events[-1].number)
            if self._before == self._origin or not self._lags():
                break
            await asyncio.sleep(_LAG)
        if self._before <= after:
            return self._newest(after)
        return _missed("not-on-disk", after, self._before) if after else Batch((), self._before)

    def _newest(self, after: int) -> Batch:
        """From memory. Most readers are at the same place: for them it is put together once."""
        if self._latest_of == after:
            return self._latest
        events: list[Told] = []
        for event in reversed(self._kept):
            if event.number <= after:
                break
            events.append(event)
        events.reverse()
        size = 0
        for place, event in enumerate(events):
            size += len(event.frame)
            if size > BATCH and place:
                del events[place:]
                break
        self._latest, self._latest_of = Batch(events, events[-1].number if events else after), after
        return self._latest

    async def _read(self, after: int) -> Older:
        """From disk. Who is at the same place, as all are who come back after a restart, share one look."""
        for begin, page in self._pages:
            if begin <= after < page.events[-1].number:
                return Older(page.events[bisect_right(page.events, after, key=_number) :], page.first)
        task = self._reading.get(after)
        if task is None:
            task = self._reading[after] = asyncio.ensure_future(self._read_page(after))
            task.add_done_callback(lambda _: self._reading.pop(after, None))
        return await asyncio.shield(task)

    async def _read_page(self, after: int) -> Older:
        page = await self._older(after)
        if page.events and after >= page.first - 1:
            self._pages.append((after, page))
        return page

    def _wake_soon(self) -> None:
        """Wake all readers: at once, unless that was a moment ago, and memory can wait for them as long."""
        loop = asyncio.get_running_loop()
        gap = self._woken + _GAP - loop.time()
        if gap <= 0 or self._untold > BATCH:
            self._wake()
        elif self._waking is None:
            self._waking = loop.call_later(gap, self._wake)

    def _wake(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        self._woken, self._untold = asyncio.get_running_loop().time(), 0
        self._latest_of = -1
        self.news.set()
        self.news = asyncio.Event()


def _number(event: Told) -> int:
    return event.number


def _missed(reason: str, after: int, before: int) -> Batch:
    event = told(MISSED, {"at": time.time(), "reason": reason, "after": after}, number=max(0, before))
    return Batch([event], max(0, before))
