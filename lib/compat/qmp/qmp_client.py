"""The client on asyncio, and the errors of what it says."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from ... import errors
from ...monitor.wire import Wire
from ._dial import carries_descriptors
from ._link import AsyncFaceLink, FaceSession, RefusedCapabilities, end_of, reply_of
from .error import ProtocolError, QMPError
from .events import Events
from .message import Message, received
from .models import ErrorResponse, Greeting
from .protocol import AsyncProtocol, Runstate, require

__all__ = (
    "QMPClient",
    "ExecuteError",
    "ExecInterruptedError",
    "GreetingError",
    "NegotiationError",
    "ServerParseError",
    "BadReplyError",
)

# More than any reply of a real machine; libvirt gives up at as much.
READ_LIMIT: Final = 10 * 1024 * 1024


class _WrappingError(ProtocolError):
    """Another error, and what it kept from happening.

    :ivar exc: the other error
    """

    def __init__(self, error_message: str, exc: Exception) -> None:
        super().__init__(error_message, exc)
        self.exc = exc

    def __str__(self) -> str:
        return f"{self.error_message}: {self.exc}"


class GreetingError(_WrappingError):
    """What came first was no greeting."""


class NegotiationError(_WrappingError):
    """The server refused ``qmp_capabilities``."""


class ExecuteError(QMPError):
    """QEMU understood a command and refused it; the text is QEMU's.

    :ivar error: the reply, checked
    :ivar sent: the command
    :ivar received: the reply
    """

    def __init__(self, error_response: ErrorResponse, sent: Message, received: Message) -> None:
        super().__init__(error_response, sent, received)
        self.error = error_response
        self.sent = sent
        self.received = received

    @property
    def error_class(self) -> str:
        """QEMU's error class, such as ``GenericError``."""
        return self.error.error.class_

    def __str__(self) -> str:
        return self.error.error.desc


class ExecInterruptedError(QMPError):
    """The session ended before the reply; whether QEMU did it is unknown. ``__cause__`` says why it ended."""


class _MessageError(ProtocolError):
    """A message that is JSON and yet wrong.

    :ivar msg: the message
    """

    def __init__(self, error_message: str, msg: Message, *args: object) -> None:
        super().__init__(error_message, msg, *args)
        self.msg = msg

    def __str__(self) -> str:
        return f"{super().__str__()}\n  Message was: {self.msg}\n"


class ServerParseError(_MessageError):
    """The server could not parse what we sent. Kept for its name: such an error fails its command, or is dropped."""


class BadReplyError(_MessageError):
    """A reply to a command that has neither a value nor an error.

    :ivar msg: the reply
    :ivar sent: the command
    """

    def __init__(self, error_message: str, msg: Message, sent: Message) -> None:
        super().__init__(error_message, msg, sent)
        self.sent = sent


def session_error(session: FaceSession) -> Exception:
    """Why a session could not be established."""
    if session.misread is not None:
        return _caused(GreetingError("Did not understand Greeting", session.misread), session.misread)
    if isinstance(session.fault, RefusedCapabilities):
        return _caused(NegotiationError("Negotiation failed", session.fault), session.fault)
    cause = end_of(session) or EOFError()
    if isinstance(cause, EOFError):
        return cause
    if session.said is None:
        return _caused(GreetingError("Did not understand Greeting", cause), cause)
    return _caused(NegotiationError("Negotiation failed", cause), cause)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def interrupted(cause: Exception | None) -> ExecInterruptedError:
    """The error for a command whose session ended for `cause`."""
    error = ExecInterruptedError("Disconnected")
    error.__cause__ = cause
    return error


def value_of(reply: Message, sent: Message) -> object:
    """The value in `reply`.

    :raises ExecuteError: it is an error
    :raises BadReplyError: it is neither
    """
    if "error" in reply:
        try:
            response = ErrorResponse(reply)
        except (KeyError, TypeError) as error:
            raise BadReplyError("QMP error reply is malformed", reply, sent) from error
        raise ExecuteError(response, sent, reply)
    if "return" not in reply:
        raise BadReplyError("QMP reply is missing a 'error' or 'return' member", reply, sent)
    return reply["return"]


