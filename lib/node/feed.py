"""What happens on this node, told as it happens and kept on disk: numbered, resumable, never held up by a reader.

It is told to those who read now at once, and on disk 0.1 s later. A journal as the event daemon keeps one of each
machine holds it, so that who comes back after a restart misses nothing, or is told so.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from ..events.flush import Flusher
from ..events.journal import SKIP, Journal
from ..events.segment import LOST, Entry, read
from ..qmp.messages import Event
from .access import require
from .model import Model
from .operations import Role
from .readers import Readers, wanted
from .stream import MISSED, Older, Stream, Told, told
from .summary import Summary

T = TypeVar("T")

# Bytes of the ring: some 20,000 changes.
LIMIT: Final = 16 << 20
_PAGE: Final = 200  # events that are read from disk at one stroke: 100 kB or so
_THREADS: Final = 2
_CLOSING: Final = 5.0  # seconds that the disk has at the end
log = logging.getLogger("drover.node")


class Feed:
    """The changes of a node: of the model's rows (``instance``, ``gone``), and whatever else it is told.

    :param folder: of the ring on disk
    :param limit: bytes of it
    """

    def __init__(self, model: Model, folder: Path, readers: Readers, *, limit: int = LIMIT) -> None:
        self._folder = folder
        self._readers = readers
        self._limit = limit
        self._threads = ThreadPoolExecutor(_THREADS, "feed")
        self._flusher = Flusher()
        self._journal: Journal | None = None
        self._is_full = False
        self._stream = Stream(0, self._older, self._lags)
        model.on_change(self._changed)

    async def open(self) -> None:
        """Go on with what is on disk. Where it cannot be read, nothing is kept, and all goes on."""
        try:
            self._journal = await self._in_thread(lambda: Journal(self._folder, limit=self._limit))
        except (OSError, msgspec.DecodeError) as error:
            log.error("what happens is not kept, for %s cannot be read: %s", self._folder, error)
        else:
            self._go_on_with(self._journal)
        # where nothing, or not all that was told, came to disk, no number comes twice all the same
        now = time.time_ns() // 1000
        if self._stream.number:
            self._stream.skip(now)
        else:
            self._stream.begin_anew(now)

    @property
    def number(self) -> int:
        """Of the newest event."""
        return self._stream.number

    @property
    def dropped(self) -> int:
        """How many events found no room on disk so far."""
        return self._journal.dropped if self._journal is not None else 0

    def began(self, names: Sequence[str]) -> None:
        """The daemon knows all instances by now: there are no others."""
        self._add("began", {"instances": list(names)})

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell of something; on the loop, returns at once.

        :param kind: a word for what it is, which is also the member that has `data`
        :param data: JSON values or structs; where ``instance`` is among them, that is whose change it is
        """
        self._add(kind, {"instance": str(data.get("instance") or ""), kind: data})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/events``."""
        require(request, Role.VIEWER)
        return await self._readers.serve(request, self._stream, wanted(request))

    async def end(self) -> None:
        """Let all readers go, those of machines' events, too."""
        self._stream.end()
        await self._readers.leave()

    async def close(self) -> None:
        """Write what is left."""
        if self._journal is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self._flusher.close(self._journal)
        self._flusher.stop()
        self._threads.shutdown(wait=False)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _go_on_with(self, journal: Journal) -> None:
        if journal.waits and journal.last is not None:  # it was killed, and what came last may be missing
            self._stream.begin_anew(journal.number - SKIP)
            self._stream.add([_told(journal.last)])
            self._flusher.dirty(journal)
        else:
            self._stream.begin_anew(journal.number)

    def _changed(self, summary: Summary | None, name: str) -> None:
        self._add("gone" if summary is None else "instance", {"instance": name, "summary": summary})

    def _add(self, kind: str, data: dict[str, Any]) -> None:
        stream, journal, at = self._stream, self._journal, time.time()
        if journal is not None:
            journal.number = stream.number
            journal.extend([Event(kind, data, -1.0, 0)], 0, at)
            self._flusher.dirty(journal)
            self._watch_disk(journal)
        stream.add([_told(Entry(number=stream.number + 1, at=at, name=kind, data=data))])

    def _watch_disk(self, journal: Journal) -> None:
        if (journal.fault is not None) != self._is_full:
            self._is_full = not self._is_full
            if journal.fault is not None:
                log.error("what happens is not kept for now: %s: %s", self._folder, journal.fault)
            else:
                log.info("what happens is kept again; %d events were not", journal.dropped)

    def _lags(self) -> bool:
        return self._journal is not None and self._journal.fault is None

    async def _older(self, after: int) -> Older:
        if self._journal is None:
            return Older([], 1)

        def look() -> Older:
            page = read(self._folder, after=after, limit=_PAGE)
            return Older([_told(entry) for entry in page.events], page.first)

        return await self._in_thread(look)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)


def _told(entry: Entry) -> Told:
    """An event of the ring, as it goes out."""
    kind = MISSED if entry.name == LOST else entry.name
    name = entry.data.get("instance", "")
    return told(kind, {"at": entry.at} | entry.data, number=entry.number, name=name)
