"""One session with the guest agent (qemu-ga) as a state machine: bytes and commands in, bytes and outcomes out.

The agent's channel is a bare pipe into the guest. It has no greeting, agents before 4.0 echo
no ids, what an earlier client asked may still be answered to us, and the agent may end in the
middle of a reply and start again without a word. So nothing that comes is believed until the
two sides are *in step*: byte 0xFF makes the agent forget half a command,
``guest-sync-delimited`` makes it send 0xFF and a number that nobody could foresee, and all
that comes before is dropped. Whenever a reply stays out, the next command needs that again:
a late reply never passes for that of another command.

One command is under way at a time, for the agent works on one at a time; the others wait in order.

The same rules as in :mod:`.session`: nothing here waits, reads a socket or asks a clock.
A guest that sends nonsense costs the command that waits, not the connection.
"""

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import ProtocolError
from .framing import DEFAULT_LIMIT, excerpt, too_long
from .life import Call, SessionLife
from .messages import ErrorBody, encode_command
from .redact import redact
from .session import command_error

log = logging.getLogger("drover.qga")

SYNC: Final = "guest-sync-delimited"
SENTINEL: Final = b"\xff"  # in no JSON, and in no UTF-8
# What the agent answers only when it fails. A sync goes right behind: answered without an error before, it was done.
SILENT: Final = frozenset({"guest-shutdown", "guest-suspend-disk", "guest-suspend-hybrid", "guest-suspend-ram"})
# Numbers below this survive every JSON parser; the agent takes an int64.
SYNC_IDS: Final = 1 << 53
# Bytes: the longest reply to a sync, `{"return": 9007199254740991}`, has 29. What is longer is none.
_SYNC_REPLY: Final = 64


class State(Enum):
    """Where a session is; `MOVES` says where it may go."""

    UNSYNCED = "out of step"
    SYNCING = "waiting for the reply to a sync"
    READY = "in step"
    BUSY = "waiting for the reply to a command"
    CLOSED = "closed"


MOVES: Final[dict[State, frozenset[State]]] = {
    State.UNSYNCED: frozenset({State.SYNCING, State.CLOSED}),
    State.SYNCING: frozenset({State.SYNCING, State.READY, State.CLOSED}),  # SYNCING: asked again, by another number
    State.READY: frozenset({State.BUSY, State.UNSYNCED, State.CLOSED}),
    # SYNCING: what is silent when it is done was refused, and the sync behind it is still to be answered
    State.BUSY: frozenset({State.READY, State.SYNCING, State.UNSYNCED, State.CLOSED}),
    State.CLOSED: frozenset(),
}


class _Reply(Struct, gc=False, rename={"value": "return"}):
    value: Any = UNSET
    error: ErrorBody | UnsetType = UNSET


_decode = msgspec.json.Decoder(_Reply).decode


