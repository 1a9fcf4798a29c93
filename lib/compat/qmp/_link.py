"""How the old names stand on Drover's session, wire and links: whole messages in, whole replies out.

Drover's session knows commands; these faces also send messages that somebody made by hand,
leave out the greeting or the negotiation, and send a descriptor with no command at all.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import UNSET

from ... import errors
from ...monitor.aio import AsyncLink
from ...monitor.connection import BlockingLink
from ...monitor.link import Link
from ...qmp import messages
from ...qmp.events import EventLog
from ...qmp.framing import too_long
from ...qmp.life import Call
from ...qmp.messages import nesting
from ...qmp.session import QmpSession, State
from .error import ProtocolError, QMPError
from .message import DeserializationError, Message, UnexpectedTypeError
from .models import Greeting

Sink = Callable[[dict[str, Any]], None]


class EventTee(EventLog):
    """An event log that only hands on what comes, as it came.

    :param sink: is given each event, as the mapping that came over the wire
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__(1)
        self._sink = sink

    def extend(self, messages: Iterable[messages.Message]) -> None:
        for message in messages:
            stamp, event = message.timestamp, {"event": message.event}
            if message.data is not UNSET:
                event["data"] = message.data  # type: ignore[assignment]
            if stamp is not UNSET:
                event["timestamp"] = {"seconds": stamp.seconds, "microseconds": stamp.microseconds}  # type: ignore[assignment]
            self._sink(event)


class MalformedReply(errors.ProtocolError):
    """A reply to a known command that has neither a value nor an error."""


class RefusedCapabilities(errors.ProtocolError):
    """The server refused ``qmp_capabilities``."""


class Rights(Call, eq=False):
    """A descriptor that goes along with a blank, in its place between the commands."""


