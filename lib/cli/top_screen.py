"""The screen of `drover top`; imported only where textual is."""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import quote

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, RichLog, Static

from drover.cli.events import line
from drover.cli.output import COLOURS
from drover.cli.text import harmless
from drover.cli.top_rows import COLUMNS, Row, ordered, rows
from drover.errors import DroverError
from drover.node.client import Daemon
from drover.node.hearing import Hearing

_KEPT: Final = 500  # lines of what happened
_PATIENCE: Final = 10.0  # seconds for one look
_WORDS: Final = 2  # of a line in front of what happened: date and time


class Shown(ModalScreen[None]):
    """One instance: its row, its devices, what it uses.

    :param name: of the instance
    :param text: what is known of it
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Back")]
    CSS = "Shown { align: center middle; } Shown VerticalScroll { width: 90%; height: 90%; border: round $accent; }"

    def __init__(self, name: str, text: str) -> None:
        super().__init__()
        self._of = name
        self._text = text

    def compose(self) -> ComposeResult:
        """A window with its text."""
        with VerticalScroll() as window:
            window.border_title = self._of
            yield Static(Text(self._text))
        yield Footer()


class Top(App[None]):
    """All instances, live.

    :param daemon: whose
    :param every: seconds between two looks
    :param sort: by what the rows are ordered at first
    """

    TITLE = "drover top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; background: $panel; }
    #table { height: 1fr; }
    #events { height: 7; border-top: solid $accent; }
    #filter { display: none; }
    #filter.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Leave"),
        Binding("slash", "ask_filter", "Filter"),
        Binding("enter", "show", "Show"),
        Binding("n", "sort('name')", "Name"),
        Binding("s", "sort('state')", "State"),
        Binding("c", "sort('cpu')", "CPU"),
        Binding("m", "sort('memory')", "Memory"),
        Binding("d", "sort('disk')", "Disk"),
        Binding("w", "sort('net')", "Net"),
        Binding("e", "sort('events')", "Events"),
        Binding("escape", "no_filter", "All", show=False),
    ]

    def __init__(self, daemon: Daemon, *, every: float, sort: str) -> None:
        super().__init__()
        self.sort = sort
        self.reverse = False
        self.only = ""
        self.found: list[Row] = []
        self._daemon = daemon
        self._every = every
        self._last: dict[str, str] = {}
        self._events: Counter[str] = Counter()
        self._ended = threading.Event()

    def compose(self) -> ComposeResult:
        """A line of figures, the table, what happens, and the keys."""
        yield Static(id="head")
        yield DataTable(id="table", cursor_type="row", zebra_stripes=True)
        yield RichLog(id="events", max_lines=_KEPT, wrap=False)
        yield Input(id="filter", placeholder="only what has this in its name, state or detail")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look and to listen, each in a thread: a daemon that hangs stops neither keys nor screen."""
        table = self.query_one("#table", DataTable)
        for column in COLUMNS:
            table.add_column(column, key=column)
        table.focus()
        for act in (self._look, self._listen):
            threading.Thread(target=act, daemon=True).start()

    def on_unmount(self) -> None:
        """Look no more."""
        self._ended.set()

    # -- in threads ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._ended.is_set():
            try:
                told = self._daemon.call("GET", "/v1/instances", timeout=_PATIENCE)["instances"]
                used = self._daemon.call("GET", "/v1/stats", timeout=_PATIENCE)["stats"]
                self._safely(self.take, told, used)
            except DroverError as error:
                self._safely(self.say, harmless(str(error)))
            self._ended.wait(self._every)

    def _listen(self) -> None:
        try:
            for event in Hearing(self._daemon, "", follow=True):
                if self._ended.is_set():
                    return
                self._safely(self.hear, event)
        except DroverError as error:
            self._safely(self.say, harmless(str(error)))

    def _safely(self, act: Any, *words: Any) -> None:
        """Have the screen do something, unless it is gone."""
        if not self._ended.is_set():
            self.call_later(act, *words)

    # -- on the screen ------------------------------------------------------------------------------------------------

    def take(self, told: list[dict[str, Any]], used: list[dict[str, Any]]) -> None:
        """Show what was found."""
        self.found = rows(told, used, self._last, self._events)
        self.draw()

    def say(self, text: str) -> None:
        """Something that is wrong, in the line of figures."""
        self.query_one("#head", Static).update(Text(f" {time.strftime('%H:%M:%S')}  {text}", style="bold red"))

    def hear(self, event: Mapping[str, Any]) -> None:
        """Something has happened."""
        text = line(dict(event), "")
        self.query_one("#events", RichLog).write(Text(text))
        if name := str(event.get("instance") or (event.get("job") or {}).get("instance", "")):
            self._events[name] += 1
            self._last[name] = text.split(" ", _WORDS)[-1].removeprefix(f"{name} ")[:40]

    def draw(self) -> None:
        """The table and the line of figures, anew; the cursor stays on its instance."""
        table = self.query_one("#table", DataTable)
        shown = ordered(self.found, self.sort, reverse=self.reverse, only=self.only)
        at, scrolled = self.selected(), table.scroll_y
        table.clear()
        for row in shown:
            cells = [Text(cell, style=COLOURS.get(cell, "")) for cell in row.cells]
            table.add_row(*cells, key=row.name)
        names = [row.name for row in shown]
        if at in names:
            table.move_cursor(row=names.index(at), scroll=False)
        table.scroll_to(y=scrolled, animate=False)
        self.query_one("#head", Static).update(Text(self._head(len(shown)), style="bold"))

    def _head(self, shown: int) -> str:
        counted = sorted(Counter(row.state for row in self.found).items())
        states = ", ".join(f"{count} {state}" for state, count in counted) or "none"
        cpu = sum(row.cpu or 0 for row in self.found)
        order = f"by {self.sort}{' (turned round)' if self.reverse else ''}"
        only = f", only {self.only!r}: {shown}" if self.only else ""
        return f" {time.strftime('%H:%M:%S')}  {len(self.found)} instances: {states}  CPU {cpu:.0f}%  {order}{only}"

    def selected(self) -> str:
        """The name of the instance that the cursor is on; empty where there is none."""
        table = self.query_one("#table", DataTable)
        if not table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_sort(self, by: str) -> None:
        """Another order, or the same one turned round."""
        self.reverse = by == self.sort and not self.reverse
        self.sort = by
        self.draw()

    def action_ask_filter(self) -> None:
        """Have a filter typed."""
        self.query_one("#filter").add_class("asked")
        self.query_one("#filter", Input).focus()

    def action_no_filter(self) -> None:
        """All of them again."""
        field = self.query_one("#filter", Input)
        field.value = ""
        field.remove_class("asked")
        self.query_one("#table").focus()

    def on_input_changed(self, changed: Input.Changed) -> None:
        """The filter is typed: it holds at once."""
        self.only = changed.value
        self.draw()

    def on_input_submitted(self) -> None:
        """It is typed."""
        self.query_one("#filter").remove_class("asked")
        self.query_one("#table").focus()

    def on_data_table_row_selected(self) -> None:
        """Enter, or a click."""
        self.action_show()

    def action_show(self) -> None:
        """Show the instance that the cursor is on."""
        if name := self.selected():
            threading.Thread(target=self._fetch, args=(name,), daemon=True).start()

    def _fetch(self, name: str) -> None:
        path = f"/v1/instances/{quote(name, safe='')}"
        try:
            told = self._daemon.call("GET", path, timeout=_PATIENCE)
            used = self._daemon.call("GET", f"{path}/stats", timeout=_PATIENCE)["stats"]
        except DroverError as error:
            self._safely(self.say, harmless(str(error)))
            return
        devices = (told["document"].get("runtime") or {}).get("devices", {})
        parts = {"": told["summary"], "devices": devices, "uses": used, "specification": told["document"]["spec"]}
        text = "\n\n".join(f"{title}\n{json.dumps(part, indent=1)}".strip() for title, part in parts.items())
        self._safely(self.push_screen, Shown(name, text))
