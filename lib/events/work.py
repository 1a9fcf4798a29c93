"""What the followers share: the host, threads for what blocks, the journals' flusher, and whom to tell."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

from ..errors import RecordError
from ..kvm.host import Host
from ..kvm.record import Document, load
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

_OTHER: Final = 10.0  # s that whoever follows it under another name has to leave its journal

# Told what was done to an instance: its name, a word for it, and a sentence.
Say = Callable[[str, str, str], None]


class _Lease:
    """The journal of one instance, which has one writer at a time: who follows it under its new name waits for the old.

    :ivar journal: None until it is open
    :ivar users: who has it, and who waits for it
    """

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.users = 0
        self.turn = asyncio.Lock()


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
        self._leases: dict[str, _Lease] = {}

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
        """The journal of an instance, once nobody else writes it; until :meth:`let_go`.

        :raises OSError: it cannot be read
        :raises TimeoutError: somebody who follows the instance under another name does not leave it
        """
        lease = self._leases.setdefault(uuid, _Lease())
        lease.users += 1
        try:
            async with asyncio.timeout(_OTHER):
                await lease.turn.acquire()
        except BaseException as error:
            lease.users -= 1
            if not lease.users:  # who had it has left it to us
                async with lease.turn:
                    await self._close_unused(uuid, lease)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{uuid}: who followed it under another name has it still") from None
            raise
        try:
            if lease.journal is None:
                lease.journal = await self.do(lambda: Journal(self.host.paths.events(uuid), limit=self._journal_limit))
            return lease.journal
        except BaseException:
            await self._leave(uuid, lease)
            raise

    async def let_go(self, journal: Journal) -> None:
        """Leave a journal to who waits for it; where nobody does it is closed."""
        uuid = journal.folder.name
        await self._leave(uuid, self._leases[uuid])

    async def _leave(self, uuid: str, lease: _Lease) -> None:
        lease.users -= 1
        try:
            await self._close_unused(uuid, lease)
        finally:
            lease.turn.release()

    async def _close_unused(self, uuid: str, lease: _Lease) -> None:
        if lease.users:
            return
        try:
            if (journal := lease.journal) is not None:
                lease.journal = None
                await self.flusher.close(journal)
        finally:
            if not lease.users:
                self._leases.pop(uuid, None)

    async def find(self, uuid: str) -> tuple[str, Document] | None:
        """An instance, whatever it is called: its name and its document."""
        return await self.do(lambda: _find(self.host, uuid))

    def close(self) -> None:
        """Begin nothing more. What is under way is in the instances' documents."""
        self.flusher.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _find(host: Host, uuid: str) -> tuple[str, Document] | None:
    for name in host.paths.names:
        with suppress(RecordError, OSError):  # who follows that one tells
            document = load(host.paths.instance(name).document)
            if document.spec.uuid == uuid:
                return name, document
    return None
