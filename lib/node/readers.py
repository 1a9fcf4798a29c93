"""Those who read a stream of events: by server-sent events or over WebSocket, and what they asked for.

Each takes what is next when it has room; one that does not take it in time is cut off, and holds up nobody meanwhile.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from aiohttp import WSMsgType, web
from msgspec import Struct

from ..errors import ArgumentError
from .access import CALLER
from .stream import MISSED, Batch, Stream, Told

# Seconds that a reader may take for what is sent at one stroke; less than `answer_seconds` of the limits.
_SLOW: Final = 20.0
# Seconds between two signs of life, so that a connection that is gone is noticed.
_SIGN: Final = 15.0
_CLOSING: Final = 2.0  # seconds for a WebSocket's other end to agree that this is the end
# Seconds that readers have to leave in peace, and how often is looked whether they have.
_LEAVING: Final = 1.0
_LOOKS: Final = 50
_MESSAGE: Final = 4096  # bytes: nothing that a reader says is of interest
_DIGITS: Final = 20
_ALWAYS: Final = (MISSED, "lost")  # told whatever was asked for
log = logging.getLogger("drover.node")


class Wanted(Struct, frozen=True, kw_only=True):
    """What a reader asked for.

    :ivar after: the number of the last event that it has; None: it wants those from now on
    :ivar follow: it wants what is still to come, too
    :ivar kinds: it wants these; empty: all
    :ivar names: it wants what is about these instances; empty: all
    """

    after: int | None = None
    follow: bool = True
    kinds: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def chosen(self, batch: Batch) -> Batch:
        """What of some events is wanted; what is missing is told to all."""
        if not self.kinds and not self.names:
            return batch
        return Batch([event for event in batch.events if self._wants(event)], batch.after)

    def _wants(self, event: Told) -> bool:
        if not event.number or event.kind in _ALWAYS:
            return True
        return (not self.kinds or event.kind in self.kinds) and (
            not self.names or not event.name or event.name in self.names
        )


def wanted(request: web.Request) -> Wanted:
    """What a request asks for; ``Last-Event-ID``, which a browser sends when it comes back, counts more than the query.

    :raises ArgumentError: a parameter is wrong
    """
    query = request.query
    if (follow := query.get("follow", "1")) not in ("0", "1"):
        raise ArgumentError("follow", follow, "0 or 1")
    after = None if "after" not in query else _number(query["after"])
    if "after" in query and after is None:
        raise ArgumentError("after", query["after"], "the number of an event, or 0")
    if (last := _number(request.headers.get("Last-Event-ID", ""))) is not None:
        after = last
    kinds, names = frozenset(query.getall("kind", ())), frozenset(query.getall("name", ()))
    if after is None and follow == "0":
        after = 0
    return Wanted(after=after, follow=follow == "1", kinds=kinds, names=names)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else None


class Readers:
    """All who read.

    :ivar count: how many there are now
    :ivar cut: how many were cut off so far, for they were too slow
    """

    def __init__(self) -> None:
        self.count = 0
        self.cut = 0

    async def serve(
        self, request: web.Request, stream: Stream, want: Wanted, first: Sequence[Told] = ()
    ) -> web.StreamResponse:
        """Send a stream to whoever asked for it, until the reader goes, or is too slow, or the stream ends.

        :param first: told before anything else
        """
        out: _ServerSent | _Socket = _Socket(request) if _is_upgrade(request) else _ServerSent(request)
        self.count += 1
        try:
            await out.open()
            await out.run(_send(out, stream, want, first))
        except ConnectionError:
            pass
        except TimeoutError:
            self.cut += 1
            log.info("%s reads events too slowly, and was cut off", request[CALLER].name)
            if request.transport is not None:
                request.transport.abort()  # what it has not read yet it will not get
        except OSError as error:  # of the disk; who comes back finds out whether it is well again
            log.warning("events that are kept cannot be read: %s", error)
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.count -= 1
        return out.response

    async def leave(self) -> None:
        """Wait for a moment until all have got the end of their streams, and left."""
        for _ in range(_LOOKS):
            if not self.count:
                return
            await asyncio.sleep(_LEAVING / _LOOKS)


async def _send(out: "_ServerSent | _Socket", stream: Stream, want: Wanted, first: Sequence[Told]) -> None:
    until = stream.number
    after = until if want.after is None else want.after
    if want.after is None:
        await out.begin(after)
    if first:
        await out.send(Batch(first, after))
    while True:
        news, ended = stream.news, stream.ended
        batch = await stream.next(after)
        if batch.events or batch.after != after:
            after = batch.after
            if (chosen := want.chosen(batch)).events:
                async with asyncio.timeout(_SLOW):
                    await out.send(chosen)  # waits for the reader, and keeps nothing for it meanwhile
            if want.follow or after < until:
                continue
        if ended or not want.follow:
            break
        try:
            async with asyncio.timeout(_SIGN):
                await news.wait()
        except TimeoutError:
            async with asyncio.timeout(_SLOW):
                await out.sign(after)
    if stream.last is not None and want.follow:
        await out.send(Batch([stream.last], after))


class _ServerSent:
    """One that reads server-sent events."""

    def __init__(self, request: web.Request) -> None:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._sent = 0  # the last number that it knows

    async def open(self) -> None:
        """Begin."""
        await self.response.prepare(self._request)

    async def run(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send to it."""
        await sending

    async def begin(self, after: int) -> None:
        """Say where it begins: who comes back before there was an event misses nothing either."""
        await self.response.write(b": from here on\nid: %d\n\n" % after)
        self._sent = after

    async def send(self, batch: Batch) -> None:
        """Send events; returns when there is room for more."""
        await self.response.write(batch.frames)
        self._sent = batch.events[-1].number or self._sent

    async def sign(self, after: int) -> None:
        """Say that we are here, and how far that is where all that came was nothing for it."""
        text = b": still here\n\n"
        if after > self._sent > 0:
            text, self._sent = b": still here\nid: %d\n\n" % after, after
        await self.response.write(text)


class _Socket:
    """One that reads messages of a WebSocket, each the JSON of one event."""

    def __init__(self, request: web.Request) -> None:
        # it asks whether the other end is there, and takes what does not answer for gone
        self.response = web.WebSocketResponse(
            compress=False, max_msg_size=_MESSAGE, heartbeat=_SIGN, timeout=_CLOSING, writer_limit=1 << 16
        )
        self._request = request

    async def open(self) -> None:
        """Begin."""
        await self.response.prepare(self._request)

    async def run(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send to it until it goes."""
        ways = [asyncio.create_task(sending), asyncio.create_task(self._listen())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[0].done():
                await ways[0]
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        with suppress(ConnectionError):
            await self.response.close()

    async def _listen(self) -> None:
        async for _ in self.response:
            pass  # pongs and the end are aiohttp's to see

    async def begin(self, after: int) -> None:
        """Nothing is to be said: a message is an event."""

    async def send(self, batch: Batch) -> None:
        """Send events; returns when there is room for more."""
        for event in batch.events:
            await self.response.send_frame(event.text, WSMsgType.TEXT)

    async def sign(self, after: int) -> None:
        """Say that we are here: the heartbeat does."""


def _is_upgrade(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"
