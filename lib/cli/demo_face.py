"""How the demo's steps are told: as plain lines or as JSON here, to a terminal in `demo_terminal.py`.

A step knows nothing of this: it returns what was :class:`Seen`, or raises.
"""

import json
import time
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import click

from drover.ops.migration import MigrationInfo

MIB: Final = 1 << 20
TITLE_WIDTH: Final = 20
# Of a log, where the demo failed: its last words, not its whole story.
LAST_LINES: Final = 12


class Seen(NamedTuple):
    """What a step has shown.

    :ivar did: in words, where there is something to say
    :ivar guest: the guest's own view of it
    :ivar facts: the same and more, as JSON values, under names that no other step uses
    """

    did: str
    guest: str
    facts: dict[str, Any]


class End(NamedTuple):
    """What became of one QEMU when the demo failed.

    :ivar name: ``source`` or ``target``
    :ivar fate: how it ended; empty if it runs, or was ended as it should be
    :ivar log: the end of what it printed
    """

    name: str
    fate: str
    log: str


class Face:
    """Tells what happens; a context manager. This one tells it in plain lines, one a step."""

    def __init__(self) -> None:
        self.step = self.title = ""
        self._first = self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return time.monotonic() - self._began

    @property
    def total(self) -> float:
        """Seconds since all began."""
        return time.monotonic() - self._first

    def begin(self, step: str, title: str) -> None:
        """A step begins."""
        self.step, self.title, self._began = step, title, time.monotonic()

    def progress(self, info: MigrationInfo) -> None:
        """The migration goes on."""

    def done(self, seen: Seen) -> None:
        """The step has held what it promises."""
        guest = f"guest: {seen.guest}" if seen.guest else ""
        self._line("ok", "; ".join(filter(None, (seen.did, guest))))

    def failed(self, error: BaseException, ends: list[End]) -> None:
        """The step failed, and with it all."""
        self._line("FAIL", "")
        tell_failure(self.title, error, ends)

    def interrupted(self, reason: str) -> None:
        """A signal ended it, and all is cleaned up."""
        click.echo(f"drover: {self.title}: interrupted by {reason}; nothing is left", err=True)

    def summary(self, facts: dict[str, Any]) -> None:
        """All steps are done, and all checks held; `facts` are those of all steps."""
        click.echo(f"All checks held, in {self.total:.1f} s")
        for label, text in (*outcome(facts), *reach(facts)):
            click.echo(f"  {label:<{TITLE_WIDTH}} {text}")

    def _line(self, mark: str, text: str) -> None:
        click.echo(f"{mark:<4} {self.title:<{TITLE_WIDTH}} {self.seconds:6.2f} s  {text}".rstrip())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""


class JsonFace(Face):
    """One JSON object a step, and one at the end, each on a line of standard output."""

    def done(self, seen: Seen) -> None:
        self._object(step=self.step, ok=True, seconds=round(self.seconds, 3), **seen.facts)

    def failed(self, error: BaseException, ends: list[End]) -> None:
        qemu = {end.name: {"ended": end.fate or None, "log": end.log} for end in ends}
        self._failure(str(error), list(getattr(error, "__notes__", ())), qemu)
        tell_failure(self.title, error, [])

    def interrupted(self, reason: str) -> None:
        self._failure(f"interrupted by {reason}", [], {})
        super().interrupted(reason)

    def summary(self, facts: dict[str, Any]) -> None:
        self._object(summary=True, ok=True, seconds=round(self.total, 3), **facts)

    def _failure(self, reason: str, notes: list[str], qemu: dict[str, Any]) -> None:
        self._object(step=self.step, ok=False, seconds=round(self.seconds, 3), error=reason, notes=notes, qemu=qemu)
        self._object(summary=True, ok=False, seconds=round(self.total, 3), failed=self.step)

    def _object(self, **members: Any) -> None:
        click.echo(json.dumps(members, ensure_ascii=False))


def tell_failure(title: str, error: BaseException, ends: list[End]) -> None:
    """Say on standard error what failed and why, in one line that starts with ``drover:``; below it, what helps."""
    reason, *more = str(error).splitlines() or [type(error).__name__]
    click.echo(f"drover: {title}: {reason}", err=True)
    _tail(more)  # the guest's last words, say
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {note}", err=True)
    for end in ends:
        if end.fate:
            click.echo(f"  the {end.name}'s QEMU {end.fate}", err=True)
        # What the error quotes already is not said again.
        if end.log and end.log not in str(error):
            click.echo(f"  the {end.name}'s QEMU said:", err=True)
            _tail(end.log.splitlines())


def _tail(lines: list[str]) -> None:
    for line in lines[-LAST_LINES:]:
        click.echo(f"    {line.rstrip()}", err=True)


def outcome(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of all steps in a few lines for people: label and text."""
    return [
        ("moved", f"QEMU {facts['source_qemu']} to {facts['target_qemu']}, {facts['machine_type']}"),
        ("sent", f"{mib(facts['transferred_bytes'])} in {facts['rounds']} rounds, {facts['total_ms'] / 1000:.2f} s"),
        ("meanwhile", f"the guest dirtied {facts['dirtied_mib_per_s']:.0f} MiB/s of its memory"),
        (
            "stood still",
            f"{facts['downtime_ms']} ms by QEMU's clock, {facts['blackout_ms']:.0f} ms by the guest's beats",
        ),
        ("beats", f"{facts['beats']} during the move, {facts['beats_lost']} lost, {facts['beats_doubled']} doubled"),
        ("checksum", f"{brief(facts['checksum_after'])} after as before"),
    ]


def reach(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """How to reach what was left running, where something was: label and text."""
    kept = facts.get("kept")
    if not kept:
        return []
    return [
        ("still running", f"pid {kept['pid']}, in {kept['directory']}"),
        ("monitor", kept["qmp"]),
        ("serial console", kept["serial"]),
        ("to end it", kept["end"]),
    ]


# -- numbers with their units ------------------------------------------------------------------------------------------


def mib(count: float) -> str:
    """Bytes as MiB: whole from 10 on, else with one decimal."""
    value = count / MIB
    return f"{value:.0f} MiB" if value >= 10 or value == round(value) else f"{value:.1f} MiB"


def speed(info: MigrationInfo) -> float:
    """How fast the memory goes over now, in bytes a second."""
    return info.ram.mbps * 1e6 / 8


def dirtying(info: MigrationInfo) -> float:
    """How fast the guest makes memory dirty, in bytes a second, as QEMU saw it in the last round."""
    return info.ram.dirty_pages_rate * info.ram.page_size


def dotted(version: tuple[int, ...]) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))


def brief(checksum: str) -> str:
    """As much of a checksum as eyes compare."""
    return f"{checksum[:12]}…{checksum[-12:]}"
