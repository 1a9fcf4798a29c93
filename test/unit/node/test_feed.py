"""The node's events, over a real socket and a real disk: none missed in silence, and nobody held up by who is slow."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from drover.events.segment import read
from drover.kvm.state import State
from drover.node import readers as reading
from drover.node.access import CALLER, Caller
from drover.node.feed import LIMIT, Feed
from drover.node.operations import Role
from drover.node.readers import Readers
from drover.node.server import _told_as_problem
from drover.node.summary import Summary


class Rows:
    """What tells of changes."""

    def __init__(self) -> None:
        self.tell: Callable[[Summary | None, str], None] = lambda row, name: None

    def on_change(self, listener: Callable[[Summary | None, str], None]) -> None:
        self.tell = listener

    def change(self, count: int = 1, detail: str = "", name: str = "a") -> None:
        for _ in range(count):
            self.tell(Summary(name=name, uuid="", state=State.RUNNING, since=0, detail=detail), name)


class Served:
    """A feed that is served.

    :ivar path: of its socket
    """

    def __init__(self, top: Path, limit: int) -> None:
        self.path = top / "s"
        self.rows = Rows()
        self.readers = Readers()
        self.feed = Feed(self.rows, top / "ring", self.readers, limit=limit)  # type: ignore[arg-type]

    async def reader(self, query: str = "", last: int | None = None) -> asyncio.StreamReader:
        """Somebody who reads; has got the response's head."""
        stream, writer = await asyncio.open_unix_connection(self.path, limit=1 << 24)
        self.writers.append(writer)
        head = "" if last is None else f"Last-Event-ID: {last}\r\n"
        writer.write(f"GET /?{query} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        self.head = await stream.readuntil(b"\r\n\r\n")
        return stream

    async def get(self, query: str) -> list[dict[str, Any]]:
        """All events of an answer that ends."""
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.path))) as session:
            async with session.get(f"http://x/?{query}") as response:
                return [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: ")]

    writers: list[asyncio.StreamWriter]


@asynccontextmanager
async def served(top: Path, limit: int = LIMIT, *, killed: bool = False) -> AsyncIterator[Served]:
    """One that runs.

    :param killed: at the end nothing is written any more
    """
    it = Served(top, limit)
    it.writers = []
    await it.feed.open()

    @web.middleware
    async def as_viewer(request: web.Request, handler: Any) -> Any:
        request[CALLER] = Caller(name="somebody", role=Role.VIEWER)
        return await handler(request)

    app = web.Application(middlewares=[_told_as_problem, as_viewer])
    app.router.add_get("/", it.feed.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(it.path)).start()
    try:
        yield it
    finally:
        for writer in it.writers:
            writer.close()
        await runner.cleanup()
        if not killed:
            await it.feed.close()


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


def numbers(found: list[dict[str, Any]]) -> list[int]:
    return [it["number"] for it in found]


def test_who_comes_back_gets_what_is_kept_and_is_told_of_what_is_not(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path, 100_000) as it:
            first = it.feed.number + 1
            it.rows.change(10)
            stream = await it.reader(last=first + 6)
            assert await lines(stream, 3) == [b"id: %d" % (first + 7 + place) for place in range(3)]
            for _ in range(30):  # some by some, for what is written at one stroke is in one file
                it.rows.change(100)
                await asyncio.sleep(0.06)
            kept = numbers(await it.get("follow=0"))
            assert first + 1000 < kept[0] < first + 3000
            assert kept == list(range(kept[0], first + 3010))
            for last in (first, 3, 10**19):  # one that is kept no more, an earlier daemon's, one that there never was
                stream = await it.reader(last=last)
                assert await lines(stream, 1, b"event: ") == [b"event: missed"]
                assert await lines(stream, 1) == [b"id: %d" % kept[0]]

    asyncio.run(act())


def test_a_restart_misses_nothing(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as it:
            it.rows.change(5)
            it.feed.tell("job", {"id": "j1", "instance": "a", "state": "done", "kind": "start"})
            before = await it.get("follow=0")
        assert [event["kind"] for event in before] == ["instance"] * 5 + ["job"]
        assert before[-1] | {"at": 0} == {
            "number": before[-1]["number"], "kind": "job", "at": 0, "instance": "a",
            "job": {"id": "j1", "instance": "a", "state": "done", "kind": "start"},
        }  # fmt: skip
        async with served(tmp_path) as it:
            it.feed.began(["a"])
            it.rows.change(2)
            after = await it.get(f"after={before[2]['number']}&follow=0")
            assert after[:3] == before[3:]
            assert [event["kind"] for event in after[3:]] == ["began", "instance", "instance"]
            assert numbers(after) == sorted(set(numbers(after)))
            assert await it.get(f"after={after[-1]['number']}&follow=0") == []

    asyncio.run(act())


def test_a_death_is_told_and_no_number_comes_twice(tmp_path: Path) -> None:
    """Also to those who have seen what never came to disk."""

    async def act() -> None:
        async with served(tmp_path, killed=True) as it:
            it.rows.change(5)
            while len(read(tmp_path / "ring").events) < 5:
                await asyncio.sleep(0.01)
            shutil.copytree(tmp_path / "ring", tmp_path / "killed" / "ring")
            it.rows.change(5)
            seen = numbers(await it.get("follow=0&after=1"))[1:]
            assert len(seen) == 10
        async with served(tmp_path / "killed") as it:
            it.rows.change(1)
            assert it.feed.number > seen[-1]
            for after in (seen[4], seen[-1]):
                found = await it.get(f"after={after}&follow=0")
                assert [(event["kind"], event.get("reason")) for event in found] == [
                    ("missed", "killed"),
                    ("instance", None),
                ]
            found = await it.get(f"after={seen[2]}&follow=0")
            assert numbers(found)[:2] == seen[3:5]
            assert found[2]["kind"] == "missed"

    asyncio.run(act())


def test_a_ring_that_nobody_can_read_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "ring").write_text("a file")

    async def act() -> None:
        async with served(tmp_path) as it:
            stream = await it.reader()
            it.rows.change(3)
            assert len(await lines(stream, 3)) == 3
            assert len(await it.get(f"after={it.feed.number - 2}&follow=0")) == 2
            assert [event["kind"] for event in await it.get("after=5&follow=0")] == ["missed", *["instance"] * 3]

    asyncio.run(act())


def test_a_disk_that_fails_ends_who_reads_it(tmp_path: Path) -> None:
    """And nobody else, nor the next one once it is well."""

    async def act() -> None:
        async with served(tmp_path) as it:
            it.rows.change(5)
        async with served(tmp_path) as it:
            stream = await it.reader()
            old = it.feed.number
            (tmp_path / "ring").rename(tmp_path / "aside")
            (tmp_path / "ring").write_text("a file")
            broken = await it.reader("after=1")
            assert await all_of(broken) == 0
            it.rows.change(1)
            assert await lines(stream, 2) == [b"id: %d" % old, b"id: %d" % (old + 1)]
            (tmp_path / "ring").unlink()
            (tmp_path / "aside").rename(tmp_path / "ring")
            assert [event["kind"] for event in await it.get("after=1&follow=0")] == ["missed", *["instance"] * 6]

    asyncio.run(act())


@pytest.mark.parametrize("websocket", [False, True], ids=["sse", "websocket"])
def test_who_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, websocket: bool) -> None:
    monkeypatch.setattr(reading, "_SLOW", 0.3)
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

    async def act() -> None:
        async with served(tmp_path) as it:
            slow, slow_writer = await asyncio.open_unix_connection(it.path, limit=1)
            slow_writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{upgrade if websocket else ''}\r\n".encode())
            stream = await it.reader()
            await asyncio.sleep(0.1)
            it.rows.change(2000, "x" * 2000)
            assert len(await lines(stream, 2000)) == 2000
            await asyncio.sleep(1)
            assert (it.readers.cut, it.readers.count) == (1, 1)
            assert await all_of(slow) < 2000 * 2000  # what the sockets held, and no more
            it.rows.change(1)
            assert len(await lines(stream, 1)) == 1
            slow_writer.close()

    asyncio.run(act())


