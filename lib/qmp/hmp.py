"""One session on the human monitor's text socket as a state machine: bytes and lines in, bytes and outputs out.

What is a prompt? ``(qemu) `` may stand anywhere in an output, and that of some commands holds
what a guest chose to write. QEMU reads its monitor byte by byte, and not while a command runs.
So each line is followed at once by a *mark*, a word of a few letters and Ctrl-W, which takes
it back. QEMU's line editor (``util/readline.c``) echoes the mark, with escape sequences that
can be told beforehand, right behind the prompt at which it reads again. Only a prompt with the
mark's echo behind it is one; no reply is waited for twice, and no line is left half typed.

The same rules as in :mod:`.session`: nothing here waits, reads a socket or asks a clock, and
faults of the peer end the session instead of being raised from :meth:`HmpSession.receive`.
"""

import logging
import re
from collections import deque
from enum import Enum
from typing import Any, Final

from ..errors import ArgumentError, CommandError, CommandNotSupported, ProtocolError
from .framing import DEFAULT_LIMIT, excerpt, too_long
from .life import Call, SessionLife
from .redact import HIDDEN, redact

log = logging.getLogger("drover.hmp")

PROMPT: Final = b"(qemu) "
PASSWORD_PROMPT: Final = b"Password: "
# READLINE_CMD_BUF_SIZE: QEMU drops without a word what is typed beyond. It echoes 4 n² / 2 + … bytes
# for n characters: 2 MB for a thousand, 33.5 MB and about a second for a line of this length.
MAX_LINE: Final = 4095
# A string argument is cut without a word at its buffer's end (monitor_parse_arguments).
MAX_ARGUMENT: Final = 1023

_LEFT: Final = b"\x1b[D"
_CLEAR: Final = b"\x1b[K"
_CTRL_W: Final = b"\x17"
# Control characters edit the line (Tab even completes it), and the editor takes byte 0x9b, wherever it
# stands in a UTF-8 sequence, for the start of an escape sequence.
_UNTYPABLE: Final = re.compile(rb"[\x00-\x1f\x7f\x9b]")
_MARK: Final = re.compile(rb"[A-Za-z0-9]{1,16}")

# `change vnc password` with nothing behind it turns the prompt into a password's, which only a new password ends.
_ASKS: Final = re.compile(r"\s*change\s+\S+\s+\"?passw(?:or)?d\"?\s*")
# What is typed into the guest may be a password, too.
_TYPED: Final = frozenset({"sendkey", "ringbuf_write"})


class State(Enum):
    """Where a session is; `MOVES` says where it may go."""

    GREETING = "waiting for the first prompt"
    READY = "at a prompt"
    ECHO = "reading a line's echo"
    OUTPUT = "reading a command's output"
    CLOSED = "closed"


MOVES: Final[dict[State, frozenset[State]]] = {
    State.GREETING: frozenset({State.READY, State.CLOSED}),
    State.READY: frozenset({State.ECHO, State.CLOSED}),
    State.ECHO: frozenset({State.OUTPUT, State.READY, State.CLOSED}),  # READY: it was taken back, unsent
    State.OUTPUT: frozenset({State.READY, State.CLOSED}),
    State.CLOSED: frozenset(),
}


def echo_of(text: bytes, shown: bytes | None = None) -> bytes:
    """What QEMU's line editor prints while `text` is typed: for each byte, back to the start and the line anew.

    :param shown: what it shows instead, as at a password prompt
    """
    shown = text if shown is None else shown
    return b"".join(_LEFT * size + shown[: size + 1] + _CLEAR for size in range(len(shown)))


