"""What happens to instances, told as it happens: server-sent events, numbered, resumable, never held up by a reader."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final, NoReturn

import msgspec
from aiohttp import web

from .model import Model
from .summary import Summary

# What a reader may lag behind, or come back after; then it is told that something is missing.
KEPT: Final = 4096
_DIGITS: Final = 20
# Seconds that a reader may take for what is sent at one stroke.
_SLOW: Final = 30.0
# Seconds between two signs of life, so that a connection that is gone is noticed.
_SIGN: Final = 15.0


class Feed:
    """The changes of a model's rows.

    :ivar number: of the last one. It begins with the time in µs: who comes back with one of an earlier daemon's has
        missed something
    """

    def __init__(self, model: Model) -> None:
        self.number = time.time_ns() // 1000
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._news = asyncio.Event()
        model.on_change(self._changed)

    def _changed(self, summary: Summary | None, name: str) -> None:
        self.number += 1
        data: dict[str, Any] = {"at": time.time(), "instance": name, "summary": summary}
        kind = "instance" if summary is not None else "gone"
        text = f"id: {self.number}\nevent: {kind}\ndata: {msgspec.json.encode(data).decode()}\n\n"
        self._kept.append((self.number, text.encode()))
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send what comes after ``Last-Event-ID``, or from now on, until the reader goes, or is too slow."""
        last = request.headers.get("Last-Event-ID", "")
        after = int(last) if last.isdecimal() and len(last) <= _DIGITS else self.number
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        try:
            await self._send(response, after)
        except ConnectionError:
            pass
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # what it has not read yet it will not get
        return response

    async def _send(self, response: web.StreamResponse, after: int) -> NoReturn:
        while True:
            news = self._news
            text, after = self._since(after), self.number
            if not text:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SIGN):
                        await news.wait()
                text, after = self._since(after) or b": still here\n\n", self.number
            async with asyncio.timeout(_SLOW):
                await response.write(text)  # waits for the reader, and keeps nothing for it meanwhile

    def _since(self, after: int) -> bytes:
        """All that came after a number, and before it that something is missing, if it is."""
        first = self._kept[0][0] if self._kept else self.number + 1
        missed = b"event: missed\ndata: {}\n\n" if not first - 1 <= after <= self.number else b""
        return missed + b"".join(text for number, text in self._kept if missed or number > after)
