"""What the followers share: the host, threads for what blocks, the journals' flusher, and whom to tell."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from ..kvm.host import Host
from .flush import Flusher
from .journal import LIMIT, Journal

T = TypeVar("T")

# Each waits for one instance's lock or QEMU. So many may hang before others have to wait for them.
_THREADS: Final = 128

# So many connect at once. What a QEMU's build can do is asked of the first ones, and the others need not ask: when a
# thousand asked at once, the answers cost 40 KiB of memory each, for ever.
_CONNECTING: Final = 4
# Seconds to wait for one's turn: those before may be connecting to a QEMU that hangs.
_TURN: Final = 0.5

# Told what was done to an instance: its name, a word for it, and a sentence.
Say = Callable[[str, str, str], None]


class Work:
    """Belongs to one loop.

    :param journal_limit: bytes of each journal
    """

    def __init__(self, host: Host, say: Say, *, journal_limit: int = LIMIT) -> None:
        self.host = host
        self.say = say
        self.flusher = Flusher()
        self._journal_limit = journal_limit
        self._threads = ThreadPoolExecutor(_THREADS, "work")
        self._connecting = asyncio.Semaphore(_CONNECTING)

    async def do(self, act: Callable[[], T]) -> T:
        """Do what blocks, in a thread. Who is cancelled meanwhile leaves it to come to its end alone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One's turn to connect; it comes soon, whoever else hangs."""
        try:
            async with asyncio.timeout(_TURN):
                await self._connecting.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._connecting.release()

    async def journal(self, uuid: str) -> Journal:
        """Open the journal of an instance.

        :raises OSError: it cannot be read
        """
        return await self.do(lambda: Journal(self.host.paths.events(uuid), limit=self._journal_limit))

    def close(self) -> None:
        """Begin nothing more. What is under way is in the instances' documents."""
        self.flusher.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