class HmpSession(SessionLife[State]):
    """The client's side of one HMP connection: one command at a time, the others wait in order.

    What was read comes in by :meth:`receive`, what is to be sent lies in :attr:`outbox`, and
    the :class:`~.session.Call` that :meth:`submit` gives holds the output as text.

    :param mark: letters and digits, up to 16, that nobody can foresee: whoever knows them could make
        an output that contains a prompt
    :param limit: longest output that is accepted, in bytes
    :ivar banner: what QEMU said before its first prompt
    :ivar greeted: done when the first prompt has come
    :ivar stray: bytes that came while no command ran
    """

    _kind, _moves, _closed = "HMP", MOVES, State.CLOSED

    def __init__(self, mark: bytes = b"Drov", limit: int = DEFAULT_LIMIT) -> None:
        if not _MARK.fullmatch(mark):
            raise ArgumentError("mark", mark, "1 to 16 letters and digits")
        super().__init__(State.GREETING)
        self.banner = ""
        self.stray = 0
        self.greeted = Call("connect", 0, mark + _CTRL_W)
        self.outbox.append((self.greeted.payload, self.greeted))
        self._limit = limit
        self._typed_mark = mark + _CTRL_W
        erased = _LEFT * len(mark) + _CLEAR
        self._end = echo_of(mark) + erased  # the first prompt has gone by where a used socket is taken over
        self._asked = PASSWORD_PROMPT + echo_of(mark, b"*" * len(mark)) + erased
        self._output = bytearray()
        self._searched = 0
        self._echo_end: tuple[bytes, ...] = ()
        self._current: Call | None = self.greeted
        self._waiting: deque[Call] = deque()
        self._number = 0

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Name of the command that was sent and not answered, if there is one."""
        call = self._current
        return (call.command,) if call is not None and call.sent and call is not self.greeted else ()

    # -- out: lines ------------------------------------------------------

    def submit(self, line: str, arguments: Any = None, fd: int | None = None, oob: bool = False) -> Call:
        """Queue a line; its call's value will be the output.

        :param line: without a line end, at most `MAX_LINE` bytes
        :param arguments: none: they are part of the line
        :param fd: a descriptor to go with the line's first byte; must stay open until it is sent or abandoned
        :param oob: there is no other band here: a line always waits for the one before
        :raises ArgumentError: QEMU's line editor would not take it as it is
        :raises ConnectionClosed: the session is over
        """
        if self.fault is not None:
            raise self.closed()
        typed = _check_line(line)
        self._number += 1
        call = Call(name_of(line), self._number, typed + b"\n" + self._typed_mark, fd)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("-> #%d %s", call.id, shown(line))
        if self.state is State.READY:
            self._send(call)
        else:
            self._waiting.append(call)
        return call

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more: it is not sent if it was not yet, else its output will be dropped."""
        if call.done or call.abandoned:
            return
        call.abandoned = True
        if call.sent:
            self._trim()
        else:
            self._withdraw(call)

    def refuse(self, call: Call, error: Exception) -> None:
        """`call` cannot be sent: it fails with `error`, and those behind it go on."""
        self._withdraw(call)
        call.fail(error)

    def _withdraw(self, call: Call) -> None:
        if call is self._current:
            self.outbox.clear()
            self._at_prompt()
        elif call in self._waiting:
            self._waiting.remove(call)

    def _send(self, call: Call) -> None:
        typed = call.payload[: -len(self._typed_mark) - 1]
        shown = typed + _CLEAR if typed else b""
        self._echo_end = (shown + b"\r\n", shown + b"\n")
        self._current = call
        self._move(State.ECHO)
        self.outbox.append((call.payload, call))

    # -- in: bytes -------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what was read: finish calls, move the state."""
        while data and self.fault is None:
            if self.state is State.READY:
                self._on_stray(data)
                return
            data = self._skip_echo(data) if self.state is State.ECHO else self._collect(data)

    def _skip_echo(self, data: bytes) -> bytes:
        """Drop what is echoed, holding no more than its last line's length; return what comes behind."""
        tail, start, keep = self._output, 0, len(self._echo_end[0])
        while (end := data.find(b"\n", start) + 1) > 0:
            tail += data[max(start, end - keep) : end]
            if tail.endswith(self._echo_end):
                tail.clear()
                self._move(State.OUTPUT)
                return data[end:]
            start = end
        tail += data[max(start, len(data) - keep) :]
        if len(tail) > 2 * keep:  # twice, so that each byte is moved a constant number of times
            del tail[:-keep]
        return b""

    def _collect(self, data: bytes) -> bytes:
        """Keep `data` up to the prompt; return what comes behind."""
        output = self._output
        output += data
        if self.state is State.GREETING and output.startswith(b"{"):
            self.close(ProtocolError("this is a QMP monitor, not a human one"))
            return b""
        ends = [(output.find(end, self._searched), end) for end in (self._end, self._asked)]
        at, end = min(((at, end) for at, end in ends if at >= 0), default=(-1, b""))
        self._searched = at if at >= 0 else max(0, len(output) - max(len(self._end), len(self._asked)) + 1)
        if self._searched > self._limit and not self._is_dropped():
            self.close(too_long(self._limit, output))
        elif at < 0:
            self._trim()
        elif end is self._asked:
            self.close(ProtocolError("QEMU asks for a password: give it within the line"))
        else:
            rest = bytes(output[at + len(end) :])
            self._finish(bytes(output[:at]))
            return rest
        return b""

    def _is_dropped(self) -> bool:
        return self._current is not None and self._current.abandoned

    def _trim(self) -> None:
        """Of an output that nobody waits for keep only what may be the start of the prompt."""
        if self.state is State.OUTPUT and self._is_dropped():
            del self._output[: self._searched]
            self._searched = 0

    def _finish(self, output: bytes) -> None:
        call = self._current
        assert call is not None
        if call is self.greeted:
            self._end = PROMPT + self._end
            output = output.removesuffix(PROMPT)
            self.banner = plain(output.decode(errors="replace"))
        self._at_prompt()
        if call.abandoned:
            log.info("dropped the late output of #%d %s", call.id, call.command)
            call.done = True
        else:
            call.succeed(plain(output.decode(errors="replace")))

    def _at_prompt(self) -> None:
        self._current = None
        self._output.clear()
        self._searched = 0
        self._move(State.READY)
        if self._waiting:
            self._send(self._waiting.popleft())

    def _on_stray(self, data: bytes) -> None:
        if not self.stray:  # once: what comes unasked may come for ever
            log.info("dropped text that no command asked for: %r", excerpt(data))
        self.stray += len(data)

    # -- the end ---------------------------------------------------------

    def _let_go(self) -> list[Call]:
        calls = [self.greeted, *self._waiting, *([] if self._current is None else [self._current])]
        self._current, self._waiting, self._output = None, deque(), bytearray()
        return calls


