"""The blocking face: a QMP monitor for any number of threads, with none of its own.

Whoever waits first reads the socket, for everybody: it leads. The others follow: each
sleeps until what it waits for is there, or until the leader has got what it wanted and
one of them must lead on. So a thread that waits a minute for an event holds up nobody.
"""

import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self, TypeVar

from ..errors import ConnectionClosed
from ..qmp.events import EventStream, Waitable
from ..qmp.messages import Event
from ..qmp.session import QmpSession
from .base import EventTap, FacePort, QmpMonitor
from .drive import drive, suspended
from .interrupt import interrupt_later
from .life import Life, Waits
from .link import Link, S
from .socket import MonitorSocket, Wire
from .verbs import BlockingFace
from .wire import block_until_ready

T = TypeVar("T")


class _Follower:
    """A thread that sleeps while another one reads for it."""

    def __init__(self, awaited: Waitable | EventStream) -> None:
        self.awaited = awaited
        self._gate = threading.Lock()
        self._gate.acquire()

    def sleep(self, timeout: float | None) -> bool:
        """Sleep until :meth:`wake`; False after `timeout` seconds."""
        return self._gate.acquire(timeout=-1 if timeout is None else timeout)

    def wake(self) -> None:
        """Let the thread go on; waking it twice is waking it once. The link's lock must be held."""
        if self._gate.locked():
            self._gate.release()


class BlockingLink(Link[S]):
    """One connection, its lock, and the roles of the threads that wait on it."""

    def __init__(self, wire: Wire, session: S) -> None:
        super().__init__(wire, session)
        self._leading = False
        self._followers: list[_Follower] = []

    async def wait(self, awaited: Waitable | EventStream, timeout: float | None) -> bool:
        """Block until `awaited` is done; False if it is not after `timeout` seconds. Never suspends."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            try:
                while not awaited.done:
                    if not (self._stand_by(awaited, timeout) if self._leading else self._lead(timeout)):
                        return awaited.done
                    if deadline is not None and not awaited.done:
                        timeout = deadline - time.monotonic()
                        if timeout <= 0:
                            return False
            finally:
                if self._followers and not self._leading:
                    self._followers[0].wake()
        return True

    def _stand_by(self, awaited: Waitable | EventStream, timeout: float | None) -> bool:
        """Wait while another thread reads."""
        if self.session.outbox:
            return self._push(timeout)
        return self._follow(awaited, timeout)

    def _lead(self, timeout: float | None) -> bool:
        """Read once, for everybody; False if nothing came in time."""
        wire, sending = self.wire, bool(self.session.outbox)
        data: bytes | None = None
        self._leading = True
        self._lock.release()
        try:
            if sending:
                ready = wire.wait_writable(timeout, True)
                if ready:
                    data = wire.receive()
            else:
                data = wire.read(timeout)
                ready = data is not None
        finally:
            self._lock.acquire()
            self._leading = False
            if self._closed:
                wire.close()
        if ready and not self._closed:
            if data:
                self.session.receive(data)
            else:
                self._take_in(data)
            if self._followers or self.session.outbox or self.session.fault is not None:
                self._after_reading()
        return ready

    def _follow(self, awaited: Waitable | EventStream, timeout: float | None) -> bool:
        follower = _Follower(awaited)
        self._followers.append(follower)
        self._lock.release()
        try:
            return follower.sleep(timeout)
        finally:
            self._lock.acquire()
            self._followers.remove(follower)

    def _push(self, timeout: float | None) -> bool:
        """Send on while another thread reads."""
        self._lock.release()
        try:
            ready = self.wire.wait_writable(timeout)
        finally:
            self._lock.acquire()
        self._send_some()
        return ready

    def _after_reading(self) -> None:
        if self.session.fault is not None:
            self.wire.hang_up()
        elif self.session.outbox:
            self._send_some()
        for follower in self._followers:
            if follower.awaited.done:
                follower.wake()

    def notice(self) -> None:
        with self._lock:
            if self._leading or self._closed or not self.wire.is_hung_up():
                return
            while self.session.fault is None and (data := self.wire.receive()) is not None:
                self._take_in(data)
            self._after_reading()

    def close(self, reason: ConnectionClosed) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.session.close(reason)
            self.wire.hang_up()
            if not self._leading:  # else the leader, which may be reading right now, does it
                self.wire.close()
            for follower in self._followers:
                follower.wake()


class BlockingWaits(Waits):
    """What a port waits by, where its awaits block the caller's thread and never suspend."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def ready(self, fd: int, event: int, timeout: float | None) -> bool:
        return await block_until_ready(fd, event, timeout)

    async def offload(self, function: Callable[[], T], dispose: Callable[[T], None] | None = None) -> T:
        return function()

    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        with interrupt_later():
            return await flow


class _ThreadGate:
    """A lock in the shape in which the faces' common code takes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class BlockingLife(Life[S], BlockingFace):
    """A monitor for blocking code; any number of threads may share one."""

    def connect(self, timeout: float | None = None) -> None:
        """Connect, and wait until the peer has greeted; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there, or QEMU ended meanwhile
        :raises ConnectTimeout: the greeting did not come in time: another client may hold the monitor
        :raises ProtocolError: what answers is no such monitor
        """
        drive(self._connect(timeout))

    def close(self) -> None:
        """Close the connection; whoever waits on it gets :class:`~drover.errors.ConnectionClosed`."""
        self._disconnect()

    def _make_gate(self) -> _ThreadGate:
        return _ThreadGate()

    def _make_link(self, wire: Wire, session: S) -> BlockingLink[S]:
        return BlockingLink(wire, session)

    def _run(self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        if self._link is None or self._temporary or (self._reconnect is not None and self._is_lost()):
            return drive(self._ensured(flow, args, kwargs))
        run = flow(self._port, *args, **kwargs)
        try:
            run.send(None)  # as `drive` does, which would be one more call for each command
        except StopIteration as end:
            result: T = end.value
            return result
        raise suspended(run)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingPort(BlockingWaits, FacePort):
    """The port of a QMP monitor whose awaits block."""


class QmpConnection(BlockingLife[QmpSession], QmpMonitor, MonitorSocket):
    """A QMP monitor for blocking code; any number of threads may share one.

    ::

        with QmpConnection("/run/vm/demo.qmp") as vm:
            mark = vm.event_mark()
            vm.execute("stop")
            vm.wait_event("STOP", since=mark, timeout=5)

    A verb that is used unconnected connects for the call and closes after it. After the
    connection was lost, verbs raise :class:`~drover.errors.ConnectionClosed` until
    :meth:`close` or :meth:`connect` is called, unless `reconnect` says otherwise.
    Parameters are those of :class:`~drover.monitor.base.QmpMonitor`.
    """

    def events(self, *names: str, since: int | None = None, timeout: float | None = None) -> "EventIterator":
        """Iterate over events as they come; ends with :class:`~drover.errors.ConnectionClosed` when QEMU goes.

        :param names: which; none means all
        :param since: from this event number on, as far as the log goes back; None means from now on
        :param timeout: seconds to wait for each; None waits for ever
        """
        return EventIterator(self, names, since, timeout)

    def _make_port(self) -> BlockingPort:
        return BlockingPort(self)

    def _connected(self) -> Wire:
        return self._port.link.wire

    def _require_known(self) -> Link[QmpSession]:
        if self._known is None:
            drive(self._ensured(_nothing, (), {}))
        return super()._require_known()


async def _nothing(port: object) -> None:
    """Only connect."""


class EventIterator(EventTap):
    """Events as they come, for ``for``."""

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._stream.take() or drive(self._next())