class QMPClient(AsyncProtocol[Message], Events):
    """A QMP client on asyncio, over Drover.

    ::

        qmp = QMPClient("demo")
        await qmp.connect("/run/vm/demo.qmp")
        print(await qmp.execute("query-status"))
        await qmp.disconnect()

    :param name: for telling loggers apart: ``<module>.<name>``
    :param readbuflen: longest message that is accepted, in bytes
    :ivar await_greeting: wait for a greeting when connecting; a guest agent has none
    :ivar negotiate: negotiate capabilities when connecting, which implies waiting for a greeting
    :ivar events: the listener that hears everything
    """

    logger = logging.getLogger(__name__)

    def __init__(self, name: str | None = None, readbuflen: int = READ_LIMIT) -> None:
        super().__init__(name, readbuflen)
        Events.__init__(self)
        self.await_greeting = True
        self.negotiate = True
        self._greeting: Greeting | None = None
        self._wire: Wire | None = None
        self._link: AsyncFaceLink | None = None
        self._execute_id = 0

    @property
    def greeting(self) -> Greeting | None:
        """What the server said first; None before it did, and where nobody waited for it."""
        return self._greeting

    @classmethod
    def make_execute_msg(cls, cmd: str, arguments: Mapping[str, object] | None = None, oob: bool = False) -> Message:
        """A message for :meth:`execute_msg`.

        :param cmd: the command's name
        :param arguments: its arguments: JSON values; None for none
        :param oob: out of band, past all commands that wait, which few commands can
        """
        message = Message({"exec-oob" if oob else "execute": cmd})
        if arguments is not None:
            message["arguments"] = arguments
        return message

    async def execute(self, cmd: str, arguments: Mapping[str, object] | None = None, oob: bool = False) -> object:
        """Run a command, and return what QEMU returned. Bound it with `asyncio.wait_for`.

        :param cmd: the command's name
        :param arguments: its arguments: JSON values; None for none
        :param oob: out of band, past all commands that wait, which few commands can
        :raises StateError: there is no session
        :raises ExecuteError: QEMU refused
        :raises ExecInterruptedError: the session ended before the reply
        :raises BadReplyError: the reply is none
        :raises TypeError: an argument has no JSON
        """
        return await self.execute_msg(self.make_execute_msg(cmd, arguments, oob=oob))

    @require(Runstate.RUNNING)
    async def execute_msg(self, msg: Message) -> object:
        """Run a command that :meth:`make_execute_msg` made; raises what :meth:`execute` raises.

        :raises ValueError: it has neither ``execute`` nor ``exec-oob``
        """
        if "execute" not in msg and "exec-oob" not in msg:
            raise ValueError("Requires 'execute' or 'exec-oob' message")
        sent = Message(msg)
        return value_of(await self._execute(sent), sent)

    @require(Runstate.RUNNING)
    def send_fd_scm(self, fd: int) -> None:
        """Send a descriptor for the next ``getfd`` or ``add-fd``, behind all commands sent so far. It stays yours.

        :raises StateError: there is no session
        :raises QMPError: the connection is no unix socket, which alone can carry it
        """
        assert self._link is not None
        if not carries_descriptors(self._link.wire):
            raise QMPError("Sending file descriptors requires a UNIX socket.")
        self._link.send_rights(fd)

    @require(Runstate.RUNNING)
    async def _raw(self, msg: Message | Mapping[str, object] | bytes, assign_id: bool = True) -> Message:
        """Send a message made by hand, and return the whole reply.

        :param assign_id: give it an id, instead of the one that it has or has not
        :raises ExecInterruptedError: the session ended before the reply
        """
        return await self._execute(Message(msg), assign_id)

    async def _execute(self, msg: Message, assign_id: bool = True) -> Message:
        if assign_id:
            msg["id"] = f"__qmp#{self._execute_id:05d}"
            self._execute_id += 1
        msg = self._cb_outbound(msg)
        link = self._link
        assert link is not None
        try:
            call = link.post(msg)
            try:
                await link.wait(call, None)
            finally:
                link.abandon(call)
            reply = received(reply_of(call, msg))
        except errors.MonitorError:
            raise interrupted(end_of(link.session)) from end_of(link.session)
        return self._cb_inbound(reply)

    # -- the session -----------------------------------------------------

    async def _connected(self, wire: Wire) -> None:
        self._wire = wire

    async def _establish_session(self) -> None:
        self._greeting = None
        wire, self._wire = self._wire, None
        assert wire is not None
        session = FaceSession(self._on_event, self.readbuflen, self.await_greeting, self.negotiate)
        self._link = link = AsyncFaceLink(wire, session)
        session.ended.notify = self._on_end
        for listener in self._listeners:
            listener._reopen()
        await link.wait(session.negotiation, None)
        self._greeting = session.said
        if session.fault is not None:
            raise session_error(session)
        self._set_state(Runstate.RUNNING)
        await asyncio.sleep(0)  # whoever watches the states sees this one

    def _on_end(self) -> None:
        """The session is over: by a fault of the server, or because we close it."""
        assert self._link is not None
        cause = end_of(self._link.session) if self.runstate is Runstate.RUNNING else None
        if self.runstate is Runstate.RUNNING:
            self._end = cause
            self._set_state(Runstate.DISCONNECTING)
        for listener in self._listeners:
            listener._end(cause)

    def _schedule_disconnect(self) -> None:
        super()._schedule_disconnect()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.hang_up()
            wire.close()
        link = self._link
        if link is not None:
            link.close(errors.ConnectionClosed("closed by this side"))

    def _on_event(self, event: dict[str, Any]) -> None:
        self._dispatch(self._cb_inbound(received(event)))
