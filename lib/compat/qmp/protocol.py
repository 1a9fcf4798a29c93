"""The states of a connection, and the moves between them; what is said on it is up to a subclass."""

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from functools import wraps
from ssl import SSLContext
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from ...qmp.redact import redact
from ._dial import AsyncListener, InternetAddrT, SocketAddrT, UnixAddrT, dial
from ._pump import _Pump
from .error import QMPError

__all__ = (
    "AsyncProtocol",
    "Runstate",
    "ConnectError",
    "StateError",
    "require",
    "SocketAddrT",
    "UnixAddrT",
    "InternetAddrT",
)

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")
Self_ = TypeVar("Self_", bound="AsyncProtocol[Any]")

READ_LIMIT: Final = 64 * 1024


class Runstate(Enum):
    """Where a connection is. `disconnect()` leads back to IDLE from everywhere."""

    IDLE = 0
    CONNECTING = 1
    RUNNING = 2
    DISCONNECTING = 3


class ConnectError(QMPError):
    """There is no connection, or no session on it; the state is IDLE again.

    :ivar error_message: how far it came
    :ivar exc: what went wrong
    """

    def __init__(self, error_message: str, exc: Exception) -> None:
        super().__init__(error_message, exc)
        self.error_message = error_message
        self.exc = exc

    def __str__(self) -> str:
        return f"{self.error_message}: {str(self.exc) or type(self.exc).__qualname__}"


class StateError(QMPError):
    """This cannot be done in the state in which the connection is. Where that is an ended one, ``__cause__`` says why.

    :ivar error_message: which state it is
    :ivar state: the same
    :ivar required: the state in which it can be done
    """

    def __init__(self, error_message: str, state: Runstate, required: Runstate) -> None:
        super().__init__(error_message, state, required)
        self.error_message = error_message
        self.state = state
        self.required = required

    def __str__(self) -> str:
        return self.error_message


_STATE_TEXTS: Final = {
    Runstate.IDLE: "{} is disconnected and idle.",
    Runstate.CONNECTING: "{} is currently connecting.",
    Runstate.RUNNING: "{} is already connected and running.",
    Runstate.DISCONNECTING: "{} is disconnecting. Call disconnect() to return to IDLE state.",
}


def wrong_state(name: str, state: Runstate, required: Runstate, cause: Exception | None = None) -> StateError:
    """The error for a call that needs another state.

    :param name: of the class that is called
    :param cause: why the connection ended, where that is known
    """
    error = StateError(_STATE_TEXTS[state].format(name), state, required)
    error.__cause__ = cause
    return error


def require(
    required_state: Runstate,
) -> Callable[[Callable[Concatenate[Self_, P], T]], Callable[Concatenate[Self_, P], T]]:
    """Let a method be called in `required_state` only; otherwise it raises :class:`StateError`."""

    def decorate(method: Callable[Concatenate[Self_, P], T]) -> Callable[Concatenate[Self_, P], T]:
        """The method, guarded."""
        if inspect.iscoroutinefunction(method):

            @wraps(method)
            async def guarded_async(self: Self_, *args: P.args, **kwargs: P.kwargs) -> Any:
                self._require(required_state)
                return await method(self, *args, **kwargs)

            return guarded_async  # type: ignore[return-value]

        @wraps(method)
        def guarded(self: Self_, *args: P.args, **kwargs: P.kwargs) -> T:
            self._require(required_state)
            return method(self, *args, **kwargs)

        return guarded  # type: ignore[return-value]

    return decorate