class AgentSession(SessionLife[State]):
    """The client's side of one connection to a guest agent.

    What was read comes in by :meth:`receive`, what is to be sent lies in :attr:`outbox`, and
    :meth:`submit` gives a :class:`~.session.Call`.

    :param next_id: gives numbers from 0 to `SYNC_IDS` that nobody can foresee
    :param limit: longest reply that is accepted, in bytes
    :ivar stray: bytes that were dropped, as they answered nothing that is asked
    :ivar busy_with: the command that was sent and not answered, also when nobody waits for it any more: until the
        next sync is answered, it may be what the agent is at
    """

    _kind, _moves, _closed = "agent", MOVES, State.CLOSED

    def __init__(self, next_id: Callable[[], int], limit: int = DEFAULT_LIMIT) -> None:
        super().__init__(State.UNSYNCED)
        self.stray = 0
        self.busy_with = ""
        self._next_id = next_id
        self._limit = limit
        self._sync_id = -1
        self._input = bytearray()
        self._searched = 0
        self._current: Call | None = None
        self._waiting: deque[Call] = deque()  # as long as there are callers: each entry is one that waits, or leaves
        self._number = 0

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Name of the command that was sent and not answered, if somebody waits for it."""
        return (self._current.command,) if self._current is not None and self._current.sent else ()

    @property
    def come(self) -> int:
        """Bytes of the reply to the command in flight that are here so far."""
        return len(self._input) if self.state is State.BUSY else 0

    # -- out: commands ---------------------------------------------------

    def submit(self, command: str, arguments: Any = None, fd: int | None = None, oob: bool = False) -> Call:
        """Queue a command. ``guest-sync-delimited`` is a wish to get in step anew, and is done when that is so.

        :param arguments: a mapping of JSON values, or None
        :param fd: None: nothing but bytes reaches the guest
        :param oob: there is no other band here
        :raises ArgumentError: the arguments are not JSON
        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()
        self._number += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("-> #%d %s %s", self._number, command, redact(command, arguments))
        if command == SYNC:
            call = Call(SYNC, self._number, b"")
            self._waiting.appendleft(call)
            if self.state is State.READY:
                self._move(State.UNSYNCED)
        else:
            call = Call(command, self._number, encode_command(command, arguments, UNSET))
            self._waiting.append(call)
        # where nobody waited for the sync that is out, the agent may have ended and taken it along
        if self.state is State.UNSYNCED or (self.state is State.SYNCING and self._waiting[0] is call):
            self._sync()
        elif self.state is State.READY:
            self._send_next()
        return call

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more: it is not sent if it was not yet, else its reply will be dropped."""
        if call.done or call.abandoned:
            return
        call.abandoned = True
        self._withdraw(call)

    def refuse(self, call: Call, error: Exception) -> None:
        """`call` cannot be sent: it fails with `error`, and those behind it go on."""
        self._withdraw(call)
        call.fail(error)

    def _withdraw(self, call: Call) -> None:
        if call is self._current:
            self._current = None
            self.outbox.clear()  # the agent forgets the first half of a command when the next sync begins
            if call.sent:
                self._lose_step()
            else:
                self.busy_with = ""
                self._move(State.READY)
                self._send_next()
        elif call in self._waiting:
            self._waiting.remove(call)

    def _send_next(self) -> None:
        while self._waiting and self._waiting[0].command == SYNC:
            self._waiting.popleft().succeed(self._sync_id)
        if self._waiting:
            call = self._current = self._waiting.popleft()
            self.busy_with = call.command
            self._move(State.BUSY)
            # no 0xFF before this sync: the agent would complain of it, and that would look like a refusal
            behind = self._new_sync() if call.command in SILENT else b""
            self.outbox.append((call.payload + behind, call))

    def _sync(self) -> None:
        """Ask for a step, unless what asks for one still lies in the outbox."""
        if self.outbox:
            return
        call = Call(SYNC, 0, SENTINEL + self._new_sync())
        self._move(State.SYNCING)
        self.outbox.append((call.payload, call))

    def _new_sync(self) -> bytes:
        self._sync_id = self._next_id()
        return encode_command(SYNC, {"id": self._sync_id}, UNSET)

    def _lose_step(self) -> None:
        self._input.clear()
        self._searched = 0
        self._move(State.UNSYNCED)
        if self._waiting:
            self._sync()

    # -- in: bytes -------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what was read: finish calls, move the state."""
        while data and self.fault is None:
            if self.state is State.SYNCING:
                data = self._look_for_sync(data)
            elif self._current is not None and self._current.sent:
                data = self._read_reply(data)
            else:
                self._on_unasked(data)
                return

    def _look_for_sync(self, data: bytes) -> bytes:
        """Drop all up to the reply to our sync; return what comes behind it."""
        self._input += data
        *lines, rest = bytes(self._input).split(b"\n")
        self._input.clear()
        for number, line in enumerate(lines):
            if self._is_step(line):
                self.busy_with = ""
                self._move(State.READY)
                self._send_next()
                return b"\n".join([*lines[number + 1 :], rest])
            self._drop(line)
        start = rest.rfind(SENTINEL)
        if start >= 0 and len(rest) - start <= _SYNC_REPLY:
            self._input += rest[start:]
            rest = rest[:start]
        self._drop(rest)
        return b""

    def _is_step(self, line: bytes) -> bool:
        _, sentinel, reply = line.rpartition(SENTINEL)
        if not sentinel or len(reply) > _SYNC_REPLY:
            return False
        try:
            value = _decode(reply).value
        except ValueError:
            return False
        return type(value) is int and value == self._sync_id

    def _read_reply(self, data: bytes) -> bytes:
        """Collect the current call's reply; return what comes behind it."""
        self._input += data
        end = self._input.find(b"\n", self._searched)
        self._searched = len(self._input) if end < 0 else end
        if self._searched > self._limit:
            self._give_up(too_long(self._limit, self._input))
            return b""
        if end < 0:
            return b""
        line, rest = bytes(self._input[:end]).strip(), bytes(self._input[end + 1 :])
        self._input.clear()
        self._searched = 0
        if line:
            self._on_reply(line)
        return rest

    def _on_reply(self, line: bytes) -> None:
        call = self._current
        assert call is not None
        silent = call.command in SILENT
        if silent and self._is_step(line):
            line = b'{"return": {}}'
            silent = False
        try:
            reply = _decode(line)
        except ValueError as error:
            self._give_up(ProtocolError(f"{call.command}: not a reply of an agent ({error})", excerpt(line)))
            return
        if reply.value is UNSET and reply.error is UNSET:
            self._give_up(ProtocolError(f"{call.command}: neither a result nor an error", excerpt(line)))
            return
        self._current, self.busy_with = None, ""
        if isinstance(reply.error, ErrorBody):
            call.fail(command_error(call.command, reply.error))
        else:
            call.succeed(reply.value)
        if self.outbox:  # it was refused by its first half
            self.outbox.clear()
            self._lose_step()
        elif silent:
            self._move(State.SYNCING)
        else:
            self._move(State.READY)
            self._send_next()

    def _on_unasked(self, data: bytes) -> None:
        """Somebody else speaks on this channel, too: what comes next may be the rest of this."""
        self._drop(data)
        if self._current is not None:
            self.outbox.clear()
            self._waiting.appendleft(self._current)
            self._current, self.busy_with = None, ""
        if self.state is not State.UNSYNCED:
            self._lose_step()

    def _give_up(self, error: ProtocolError) -> None:
        call, self._current = self._current, None
        assert call is not None
        self.outbox.clear()
        self._lose_step()
        call.fail(error)

    def _drop(self, data: bytes) -> None:
        if data and not self.stray:  # once: what comes unasked may come for ever
            log.info("dropped bytes that answer nothing: %r", excerpt(data))
        self.stray += len(data)

    # -- the end ---------------------------------------------------------

    def _let_go(self) -> list[Call]:
        calls = [*self._waiting, *([] if self._current is None else [self._current])]
        self._current, self._waiting, self._input = None, deque(), bytearray()
        return calls
