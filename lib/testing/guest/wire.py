"""What the guest's helper says on its two serial ports, parsed. Pure: bytes and arrival times in, facts out.

``helper.c`` has the grammar in its first comment. Both parsers take bytes cut
anywhere, also within a line that began on the migration source's socket and
ends on the destination's.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

SECTOR = 512  # bytes: the unit of /sys/block/*/size, whatever the disk's own is
BEATS_KEPT = 60_000  # five minutes at 5 ms: longer than any move that a test watches, some 8 MB
OUTPUT_KEPT = 1 << 17  # bytes of a command's output: more belongs into a checksum
TEXT_KEPT = 1 << 16  # bytes of console text for the reader of an error: a panic with its trace takes 4,000
LINE_KEPT = 1 << 16  # bytes of an unfinished report: twice what helper.c writes at most (VIEW_MAX)
MARK_MAX = 200  # bytes: no line of the protocol on ttyS0 is longer, so this much may be the start of one

_MARK = re.compile(
    rb"\n#(?:READY (?P<release>\S+)|(?P<begun>\d+) BEGIN|(?P<ended>\d+) END (?P<rc>\d+) (?P<length>\d+))\n"
)
_PANIC = b"---[ end Kernel panic"  # the last of its words, so that all of them can be quoted


class Beat(NamedTuple):
    """One beat: its number in the guest, and when it arrived here (``time.monotonic()``, seconds)."""

    number: int
    at: float


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface as the guest sees it: its MAC address, and its ``operstate`` (``up``, ``down``, …)."""

    address: str
    state: str


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the guest at one moment.

    :ivar boots: how often it said that it takes commands
    :ivar starts: how often it began to beat; that is said on the other port, so a little before or after
    :ivar beat: number of the last beat since then, 0 before the first
    :ivar disks: name to size in bytes, as under ``/sys/block``
    :ivar nics: name to interface, as under ``/sys/class/net`` without ``lo``
    :ivar panicked: the kernel gave up
    :ivar garbled: lines of beats or reports that could not be read
    """

    boots: int = 0
    starts: int = 0
    beat: int = 0
    disks: Mapping[str, int] = field(default_factory=dict)
    nics: Mapping[str, Nic] = field(default_factory=dict)
    panicked: bool = False
    garbled: int = 0


@dataclass(frozen=True, slots=True)
class Blackout:
    """How the guest's beats arrived over a span of time.

    :ivar seconds: the longest time without any
    :ivar after: number of the beat before that silence
    :ivar lost: numbers that never came, between the lowest and the highest that did
    :ivar duplicated: beats whose number had come before
    """

    seconds: float
    after: int
    lost: int
    duplicated: int


def blackout(beats: Iterable[Beat], others: Iterable[Beat] = ()) -> Blackout:
    """Return the longest silence over two sockets together.

    Guest time stands still with the guest, so only arrival on the host can show how long it stood.

    :param beats: arrivals on one socket, in any order
    :param others: arrivals on the other
    :raise ValueError: fewer than two beats: there is no silence *between* them
    """
    arrived = sorted((*beats, *others), key=lambda beat: beat.at)
    if len(arrived) < 2:
        raise ValueError(f"a blackout lies between two beats, and {len(arrived)} came")
    seconds, after = max((later.at - beat.at, beat.number) for beat, later in pairwise(arrived))
    numbers = {beat.number for beat in arrived}
    return Blackout(seconds, after, max(numbers) - min(numbers) + 1 - len(numbers), len(arrived) - len(numbers))


class BeatPort:
    """Parser of ttyS1.

    :ivar beats: the last ``BEATS_KEPT`` of this boot, in order of arrival
    """

    def __init__(self) -> None:
        self.beats: deque[Beat] = deque(maxlen=BEATS_KEPT)
        self._rest = b""

    def feed(self, data: bytes, at: float, view: View) -> View:
        """Take what arrived at the time ``at`` (seconds); return the view that it makes of the old one."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LINE_KEPT:]
        for line in lines:
            view = self._line(line, at, view)
        return view

    def _line(self, line: bytes, at: float, view: View) -> View:
        try:
            match line.split(b" "):
                case [b"B", number]:
                    self.beats.append(Beat(int(number), at))
                    return replace(view, beat=int(number))
                case [b"V", disks, nics]:
                    return replace(view, disks=_disks(disks.decode()), nics=_nics(nics.decode()))
                case [b"S"]:  # a new boot: its numbers begin again
                    self.beats.clear()
                    return replace(view, starts=view.starts + 1, beat=0)
        except ValueError:
            pass
        return replace(view, garbled=view.garbled + 1)


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    for item in text.split(",") if text != "-" else ():
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(item)
        yield name, value


def _disks(text: str) -> Mapping[str, int]:
    return MappingProxyType({name: int(size) * SECTOR for name, size in _pairs(text)})


def _nics(text: str) -> Mapping[str, Nic]:
    return MappingProxyType({name: Nic(*value.split("/", 1)) for name, value in _pairs(text) if "/" in value})


class Ready(NamedTuple):
    """The guest takes commands. It runs the kernel ``release``."""

    release: str


class Answer(NamedTuple):
    """A command ended.

    :ivar intact: the output has the length that the guest counted, so nothing is missing and no kernel message is in it
    """

    id: int
    rc: int
    output: bytes
    intact: bool


class CommandPort:
    """Parser of ttyS0.

    :ivar text: the last ``TEXT_KEPT`` bytes, as they came
    :ivar panicked: the kernel said that it gives up, and has not booted since
    """

    def __init__(self) -> None:
        self.text = b""
        self.panicked = False
        self._buffer = bytearray(b"\n")  # a mark begins after a newline, also at the very start
        self._searched = 0
        self._dropped = False
        self._running: int | None = None

    def feed(self, data: bytes) -> list[Ready | Answer]:
        """Take what arrived; return what it says, in order."""
        self.panicked = self.panicked or _PANIC in self.text[-len(_PANIC) :] + data
        self.text = (self.text + data)[-TEXT_KEPT:]
        self._buffer += data
        said: list[Ready | Answer] = []
        position = max(0, self._searched - MARK_MAX)
        while mark := _MARK.search(self._buffer, position):
            position = self._mark(mark, said)
        self._searched = len(self._buffer)
        self._trim()
        return said

    def _mark(self, mark: re.Match[bytes], said: list[Ready | Answer]) -> int:
        """Act on a mark; return where in the buffer the next one may begin."""
        if mark["ended"] and int(mark["ended"]) != self._running:
            return mark.end() - 1  # it only looks like one: output, or the end of what the host gave up on
        if mark["release"]:
            self._running, self.panicked = None, False
            said.append(Ready(mark["release"].decode()))
        elif mark["begun"]:
            self._running = int(mark["begun"])
        elif self._running is not None:
            output = bytes(self._buffer[: mark.start()])
            intact = len(output) == int(mark["length"]) and not self._dropped
            said.append(Answer(self._running, int(mark["rc"]), output, intact))
            self._running = None
        del self._buffer[: mark.end()]
        self._dropped = False
        return 0

    def _trim(self) -> None:
        """Forget what can neither be output nor the start of a mark."""
        kept = MARK_MAX if self._running is None else OUTPUT_KEPT + MARK_MAX
        if (excess := len(self._buffer) - kept) > 0:
            del self._buffer[:excess]
            self._searched -= excess
            self._dropped = True
