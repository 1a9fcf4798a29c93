"""One instance of the live picture: a task that holds its control socket, and says what it does."""

import asyncio
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Final

from msgspec import structs

from ..errors import ConnectTimeout, DroverError, MonitorError, MonitorTimeout, RecordError
from ..kvm.condition import ask_state, at_rest, settled
from ..kvm.ends import Restart
from ..kvm.host import Host
from ..kvm.mend import ENDED_BY_GUEST
from ..kvm.record import Document, Runtime, load
from ..kvm.restart import is_due, seconds_left
from ..kvm.sockets import reach
from ..kvm.state import State
from ..monitor.aio import AsyncEventIterator, AsyncQmpConnection
from ..qmp.messages import Event
from .summary import Summary, summarised, unreadable

# Seconds for an answer; one that takes longer hangs, and is shown so.
ANSWER_TIMEOUT: Final = 5.0
# Seconds between two questions to a QEMU that says nothing: so soon one is noticed that hangs.
HEARTBEAT: Final = 10.0
# Seconds until what hangs, or cannot be read, is tried again.
_PAUSE: Final = 5.0
# Seconds for which what is said again of one on its way is not looked at: its row would tell the same.
_SHOWN_FOR: Final = 1.0
# After each of these, what it does is asked for: the event alone says less.
_TELLING: Final = (
    "STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "SUSPEND", "WAKEUP", "MIGRATION",
)  # fmt: skip

# What is wrong with us, and says nothing about a QEMU.
_OURS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

Changed = Callable[[str, Summary | None], None]


class Timing(StrEnum):
    """What of a monitor is timed."""

    ROUND_TRIP = "round-trip"  # from a question to its answer
    EVENT_LAG = "event-lag"  # from QEMU's own stamp on an event to the row that says what came of it


Timed = Callable[[Timing, float], None]


