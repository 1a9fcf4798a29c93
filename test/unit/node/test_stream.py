"""What one stream tells a reader: everything once, in order, or that something is missing; over memory and disk."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from drover.node import stream as streams
from drover.node.stream import BATCH, Older, Stream, Told, told


def events(first: int, count: int, size: int = 10) -> list[Told]:
    return [told("it", {"text": "x" * size}, number=number) for number in range(first, first + count)]


class Disk:
    """What is on disk.

    :ivar looks: the numbers that were asked for
    """

    def __init__(self) -> None:
        self.events: list[Told] = []
        self.looks: list[int] = []
        self.lags = False

    async def older(self, after: int) -> Older:
        self.looks.append(after)
        await asyncio.sleep(0)
        found = [event for event in self.events if event.number > after]
        return Older(found[:100], self.events[0].number if self.events else 1)


def run(act: Callable[[Stream, Disk], Awaitable[None]], number: int = 0) -> None:
    async def with_stream() -> None:
        disk = Disk()
        await act(Stream(number, disk.older, lambda: disk.lags), disk)

    asyncio.run(with_stream())


async def all_after(stream: Stream, after: int) -> list[tuple[str, int]]:
    """Everything that a reader gets until there is nothing more, now."""
    found = []
    while True:
        batch = await stream.next(after)
        if not batch.events and batch.after == after:
            return found
        found += [(event.kind, event.number) for event in batch.events]
        assert batch.after >= after or found[-1][0] == "missed"
        after = batch.after


def test_as_it_goes_out() -> None:
    event = told("STOP", {"at": 1.5, "data": {"a": "b\nc"}}, number=7, name="web1")
    assert event.text == b'{"number":7,"kind":"STOP","at":1.5,"data":{"a":"b\\nc"}}'
    assert event.frame == b"id: 7\nevent: STOP\ndata: " + event.text + b"\n\n"
    bare = told("gone", {})
    assert bare.frame == b'event: gone\ndata: {"kind":"gone"}\n\n'


@pytest.mark.parametrize("kind", ["a\nid: 5\n", "a\r\rdata: x", "\udc80\n", "\u2028x"])
def test_a_name_that_is_none_begins_no_line(kind: str) -> None:
    try:
        frame = told(kind, {}, number=3).frame
    except UnicodeEncodeError:  # what no JSON can have
        return
    assert [line.partition(b":")[0] for line in frame.splitlines()] == [b"id", b"event", b"data", b""]
    assert msgspec.json.decode(told(kind, {}, number=3).text)["kind"] == kind


def test_from_memory_from_disk_and_over_the_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_KEPT", 5000)

    async def act(stream: Stream, disk: Disk) -> None:
        for first in range(1, 1000, 10):
            more = events(first, 10)
            disk.events += more
            stream.add(more)
        assert await all_after(stream, 990) == [("it", number) for number in range(991, 1001)]
        assert disk.looks == []
        assert await all_after(stream, 0) == [("it", number) for number in range(1, 1001)]
        assert disk.looks
        assert await all_after(stream, 1000) == []

    run(act)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_KEPT", 5000)

    async def act(stream: Stream, disk: Disk) -> None:
        stream.add(events(1001, 500))
        kept = next(iter(stream._kept)).number
        rest = [("it", number) for number in range(kept, 1501)]
        # nothing of it ever came to disk
        assert await all_after(stream, 1100) == [("missed", kept - 1), *rest]
        disk.events = events(1051, 450)
        whole = [("it", number) for number in range(1051, 1501)]
        for after in (1049, 1, 1501, 10**19):  # too old by one, by far, and numbers that there never were
            assert await all_after(stream, after) == [("missed", 1050), *whole], after
        assert await all_after(stream, 1050) == whole
        assert await all_after(stream, 0) == whole  # who wants all that there is, misses nothing of it

    run(act, 1000)


def test_the_disk_is_waited_for_while_it_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_KEPT", 5000)
    monkeypatch.setattr(streams, "_LAG", 0.001)

    async def act(stream: Stream, disk: Disk) -> None:
        more = events(1, 500)
        stream.add(more)
        disk.lags = True

        async def write() -> None:
            while len(disk.looks) < 5:
                await asyncio.sleep(0.001)
            disk.events = more

        writing = asyncio.create_task(write())
        assert await all_after(stream, 3) == [("it", number) for number in range(4, 501)]
        await writing

    run(act)


def test_many_at_one_place_share_the_work() -> None:
    async def act(stream: Stream, disk: Disk) -> None:
        disk.events = events(1, 50)
        stream.begin_anew(50)
        batches: list[Any] = await asyncio.gather(*(stream.next(10) for _ in range(100)))
        assert disk.looks == [10]
        assert all(len(batch.events) == 40 for batch in batches)
        assert [event.number for event in (await stream.next(20)).events] == list(range(21, 51))
        assert disk.looks == [10]
        stream.add(events(51, 5))
        assert len({id((await stream.next(50)).frames) for _ in range(100)}) == 1
        assert (await stream.next(50)).frames == b"".join(event.frame for event in events(51, 5))
        stream.add(events(56, 1))
        assert (await stream.next(50)).after == 56

    run(act)


def test_one_batch_is_bounded() -> None:
    async def act(stream: Stream, disk: Disk) -> None:
        stream.add(events(1, 100, 5000))
        batch = await stream.next(0)
        assert BATCH - 6000 < len(batch.frames) <= BATCH
        stream.add(events(101, 1, 3 * BATCH))
        assert [event.number for event in (await stream.next(100)).events] == [101]

    run(act)


def test_numbers_that_are_skipped_are_no_gap() -> None:
    """After a restart numbers are greater; who has the last one of before has missed nothing."""

    async def act(stream: Stream, disk: Disk) -> None:
        disk.events = events(1, 5)
        stream.begin_anew(5)
        stream.skip(1000)
        assert await all_after(stream, 5) == []
        stream.add(events(1001, 2))
        assert await all_after(stream, 5) == [("it", 1001), ("it", 1002)]
        assert await all_after(stream, 4) == [("it", 5), ("it", 1001), ("it", 1002)]

    run(act)
