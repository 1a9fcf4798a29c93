"""A monitor's life, whatever it speaks: one connection after another, made for a call or to stay, lost and found again.

A face (blocking, or on asyncio) says how to wait; a protocol says what its session is and when
that has opened. What is here is all the rest, once for all of them.
"""

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct

from ..errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from ..qmp.framing import DEFAULT_LIMIT
from ..qmp.life import Call
from ..qmp.timeouts import DEFAULT_TIMEOUT
from .address import endpoint_of
from .link import Link, S
from .socket import Address, Wire, describe, open_wire, tls_of

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

# While a connection is being found again, its owner may close it: looked for so often (seconds).
_LOOK: Final = 0.1
_FIRST_PAUSE: Final = 0.001


class Reconnect(Struct, frozen=True, kw_only=True):
    """That a lost connection is to be made anew, and how long that may take.

    Nothing is done behind anybody's back: whoever next uses the monitor, or waits for its events,
    makes the connection before. What was in flight when it was lost has failed by then; it is never sent again.

    :param longest: seconds between two tries; the pauses grow to that, doubling from 1 ms
    :param give_up: seconds after which who waits is told that nobody answers; the next use tries again.
        None tries for ever
    """

    longest: float = 2.0
    give_up: float | None = 60.0

    def __post_init__(self) -> None:
        if not self.longest > 0:
            raise ArgumentError("longest", self.longest, "seconds, more than 0")
        if self.give_up is not None and not self.give_up > 0:
            raise ArgumentError("give_up", self.give_up, "seconds, more than 0; or None")


class Life(ABC, Generic[S]):
    """A monitor, before it is said what it speaks and how to wait.

    :param address: see :mod:`drover.monitor.address`; a connected socket or its descriptor is taken over
    :param timeout: seconds for connecting, greeting included, and for each command that is not slow
        by nature (:mod:`drover.qmp.timeouts`); None waits for ever
    :param limit: longest message that is accepted, in bytes
    :param reconnect: make a lost connection anew; None leaves that to :meth:`connect`
    :param tls: secures the connection; its protocol is that of a client
    :param server_hostname: whose certificate the peer must show; None takes the address's host
    :raises ArgumentError: it is no address, or no way to secure it, or one that cannot be dialled again
    """

    _greeting = "greeting"  # what the peer says first

    def __init__(
        self,
        address: Address,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        limit: int = DEFAULT_LIMIT,
        reconnect: Reconnect | None = None,
        tls: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
    ) -> None:
        if reconnect is not None and isinstance(endpoint_of(address), int | socket.socket):
            raise ArgumentError("reconnect", reconnect, f"None: {describe(address)} cannot be dialled again")
        self.address = address
        self.timeout = timeout
        self._tls = tls_of(address, tls, server_hostname)
        self._limit = limit
        self._reconnect = reconnect
        self._link: Link[S] | None = None
        self._guard = threading.Lock()  # of the two below
        self._borrowers = 0
        self._temporary = False
        self._port = self._make_port()
        self._gate = self._make_gate()

    # -- what each face says ---------------------------------------------

    @abstractmethod
    def _make_port(self) -> Any:
        """How this face waits: a :class:`LinkPort`, and the port that the flows of this protocol take."""

    @abstractmethod
    def _make_gate(self) -> AbstractAsyncContextManager[object]:
        """A lock: one connect at a time."""

    @abstractmethod
    def _make_link(self, wire: Wire, session: S) -> Link[S]:
        """How this face moves bytes."""

    # -- what each protocol says -----------------------------------------

    @abstractmethod
    def _make_session(self, wire: Wire, lost: Link[S] | None) -> S:
        """A session for a new connection on `wire`, which comes after `lost` where that was lost."""

    @abstractmethod
    def _opening(self, session: S) -> Call:
        """What is done when the session takes commands."""

    async def _opened(self, link: Link[S]) -> None:
        """More to do before the connection counts as made."""

    def _silent(self, timeout: float | None) -> Exception:
        """The error for a peer that was connected and did not open the session in time."""
        reason = f"no {self._greeting} within {timeout or 0:g} s: another client may hold this monitor, or QEMU hangs"
        return ConnectTimeout(describe(self.address), reason, timeout)

    # -- connecting ------------------------------------------------------

    def is_connected(self) -> bool:
        """Whether there is a connection, and it has not ended as far as is known."""
        link = self._link
        return link is not None and link.session.fault is None

    async def _connect(self, timeout: float | None) -> None:
        """Connect if nobody has; a connection that was only borrowed is ours from here on."""
        async with self._gate:
            link, limit = self._link, self.timeout if timeout is None else timeout
            if link is not None and self._is_lost():
                link.close(ConnectionClosed("lost"))
                await self._establish(limit, link)
            elif link is None or link.session.fault is not None:
                self._disconnect()
                await self._establish(limit)
            self._temporary = False

    async def _establish(self, timeout: float | None, lost: Link[S] | None = None) -> None:
        """Make a connection, in the place of the `lost` one if there was one."""
        port = self._port
        deadline = None if timeout is None else port.now() + timeout
        pause, longest = port.sleep, None
        if lost is not None and self._reconnect is not None:
            pause, longest = partial(self._pause, lost), self._reconnect.longest
        wire = await open_wire(self.address, timeout, pause, port.now, port.ready, self._tls, longest=longest)
        if self._link is not lost:
            wire.close()
            raise ConnectionClosed("closed by this side")
        session = self._make_session(wire, lost)
        if session.outbox:  # at once: a link that is only made now would wait for the peer first
            data, _ = session.outbox[0]
            if count := wire.send(data):
                session.sent(count)
        self._link = link = self._make_link(wire, session)
        if self._reconnect is not None:
            link.peer_pid = wire.peer_pid()
        try:
            opening, remaining = self._opening(session), None if deadline is None else max(0.0, deadline - port.now())
            if not await link.wait(opening, remaining):
                raise self._silent(timeout)
            opening.outcome()
            await self._opened(link)
            link.rest()
        except BaseException as error:
            if self._link is link:
                self._link = lost
            link.close(ConnectionClosed("connecting failed"))
            if isinstance(error, ConnectionClosed):
                raise ConnectError(describe(self.address), wire.fault or error.reason) from error
            raise

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
            elif self._reconnect is not None and self._link.session.fault is not None:
                await self._restore(self._link, self._reconnect)
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

    # -- a lost connection -----------------------------------------------

    def _is_lost(self) -> bool:
        """Whether the connection is to be made anew before it is used."""
        link = self._link
        if link is None or self._reconnect is None:
            return False
        link.notice()
        return link.session.fault is not None

    async def _regain(self) -> None:
        """Make a lost connection anew, unless somebody has done it meanwhile.

        :raises ConnectionClosed: there is none to be made anew
        :raises ConnectError: nobody answered for as long as was to be tried
        """
        async with self._gate:
            link = self._link
            if link is None or self._reconnect is None:
                raise ConnectionClosed(f"not connected to {describe(self.address)}")
            if link.session.fault is not None:
                await self._restore(link, self._reconnect)

    async def _restore(self, lost: Link[S], policy: Reconnect) -> None:
        lost.close(ConnectionClosed("lost"))  # frees its socket; why it was lost is known already
        port = self._port
        deadline = None if policy.give_up is None else port.now() + policy.give_up
        delay = _FIRST_PAUSE
        while True:
            remaining = None if deadline is None else max(0.0, deadline - port.now())
            try:
                await self._establish(remaining, lost)
            except ConnectError:  # such as a QEMU that ended while it greeted
                if deadline is not None and port.now() + delay >= deadline:
                    raise
                await self._pause(lost, delay)
                delay = min(delay * 2, policy.longest)
            else:
                return

    async def _pause(self, lost: Link[S], seconds: float) -> None:
        """Let time pass; ends when the connection that is looked for was closed meanwhile."""
        until = self._port.now() + seconds
        while (left := until - self._port.now()) > 0:
            await self._port.sleep(min(left, _LOOK))
            if self._link is not lost:
                raise ConnectionClosed("closed by this side")


