"""The demo on a terminal: a line a step, its spinner turned into a tick, and a bar while the guest moves."""

from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from drover.cli.demo_face import TITLE_WIDTH, End, Face, Seen, dirtying, mib, outcome, reach, speed, tell_failure
from drover.ops.migration import MigrationInfo

BAR_WIDTH: Final = 30
# Beyond this, lines are harder to read, not easier.
MAX_WIDTH: Final = 110


class TerminalFace(Face):
    """Tells it to people who look on."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(highlight=False)
        self._width = min(self._console.width, MAX_WIDTH)
        self._live = Live(
            console=self._console,
            get_renderable=self._now,
            transient=True,
            refresh_per_second=12,
            redirect_stderr=False,
        )
        self._spinner = Spinner("dots", style="cyan")
        self._began = 0.0
        self._info: MigrationInfo | None = None

    def begin(self, step: str, title: str) -> None:
        super().begin(step, title)
        self._info = None
        self._live.refresh()

    def progress(self, info: MigrationInfo) -> None:
        self._info = info

    def done(self, seen: Seen) -> None:
        said = [Text(seen.did)] if seen.did else []
        if seen.guest:
            said.append(Text.assemble(("guest: ", "cyan"), seen.guest))
        self._finish(Text("✓", style="bold green"), Group(*said))

    def failed(self, error: BaseException, ends: list[End]) -> None:
        title = self.title
        self._finish(Text("✗", style="bold red"), Text("failed", style="red"))
        self._live.stop()
        tell_failure(title, error, ends)

    def interrupted(self, reason: str) -> None:
        self._finish(Text("✗", style="bold yellow"), Text(f"interrupted by {reason}; nothing is left"))

    def summary(self, facts: dict[str, Any]) -> None:
        self._live.stop()
        self._console.print(Text.assemble("\n", ("All checks held", "bold green"), f", in {self.total:.1f} s"))
        self._rows(outcome(facts))
        if kept := reach(facts):
            self._console.print()
            self._rows(kept)

    def _rows(self, rows: list[tuple[str, str]]) -> None:
        for label, text in rows:
            # never wrapped: some of it is there to be copied
            self._console.print(Text.assemble((f"  {label:<{TITLE_WIDTH}} ", "cyan"), text), soft_wrap=True)

    def _finish(self, mark: Text, what: RenderableType) -> None:
        row = self._row(mark, what)
        self.title = ""  # from here on nothing is under way
        self._console.print(row)

    def _now(self) -> RenderableType:
        """The step under way, as it is now; called by the refreshing thread."""
        if not self.title:
            return Text("")
        row = self._row(self._spinner, _moving(self._info) if self._info else Text(""))
        return Group(row, Text(""))  # where a Ctrl-C is echoed: at the end of a full line it would start a new one

    def _row(self, mark: RenderableType, what: RenderableType) -> Table:
        row = Table.grid(padding=(0, 1))
        row.width = self._width
        row.add_column(width=1)
        row.add_column(width=TITLE_WIDTH, no_wrap=True)
        row.add_column(width=7, justify="right", no_wrap=True)
        row.add_column(ratio=1)
        row.add_row(mark, self.title, Text(f"{self.seconds:.2f} s", style="dim"), what)
        return row

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def _moving(info: MigrationInfo) -> RenderableType:
    """How far a migration has come: a bar of the memory that is over, and the numbers below."""
    ram = info.ram
    here = ram.total - ram.remaining if ram.total else 0
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(ram.total, 1), completed=here, width=BAR_WIDTH),
        Text(f"{100 * here // max(ram.total, 1)} %"),
    )
    figures = [f"{mib(ram.transferred)}", f"round {max(ram.dirty_sync_count, 1)}", f"{mib(speed(info))}/s"]
    if ram.dirty_pages_rate:  # QEMU tells it after the first second
        figures.append(f"dirty {mib(dirtying(info))}/s")
    return Group(bar, Text(" · ".join(figures), style="dim", no_wrap=True, overflow="ellipsis"))
