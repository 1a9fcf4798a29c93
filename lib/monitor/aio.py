"""The asyncio face: the same verbs as coroutines, on a socket and reader of its own.

It uses the loop's ``add_reader`` on a non-blocking socket instead of a transport: that
costs less for each command, and a transport cannot carry descriptors.
"""

import asyncio
import select
import socket
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Self, TypeVar

from ..errors import ConnectionClosed
from ..ops.port import Arguments
from ..qmp.events import EventStream, Waitable
from ..qmp.life import Call
from ..qmp.messages import Event
from ..qmp.session import QmpSession
from .base import EventTap, FacePort, QmpMonitor
from .life import Life, Waits
from .link import Link, S
from .listener import Listener
from .socket import Wire
from .verbs import AsyncFace

T = TypeVar("T")

# Some loops count timers in milliseconds, and may ring one so much too early.
TICK: Final = 0.001


class _Doze(asyncio.Future[None]):
    """What a task waits by for what is read: it goes on within the turn of the loop that has read it.

    A future has its task go on in the loop's next turn, which is one more system call, and a third of what a call
    costs beside QEMU. What a task waits by is asked for one callback, its own, in its own context.
    """

    link: "AsyncLink[Any]"  # set by who makes it: a function for that would cost as much as all of the future
    resume: Callable[[Any], object] | None = None
    context: Context | None = None

    def add_done_callback(self, fn: Callable[[Self], object], /, *, context: Context | None = None) -> None:
        if self.resume is None and context is not None and not self.done():
            self.resume, self.context = fn, context
        else:
            super().add_done_callback(fn, context=context)

    def remove_done_callback(self, fn: Callable[[Self], object], /) -> int:
        if self.resume is None or self.resume != fn:
            return super().remove_done_callback(fn)
        self.resume = None
        return 1

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._resume_later()
        return cancelled

    def wake(self) -> None:
        """It is over: now if this comes of what was read, else in the loop's next turn, for a task may run now."""
        if self.link.woken is not None:
            self.link.woken.append(self)
        else:
            self.end()

    def end(self) -> None:
        """It is over, in the loop's next turn."""
        if not self.done():
            self.set_result(None)
            self._resume_later()

    def end_now(self) -> None:
        """It is over; no task may be running now."""
        if not self.done():
            self.set_result(None)
            if self.resume is not None and self.context is not None:
                self.context.run(self.resume, self)

    def _resume_later(self) -> None:
        if self.resume is not None:
            self.get_loop().call_soon(self.resume, self, context=self.context)