class Waits(ABC):
    """How a face lets time pass: what its ports, whatever they speak, wait by."""

    @abstractmethod
    def now(self) -> float:
        """The face's clock, in seconds; only differences mean anything."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    async def ready(self, fd: int, event: int, timeout: float | None) -> bool:
        """Wait until `fd` is ready for `event`: a :data:`~drover.monitor.wire.Ready`."""

    @abstractmethod
    async def offload(self, function: Callable[[], T], dispose: Callable[[T], None] | None = None) -> T:
        """Run a function that may block; `dispose` of a result that comes when nobody waits for it any more."""

    @abstractmethod
    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        """Run `flow` to its end, even when the caller is cancelled meanwhile."""


class LinkPort(Waits, Generic[S]):
    """What the ports of all faces share."""

    _face: Life[S]

    @property
    def link(self) -> Link[S]:
        """The connection.

        :raises ConnectionClosed: there is none
        """
        link = self._face._link
        if link is None:
            raise ConnectionClosed(f"not connected to {describe(self._face.address)}")
        return link

    async def wait_closed(self, timeout: float | None) -> None:
        """Wait until the peer has closed the connection.

        :raises MonitorTimeout: it did not
        """
        link = self._face._link
        if link is not None and not await link.wait(link.session.ended, timeout):
            raise MonitorTimeout("the end of the connection", timeout)

    async def run_call(self, call: Call, timeout: float | None) -> Any:
        """Wait for the outcome of `call`, and forget it when it does not come."""
        link = self.link
        try:
            if not await link.wait(call, timeout):
                raise MonitorTimeout(call.command, timeout)
            return call.outcome()
        finally:
            if not call.done:
                link.abandon(call)