class Member:
    """An instance, followed.

    :ivar summary: its row; None before the first look
    :ivar settled: it has been looked at
    :ivar round_trip: seconds that QEMU took to answer the last question; None where it was not asked in this run
    :ivar runtime: what runs, as of the last look; None where nothing does
    :ivar vm: its control socket, while it is held and answers
    """

    def __init__(
        self, host: Host, name: str, changed: Changed, act: Callable[[str, Restart | None], None], timed: Timed
    ) -> None:
        self.name = name
        self.summary: Summary | None = None
        self.settled = asyncio.Event()
        self.round_trip: float | None = None
        self.runtime: Runtime | None = None
        self.vm: AsyncQmpConnection | None = None
        self._host = host
        self._paths = host.paths.instance(name)
        self._changed = changed
        self._act = act
        self._timed = timed
        self._again = asyncio.Event()
        self._free = True  # nobody works on it
        self._shown_at = 0.0
        self._wanted = self._looked = 0  # looks that were asked for, and the one that is taken
        self._task: asyncio.Task[None] | None = None
        self._talk: asyncio.Task[None] | None = None
        self._rest: asyncio.Timeout | None = None  # of the talk, while it waits for an event

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

    def show(self, document: Document, state: State, detail: str) -> None:
        """Whoever works on it says what it does, as often as they like: it cannot be asked meanwhile."""
        said, now = self.summary, time.monotonic()
        if said is None or (said.state, said.detail) != (state, detail) or now > self._shown_at + _SHOWN_FOR:
            self._shown_at = now
            self._say(document, state, detail)

    def lend(self, vm: AsyncQmpConnection | None) -> None:
        """Whoever works on it for long lets its figures be asked for over their connection.

        :param vm: None: not any more
        """
        if self._talk is None:
            self.vm = vm

    def look_again(self) -> None:
        """Nobody works on it any more; its document may be another."""
        self._free = True
        self._wanted += 1
        self.settled.clear()
        self._again.set()
        if self._rest is not None and not self._rest.expired():
            self._rest.reschedule(0)  # of the loop's clock: at once

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
                    self._tell(self._unreadable(str(error)))
                    await self._wait(_PAUSE)
                    continue
                await self._wait(await self._look(document))
            else:
                if self.summary is None:
                    self._say_first()
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
        self.runtime = runtime = document.runtime
        if runtime is None:
            self.round_trip = None
            self._say(document, at_rest(document))
            if document.restart is not None and is_due(document, self._host.boot_id):
                return await self._restart_later(document.restart)
            return None
        if document.pending is not None and runtime.pid == 0:
            self._say(document, State.BUSY, document.pending.operation)
            return _PAUSE
        self._talk = asyncio.create_task(self._stay(document))
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
            if is_ours(error):
                self._say(document, State.UNRESPONSIVE, f"it cannot be asked: {error}")
            else:
                self._say(document, State.ENDED, str(error))
                self._act(self.name, None)
            return _PAUSE
        finally:
            self._talk = None
        return _PAUSE

    def _settle(self) -> None:
        """The row is true, unless another look was asked for meanwhile."""
        if self._free and self._looked == self._wanted:
            self.settled.set()

    def _say_first(self) -> None:
        """Somebody works on it already when it is first seen. QEMU cannot be asked: is there one, it is busy.

        One that has no run is stopped until somebody begins one: whoever makes it holds its lock a moment longer.
        """
        with suppress(RecordError, OSError):
            document = load(self._paths.document)
            is_stopped = document.runtime is None and document.pending is None
            self._say(document, at_rest(document) if is_stopped else State.BUSY)

    async def _restart_later(self, due: Restart) -> float | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_left(due)):
                await self._again.wait()
                return 0
        self._act(self.name, due)
        return _PAUSE

    async def _stay(self, document: Document) -> None:
        """Hold its control socket, and say what it does, until it has come to an end, or its document is another."""
        # where nobody listens any more, the run has ended: one that is starting listens before its QEMU is there
        path, pid = self._paths.socket("control"), document.runtime.pid if document.runtime is not None else None
        async with AsyncQmpConnection(reach(path), timeout=ANSWER_TIMEOUT, pid=pid) as vm:
            events = vm.events(*_TELLING)  # before it is asked, so that nothing comes in between
            event: Event | None = None
            try:
                while True:
                    state, detail = await self._ask(vm)
                    self.vm = vm
                    self._say(document, settled(document, state), detail)
                    self._settle()
                    if event is not None and event.timestamp > 0:
                        self._timed(Timing.EVENT_LAG, max(0.0, time.time() - event.timestamp))
                    if state in ENDED_BY_GUEST:
                        self._act(self.name, None)
                    event = await self._next(events)
                    if self._looked != self._wanted and not self._is_still(document):
                        return
            finally:
                self.vm = None  # before it is closed: who asks on a closed one would connect it anew

    async def _next(self, events: AsyncEventIterator) -> Event | None:
        """The next event; None when it was silent for long, or another look is wanted."""
        try:
            async with asyncio.timeout(HEARTBEAT if self._looked == self._wanted else 0) as self._rest:
                return await anext(events)
        except TimeoutError:
            return None
        finally:
            self._rest = None

    def _is_still(self, document: Document) -> bool:
        """Another look was asked for: whether it is at the same document. Then the socket is kept.

        It is where its lock was closed by who did not hold it, or the look is one too many. Anew it would be deaf for
        a moment.
        """
        try:
            if load(self._paths.document) != document:
                return False
        except (RecordError, OSError):  # what is wrong with it is said by who reads it next
            return False
        self._looked = self._wanted
        self._again.clear()
        return True

    async def _ask(self, vm: AsyncQmpConnection) -> tuple[State, str]:
        asked = time.monotonic()
        told = await ask_state(vm)
        self.round_trip = time.monotonic() - asked
        self._timed(Timing.ROUND_TRIP, self.round_trip)
        return told

    def _say(self, document: Document, state: State, detail: str = "") -> None:
        self._tell(summarised(self.name, document, state, self._since(state), detail))

    def _unreadable(self, why: str) -> Summary:
        """Its row where its document cannot be read: with what was known of it."""
        since = self._since(State.UNKNOWN)
        if self.summary is None:
            return unreadable(self.name, why, since)
        return structs.replace(self.summary, state=State.UNKNOWN, since=since, detail=why)

    def _since(self, state: State) -> float:
        return self.summary.since if self.summary is not None and self.summary.state is state else time.time()

    def _tell(self, summary: Summary) -> None:
        if summary != self.summary:
            self.summary = summary
            self._changed(self.name, summary)


def is_ours(error: BaseException | None) -> bool:
    """Whether an error comes of what this process has not: descriptors, or memory."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OURS:
            return True
        error = error.__cause__
    return False
