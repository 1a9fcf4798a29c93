"""One instance of the live picture: a task that holds its control socket, and says what it does."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..errors import ConnectTimeout, DroverError, MonitorError, MonitorTimeout, RecordError
from ..kvm.condition import ask_state
from ..kvm.host import Host
from ..kvm.mend import ENDED_BY_GUEST
from ..kvm.record import Document, Runtime, load
from ..kvm.restart import is_due, seconds_left
from ..kvm.sockets import reach
from ..kvm.state import State
from ..monitor.aio import AsyncQmpConnection
from .summary import Summary, summarised, unreadable

# Seconds for an answer; one that takes longer hangs, and is shown so.
ANSWER_TIMEOUT: Final = 5.0
# Seconds between two questions to a QEMU that says nothing: so soon one is noticed that hangs.
HEARTBEAT: Final = 10.0
# Seconds until what hangs, or cannot be read, is tried again.
_PAUSE: Final = 5.0
# After each of these, what it does is asked for: the event alone says less.
_TELLING: Final = (
    "STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "SUSPEND", "WAKEUP", "MIGRATION",
)  # fmt: skip

Changed = Callable[[str, Summary | None], None]


class Member:
    """An instance, followed.

    :ivar summary: its row; None before the first look
    :ivar settled: it has been looked at
    :ivar round_trip: seconds that QEMU took to answer the last question; None where it was not asked in this run
    """

    def __init__(self, host: Host, name: str, changed: Changed, act: Callable[[str], None]) -> None:
        self.name = name
        self.summary: Summary | None = None
        self.settled = asyncio.Event()
        self.round_trip: float | None = None
        self._host = host
        self._paths = host.paths.instance(name)
        self._changed = changed
        self._act = act
        self._again = asyncio.Event()
        self._free = True  # nobody works on it
        self._wanted = self._looked = 0  # looks that were asked for, and the one that is taken
        self._task: asyncio.Task[None] | None = None
        self._talk: asyncio.Task[None] | None = None

    def start(self, *, free: bool) -> None:
        """Begin to follow it.

        :param free: nobody works on it
        """
        self._free = free
        self._task = asyncio.create_task(self._run(), name=f"instance {self.name}")

    async def stop(self) -> None:
        """Let go of it."""
        for task in (self._task, self._talk):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def let_go(self) -> None:
        """Somebody works on it, and needs its control socket."""
        self._free = False
        if self._talk is not None:
            self._talk.cancel()

    def look_again(self) -> None:
        """Nobody works on it any more; its document may be another."""
        self._free = True
        self._wanted += 1
        self.settled.clear()
        if self._talk is not None:
            self._talk.cancel()
        self._again.set()

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._again.clear()
            self._looked = self._wanted
            if self._free:
                try:
                    document = load(self._paths.document)
                except FileNotFoundError:
                    self._changed(self.name, None)
                    self.settled.set()
                    return
                except (RecordError, OSError) as error:
                    self._tell(unreadable(self.name, str(error), self._since(State.UNKNOWN)))
                    await self._wait(_PAUSE)
                    continue
                await self._wait(await self._look(document))
            else:
                if self.summary is None:
                    self._say_busy()
                await self._wait(None)

    async def _wait(self, timeout: float | None) -> None:
        """Until there is something to look at."""
        self._settle()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._again.wait()

    async def _look(self, document: Document) -> float | None:
        """Stay with it while nothing else is to be done.

        :returns: seconds until it is to be looked at again, unless something happens
        """
        runtime = document.runtime
        if runtime is None:
            self.round_trip = None
            self._say(document, State.STOPPED)
            if document.restart is not None and is_due(document, self._host.boot_id):
                return await self._restart_later(seconds_left(document.restart))
            return None
        if document.pending is not None and runtime.pid == 0:
            self._say(document, State.BUSY, document.pending.operation)
            return _PAUSE
        self._talk = asyncio.create_task(self._stay(document, runtime))
        try:
            await self._talk
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return 0 if self._free else None
        except (ConnectTimeout, MonitorTimeout) as error:
            self._say(document, State.UNRESPONSIVE, str(error))
            return _PAUSE
        except (MonitorError, DroverError, OSError) as error:
            self._say(document, State.ENDED, str(error))
            self._act(self.name)
            return _PAUSE
        finally:
            self._talk = None
        return _PAUSE

    def _settle(self) -> None:
        """The row is true, unless another look was asked for meanwhile."""
        if self._free and self._looked == self._wanted:
            self.settled.set()

    def _say_busy(self) -> None:
        """Somebody works on it already when it is first seen."""
        with suppress(FileNotFoundError, RecordError, OSError):
            self._say(load(self._paths.document), State.BUSY)

    async def _restart_later(self, seconds: float) -> float | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()
                return 0
        self._act(self.name)
        return _PAUSE

    async def _stay(self, document: Document, runtime: Runtime) -> None:
        """Hold its control socket, and say what it does, until it has come to an end."""
        # where nobody listens any more, the run has ended: one that is starting listens before its QEMU is there
        async with AsyncQmpConnection(reach(self._paths.socket("control")), timeout=ANSWER_TIMEOUT) as vm:
            events = vm.events(*_TELLING, timeout=HEARTBEAT)  # before it is asked, so that nothing comes in between
            while True:
                state, detail = await self._ask(vm)
                self._say(document, state, detail)
                self._settle()
                if state in ENDED_BY_GUEST:
                    self._act(self.name)
                with suppress(MonitorTimeout):
                    await anext(events)

    async def _ask(self, vm: AsyncQmpConnection) -> tuple[State, str]:
        asked = time.monotonic()
        told = await ask_state(vm)
        self.round_trip = time.monotonic() - asked
        return told

    def _say(self, document: Document, state: State, detail: str = "") -> None:
        self._tell(summarised(self.name, document, state, self._since(state), detail))

    def _since(self, state: State) -> float:
        return self.summary.since if self.summary is not None and self.summary.state is state else time.time()

    def _tell(self, summary: Summary) -> None:
        if summary != self.summary:
            self.summary = summary
            self._changed(self.name, summary)
