"""The stream of events, over a real socket: none missed in silence, and nobody held up by who does not read."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from drover.kvm.state import State
from drover.node import feed as feeds
from drover.node.feed import Feed
from drover.node.summary import Summary


class Rows:
    """What tells of changes."""

    def __init__(self) -> None:
        self.tell: Callable[[Summary | None, str], None] = lambda row, name: None

    def on_change(self, listener: Callable[[Summary | None, str], None]) -> None:
        self.tell = listener

    def change(self, count: int, detail: str = "") -> None:
        for _ in range(count):
            self.tell(Summary(name="a", uuid="", state=State.RUNNING, since=0, detail=detail), "a")


async def served(path: Path, act: Callable[[Rows, Feed], Any]) -> None:
    rows = Rows()
    feed = Feed(rows)  # type: ignore[arg-type]
    app = web.Application()
    app.router.add_get("/", feed.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        await act(rows, feed)
    finally:
        await runner.cleanup()


async def reader(path: Path, last: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    stream, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    head = "" if last is None else f"Last-Event-ID: {last}\r\n"
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    await stream.readuntil(b"\r\n\r\n")
    return stream, writer


async def lines(stream: asyncio.StreamReader, count: int, what: bytes = b"id: ") -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            line = (await stream.readline()).strip()
            if line.startswith(what):
                found.append(line)
    return found


async def all_of(stream: asyncio.StreamReader) -> int:
    """How many bytes come before the end, whatever the end is."""
    size = 0
    with contextlib.suppress(ConnectionError):
        while data := await stream.read(1 << 20):
            size += len(data)
    return size


def test_who_comes_back_gets_what_is_kept_and_is_told_of_what_is_not(tmp_path: Path) -> None:
    async def act(rows: Rows, feed: Feed) -> None:
        first = feed.number + 1
        rows.change(10)
        stream, writer = await reader(tmp_path / "s", first + 6)
        assert await lines(stream, 3) == [b"id: %d" % (first + 7 + place) for place in range(3)]
        writer.close()
        rows.change(feeds.KEPT)
        for last in (first, 3, 10**19):  # one that is kept no more, an earlier daemon's, one that there never was
            stream, writer = await reader(tmp_path / "s", last)
            assert await lines(stream, 1, b"event: ") == [b"event: missed"]
            assert await lines(stream, 1) == [b"id: %d" % (first + 10)]
            writer.close()

    asyncio.run(served(tmp_path / "s", act))


def test_who_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_SLOW", 0.3)

    async def act(rows: Rows, feed: Feed) -> None:
        slow, slow_writer = await asyncio.open_unix_connection(tmp_path / "s", limit=1)
        slow_writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        stream, writer = await reader(tmp_path / "s")
        await asyncio.sleep(0.1)
        rows.change(2000, "x" * 2000)
        assert len(await lines(stream, 2000)) == 2000
        await asyncio.sleep(1)
        assert await all_of(slow) < 2000 * 2000  # what the sockets held, and no more
        assert not writer.is_closing()
        writer.close()
        slow_writer.close()

    asyncio.run(served(tmp_path / "s", act))
