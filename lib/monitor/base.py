"""What both faces of a QMP monitor share: what is known of QEMU, the port of its flows, its events."""

import os
import time
from abc import abstractmethod
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConnectionClosed, MonitorTimeout
from ..ops.port import DEFAULT, Arguments, Port, Timeout
from ..ops.reservations import Reservations
from ..qmp.conversation import Conversation
from ..qmp.events import DEFAULT_LOG_SIZE, RECONNECTED, EventLog, Match
from ..qmp.framing import DEFAULT_LIMIT
from ..qmp.life import Call
from ..qmp.messages import Event
from ..qmp.schema import Schema
from ..qmp.session import QmpSession
from ..qmp.timeouts import DEFAULT_TIMEOUT, command_timeout
from .address import parse_address
from .converse import converse, socket_address
from .discovery import executable_of, knowledge_of
from .life import Life, LinkPort, Reconnect
from .link import Link
from .socket import Address, Wire, describe
from .verbs import Verbs, verb

if TYPE_CHECKING:
    import ssl


class FacePort(LinkPort[QmpSession], Port):
    """What the ports of both faces share."""

    _face: "QmpMonitor"

    def __init__(self, face: "QmpMonitor") -> None:
        self._face = face
        self.reservations = face.reservations

    @property
    def version(self) -> tuple[int, int, int]:
        return self.link.session.version

    def event_mark(self) -> int:
        return self._face.event_log.mark()

    def submit(
        self, command: str, arguments: Arguments | None = None, *, fd: int | None = None, oob: bool = False
    ) -> Call:
        link = self._face._link or self.link  # the property is only for its error: it costs as much as a lock
        if fd is not None:
            link.wire.check_descriptors()
        return link.submit(command, arguments, fd, oob)

    def abandon(self, call: Call) -> None:
        link = self._face._link
        if link is not None and not call.done:
            link.abandon(call)

    async def execute(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        timeout: Timeout = DEFAULT,
        fd: int | None = None,
        oob: bool = False,
    ) -> Any:
        """Run one command and return what QEMU returned. See :meth:`result` for what is raised."""
        # all in one coroutine: three that await each other cost as much as all that the session does
        call = self.submit(command, arguments, fd=fd, oob=oob)
        link = self._face._link or self.link
        limit = command_timeout(command, self._face.timeout) if timeout is DEFAULT else timeout
        try:
            if not call.done and not await link.wait(call, limit):
                raise MonitorTimeout(command, limit)
        finally:
            if not call.done:
                link.abandon(call)
        if call.error is not None:
            raise call.error
        return call.value

    async def result(self, call: Call, timeout: Timeout = DEFAULT) -> Any:
        if not call.done:
            limit = command_timeout(call.command, self._face.timeout) if timeout is DEFAULT else timeout
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

    async def converse(self, address: str, conversation: Conversation, timeout: float) -> bool:
        pid = await converse(parse_address(address), conversation, timeout, self.now, self.ready)
        # a socket that this process listened on before it gave it to QEMU still bears our own number
        return pid not in (None, os.getpid()) and pid == self.link.wire.peer_pid()

    def locate(self, address: str) -> dict[str, Any]:
        return socket_address(parse_address(address))

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


