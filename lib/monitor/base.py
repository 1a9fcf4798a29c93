"""What both faces of a QMP monitor share: options, one connection after another, and what is known of QEMU."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from ..ops.port import DEFAULT, Arguments, Port, Timeout
from ..ops.slots import Reservations
from ..qmp.events import DEFAULT_LOG_SIZE, EventLog, Match
from ..qmp.framing import DEFAULT_LIMIT
from ..qmp.messages import Event
from ..qmp.schema import Schema
from ..qmp.session import Call, QmpSession
from ..qmp.timeouts import DEFAULT_TIMEOUT, command_timeout
from .discovery import knowledge_of
from .link import Link
from .socket import Address, Wire, describe, open_wire, tls_of
from .verbs import Verbs

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class QmpMonitor(Verbs):
    """A QMP monitor, before it is said how to wait.

    :param address: see :mod:`drover.monitor.address`; a connected socket or its descriptor is taken over
    :param timeout: seconds for connecting, greeting included, and for each command that is not slow
        by nature (:mod:`drover.qmp.timeouts`); None waits for ever
    :param limit: longest message that is accepted, in bytes
    :param oob: negotiate out-of-band execution where QEMU offers it
    :param log_size: how many events are kept
    :param share_discovery: ask each QEMU build only once what it can do, and not for each connection
    :param tls: secures the connection; its protocol is that of a client
    :param server_hostname: whose certificate the peer must show; None takes the address's host
    :raises ArgumentError: it is no address, or no way to secure it
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        limit: int = DEFAULT_LIMIT,
        oob: bool = True,
        log_size: int = DEFAULT_LOG_SIZE,
        share_discovery: bool = True,
        tls: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.event_log = EventLog(log_size)
        self.reservations = Reservations()
        self._tls = tls_of(address, tls, server_hostname)
        self._limit = limit
        self._oob = oob
        self._share_discovery = share_discovery
        self._link: Link | None = None
        self._known: Link | None = None  # the last link that was ready: what it told stays true
        self._guard = threading.Lock()  # of the two below
        self._borrowers = 0
        self._temporary = False
        self._port = self._make_port()
        self._gate = self._make_gate()

    # -- what each face says ---------------------------------------------

    @abstractmethod
    def _make_port(self) -> "FacePort":
        """How this face waits."""

    @abstractmethod
    def _make_gate(self) -> AbstractAsyncContextManager[object]:
        """A lock: one connect at a time."""

    @abstractmethod
    def _make_link(self, wire: Wire, session: QmpSession) -> Link:
        """How this face moves bytes."""

    # -- what is known ---------------------------------------------------

    def is_connected(self) -> bool:
        """Whether there is a connection, and it has not ended as far as is known."""
        link = self._link
        return link is not None and link.session.fault is None

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version, such as ``(7, 2, 22)``."""
        return self._require_known().session.version

    @property
    def package(self) -> str:
        """What QEMU's distributor says of this build."""
        greeting = self._require_known().session.greeting
        return "" if greeting is None else greeting.version.package

    @property
    def supported_commands(self) -> frozenset[str]:
        """Names of all commands that this QEMU has."""
        return self._require_known().knowledge.commands or frozenset()

    def event_mark(self) -> int:
        """Number of the newest event: take it before you act, then wait `since` it."""
        return self.event_log.mark()

    def _require_known(self) -> Link:
        if self._known is None:
            raise ConnectionClosed(f"never connected to {describe(self.address)}")
        return self._known

    # -- connecting ------------------------------------------------------

    async def _connect(self, timeout: float | None) -> None:
        """Connect if nobody has; a connection that was only borrowed is ours from here on."""
        async with self._gate:
            if self._link is not None and self._link.session.fault is not None:
                self._disconnect()
            if self._link is None:
                await self._establish(self.timeout if timeout is None else timeout)
            self._temporary = False

    async def _establish(self, timeout: float | None) -> None:
        port = self._port
        deadline = None if timeout is None else port.now() + timeout
        wire = await open_wire(self.address, timeout, port.sleep, port.now, port.ready, self._tls)
        link = self._make_link(wire, QmpSession(self.event_log, self._limit, self._oob))
        self._link = link
        try:
            await self._greet(link, deadline, timeout)
            await port.supported_commands()
        except BaseException:
            self._link = None
            link.close(ConnectionClosed("connecting failed"))
            raise
        self._known = link

    async def _greet(self, link: Link, deadline: float | None, timeout: float | None) -> None:
        remaining = None if deadline is None else max(0.0, deadline - self._port.now())
        where = describe(self.address)
        try:
            await self._port.result(link.session.negotiation, remaining)
        except MonitorTimeout:
            reason = f"no greeting within {timeout:g} s: another client may hold this monitor, or QEMU hangs"
            raise ConnectTimeout(where, reason, timeout) from None
        except ConnectionClosed as error:
            raise ConnectError(where, link.wire.fault or error.reason) from error
        greeting = link.session.greeting
        if self._share_discovery and greeting is not None:
            link.knowledge = knowledge_of(greeting, link.wire)

    def _disconnect(self, reason: str = "closed by this side") -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(ConnectionClosed(reason))

    async def _ensured(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        """Run `flow` with a connection: for this call only, and for those that come meanwhile, if there was none."""
        async with self._gate:
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


class FacePort(Port):
    """What the ports of both faces share."""

    def __init__(self, face: QmpMonitor) -> None:
        self._face = face
        self.reservations = face.reservations

    @property
    def version(self) -> tuple[int, int, int]:
        return self.link.session.version

    @property
    def link(self) -> Link:
        """The connection.

        :raises ConnectionClosed: there is none
        """
        link = self._face._link
        if link is None:
            raise ConnectionClosed(f"not connected to {describe(self._face.address)}")
        return link

    def event_mark(self) -> int:
        return self._face.event_log.mark()

    def submit(
        self, command: str, arguments: Arguments | None = None, *, fd: int | None = None, oob: bool = False
    ) -> Call:
        link = self._face._link or self.link  # the property is only for its error: it costs as much as a lock
        if fd is not None:
            link.wire.check_descriptors()
        return link.submit(command, arguments, fd, oob)

    @abstractmethod
    async def ready(self, fd: int, event: int, timeout: float | None) -> bool:
        """Wait until `fd` is ready for `event`, as `poll` names it; False after `timeout` seconds."""

    def abandon(self, call: Call) -> None:
        link = self._face._link
        if link is not None and not call.done:
            link.abandon(call)

    async def result(self, call: Call, timeout: Timeout = DEFAULT) -> Any:
        if not call.done:
            limit = self._limit(call, timeout)
            link = self._face._link or self.link
            if not await link.wait(call, limit):
                raise MonitorTimeout(call.command, limit)
        return call.outcome()

    async def wait_event(
        self, names: Collection[str], *, since: int, match: Match | None = None, timeout: float | None
    ) -> Event:
        link = self.link
        watch = link.watch(names, since, match)
        try:
            if not await link.wait(watch, timeout):
                raise MonitorTimeout(f"event {' or '.join(names) or 'of any kind'}", timeout)
        finally:
            link.forget(watch)
        return watch.outcome()

    async def wait_closed(self, timeout: float | None) -> None:
        link = self._face._link
        if link is not None and not await link.wait(link.session.ended, timeout):
            raise MonitorTimeout("the end of the connection", timeout)

    def _limit(self, call: Call, timeout: Timeout) -> float | None:
        return command_timeout(call.command, self._face.timeout) if timeout is DEFAULT else timeout

    async def supported_commands(self) -> frozenset[str]:
        knowledge = self.link.knowledge
        if knowledge.commands is None:
            knowledge.commands = frozenset(entry["name"] for entry in await self.execute("query-commands"))
        return knowledge.commands

    async def schema(self) -> Schema:
        knowledge = self.link.knowledge
        if knowledge.schema is None:
            knowledge.schema = Schema(await self.execute("query-qmp-schema"))
        return knowledge.schema


class EventTap:
    """What the event iterators of both faces share.

    :param timeout: seconds to wait for each event; None waits for ever
    """

    def __init__(self, face: QmpMonitor, names: Collection[str], since: int | None, timeout: float | None) -> None:
        self._link = face._port.link
        self._timeout = timeout
        self._stream = self._link.stream(names, since)

    @property
    def lost(self) -> int:
        """How many events were dropped because they were not taken in time."""
        return self._stream.lost

    def close(self) -> None:
        """Take no more events."""
        self._link.forget(self._stream)

    async def _next(self) -> Event:
        stream = self._stream
        while (event := stream.take()) is None:
            if stream.closed is not None:
                raise stream.closed
            if not await self._link.wait(stream, self._timeout):
                raise MonitorTimeout("the next event", self._timeout)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