def test_what_is_chosen(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as it:
            for name in ("a", "b", "c"):
                it.rows.change(2, name=name)
            it.rows.tell(None, "b")
            it.feed.tell("job", {"instance": "b"})
            it.feed.began(["a", "c"])
            for query, found in (
                ("name=b", "instance instance gone job began"),
                ("name=a&name=c", "instance instance instance instance began"),
                ("kind=gone&kind=job", "gone job"),
                ("kind=gone&name=a", ""),
            ):
                assert [event["kind"] for event in await it.get(f"follow=0&{query}")] == found.split(), query
            number = it.feed.number
            assert (await it.get(f"follow=0&after={number - 1}"))[0]["kind"] == "began"
            assert [event["kind"] for event in await it.get("follow=0&kind=job&after=3")] == ["missed", "job"]

    asyncio.run(act())


def test_who_waits_for_one_kind_knows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was none of its own it does not have to read again when it comes back."""
    monkeypatch.setattr(reading, "_SIGN", 0.2)

    async def act() -> None:
        async with served(tmp_path) as it:
            it.rows.change(1)
            stream = await it.reader(f"kind=instance&after={it.feed.number - 1}")
            await lines(stream, 1)
            for _ in range(5):
                it.feed.tell("job", {})
            assert await lines(stream, 1) == [b"id: %d" % it.feed.number]
            assert await lines(stream, 2, b": ") == [b": still here"] * 2

    asyncio.run(act())


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=", "follow=yes", "after=" + "9" * 30])
def test_what_is_asked_wrongly(tmp_path: Path, query: str) -> None:
    async def act() -> None:
        async with served(tmp_path) as it:
            stream = await it.reader(query)
            assert it.head.startswith(b"HTTP/1.1 422 ")
            assert b'"field": "%s"' % query.partition("=")[0].encode() in await stream.read(1000)

    asyncio.run(act())


def test_over_websocket(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as it, aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(it.path))) as http:
            it.rows.change(3)
            async with http.ws_connect("http://x/?after=0&kind=instance") as socket:
                first = [(await socket.receive_json(timeout=10))["number"] for _ in range(3)]
                await socket.send_str("what a reader says is of no interest")
                it.feed.tell("job", {})
                it.rows.change(2)
                more = [(await socket.receive_json(timeout=10))["number"] for _ in range(2)]
                assert more == [first[-1] + 2, first[-1] + 3]
                ending = asyncio.create_task(it.feed.end())
                assert (await socket.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
            await ending
            async with http.ws_connect("http://x/?follow=0") as socket:
                assert len([message async for message in socket]) == 6
                assert socket.close_code == 1000

    asyncio.run(act())