class AsyncProtocol(_Pump[M]):
    """A connection that knows its state. A subclass says what happens on it.

    One with messages of its own gives `_do_recv`, `_do_send` and `_on_message`, puts what is to be sent
    into `_outgoing`, and may say what comes first in `_establish_session`.

    :param name: for telling loggers apart: ``<module>.<name>``
    :param readbuflen: longest message that is accepted, in bytes
    """

    logger = logging.getLogger(__name__)

    def __init__(self, name: str | None = None, readbuflen: int = READ_LIMIT) -> None:
        super().__init__()
        self.name = name
        self.readbuflen = readbuflen
        self._runstate = Runstate.IDLE
        self._watchers: list[asyncio.Future[Runstate]] = []
        self._accepted: AsyncListener | None = None

    def __repr__(self) -> str:
        name = "" if self.name is None else f"name={self.name!r} "
        return f"<{type(self).__name__} {name}runstate={self.runstate.name}>"

    @property
    def name(self) -> str | None:
        """What this connection is called in the log; None is nothing."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        logger = logging.getLogger(__name__)
        self.logger = logger.getChild(name) if name else logger
        self._name = name

    @property
    def runstate(self) -> Runstate:
        """Where the connection is."""
        return self._runstate

    async def runstate_changed(self) -> Runstate:
        """Wait for the next change of :attr:`runstate`, and return what it changed to."""
        watcher: asyncio.Future[Runstate] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        try:
            return await watcher
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    @require(Runstate.IDLE)
    async def start_server_and_accept(self, address: SocketAddrT, ssl: SSLContext | None = None) -> None:
        """Listen at `address`, and begin a session with who calls.

        :param address: path of a unix socket, or host and port
        :param ssl: TLS, as server
        :raises StateError: the state is not IDLE
        :raises ConnectError: there is nothing to listen on, or no session with who called
        """
        await self.start_server(address, ssl)
        await self.accept()

    @require(Runstate.IDLE)
    async def start_server(self, address: SocketAddrT, ssl: SSLContext | None = None) -> None:
        """Listen at `address`; :meth:`accept` does the rest.

        :param address: path of a unix socket, or host and port
        :param ssl: TLS, as server
        :raises StateError: the state is not IDLE
        :raises ConnectError: there is nothing to listen on
        """
        async with self._session_guard("Failed to establish connection"):
            await self._do_start_server(address, ssl)

    @require(Runstate.CONNECTING)
    async def accept(self) -> None:
        """Wait for who calls, and begin a session; later callers are refused. Bound it with `asyncio.wait_for`.

        :raises StateError: the state is not CONNECTING
        :raises QMPError: :meth:`start_server` was not called
        :raises ConnectError: no session with who called
        """
        if self._accepted is None:
            raise QMPError("Cannot call accept() before start_server().")
        async with self._session_guard("Failed to establish connection"):
            await self._do_accept()
        async with self._session_guard("Failed to establish session"):
            await self._establish_session()

    @require(Runstate.IDLE)
    async def connect(self, address: SocketAddrT | socket.socket, ssl: SSLContext | None = None) -> None:
        """Connect, and begin a session. Bound it with `asyncio.wait_for`.

        :param address: path of a unix socket, host and port, or a connected socket, which is taken over
        :param ssl: TLS
        :raises StateError: the state is not IDLE
        :raises ConnectError: nobody answers there, or not as expected; the state is IDLE again
        """
        async with self._session_guard("Failed to establish connection"):
            await self._do_connect(address, ssl)
        async with self._session_guard("Failed to establish session"):
            await self._establish_session()

    async def disconnect(self) -> None:
        """End the session, whatever the state; the state is IDLE afterwards, even if this raises.

        :raises EOFError: the server had ended it without announcing that
        :raises ProtocolError: the server had not kept to the protocol
        """
        self._schedule_disconnect()
        await asyncio.sleep(0)  # whoever watches the states sees this one
        await self._pump_stopped()
        end, self._end = self._end, None
        if self._runstate is Runstate.DISCONNECTING:  # else another task did the rest meanwhile
            self._set_state(Runstate.IDLE)
            await asyncio.sleep(0)
        if end is not None:
            raise end

    # -- for subclasses --------------------------------------------------

    def _require(self, state: Runstate) -> None:
        if self.runstate is not state:
            raise wrong_state(type(self).__name__, self.runstate, state, self._end)

    @asynccontextmanager
    async def _session_guard(self, emsg: str) -> AsyncIterator[None]:
        """Back to IDLE if the block fails; what is an error is then a :class:`ConnectError`."""
        try:
            yield
        except BaseException as error:
            self.logger.debug("%s: %r", emsg, error)
            self._end = None
            try:
                await self.disconnect()
            except Exception as second:
                self.logger.debug("and on the way back: %r", second)
            if isinstance(error, Exception):
                raise ConnectError(emsg, error) from error
            raise

    def _set_state(self, state: Runstate) -> None:
        if state is self._runstate:
            return
        self.logger.debug("Transitioning from '%s' to '%s'.", self._runstate, state)
        self._runstate = state
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(state)

    async def _do_connect(self, address: SocketAddrT | socket.socket, ssl: SSLContext | None = None) -> None:
        self._set_state(Runstate.CONNECTING)
        await asyncio.sleep(0)  # whoever watches the states sees this one
        await self._connected(await dial(address, ssl))

    async def _do_start_server(self, address: SocketAddrT, ssl: SSLContext | None = None) -> None:
        self._set_state(Runstate.CONNECTING)
        await asyncio.sleep(0)
        self._accepted = await AsyncListener.open(address, ssl)

    async def _do_accept(self) -> None:
        if self._accepted is not None:
            await self._connected(await self._accepted.take())
            self._accepted = None

    def _cb_outbound(self, msg: M) -> M:
        """Every message goes through here before it is sent; override it to see or change them."""
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("--> %s", shown(msg))
        return msg

    def _cb_inbound(self, msg: M) -> M:
        """Every message goes through here when it has come; override it to see or change them."""
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("<-- %s", msg)
        return msg

    async def _establish_session(self) -> None:
        """Begin a session on the connection. A subclass may speak with the peer first, by `_send` and `_recv`."""
        self._start_pump()
        self._set_state(Runstate.RUNNING)
        await asyncio.sleep(0)

    def _schedule_disconnect(self) -> None:
        """Give up the connection at once; only :meth:`disconnect` leads back to IDLE."""
        self._set_state(Runstate.DISCONNECTING)
        listener, self._accepted = self._accepted, None
        if isinstance(listener, AsyncListener):
            listener.close()
        self._stop_pump()


def shown(message: object) -> str:
    """`message` as the log may show it: without what must stay secret."""
    if not isinstance(message, Mapping):
        return str(message)
    command = str(message.get("execute") or message.get("exec-oob"))
    hidden = redact(command, message.get("arguments"))
    return str({**message, "arguments": hidden} if "arguments" in message else dict(message))