class AsyncLink(Link[S]):
    """One connection on one event loop.

    :ivar woken: while what was read is taken in: who goes on after that
    """

    woken: list[_Doze] | None = None

    def __init__(self, wire: Wire, session: S) -> None:
        super().__init__(wire, session)
        self.loop = asyncio.get_running_loop()
        # which is all that asyncio's own loops do, by a function in Python
        own = type(self.loop).time is not asyncio.BaseEventLoop.time
        self._time = self.loop.time if own else time.monotonic
        self._writing = False
        self._deadlines: dict[_Doze, float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._flush: asyncio.Handle | None = None
        self.loop.add_reader(wire.fileno(), self._on_readable)
        if wire.pending:
            self.loop.call_soon(self._on_readable)

    def submit(self, command: str, arguments: Arguments | None, fd: int | None, oob: bool) -> Call:
        """Send a command: at once if it is alone, else with others of this turn of the loop, which is one system call.

        Each call of the system costs as much as all that is done for a command here, and QEMU wakes up for each.
        """
        call = self.session.submit(command, arguments, fd, oob)
        if self.session.busy and not oob:
            if self._flush is None:
                self._flush = self.loop.call_soon(self._send_together)
        elif self.session.outbox:
            self._send_some()
        return call

    def _send_together(self) -> None:
        self._flush = None
        self._send_some()

    def _send_some(self) -> None:
        super()._send_some()
        waiting = bool(self.session.outbox)
        if waiting != self._writing and not self._closed:
            self._writing = waiting
            if waiting:
                self.loop.add_writer(self.wire.fileno(), self._send_some)
            else:
                self.loop.remove_writer(self.wire.fileno())

    def _on_readable(self) -> None:
        """What the loop calls, which no task is running in; those who have waited for what is read go on in here."""
        woken: list[_Doze] = []
        self.woken = woken
        try:
            self._read_some()
        finally:
            self.woken = None
            try:
                while woken:
                    woken.pop(0).end_now()
            finally:
                for doze in woken:  # a task was ended by Ctrl-C
                    doze.end()

    def _read_some(self) -> None:
        data = self.wire.receive()
        if data:
            self.session.receive(data)
        else:
            self._take_in(data)
        if self.session.fault is not None:
            self._shut()
        elif self.session.outbox:
            self._send_some()

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        for handle in (self._alarm, self._flush):
            if handle is not None:
                handle.cancel()
        if not self.loop.is_closed():
            self.loop.remove_reader(self.wire.fileno())
            self.loop.remove_writer(self.wire.fileno())
        self.wire.hang_up()
        self.wire.close()

    def notice(self) -> None:
        while not self._closed and self.wire.is_hung_up():
            self._read_some()

    def close(self, reason: ConnectionClosed) -> None:
        self.session.close(reason)
        self._shut()

    async def wait(self, awaited: Waitable | EventStream, timeout: float | None) -> bool:
        """Wait until `awaited` is done; False if it is not after `timeout` seconds."""
        if awaited.done:
            return True
        doze = _Doze(loop=self.loop)
        doze.link = self
        awaited.notify = doze.wake
        if timeout is not None:
            self._set_deadline(doze, timeout)
        try:
            await doze
        finally:
            awaited.notify = None
            if timeout is not None:
                del self._deadlines[doze]
        return awaited.done

    # One timer for all waits, set for the earliest deadline and not for each call: nearly all
    # calls end long before theirs, and a timer set and cancelled costs a tenth of a call.

    def _set_deadline(self, doze: _Doze, timeout: float) -> None:
        deadline = self._time() + timeout
        self._deadlines[doze] = deadline
        if self._alarm is None or deadline < self._alarm.when():
            self._set_alarm(deadline)

    def rest(self) -> None:
        if self._alarm is not None and not self._deadlines:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self.loop.time() + TICK
        for doze, deadline in self._deadlines.items():
            if deadline <= now:
                doze.end()
        later = [deadline for deadline in self._deadlines.values() if deadline > now]
        if later:
            self._set_alarm(min(later))


async def suspend_until_ready(fd: int, event: int, timeout: float | None) -> bool:
    """Suspend until `fd` is ready for `event`: a :data:`~drover.monitor.wire.Ready` for asyncio."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    reading = event == select.POLLIN
    (loop.add_reader if reading else loop.add_writer)(fd, wake)
    try:
        done, _ = await asyncio.wait([future], timeout=timeout)
    finally:
        (loop.remove_reader if reading else loop.remove_writer)(fd)
    return bool(done)


class AsyncWaits(Waits):
    """What a port on asyncio waits by."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def ready(self, fd: int, event: int, timeout: float | None) -> bool:
        return await suspend_until_ready(fd, event, timeout)

    async def offload(self, function: Callable[[], T], dispose: Callable[[T], None] | None = None) -> T:
        future = asyncio.get_running_loop().run_in_executor(None, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if dispose is not None:
                future.add_done_callback(lambda done: _dispose(done, dispose))
            raise

    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        """Run a flow to its end, also when the caller is cancelled meanwhile; the cancel takes hold after it."""
        task = asyncio.ensure_future(flow)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
            except BaseException:  # the flow's own: raised below, after a cancel that came meanwhile
                break
        if cancelled is not None and not task.cancelled():
            task.exception()  # seen, though the cancel wins
            raise cancelled
        return task.result()


def _dispose(done: "asyncio.Future[T]", dispose: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        dispose(done.result())


class AsyncLife(Life[S], AsyncFace):
    """A monitor on asyncio (any event loop that has ``add_reader``)."""

    async def connect(self, timeout: float | None = None) -> None:
        """Connect, and wait until the peer has greeted; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there, or QEMU ended meanwhile
        :raises ConnectTimeout: the greeting did not come in time: another client may hold the monitor
        :raises ProtocolError: what answers is no such monitor
        """
        await self._connect(timeout)

    async def close(self) -> None:
        """Close the connection; whoever waits on it gets :class:`~drover.errors.ConnectionClosed`."""
        self._disconnect()

    def _make_gate(self) -> asyncio.Lock:
        return asyncio.Lock()

    def _make_link(self, wire: Wire, session: S) -> AsyncLink[S]:
        return AsyncLink(wire, session)

    def _run_async(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, T]:
        if self._link is None or self._temporary or (self._reconnect is not None and self._is_lost()):
            return self._ensured(flow, args, kwargs)
        return flow(self._port, *args, **kwargs)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncPort(AsyncWaits, FacePort):
    """The port of a QMP monitor on asyncio."""


class AsyncQmpConnection(AsyncLife[QmpSession], QmpMonitor):
    """A QMP monitor on asyncio (any event loop that has ``add_reader``).

    ::

        async with AsyncQmpConnection("/run/vm/demo.qmp") as vm:
            await vm.execute("query-status")
            async for event in vm.events("STOP", "RESUME"):
                ...

    A verb that is used unconnected connects for the call and closes after it. A cancelled
    call that was sent keeps its place in flight until its reply has come and was dropped.
    Parameters are those of :class:`~drover.monitor.base.QmpMonitor`.
    """

    def events(self, *names: str, since: int | None = None, timeout: float | None = None) -> "AsyncEventIterator":
        """Iterate over events as they come; ends with :class:`~drover.errors.ConnectionClosed` when QEMU goes.

        :param names: which; none means all
        :param since: from this event number on, as far as the log goes back; None means from now on
        :param timeout: seconds to wait for each; None waits for ever
        """
        return AsyncEventIterator(self, names, since, timeout)

    def _make_port(self) -> AsyncPort:
        return AsyncPort(self)


class AsyncEventIterator(EventTap):
    """Events as they come, for ``async for``."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return self._stream.take() or await self._next()


class AsyncMonitorListener(AsyncWaits, Listener[AsyncQmpConnection]):
    """Listens for a QEMU that dials us (``-qmp unix:PATH,server=off``), on asyncio.

    ::

        async with AsyncMonitorListener("/run/vm/demo.qmp") as listener:
            await start_qemu("-qmp", f"unix:{listener.address},server=off")
            async with await listener.accept(timeout=30) as vm:
                await vm.cont()

    Closing it leaves the connection that it handed out as it is. Parameters are those of
    :class:`~drover.monitor.listener.Listener`.
    """

    async def listen(self) -> None:
        """Listen, if it does not; entering the object as a context does this.

        Call it again after a client's end where the next one may dial before :meth:`accept` is called.

        :raises ConnectError: somebody else listens there, the address is not ours, or a client is connected
        """
        await self._listen()

    async def accept(self, timeout: float | None = None) -> AsyncQmpConnection:
        """Wait for QEMU, greet and negotiate. While the connection lasts, other clients are refused.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: the connection of before is still there
        :raises ConnectTimeout: no QEMU dialled and greeted in time
        :raises ConnectionClosed: this is not listening, or was closed meanwhile
        """
        return await self._accept(timeout)

    async def close(self) -> None:
        """Stop listening, and remove the socket's file if it is still ours. Another task's accept ends."""
        self._close()

    def _make_monitor(self, sock: socket.socket) -> AsyncQmpConnection:
        return AsyncQmpConnection(sock, timeout=self.timeout, **self._options)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
