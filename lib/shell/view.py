"""What a shell shows: replies, events, errors, as text for people or as JSON for programs; and the log file.

It knows no terminal: text goes out by a function, with colours in it only if it is told so.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from drover.errors import CommandError, DroverError
from drover.qmp.messages import Event
from drover.qmp.redact import HIDDEN, may_hold_secret, redact

from .literal import LineError

Write = Callable[[str], None]

# What a terminal would obey instead of showing it; a guest can have written what QEMU prints.
_OBEYED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
# Events that are shown at once, and a second after that: beyond, the terminal would be busy with nothing else.
BURST: Final = 50
EVENTS_PER_SECOND: Final = 10

_RESET: Final = "\x1b[0m"
_STYLES: Final = {
    "error": "\x1b[31m",
    "event": "\x1b[36m",
    "note": "\x1b[33m",
    "sent": "\x1b[2m",
}


def harmless(text: str) -> str:
    """`text` with its control characters, line ends and tabs apart, as escapes that can be seen."""
    return text.replace("\r\n", "\n").translate(_OBEYED)


def as_json(value: Any, pretty: bool = False) -> str:
    """`value` as JSON, in one line unless `pretty`; names sorted then."""
    data = msgspec.json.encode(value, order="sorted" if pretty else None)
    return msgspec.json.format(data, indent=4 if pretty else 0).decode()


class Pace:
    """How many of a flood of events are shown: a screen of them at once, then no more than can be read.

    :ivar hidden: how many were not, since that was last told
    """

    def __init__(self) -> None:
        self.hidden = 0
        self._left = float(BURST)
        self._last = 0.0

    def admit(self, now: float) -> bool:
        """Whether an event that comes at `now`, in seconds, is shown."""
        self._left = min(BURST, self._left + (now - self._last) * EVENTS_PER_SECOND)
        self._last = now
        if self._left < 1:
            self.hidden += 1
            return False
        self._left -= 1
        return True


class View:
    """Shows what happens.

    :param write: prints text and a line end where results go
    :param complain: the same for what is not a result: errors of the line, notes
    :param json: each thing is one JSON document on a line, errors too, and nothing else is printed
    :param pretty: JSON over several lines
    :param verbose: show what is sent, too
    :param people: somebody reads along on a terminal: control characters are escaped, and long JSON is pretty
    :param colour: mark kinds of lines by colours
    :param log: gets all messages, each a line with its time, secrets hidden
    """

    def __init__(
        self,
        write: Write,
        complain: Write,
        *,
        json: bool = False,
        pretty: bool = False,
        verbose: bool = False,
        people: bool = False,
        colour: bool = False,
        log: Write | None = None,
    ) -> None:
        self.json = json
        self.pretty = pretty
        self.verbose = verbose
        self.events = people
        self.width: Callable[[], int] = lambda: 80
        self._write = write
        self._complain = complain
        self._people = people
        self._colour = colour
        self._log = log

    # -- messages --------------------------------------------------------

    def sent(self, command: str, arguments: Mapping[str, Any], word: str = "execute") -> None:
        """A command goes out."""
        message = {word: command, "arguments": redact(command, dict(arguments))}
        self._record("->", message)
        if self.verbose and not self.json:
            self._document(message, "sent")

    def typed(self, line: str) -> None:
        """A line of the human monitor's goes out."""
        shown = HIDDEN if may_hold_secret(line) else line
        self._record("->", {"line": shown})
        if self.verbose and not self.json:
            self._write(self._styled(shown, "sent"))

    def reply(self, value: Any, secret: bool = False) -> None:
        """It was done, and this came back.

        :param secret: keep it out of the log
        """
        message = {"return": value}
        self._record("<-", {"return": HIDDEN} if secret else message)
        self._document(message)

    def output(self, text: str) -> None:
        """It was done, and this was printed."""
        self._record("<-", {"return": text})
        if self.json:
            self._document({"return": text})
        elif text:
            self._write(harmless(text) if self._people else text)

    def event(self, event: Event, shown: bool = True) -> None:
        """An event came; one that is not shown is only in the log."""
        message = {"event": event.name, "data": event.data, "timestamp": event.timestamp}
        self._record("<-", message)
        if not (self.events and shown):
            return
        if self.json:
            self._document(message)
            return
        clock = time.strftime("%H:%M:%S", time.localtime(event.timestamp)) if event.timestamp >= 0 else "--:--:--"
        data = f" {as_json(event.data)}" if event.data else ""
        self._write(self._styled(f"[{clock}] {event.name}{data}", "event"))

    # -- what went wrong ---------------------------------------------------

    def refused(self, error: CommandError) -> None:
        """QEMU said no."""
        message = {"error": {"class": error.error_class, "desc": error.desc}}
        self._record("<-", message)
        if self._people and not self.json:
            self._write(self._styled(f"{error.error_class}: {error.desc}", "error"))
        else:
            self._document(message)

    def failed(self, error: CommandError) -> None:
        """The human monitor printed why it did not do it."""
        message = {"error": {"class": error.error_class, "desc": error.desc}}
        self._record("<-", message)
        if self.json:
            self._document(message)
        else:
            self._complain(self._styled(error.desc, "error"))

    def trouble(self, error: DroverError, line: str = "") -> None:
        """What was typed could not be sent, or was not answered.

        :param line: what was typed, to show where in it the mistake is
        """
        if self.json:
            body = {"class": type(error).__name__, "desc": str(error)}
            self._document({"error": body | ({"position": error.position} if isinstance(error, LineError) else {})})
            return
        place = pointer(line, error.position) + "\n" if isinstance(error, LineError) and line.strip() else ""
        self._complain(self._styled(place + str(error), "error"))

    def note(self, text: str) -> None:
        """Something to know."""
        if not self.json:
            self._complain(self._styled(text, "note"))

    def text(self, text: str) -> None:
        """An answer of the shell itself."""
        if self.json:
            self._document({"return": text})
        else:
            self._write(harmless(text) if self._people else text)

    # -- how -------------------------------------------------------------

    def _document(self, message: Any, style: str = "") -> None:
        if self.json:
            self._write(as_json(message))
            return
        text = as_json(message, self.pretty)
        if self._people and not self.pretty and len(text) > self.width():
            text = as_json(message, True)
        if self._people:
            text = harmless(text)
        if self._colour and not style:
            from .colours import colour_json

            self._write(colour_json(text))
        else:
            self._write(self._styled(text, style))

    def _styled(self, text: str, style: str) -> str:
        if self._people:
            text = harmless(text)
        return f"{_STYLES[style]}{text}{_RESET}" if self._colour and style else text

    def _record(self, arrow: str, message: Any) -> None:
        if self._log is not None:
            now = time.time()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"
            self._log(f"{stamp} {arrow} {as_json(message)}")


def pointer(text: str, position: int) -> str:
    """The line of `text` that holds `position`, and below it a mark there."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", start)
    line = harmless(text[start : end if end >= 0 else len(text)]).replace("\t", " ")
    column = min(position - start, len(line))
    if len(line) > 160:  # of a long line, what is around it
        cut = max(0, column - 80)
        line, column = line[cut : cut + 160], column - cut
    return f"{line}\n{' ' * column}^"
