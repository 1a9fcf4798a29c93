"""One QMP session as a state machine: bytes and commands in, bytes and outcomes out.

Two rules: all that decides what a message means is in this file, and nothing in
it waits, reads a socket or asks a clock. A port feeds it (:meth:`QmpSession.receive`),
empties its outbox, and waits on the :class:`Call` that :meth:`QmpSession.submit` gave.

Peer faults are never raised from :meth:`QmpSession.receive`: they end the session,
and everybody who waits on it gets the fault.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from msgspec import UNSET

from ..errors import CommandError, CommandNotSupported, MonitorError, ProtocolError
from .events import EventLog, EventStream, EventWatch, Match
from .framing import DEFAULT_LIMIT
from .life import Call, SessionLife
from .messages import ErrorBody, Greeting, Message, MessageReader, encode_command
from .redact import redact

log = logging.getLogger("drover.qmp")

# QEMU stops reading a monitor at 8 queued in-band commands (QMP_REQ_QUEUE_LEN_MAX),
# and with it the out-of-band commands that are there for when nothing else moves.
MAX_IN_BAND: Final = 8


class State(Enum):
    """Where a session is; `MOVES` says where it may go."""

    GREETING = "waiting for the greeting"
    NEGOTIATING = "negotiating capabilities"
    READY = "ready"
    CLOSED = "closed"

    __hash__ = object.__hash__  # an enumeration's own is a function in Python, and each move looks into a table


MOVES: Final[dict[State, frozenset[State]]] = {
    State.GREETING: frozenset({State.NEGOTIATING, State.CLOSED}),
    State.NEGOTIATING: frozenset({State.READY, State.CLOSED}),
    State.READY: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


# What is said to negotiate, by whether out-of-band execution is wanted: QEMU waits for it, so it is ready.
_CAPABILITIES: Final = "qmp_capabilities"
_NEGOTIATION: Final = {
    True: encode_command(_CAPABILITIES, {"enable": ["oob"]}, 1),
    False: encode_command(_CAPABILITIES, None, 1),
}


class QmpSession(SessionLife[State]):
    """The client's side of one QMP connection.

    :param events: where events go; pass the old one on to keep numbering over a reconnect
    :param limit: longest message that is accepted, in bytes
    :param oob: negotiate out-of-band execution where QEMU offers it
    :param on_ready: called once it is ready, before any of its events counts
    """

    _kind, _moves, _closed = "QMP", MOVES, State.CLOSED

    def __init__(
        self,
        events: EventLog | None = None,
        limit: int = DEFAULT_LIMIT,
        oob: bool = True,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(State.GREETING)
        self.events = EventLog() if events is None else events
        self.greeting: Greeting | None = None
        self.oob = False
        self.stray = 0  # replies that nobody waited for: late ones, and ones that fit no command
        self._want_oob = oob
        self._on_ready = on_ready
        self._reader = MessageReader(limit)
        self._pending: dict[int, Call] = {}
        self._waiting: deque[Call] = deque()  # as long as there are callers: each entry is one that waits, or leaves
        self._in_band = 0
        self._fd_in_flight = False
        self._number = 1  # the negotiation's
        self._echoes: bool | None = None  # does this server put our ids into its replies?
        self._noise = False  # an unparsable command may be answered by a burst of errors: this is the rest of it
        self.negotiation = Call(_CAPABILITIES, 1, b"")  # what it says depends on the greeting

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version; (0, 0, 0) before the greeting."""
        if self.greeting is None:
            return (0, 0, 0)
        qemu = self.greeting.version.qemu
        return (qemu.major, qemu.minor, qemu.micro)

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Names of the commands that were sent and not answered."""
        return tuple(call.command for call in self._pending.values() if call.sent)

    @property
    def busy(self) -> bool:
        return len(self._pending) > 1

    # -- out: commands ---------------------------------------------------

    def submit(self, command: str, arguments: Any = None, fd: int | None = None, oob: bool = False) -> Call:
        """Queue a command. Up to eight are in flight at once, the rest wait in order.

        :param arguments: a mapping of JSON values, or None
        :param fd: a descriptor to go along; it must stay open until the call is sent or abandoned
        :param oob: run out of band, past all queues; falls back to in-band where that was not negotiated
        :raises ArgumentError: the arguments are not JSON
        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()
        oob = oob and self.oob
        self._number = number = self._number + 1
        call = Call(command, number, encode_command(command, arguments, number, oob), fd, oob)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("-> #%d %s %s", call.id, command, redact(command, arguments))
        if self._waiting or not (fd is None and not oob and self.state is State.READY and self._in_band < MAX_IN_BAND):
            return self.queue(call)
        # what nearly all are: the same as there, and no function called for it
        self._pending[number] = call
        self._in_band += 1
        self.outbox.append((call.payload, call))
        return call

    def new_id(self) -> int:
        """An id that no command of this session has had."""
        self._number += 1
        return self._number

    def queue(self, call: Call) -> Call:
        """Queue a call whose payload somebody has made, with its id within.

        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()
        if call.oob or (not self._waiting and self._may_go(call)):
            self._send(call)
        else:
            self._waiting.append(call)
        return call

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more.

        If nothing of it was sent, it will never be. Otherwise it keeps its place
        in flight until its reply has come and was dropped.
        """
        if call.done or call.abandoned:
            return
        call.abandoned = True
        if not call.sent:
            self._withdraw(call)

    def refuse(self, call: Call, error: Exception) -> None:
        """`call` cannot be sent: it fails with `error`, and those behind it go on."""
        self._withdraw(call)
        call.fail(error)

    def _withdraw(self, call: Call) -> None:
        if call in self._waiting:
            self._waiting.remove(call)
        else:
            self.outbox = deque(item for item in self.outbox if item[1] is not call)
            self._leave(call)
            self._admit()

    def watch(self, names: Iterable[str], since: int | None, match: Match | None = None) -> EventWatch:
        """Wait for one event; see :meth:`EventLog.watch`. What has come before the end still counts after it.

        :raises ConnectionClosed: the session is over, and no such event came
        """
        watch = self.events.watch(names, since, match)
        if self.fault is not None and not watch.done:
            self.events.forget(watch)
            raise self.closed()
        return watch

    def stream(self, names: Iterable[str], since: int | None) -> EventStream:
        """Collect events; see :meth:`EventLog.stream`.

        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()
        return self.events.stream(names, since)

    def _may_go(self, call: Call) -> bool:
        # One descriptor in flight at a time: QEMU keeps only the last one that came,
        # whichever command it came with.
        return self.state is State.READY and self._in_band < MAX_IN_BAND and (call.fd is None or not self._fd_in_flight)

    def _admit(self) -> None:
        while self._waiting and self._may_go(self._waiting[0]):
            self._send(self._waiting.popleft())

    def _send(self, call: Call) -> None:
        self._pending[call.id] = call
        if not call.oob:
            self._in_band += 1
        if call.fd is not None:
            self._fd_in_flight = True
        self.outbox.append((call.payload, call))

    def _leave(self, call: Call) -> None:
        self._pending.pop(call.id, None)
        self._let_behind(call)

    def _let_behind(self, call: Call) -> None:
        """What comes behind `call` may go."""
        if not call.oob:
            self._in_band -= 1
        if call.fd is not None:
            self._fd_in_flight = False

    # -- in: bytes -------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what was read: finish calls, number events, move the state."""
        if self.fault is not None:
            return
        events: list[Message] = []
        for message in self._reader.feed(data):
            if message.event is not UNSET:
                events.append(message)
                continue
            if events:  # what came before a reply is in the log before the reply counts
                self.events.extend(events)
                events = []
            if message.greeting is not UNSET:
                self._on_greeting(message.greeting)
            else:
                self._on_reply(message)
            if self.state is State.CLOSED:
                return  # what stands behind the end of the session is not part of it
        if events:
            self.events.extend(events)
        if self._reader.fault is not None:
            self.close(self._reader.fault)

    def _let_go(self) -> list[Call]:
        calls = [self.negotiation, *self._pending.values(), *self._waiting]
        self._pending, self._waiting = {}, deque()
        return calls

    def _on_close(self, reason: MonitorError) -> None:
        self.events.close(reason)

    def _on_greeting(self, greeting: Greeting) -> None:
        if self.state is not State.GREETING:
            self.close(ProtocolError("a second greeting on one connection"))
            return
        self.greeting = greeting
        self._move(State.NEGOTIATING)
        offered = self._want_oob and "oob" in greeting.capabilities
        call = self.negotiation
        call.payload = _NEGOTIATION[bool(offered)]
        self._send(call)

    def _on_reply(self, message: Message) -> None:
        value, error = message.value, message.error
        if value is UNSET and error is UNSET:
            self.close(ProtocolError(f"a message that is no reply, event or greeting (id {message.id!r})"))
            return
        call = self._call_of(message)
        if call is None:
            self._on_stray(message)
            return
        del self._pending[call.id]
        if call.oob or call.fd is not None:
            self._let_behind(call)
        else:
            self._in_band -= 1
        if call is self.negotiation:
            self._on_negotiated(message)
        if call.abandoned:
            self._on_stray(message)
            call.done = True
        elif error is UNSET:
            call.value, call.done = value, True
            if call.notify is not None:
                call.notify()
        else:
            call.fail(command_error(call.command, error))
        if self._waiting:
            self._admit()

    def _on_negotiated(self, message: Message) -> None:
        if isinstance(message.error, ErrorBody):
            self.close(ProtocolError(f"capabilities were refused: {message.error.desc}"))
            return
        self.oob = self._want_oob and self.greeting is not None and "oob" in self.greeting.capabilities
        self._move(State.READY)
        if self._on_ready is not None:
            self._on_ready()

    def _call_of(self, message: Message) -> Call | None:
        """The command that `message` answers: by its id, or by order where the server echoes none."""
        number = message.id
        if number is not UNSET:
            self._echoes = True
            self._noise = False
            call = self._pending.get(number) if type(number) is int else None
            return call if call is not None and call.sent else None
        if self._echoes:
            return self._unparsed(message)
        call = next((call for call in self._pending.values() if call.sent and not call.oob), None)
        if call is not None and message.error is UNSET:
            self._echoes = False
        return call

    def _unparsed(self, message: Message) -> Call | None:
        # An error without an id, from a server that echoes ids, means that it could not
        # parse what we sent. It is the answer of a command only if that is the only one.
        if message.error is UNSET or self._noise or len(self._pending) != 1:
            return None
        self._noise = True
        call = next(iter(self._pending.values()))
        return call if call.sent else None

    def _on_stray(self, message: Message) -> None:
        self.stray += 1
        if self.stray & (self.stray - 1) == 0:  # one line at 1, 2, 4, 8 ...: a burst must not flood the log
            what = message.error.desc if isinstance(message.error, ErrorBody) else "a result"
            log.info("dropped a reply that nobody waits for (id %r: %s); %d so far", message.id, what, self.stray)


def command_error(command: str, body: ErrorBody) -> CommandError:
    """The error that an error reply to `command` stands for."""
    kind = CommandNotSupported if body.error_class == "CommandNotFound" else CommandError
    return kind(command, body.error_class, body.desc)