# -- lines and outputs, whichever way they travel ----------------------------


def _check_line(line: str) -> bytes:
    typed = line.encode(errors="surrogateescape")
    what = "without control characters and byte 0x9b, which QEMU's line editor acts on"
    if _UNTYPABLE.search(typed):
        raise ArgumentError("command", shown(line), what)
    if len(typed) > MAX_LINE:
        raise ArgumentError("command", f"{len(typed)} bytes", f"QEMU takes {MAX_LINE} at most")
    if _ASKS.fullmatch(line):
        raise ArgumentError("command", line, "give the password within the line: nobody can be asked for it here")
    return typed


def name_of(line: str) -> str:
    """The command's name: the first word of `line`, or two after ``info``."""
    words = line.split(maxsplit=2)
    return " ".join(words[:2]) if words[:1] == ["info"] else "".join(words[:1])


def shown(line: str) -> str:
    """`line` as a log may have it: without what may be secret."""
    name = name_of(line)
    hidden = name in _TYPED or redact("human-monitor-command", {"command-line": line})["command-line"] != line
    return f"{name} {HIDDEN}" if hidden else line


def plain(output: str) -> str:
    """An output with line ends as they are elsewhere, and none at its end."""
    return output.replace("\r\n", "\n").removesuffix("\n")


def quote(text: str) -> str:
    """`text` as one string argument of a line.

    :raises ArgumentError: QEMU would cut it, or cannot be told it
    """
    size = len(text.encode(errors="surrogateescape"))
    if size > MAX_ARGUMENT:
        raise ArgumentError("argument", f"{size} bytes", f"QEMU takes {MAX_ARGUMENT} at most")
    if re.fullmatch(r"[^\s\"\\-][^\s\"\\]*", text):
        return text
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'


# HMP has no error replies, only texts; these are what commands of 7.2 to 10.0 print instead of doing what was
# asked. Nearly all say `Error: `; the rest are older than that habit. Only the first line counts.
_REFUSED: Final = re.compile(
    r"""Error:\ |Error\ opening\ |Could\ not\ open\ |unknown\ (?:command:|event|register)|[Dd]evice\ '.*'\ not\ found$
    |[Ii]nvalid\ (?:parameter|CPU\ index|format|boot\ device|host\ forwarding\ rule)
    |Mouse\ at\ index\ .*\ not\ found$|host\ forwarding\ rule\ for\ .*\ not\ found$|user\ mode\ network\ stack\ not
    |Command\ '.*'\ not\ available|terminal\ does\ not\ support\ password""",
    re.VERBOSE,
)
# How the parser of arguments ends whatever it has to say.
_MISUSED: Final = re.compile(r'^Try "help .*" for more information$', re.MULTILINE)
_WARNINGS: Final = re.compile(r"(?:warning: .*\n)+")


def refusal(line: str, output: str) -> CommandError | None:
    """The error that `output` tells, or None where the command did what was asked.

    QEMU's text is all there is to go by, and an output that holds what a guest or a
    user wrote (``ringbuf_read``) may look like one.
    """
    text = _WARNINGS.sub("", output, count=1) if output.startswith("warning: ") else output
    first = text.split("\n", 1)[0]
    if not (_REFUSED.match(first) or _MISUSED.fullmatch(text.rsplit("\n", 1)[-1])):
        return None
    desc = output.removeprefix("Error: ")
    if first.startswith(("unknown command: ", "Command '")):
        return CommandNotSupported(name_of(line), "CommandNotFound", desc)
    return CommandError(name_of(line), "GenericError", desc)
