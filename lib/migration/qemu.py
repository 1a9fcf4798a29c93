"""A QEMU that is to send a machine, or to take one: told what to do, and heard, by one connection.

The connection is made anew when it breaks; what it was told and has not answered is answered then, for by then it is
done or never will be. That the process is dead is the kernel's word, never a guess.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ..errors import DroverError, MonitorError
from ..kvm.process import Process
from ..kvm.sever import sever
from ..kvm.sockets import reach
from ..kvm.undelay import undelay
from ..monitor.aio import AsyncQmpConnection
from ..ops.migration import MigrationInfo, query_both
from .words import QemuSaid

T = TypeVar("T")

# After each of these, how it is then is asked for: the event alone says less.
_TELLING: Final = ("MIGRATION", "STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED")
# Seconds until a connection that broke is made anew; twice as long each time, up to the second.
_AGAIN, _LONGEST = 0.02, 2.0
_BLACKOUT_LOOK: Final = 0.002  # s between two looks at a machine that is about to be able to run
GONE: Final = QemuSaid(gone=True)


class Qemu:
    """One process, and a connection to its monitor.

    :ivar said: what it said last
    :ivar info: what it said of the migration, in all its words
    :param path: of its control socket
    :param process: taken over, and closed at the end
    :param hear: called with what it says
    :param trusts_events: what its events say of a migration is told at once, and not only once it was asked: for where
        its main loop may hang
    """

    def __init__(
        self, path: Path, process: Process, hear: Callable[[QemuSaid], None], *, trusts_events: bool = False
    ) -> None:
        self.said = QemuSaid()
        self.info = MigrationInfo()
        self._path = path
        self._process = process
        self._hear = hear
        self._trusts_events = trusts_events
        self._vm: AsyncQmpConnection | None = None
        self._news = asyncio.Event()
        self._there = asyncio.Event()  # a connection stands, or the process is dead
        self._dead = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._once_more = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def vm(self) -> AsyncQmpConnection | None:
        """The connection, while there is one."""
        return self._vm

    @property
    def gone(self) -> bool:
        """Whether the process has been seen dead."""
        return self._dead.is_set()

    def start(self) -> None:
        """Begin to listen to it."""
        asyncio.get_running_loop().add_reader(self._process.fileno(), self._died)
        self._task = asyncio.create_task(self._stay(), name=f"qemu {self._process.pid}")

    async def close(self) -> None:
        """Let go of it; it goes on. May be repeated."""
        if self._process.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._process.fileno())
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._process.close()

    async def ask(self) -> QemuSaid:
        """How it is.

        :raises MonitorError: it has not answered, and lives
        """
        try:
            self.info, run = await self.tell(lambda vm: vm.perform(query_both))
        except DroverError:
            if self._dead.is_set():
                return GONE
            raise
        self.said = QemuSaid(self.info.status, run)
        return self.said

    async def tell(self, flow: Callable[[AsyncQmpConnection], Awaitable[T]]) -> T:
        """Have it do something, once there is a connection.

        :raises MonitorError: the connection broke meanwhile: it may have done it. There is a new one then, or the
            process is dead
        :raises CommandError: it refuses
        """
        await self._there.wait()
        if self._vm is None:
            raise MonitorError("its process is dead")
        try:
            return await flow(self._vm)
        except MonitorError:
            await self._there.wait()
            raise

    async def wait_end(self, timeout: float) -> bool:
        """Wait for the end of the process.

        :param timeout: in seconds
        :returns: whether it has come
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._dead.wait()
        return self.gone

    async def news(self) -> None:
        """Wait until it has said something else."""
        self._news.clear()
        await self._news.wait()

    def kill(self) -> None:
        """Send it SIGKILL; its end is told as any."""
        self._process.send_signal(signal.SIGKILL)

    def let_lock(self, size: int) -> None:
        """Let it lock so much of its memory; see :meth:`.kvm.process.Process.let_lock`."""
        self._process.let_lock(size)

    def sever(self, *, others: bool = False) -> list[str]:
        """Cut the connection that it hangs on, if it does; see :func:`.kvm.sever.sever`. Blocks.

        :returns: whom what was cut led to
        """
        return sever(self._process, others=others)

    def undelay(self, port: int) -> bool:
        """Have it answer without delay where it listens; see :func:`.kvm.undelay.undelay`.

        :returns: whether it listens there
        """
        return undelay(self._process, port)

    def look_again(self) -> None:
        """Ask it soon, and tell what it says; as often as is wanted, one question at a time."""
        self._once_more = True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_and_tell())

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _ask_and_tell(self) -> None:
        while self._once_more and not self.gone:
            self._once_more = False
            with suppress(MonitorError):
                said = await self.ask()
                self._say(said)
                if said.run == "inmigrate" and said.status.startswith("postcopy"):
                    # it stands still, and no event tells when it may run
                    await asyncio.sleep(_BLACKOUT_LOOK)
                    self._once_more = True

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.fileno())
        self._dead.set()
        self._there.set()
        self.said = GONE
        self._say(GONE)

    async def _stay(self) -> None:
        pause = _AGAIN
        while not self.gone:
            try:
                async with AsyncQmpConnection(reach(self._path), timeout=None, pid=self.pid) as vm:
                    events = vm.events(*_TELLING)
                    self._vm = vm
                    self._there.set()
                    pause = _AGAIN
                    self.look_again()
                    async for event in events:
                        if event.data.get("status") != "device":
                            self.look_again()
                        if self._trusts_events:
                            await asyncio.sleep(0)  # the question goes before anybody makes something of the event
                            self._take(event.name, str(event.data.get("status", "")))
            except (MonitorError, OSError):
                pass
            finally:
                self._vm = None
                if not self.gone:
                    self._there.clear()
            if not await self.wait_end(pause):
                pause = min(2 * pause, _LONGEST)

    def _take(self, event: str, status: str) -> None:
        if self.gone or event not in ("MIGRATION", "RESUME"):
            return
        said = self.said
        self.said = QemuSaid(status, said.run) if event == "MIGRATION" else QemuSaid(said.status, "running")
        self._say(self.said)

    def _say(self, said: QemuSaid) -> None:
        self._news.set()
        self._hear(said)