class FaceSession(QmpSession):
    """A session of whole messages.

    :param sink: is given each event
    :param limit: longest message that is accepted, in bytes
    :param greet: wait for a greeting
    :param negotiate: negotiate capabilities, which needs a greeting
    :ivar said: the greeting, once it has come
    :ivar expected_end: QEMU has announced that it ends
    """

    def __init__(self, sink: Sink, limit: int, greet: bool, negotiate: bool) -> None:
        super().__init__(EventTee(self._heard), limit)
        self.said: Greeting | None = None
        self.misread: Exception | None = None
        self.expected_end = False
        self._sink = sink
        self._negotiate = negotiate
        self._head: bytearray | None = bytearray() if greet or negotiate else None
        self._line = self._depth = 0  # where the head's last whole line ends, and how many brackets are open there
        if self._head is None:
            self._be_ready()

    # -- out -------------------------------------------------------------

    def submit_message(self, message: Mapping[str, object]) -> Call:
        """Queue a message that will be answered. Its id on the wire is ours, whatever id it has.

        :raises ConnectionClosed: the session is over
        :raises TypeError: the message has no JSON
        :raises ArgumentError: it is more than QEMU's parser takes
        """
        number = self.new_id()
        payload = json.dumps({**message, "id": number}, separators=(",", ":")).encode() + b"\n"
        oob = "exec-oob" in message
        command = message.get("exec-oob" if oob else "execute")
        messages.check_size(str(command), payload)
        return self.queue(Call(str(command), number, payload, None, oob))

    def submit_rights(self, fd: int) -> None:
        """Queue a copy of a descriptor, behind all commands that wait already.

        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()  # before there is a copy to close
        self.queue(Rights("", 0, b" ", os.dup(fd)))

    def _send(self, call: Call) -> None:
        if isinstance(call, Rights):  # nothing will answer it
            self.outbox.append((call.payload, call))
        else:
            super()._send(call)

    def sent(self, count: int) -> None:
        call = self.outbox[0][1]
        super().sent(count)
        _release(call)

    def close(self, reason: errors.MonitorError) -> None:
        held = [call for call in (*self._waiting, *(item[1] for item in self.outbox)) if isinstance(call, Rights)]
        super().close(reason)
        for call in held:
            _release(call)

    # -- in --------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._head is not None and self.fault is None:
            data = self._take_greeting(self._head, data)
        if data:
            super().receive(data)

    def _take_greeting(self, head: bytearray, data: bytes) -> bytes:
        """Cut the greeting off what came, and return the rest. It is kept as it is, unlike other messages."""
        start = len(head)
        head += data
        while end := head.find(b"\n", start) + 1:
            self._depth += nesting(bytes(head[self._line : end]))
            start = self._line = end
            if self._depth > 0 and end <= self._reader.limit:
                continue  # printed over many lines
            whole = bytes(head[:end])
            if len(whole) > self._reader.limit:
                break
            if whole.strip():
                self._head = None
                self._greeted(whole)
                return bytes(head[end:])
            del head[:end]
            start = self._line = 0
        if len(head) > self._reader.limit:
            self.close(too_long(self._reader.limit, head))
        return b""

    def _greeted(self, whole: bytes) -> None:
        try:
            self.said = Greeting(Message(whole))
        except (ProtocolError, KeyError, TypeError) as error:
            self.misread = error
            self.close(errors.ProtocolError("not a greeting", whole[:80]))
            return
        # of the version nothing depends here, and a downstream one may look unlike QEMU's
        version = messages.VersionInfo(messages.QemuVersion(0, 0, 0))
        self.greeting = messages.Greeting(version, list(self.said.QMP.capabilities))
        if self._negotiate:
            super()._on_greeting(self.greeting)
        else:
            self._be_ready()

    def _on_greeting(self, greeting: messages.Greeting) -> None:
        if self._negotiate:
            super()._on_greeting(greeting)
        # else nobody asked for it: whoever connects so negotiates by hand, or not at all

    def _be_ready(self) -> None:
        self._move(State.NEGOTIATING)
        self._move(State.READY)
        self.negotiation.finish()

    def _on_negotiated(self, message: messages.Message) -> None:
        if isinstance(message.error, messages.ErrorBody):
            self.close(RefusedCapabilities(f"capabilities were refused: {message.error.desc}"))
        else:
            super()._on_negotiated(message)

    def _on_reply(self, message: messages.Message) -> None:
        if message.value is UNSET and message.error is UNSET and message.id is not UNSET:
            self._on_malformed(message)
            return
        call = self._pending.get(message.id) if type(message.id) is int else None
        super()._on_reply(message)
        if call is not None and call.command == "quit" and call.done and call.error is None:
            self.expected_end = True

    def _on_malformed(self, message: messages.Message) -> None:
        call = self._call_of(message)
        if call is None:
            self._on_stray(message)
            return
        self._leave(call)
        call.fail(MalformedReply("a reply with neither a value nor an error"))
        self._admit()

    def _heard(self, event: dict[str, Any]) -> None:
        if event["event"] == "SHUTDOWN":
            self.expected_end = True
        self._sink(event)


def _release(call: Call) -> None:
    if isinstance(call, Rights) and call.fd is not None:
        os.close(call.fd)
        call.fd = None


class FaceLink(Link[QmpSession]):
    """A link that posts whole messages."""

    session: FaceSession

    def post(self, message: Mapping[str, object]) -> Call:
        """Send a message that will be answered.

        :raises ConnectionClosed: the session is over
        """
        with self._lock:
            call = self.session.submit_message(message)
            self._send_some()
        return call

    def send_rights(self, fd: int) -> None:
        """Send a copy of a descriptor, in its place between the commands.

        :raises ConnectionClosed: the session is over
        """
        with self._lock:
            self.session.submit_rights(fd)
            self._send_some()


class AsyncFaceLink(FaceLink, AsyncLink[QmpSession]):
    """The same on an event loop."""


class BlockingFaceLink(FaceLink, BlockingLink[QmpSession]):
    """The same for blocking threads."""


def reply_of(call: Call, sent: Mapping[str, object]) -> dict[str, object]:
    """The reply to `sent`, as the server would have written it with the id that `sent` has.

    :raises MonitorError: there is none: the session ended first
    """
    reply: dict[str, object] = {"id": sent["id"]} if "id" in sent else {}
    if isinstance(call.error, errors.CommandError):
        reply["error"] = {"class": call.error.error_class, "desc": call.error.desc}
    elif call.error is None:
        reply["return"] = call.value
    elif not isinstance(call.error, MalformedReply):
        raise call.error
    return reply


def end_of(session: FaceSession) -> Exception | None:
    """Why the server ended `session`, as an error of these faces; None where that is nothing to complain of."""
    fault = session.fault
    if fault is None or (session.expected_end and isinstance(fault, errors.ConnectionClosed)):
        return None
    error: Exception = EOFError() if isinstance(fault, errors.ConnectionClosed) else _misread(fault)
    error.__cause__ = fault
    return error


def _misread(fault: errors.MonitorError) -> QMPError:
    quoted = getattr(fault, "excerpt", b"")
    if not quoted or "limit" in str(fault):
        return ProtocolError(str(fault))
    try:
        return UnexpectedTypeError("QMP message is not a JSON object.", json.loads(quoted))
    except ValueError:
        return DeserializationError("Failed to deserialize QMP message.", quoted)
