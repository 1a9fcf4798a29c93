"""Brings the journals of all instances to disk in time: those that have something to write, some at once, in threads.

A sync takes a disk milliseconds, and file systems take several at one stroke: with eight threads those of 50 journals
take a quarter of the time that they take one by one.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from .journal import Journal

# Seconds from an event to its write; with what the sync takes, it is on disk within 0.1 s.
DELAY: Final = 0.04
# Seconds between two tries to write to a disk that was full.
RETRY: Final = 2.0
_THREADS: Final = 8


class Flusher:
    """Writes journals that say they have something to write. Belongs to one loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "journal")
        self._dirty: set[Journal] = set()
        self._busy: dict[Journal, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def dirty(self, journal: Journal) -> None:
        """It has something to write. Once all is over nobody asks any more: what comes then is not kept."""
        if self._stopped:
            return
        self._dirty.add(journal)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._flush)

    async def close(self, journal: Journal) -> None:
        """Write what is left of one, and close it."""
        while (task := self._busy.get(journal)) is not None:
            await asyncio.wait([task])
        self._dirty.discard(journal)
        threads = None if self._stopped else self._threads
        await asyncio.get_running_loop().run_in_executor(threads, journal.close)

    def stop(self) -> None:
        """Begin to write nothing more, but for who is closed late. May be repeated."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False)

    def _flush(self) -> None:
        self._timer = None
        for journal in self._dirty - self._busy.keys():
            self._dirty.discard(journal)
            task = self._busy[journal] = asyncio.create_task(self._commit(journal))
            task.add_done_callback(partial(self._done, journal))

    async def _commit(self, journal: Journal) -> None:
        batch = journal.take()
        await asyncio.get_running_loop().run_in_executor(self._threads, journal.commit, batch)

    def _done(self, journal: Journal, _: "asyncio.Task[None]") -> None:
        del self._busy[journal]
        if journal.fault is not None:
            asyncio.get_running_loop().call_later(RETRY, self._again, journal)
        elif journal.waits or journal in self._dirty:
            self.dirty(journal)

    def _again(self, journal: Journal) -> None:
        if journal.waits:
            self.dirty(journal)