class QmpMonitor(Verbs, Life[QmpSession]):
    """A QMP monitor, before it is said how to wait.

    :param address: see :mod:`drover.monitor.address`; a connected socket or its descriptor is taken over
    :param timeout: seconds for connecting, greeting included, and for each command that is not slow
        by nature (:mod:`drover.qmp.timeouts`); None waits for ever
    :param limit: longest message that is accepted, in bytes
    :param oob: negotiate out-of-band execution where QEMU offers it
    :param log_size: how many events are kept
    :param share_discovery: ask each QEMU build only once what it can do, and not for each connection
    :param pid: QEMU's process, for that: who connects before it listens itself, at a socket that was passed to it, does
        not see it
    :param reconnect: make a lost connection anew, and tell so by an event ``reconnected``; None leaves that to
        :meth:`connect`
    :param tls: secures the connection; its protocol is that of a client
    :param server_hostname: whose certificate the peer must show; None takes the address's host
    :raises ArgumentError: it is no address, or no way to secure it, or one that cannot be dialled again
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
        pid: int | None = None,
        reconnect: Reconnect | None = None,
        tls: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
    ) -> None:
        self.event_log = EventLog(log_size)
        self.reservations = Reservations()
        self._oob = oob
        self._share_discovery = share_discovery
        self._pid = pid
        self._executable: os.stat_result | None = None  # of whom the connection that is being made is to
        self._known: Link[QmpSession] | None = None  # the last link that was ready: what it told stays true
        super().__init__(
            address, timeout=timeout, limit=limit, reconnect=reconnect, tls=tls, server_hostname=server_hostname
        )

    _port: FacePort

    if not TYPE_CHECKING:
        execute = verb(FacePort.execute)  # not Port's, which its type is that of

    @abstractmethod
    def _make_port(self) -> FacePort:
        """How this face waits."""

    # -- what is known ---------------------------------------------------

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

    def _require_known(self) -> Link[QmpSession]:
        if self._known is None:
            raise ConnectionClosed(f"never connected to {describe(self.address)}")
        return self._known

    # -- connecting ------------------------------------------------------

    def _make_session(self, wire: Wire, lost: Link[QmpSession] | None) -> QmpSession:
        on_ready = None if lost is None else partial(self._mark_gap, lost, wire.peer_pid(), time.time())
        self._executable = executable_of(self._pid or wire.peer_pid()) if self._share_discovery else None
        return QmpSession(self.event_log, self._limit, self._oob, on_ready)

    def _opening(self, session: QmpSession) -> Call:
        return session.negotiation

    async def _opened(self, link: Link[QmpSession]) -> None:
        greeting = link.session.greeting
        if self._share_discovery and greeting is not None:
            link.knowledge = knowledge_of(greeting, self._executable)
        if link.knowledge.commands is None:
            await self._port.supported_commands()
        self._known = link

    def _mark_gap(self, lost: Link[QmpSession], pid: int | None, found: float) -> None:
        """Tell the events' readers that some may be missing here, before any that comes after the gap."""
        fault = lost.session.fault
        self.event_log.add(
            RECONNECTED,
            {
                "reason": fault.reason if isinstance(fault, ConnectionClosed) else str(fault),
                "in-flight": list(fault.in_flight) if isinstance(fault, ConnectionClosed) else [],
                "last-event": self.event_log.mark(),
                "same-process": None if pid is None or lost.peer_pid is None else pid == lost.peer_pid,
            },
            found,
        )


class EventTap:
    """What the event iterators of both faces share.

    :param timeout: seconds to wait for each event; None waits for ever
    :ivar gaps: how often the connection was lost and made anew while this was read
    """

    def __init__(self, face: QmpMonitor, names: Collection[str], since: int | None, timeout: float | None) -> None:
        self.gaps = 0
        self._face = face
        self._names = names
        self._timeout = timeout
        self._lost = 0
        self._link: Link[QmpSession] = face._port.link
        self._stream = self._link.stream(names, since)

    @property
    def lost(self) -> int:
        """How many events were dropped because they were not taken in time."""
        return self._lost + self._stream.lost

    def close(self) -> None:
        """Take no more events."""
        self._link.forget(self._stream)

    async def _next(self) -> Event:
        while (event := self._stream.take()) is None:
            if self._stream.closed is not None:
                await self._go_on(self._stream.closed)
            elif not await self._link.wait(self._stream, self._timeout):
                raise MonitorTimeout("the next event", self._timeout)
        return event

    async def _go_on(self, reason: Exception) -> None:
        """Read on where the connection broke, if it is one that is made anew."""
        face = self._face
        if face._reconnect is None or face._link is None:
            raise reason
        await face._regain()
        self.gaps += 1
        self._lost += self._stream.lost
        self._link = face._port.link
        self._stream = self._link.stream(self._names, self._stream.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
