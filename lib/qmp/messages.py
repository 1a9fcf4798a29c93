"""The messages of QMP (QEMU's ``docs/interop/qmp-spec``), decoded by msgspec.

On the wire a message is told by the one member it has: ``QMP`` (greeting),
``return``, ``error`` or ``event``. :class:`Message` therefore decodes all of
them, and what is absent stays ``UNSET``; this is one decode without a second
look, which a stream of events needs.
"""

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import ArgumentError, ProtocolError
from .framing import DEFAULT_LIMIT, LineFramer, excerpt, too_long

if TYPE_CHECKING:
    from .event_types import EventData


class Timestamp(Struct, frozen=True, gc=False):
    """When an event happened; both -1 where QEMU could not tell."""

    seconds: int
    microseconds: int


class QemuVersion(Struct, frozen=True, gc=False):
    """QEMU's version number."""

    major: int
    minor: int
    micro: int


class VersionInfo(Struct, frozen=True, gc=False):
    """QEMU's version, and the text that its distributor added."""

    qemu: QemuVersion
    package: str = ""


class Greeting(Struct, frozen=True, gc=False):
    """What QEMU says first: who it is, and which capabilities it offers."""

    version: VersionInfo
    capabilities: list[Any] = []


class ErrorBody(Struct, frozen=True, gc=False, rename={"error_class": "class"}):
    """The body of an error reply."""

    error_class: str = "GenericError"
    desc: str = ""


class Message(Struct, gc=False, rename={"greeting": "QMP", "value": "return"}):
    """Any message from the server; exactly one of greeting, value, error and event is set."""

    event: str | UnsetType = UNSET
    data: dict[str, Any] | UnsetType = UNSET
    timestamp: Timestamp | UnsetType = UNSET
    id: Any = UNSET
    value: Any = UNSET
    error: ErrorBody | UnsetType = UNSET
    greeting: Greeting | UnsetType = UNSET


class Event(Struct, frozen=True, gc=False):
    """An event as it was received.

    :ivar name: such as ``STOP``
    :ivar data: its members; empty where QEMU sent none
    :ivar timestamp: seconds since the epoch by the host's clock; -1.0 where QEMU could not tell
    :ivar number: position in the stream of this connection object's events, from 1
    """

    name: str
    data: dict[str, Any]
    timestamp: float
    number: int

    @property
    def typed(self) -> "EventData | dict[str, Any]":
        """The data as this event's type of :mod:`drover.qmp.event_types`; :attr:`data` itself where there is none."""
        from .event_types import typed_data  # only for those who ask: 80 types take a while to make

        return typed_data(self.name, self.data)


class _Command(Struct, omit_defaults=True, rename={"exec_oob": "exec-oob"}):
    id: int | UnsetType
    execute: str | UnsetType = UNSET
    exec_oob: str | UnsetType = UNSET
    arguments: Any = UNSET


_encode = msgspec.json.Encoder().encode
_decode_lines = msgspec.json.Decoder(Message).decode_lines


def encode_command(command: str, arguments: Any, number: int | UnsetType, oob: bool = False) -> bytes:
    """One command as it goes over the wire.

    :param arguments: a mapping of JSON values, or None for no arguments
    :param number: its id, by which the reply will be told; UNSET for none
    :param oob: run out of band (``exec-oob``)
    :raises ArgumentError: the arguments are not JSON
    """
    try:
        if arguments is None and not oob and number is not UNSET:  # most are so, and need no object first
            return b'{"id":%d,"execute":%b}\n' % (number, _encode(command))
        wire = _Command(number, arguments=UNSET if arguments is None else arguments)
        if oob:
            wire.exec_oob = command
        else:
            wire.execute = command
        payload = _encode(wire) + b"\n"
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{command}.arguments", type(arguments).__name__, f"JSON values only: {error}") from error
    if len(payload) > MAX_TOKENS:
        check_size(command, payload)
    return payload


