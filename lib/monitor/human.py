"""The human monitor (HMP) in four classes: as a text socket or through QMP, blocking or on asyncio; one set of verbs.

The text socket's bytes are moved by the links that serve QMP: an
:class:`~drover.qmp.hmp.HmpSession` has the members by which a link drives a session.
"""

import asyncio
import os
import re
import secrets
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

from ..errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from ..ops import human
from ..ops.human import HumanPort, QmpHumanPort, line_timeout
from ..ops.port import DEFAULT, Port, Timeout
from ..qmp.framing import DEFAULT_LIMIT
from ..qmp.hmp import HmpSession
from ..qmp.session import QmpSession
from ..qmp.timeouts import DEFAULT_TIMEOUT
from .aio import AsyncLink, AsyncQmpConnection, suspend_until_ready
from .connection import BlockingLink, QmpConnection
from .drive import drive
from .link import Link
from .socket import Address, Wire, describe, open_wire, sleep, tls_of
from .verbs import AsyncFace, BlockingFace, verb
from .wire import Ready, block_until_ready

if TYPE_CHECKING:
    import ssl

P = ParamSpec("P")
T = TypeVar("T")
HumanFlow = Callable[Concatenate[HumanPort, P], Coroutine[Any, Any, T]]

# Bytes, each typed as two digits: no guest guesses 32 bits that it never sees. No more, as each digit that is
# typed costs QEMU a turn of its main loop; so many cost less than 0.1 ms.
MARK_SIZE: Final = 4
_VERSION: Final = re.compile(r"^QEMU (\d+)\.(\d+)\.(\d+)", re.MULTILINE)


class human_verb(verb[P, T]):
    """Makes a method of both faces from a flow on a :class:`~drover.ops.human.HumanPort`."""

    def __init__(self, flow: HumanFlow[P, T]) -> None:
        super().__init__(cast(Any, flow))  # which port it is, only the face's `_run` knows


class HumanVerbs:
    """All verbs of a human monitor; the faces inherit them."""

    cmd = human_verb(human.cmd)
    info = human_verb(human.info)
    help = human_verb(human.help_text)

    status = human_verb(human.status)
    stop = human_verb(human.stop)
    cont = human_verb(human.cont)
    system_reset = human_verb(human.system_reset)
    system_powerdown = human_verb(human.system_powerdown)
    quit = human_verb(human.quit_machine)

    sendkey = human_verb(human.sendkey)
    mouse_move = human_verb(human.mouse_move)
    mouse_button = human_verb(human.mouse_button)
    screendump = human_verb(human.screendump)

    set_link = human_verb(human.set_link)
    balloon = human_verb(human.balloon)
    getfd = human_verb(human.getfd)

    migrate = human_verb(human.migrate)
    migrate_cancel = human_verb(human.migrate_cancel)
    migrate_status = human_verb(human.migrate_status)
    wait_migration = human_verb(human.wait_migration)


# -- the text socket ---------------------------------------------------------


