"""What happens to instances, told as it happens: server-sent events, numbered, resumable, never held up by a reader."""

import asyncio
import time
from collections import deque
from typing import Any, Final

import msgspec
from aiohttp import web

from .model import Model
from .summary import Summary

# What a reader may lag behind, or come back after; then it is told that something is missing.
KEPT: Final = 4096
# Seconds between two signs of life, so that a connection that is gone is noticed.
_SIGN: Final = 15.0


class Feed:
    """The changes of a model's rows.

    :ivar number: of the last one
    """

    def __init__(self, model: Model) -> None:
        self.number = 0
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
        """Send what comes after ``Last-Event-ID``, or from now on, until the reader goes."""
        last = request.headers.get("Last-Event-ID", "")
        after = int(last) if last.isdecimal() and int(last) <= self.number else self.number
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        while True:
            news = self._news
            first = self._kept[0][0] if self._kept else self.number + 1
            if after + 1 < first:
                await response.write(f"event: missed\ndata: {{\"count\": {first - after - 1}}}\n\n".encode())
                after = first - 1
            batch = [text for number, text in self._kept if number > after]
            after = self.number
            if batch:
                await response.write(b"".join(batch))  # waits for the reader, and keeps nothing for it meanwhile
                continue
            try:
                async with asyncio.timeout(_SIGN):
                    await news.wait()
            except TimeoutError:
                await response.write(b": still here\n\n")
