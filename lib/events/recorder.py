"""From one connection's events to the journal: what may be missing before them is told before them."""

import time
from collections.abc import Callable
from typing import Final

from ..qmp.messages import Event
from .journal import Journal
from .segment import LOST
from .verdict import reason_told

# Events that are held back until it is known whether others went before them; QEMU answers long before.
_HELD: Final = 10_000


class Recorder:
    """Writes what one connection hears.

    :param generation: of the run
    :param begins: the run is being started: the first RESUME is the first thing that it says
    :param dirty: told that the journal has something to write
    :ivar reason: why the machine has shut down, by QEMU's own word
    """

    def __init__(self, journal: Journal, generation: int, dirty: Callable[[Journal], None], *, begins: bool) -> None:
        self.reason = ""
        self._journal = journal
        self._generation = generation
        self._begins = begins
        self._dirty = dirty
        self._held: list[Event] | None = []

    def take(self, events: list[Event]) -> None:
        """Write events of one read."""
        for event in events:
            if event.name == "SHUTDOWN":
                self.reason = reason_told(event.data)
            elif event.name in ("RESET", "RESUME"):
                self.reason = ""
        if self._held is None:
            self._write(events)
            return
        self._held += events
        if len(self._held) > _HELD:
            self.begin(complete=False)

    def begin(self, *, complete: bool) -> None:
        """It is known whether the machine said anything before this connection; nothing at the second call.

        :param complete: it cannot have in this run
        """
        held, self._held = self._held, None
        if held is None:
            return
        complete = complete or (self._begins and bool(held) and held[0].name == "RESUME")
        if not (complete and self._journal.goes_on_with(self._generation)) and not self._journal.ends_in_gap:
            self._journal.note(LOST, {"reason": "not-listening", "since": self._journal.at}, self._generation)
            self._dirty(self._journal)
        if held:
            self._write(held)

    def end(self, *, heard: bool) -> None:
        """No more will be heard; what is held back is written.

        :param heard: there was a connection
        """
        if heard or self._held:
            self.begin(complete=False)

    def _write(self, events: list[Event]) -> None:
        self._journal.extend(events, self._generation, time.time())
        self._dirty(self._journal)