class TextMonitor(HumanVerbs):
    """A human monitor's text socket, before it is said how to wait.

    :param address: see :mod:`drover.monitor.address`; a connected socket or its descriptor is taken over
    :param timeout: seconds for connecting, and for each command that is not slow by nature; None waits for ever
    :param limit: longest output that is accepted, in bytes
    :param tls: secures the connection; its protocol is that of a client
    :param server_hostname: whose certificate the peer must show; None takes the address's host
    :raises ArgumentError: it is no address, or no way to secure it
    :ivar banner: what QEMU said before its first prompt
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        limit: int = DEFAULT_LIMIT,
        tls: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.banner = ""
        self._tls = tls_of(address, tls, server_hostname)
        self._limit = limit
        self._link: Link | None = None
        self._guard = threading.Lock()  # of the two below
        self._borrowers = 0
        self._temporary = False
        self._port = self._make_port()
        self._lock = self._make_lock()

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version by its banner, such as ``(7, 2, 22)``; (0, 0, 0) before, or where it told none."""
        found = _VERSION.search(self.banner)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)

    def is_connected(self) -> bool:
        """Whether there is a connection, and it has not ended as far as is known."""
        link = self._link
        return link is not None and link.session.fault is None

    @abstractmethod
    def _make_port(self) -> "TextPort":
        """How this face waits."""

    @abstractmethod
    def _make_link(self, wire: Wire, session: QmpSession) -> Link:
        """How this face moves bytes."""

    @abstractmethod
    def _make_lock(self) -> Callable[[], AbstractAsyncContextManager[object]]:
        """What gives a lock to hold: one connect at a time."""

    async def _connect(self, timeout: float | None) -> None:
        async with self._lock():
            if self._link is not None and self._link.session.fault is not None:
                self._disconnect()
            if self._link is None:
                await self._establish(self.timeout if timeout is None else timeout)
            self._temporary = False

    async def _establish(self, timeout: float | None) -> None:
        port = self._port
        deadline = None if timeout is None else port.now() + timeout
        wire = await open_wire(self.address, timeout, port.sleep, port.now, port.ready, self._tls)
        session = HmpSession(secrets.token_hex(MARK_SIZE).encode(), self._limit)
        data, _ = session.outbox[0]
        if count := wire.send(data):  # at once: a link that is only made now would wait for the banner first
            session.sent(count)
        # a link uses what both kinds of session have
        link = self._make_link(wire, cast(QmpSession, session))
        self._link = link
        try:
            remaining = None if deadline is None else max(0.0, deadline - port.now())
            if not await link.wait(session.greeted, remaining):
                reason = f"no prompt within {timeout:g} s: another client may hold this monitor, or QEMU hangs"
                raise ConnectTimeout(describe(self.address), reason, timeout)
            self.banner = session.greeted.outcome()
        except BaseException as error:
            self._link = None
            link.close(ConnectionClosed("connecting failed"))
            if isinstance(error, ConnectionClosed):
                raise ConnectError(describe(self.address), wire.fault or error.reason) from error
            raise

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(ConnectionClosed("closed by this side"))

    async def _with_port(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        """Run `flow`, with a connection for this call only, and for those that come meanwhile, if there was none."""
        if self._link is not None and not self._temporary:
            return await flow(self._port, *args, **kwargs)
        async with self._lock():
            if self._link is None:
                await self._establish(self.timeout)
                self._temporary = True
            with self._guard:
                self._borrowers += 1
        try:
            return await flow(self._port, *args, **kwargs)
        finally:
            with self._guard:
                self._borrowers -= 1
                if not self._borrowers and self._temporary:
                    self._temporary = False
                    self._disconnect()


class TextPort(HumanPort):
    """What the ports of both faces of a text socket share."""

    ready: Ready

    def __init__(self, face: TextMonitor) -> None:
        self._face = face

    def _link(self) -> Link:
        link = self._face._link
        if link is None:
            raise ConnectionClosed(f"not connected to {describe(self._face.address)}")
        return link

    async def run(self, line: str, timeout: Timeout = DEFAULT, fd: int | None = None) -> str:
        limit = line_timeout(line, self._face.timeout) if timeout is DEFAULT else timeout
        link = self._link()
        if fd is not None:
            _check_open(fd)
            link.wire.check_descriptors()
        call = link.submit(line, None, fd, False)
        try:
            if not await link.wait(call, limit):
                raise MonitorTimeout(call.command, limit)
            output: str = call.outcome()
            return output
        finally:
            if not call.done:
                link.abandon(call)

    async def wait_closed(self, timeout: float | None) -> None:
        link = self._face._link
        if link is not None and not await link.wait(link.session.ended, timeout):
            raise MonitorTimeout("the end of the connection", timeout)


def _check_open(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:  # else it would fail where the line is sent, and stay the next to be sent
        raise ArgumentError("fd", fd, f"an open descriptor ({error.strerror})") from error


class _BlockingTextPort(TextPort):
    ready = staticmethod(block_until_ready)

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await sleep(seconds)


class _AsyncTextPort(TextPort):
    ready = staticmethod(suspend_until_ready)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _held(lock: threading.Lock) -> AsyncIterator[None]:
    with lock:
        yield


class HumanMonitor(TextMonitor, BlockingFace):
    """A human monitor's text socket (``-monitor unix:…``) for blocking code; threads may share one.

    ::

        with HumanMonitor("/run/vm/demo.hmp") as hmp:
            print(hmp.info("block"))
            hmp.sendkey("ctrl-alt-delete", hold=200)

    Commands run one after another, in the order in which they were given. A verb that is used
    unconnected connects for the call and closes after it. After the connection was lost, verbs raise
    :class:`~drover.errors.ConnectionClosed` until :meth:`close` or :meth:`connect` is called.
    Parameters are those of :class:`TextMonitor`.
    """

    def connect(self, timeout: float | None = None) -> None:
        """Connect and wait for the first prompt; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there, or QEMU ended meanwhile
        :raises ConnectTimeout: the prompt did not come in time: another client may hold the monitor
        :raises ProtocolError: what answers is no human monitor
        """
        drive(self._connect(timeout))

    def close(self) -> None:
        """Close the connection; whoever waits on it gets :class:`~drover.errors.ConnectionClosed`."""
        self._disconnect()

    def _make_port(self) -> TextPort:
        return _BlockingTextPort(self)

    def _make_link(self, wire: Wire, session: QmpSession) -> Link:
        return BlockingLink(wire, session)

    def _make_lock(self) -> Callable[[], AbstractAsyncContextManager[object]]:
        return partial(_held, threading.Lock())

    def _run(self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        return drive(self._with_port(flow, args, kwargs))

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncHumanMonitor(TextMonitor, AsyncFace):
    """A human monitor's text socket on asyncio; the same verbs as coroutines.

    A cancelled call that was sent keeps the monitor until its output has come and was dropped.
    Parameters are those of :class:`TextMonitor`.
    """

    async def connect(self, timeout: float | None = None) -> None:
        """Connect and wait for the first prompt; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there, or QEMU ended meanwhile
        :raises ConnectTimeout: the prompt did not come in time: another client may hold the monitor
        :raises ProtocolError: what answers is no human monitor
        """
        await self._connect(timeout)

    async def close(self) -> None:
        """Close the connection; whoever waits on it gets :class:`~drover.errors.ConnectionClosed`."""
        self._disconnect()

    def _make_port(self) -> TextPort:
        return _AsyncTextPort(self)

    def _make_link(self, wire: Wire, session: QmpSession) -> Link:
        return AsyncLink(wire, session)

    def _make_lock(self) -> Callable[[], AbstractAsyncContextManager[object]]:
        lock = asyncio.Lock()
        return lambda: lock

    async def _run_async(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        return await self._with_port(flow, args, kwargs)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# -- through QMP -------------------------------------------------------------


class QmpHumanMonitor(HumanVerbs, BlockingFace):
    """The verbs of :class:`HumanMonitor` on a machine that has only a QMP monitor (``human-monitor-command``).

    It has no connection of its own. What HMP keeps for each monitor (``cpu N``, descriptors) lasts
    only as long as one line here.

    :param connection: connected or not; it stays yours to close
    """

    def __init__(self, connection: QmpConnection) -> None:
        self.connection = connection

    def _run(self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        return self.connection._run(_through_qmp(flow, self.connection.timeout), args, kwargs)


class AsyncQmpHumanMonitor(HumanVerbs, AsyncFace):
    """The same on asyncio.

    :param connection: connected or not; it stays yours to close
    """

    def __init__(self, connection: AsyncQmpConnection) -> None:
        self.connection = connection

    async def _run_async(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        return await self.connection._run_async(_through_qmp(flow, self.connection.timeout), args, kwargs)


def _through_qmp(
    flow: Callable[..., Coroutine[Any, Any, T]], default: float | None
) -> Callable[..., Coroutine[Any, Any, T]]:
    """`flow`, which takes a human monitor's port, as one that takes a QMP monitor's."""

    def on_qmp(port: Port, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        return flow(QmpHumanPort(port, default), *args, **kwargs)

    return on_qmp