# QEMU's parser takes so many tokens (2 << 20), and so many bytes of them, in one message. Of what goes beyond, each
# token that is left is an error of its own, and with `oob` negotiated more than eight of those make QEMU 7.2 and 10.0
# abort, and take the machine along.
MAX_TOKENS: Final = 2 << 20
MAX_BYTES: Final = 64 << 20
# whatever it has taken it keeps (*+): a string of megabytes at one stroke, and none that has no end twice
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')


def check_size(command: str, payload: bytes) -> None:
    """Check that QEMU's parser will take a message.

    :raises ArgumentError: it is too big; nothing may be sent of it
    """
    if len(payload) > MAX_BYTES:
        raise ArgumentError(f"{command}.arguments", f"{len(payload)} bytes", f"QEMU takes {MAX_BYTES} at most")
    if len(payload) <= MAX_TOKENS:
        return
    plain = _STRING.sub(b"0", payload)
    brackets = sum(plain.count(sign) for sign in (b"{", b"}", b"[", b"]"))
    # between two separators there is one value or name, or brackets
    tokens = brackets + 2 * (plain.count(b",") + plain.count(b":")) + 1
    if tokens > MAX_TOKENS:
        raise ArgumentError(f"{command}.arguments", f"{tokens} values and signs", f"QEMU takes {MAX_TOKENS} at most")


# A string, or a bracket outside of strings: all that counts for "is this message whole?".
_STRUCTURE: Final = re.compile(rb'%s|[{}\[\]]' % _STRING.pattern)


def nesting(line: bytes) -> int:
    """How many more brackets `line` opens than it closes, strings left aside."""
    tokens = _STRUCTURE.findall(line)
    return sum((token in b"{[") - (token in b"}]") for token in tokens if len(token) == 1)


class MessageReader:
    """Bytes in any cut to messages: one a line, or pretty-printed over many lines.

    What the peer did wrong is kept in :attr:`fault` instead of raised, so that
    the messages before the fault still count. After a fault nothing is read.

    :param limit: longest message that is accepted, in bytes
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.fault: ProtocolError | None = None
        self._framer = LineFramer(limit)
        self._open: list[bytes] = []
        self._depth = 0
        self._size = 0

    def feed(self, data: bytes) -> list[Message]:
        """Take `data` in and return the messages that it completes, in order."""
        if self.fault:
            return []
        if not (self._framer.rest or self._open) and data.endswith(b"\n") and len(data) <= self.limit:
            try:
                return _decode_lines(data)  # what nearly all reads are: whole messages
            except ValueError:
                return self._line_by_line(data)
        try:
            block = self._framer.feed(data)
        except ProtocolError as error:
            messages = self._line_by_line(self._framer.before)
            self.fault = self.fault or error  # one of the lines in front of it may be the first that is wrong
            return messages
        if not block:
            return []
        if not self._open and len(block) <= self.limit:
            try:
                return _decode_lines(block)
            except ValueError:
                pass
        return self._line_by_line(block)

    def _line_by_line(self, block: bytes) -> list[Message]:
        messages: list[Message] = []
        for raw in block.split(b"\n"):
            line = raw.strip()
            if not line:
                continue
            messages += self._continue(line) if self._open else self._begin(line)
            if self.fault:
                break
        return messages

    def _begin(self, line: bytes) -> list[Message]:
        try:
            return _decode_lines(line)  # as above: what stands on one line must not depend on how it came
        except ValueError as error:
            depth = nesting(line)
            if depth <= 0 or not line.startswith(b"{"):
                self.fault = ProtocolError(f"not a QMP message ({error})", excerpt(line))
                return []
        self._open, self._depth, self._size = [line], depth, len(line)
        return []

    def _continue(self, line: bytes) -> list[Message]:
        self._open.append(line)
        self._depth += nesting(line)
        self._size += len(line) + 1
        if self._size > self.limit:
            self.fault = too_long(self.limit, self._open[0])
            return []
        if self._depth > 0:
            return []
        whole = b"\n".join(self._open)
        self._open = []
        return self._begin(whole)
