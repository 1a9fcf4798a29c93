"""What machines say, out of the event daemon's journals: one look at the disk for all who read one of them.

A journal is the instance's by its uuid, so a reader stays with the machine when that gets another name.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pyinotify
from aiohttp import web
from msgspec import Struct

from ..errors import ArgumentError
from ..events.segment import WRITER, Entry, newest, read, shown
from ..kvm.lock import is_locked
from ..kvm.record import load
from .access import require
from .model import Model
from .operations import Role
from .readers import Readers, wanted
from .stream import Older, Stream, Told, told
from .summary import Summary
from .work import Worker

T = TypeVar("T")

_PAGE: Final = 500  # events that are read from disk at one stroke
_THREADS: Final = 4
# Seconds between two looks at a journal that is read, for what inotify did not tell.
_LOOK: Final = 10.0
# Seconds in which one that has gone may come back under another name.
_RENAMED: Final = 1.0
_MASK: Final = pyinotify.IN_MODIFY | pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO | pyinotify.IN_ONLYDIR
_MASK_ALL: Final = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO | pyinotify.IN_ONLYDIR


class _News(Struct):
    """What a look at the disk has found.

    :ivar newest: the number of the newest event
    """

    events: list[Told]
    newest: int


class Tail:
    """One journal that somebody reads.

    :ivar name: the instance's, as it is now
    :ivar folder: the journal's
    :ivar stream: what comes; there is one when :attr:`opened` is done
    :ivar readers: how many there are
    :ivar wake: there may be more
    """

    def __init__(self, name: str, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.name = name
        self.folder = folder
        self.readers = 0
        self.wake = asyncio.Event()
        self._threads = threads
        self.stream = Stream(0, self._older, lambda: False)
        self.opened = asyncio.create_task(self._open())
        self._task = asyncio.create_task(self._run(), name=f"tail {name}")

    def close(self) -> None:
        """Nobody reads it any more."""
        self.opened.cancel()
        self._task.cancel()

    async def _open(self) -> None:
        self.stream.begin_anew(await self._in_thread(lambda: newest(self.folder)))

    async def _run(self) -> None:
        await asyncio.wait([self.opened])
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self.wake.wait()
            self.wake.clear()
            with suppress(OSError):  # it may be better the next time; who reads is told what was missed
                while await self._read_on():
                    pass

    async def _read_on(self) -> bool:
        """Whether there was more."""
        found = await self._in_thread(lambda: _look(self.folder, self.stream.number))
        if found.events:
            self.stream.add(found.events)
        elif 0 < found.newest < self.stream.number:  # somebody has removed it, and it was begun anew
            self.stream.begin_anew(found.newest)
        return len(found.events) >= _PAGE

    async def _older(self, after: int) -> Older:
        def look() -> Older:
            page = read(self.folder, after=after, limit=_PAGE)
            return Older([_told(entry) for entry in page.events], page.first)

        return await self._in_thread(look)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)


class Tails:
    """The journals that are read.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker, model: Model, readers: Readers) -> None:
        self._worker = worker
        self._model = model
        self._readers = readers
        self._paths = worker.node.host.paths
        self._threads = ThreadPoolExecutor(_THREADS, "tail")
        self._tails: dict[str, Tail] = {}
        self._watches: dict[int, str] = {}  # whose each is; empty: that of the folder above
        self._manager: Any = None
        self._notifier: Any = None
        model.on_change(self._changed)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/instances/NAME/events``."""
        require(request, Role.VIEWER)
        want = wanted(request)
        if want.names:
            raise ArgumentError("name", ", ".join(sorted(want.names)), "nothing: these are one instance's events")
        instance = self._worker.node.instance(request.match_info["name"])

        def look() -> tuple[str, bool]:
            document = load(self._paths.instance(instance.name).document)
            return document.spec.uuid, is_locked(self._paths.locks / f"{WRITER}.lock")

        uuid, is_heard = await self._worker.do("", look)
        first = [] if is_heard else [told("kvmd-absent", {"at": time.time()})]
        async with self._reading(instance.name, uuid) as stream:
            return await self._readers.serve(request, stream, want, first)

    def end(self) -> None:
        """Let all readers go."""
        for tail in self._tails.values():
            tail.stream.end()

    def close(self) -> None:
        """Watch nothing more."""
        if self._notifier is not None:
            self._notifier.stop()
        self._threads.shutdown(wait=False)

    # -- how ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reading(self, name: str, uuid: str) -> AsyncIterator[Stream]:
        tail = self._tails.get(uuid)
        if tail is None:
            self._watch(uuid)  # before the first look, so that nothing comes in between
            tail = self._tails[uuid] = Tail(name, self._paths.events(uuid), self._threads)
        tail.readers += 1
        try:
            await asyncio.shield(tail.opened)
            yield tail.stream
        finally:
            tail.readers -= 1
            if not tail.readers:
                tail.close()
                del self._tails[uuid]
                self._unwatch(uuid)

    def _watch(self, uuid: str) -> None:
        """Have inotify tell of a journal, and of its folder where it is not there yet."""
        if self._manager is None:
            self._manager = pyinotify.WatchManager()
            loop = asyncio.get_running_loop()
            self._notifier = pyinotify.AsyncioNotifier(self._manager, loop, default_proc_fun=self._heard)
        if "" not in self._watches.values():
            self._add_watch(self._paths.events(uuid).parent, "", _MASK_ALL)
        self._add_watch(self._paths.events(uuid), uuid, _MASK)

    def _add_watch(self, folder: Path, whose: str, mask: int) -> None:
        with suppress(pyinotify.WatchManagerError):  # it is not there, or there are too many: it is looked at sometimes
            number = self._manager.add_watch(os.fspath(folder), mask, quiet=False)[os.fspath(folder)]
            self._watches[number] = whose

    def _unwatch(self, uuid: str) -> None:
        for number in [number for number, whose in self._watches.items() if whose == uuid]:
            del self._watches[number]
            with suppress(pyinotify.WatchManagerError):  # it has gone by itself
                self._manager.rm_watch(number, quiet=False)

    def _heard(self, event: Any) -> None:
        """inotify. What goes wrong in here would be swallowed."""
        whose = self._watches.get(event.wd)
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            for tail in self._tails.values():
                tail.wake.set()
        elif event.mask & pyinotify.IN_IGNORED:
            self._watches.pop(event.wd, None)
        elif whose == "" and event.name in self._tails:
            self._unwatch(event.name)
            self._add_watch(self._paths.events(event.name), event.name, _MASK)
            self._tails[event.name].wake.set()
        elif whose in self._tails:
            self._tails[whose].wake.set()

    def _changed(self, summary: Summary | None, name: str) -> None:
        if summary is not None and (tail := self._tails.get(summary.uuid)) is not None:
            tail.name = name
        if any(tail.name == name and (summary is None or summary.uuid != uuid) for uuid, tail in self._tails.items()):
            asyncio.get_running_loop().call_later(_RENAMED, self._gone, name)

    def _gone(self, name: str) -> None:
        """It is no more, unless it has another name by now."""
        row = self._model.summary(name)
        for uuid, tail in self._tails.items():
            if tail.name == name and (row is None or row.uuid not in (uuid, "")):
                tail.stream.end(told("gone", {"at": time.time(), "instance": name}))


def _look(folder: Path, after: int) -> _News:
    events = [_told(entry) for entry in read(folder, after=after, limit=_PAGE).events]
    return _News(events, events[-1].number if events else newest(folder))


def _told(entry: Entry) -> Told:
    """An event of a journal, as it goes out."""
    return told(entry.name, shown(entry), number=entry.number)
