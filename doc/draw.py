"""Draws into doc/*.md what the code holds as tables, so that the pages cannot drift from it.

    doc/draw.py           writes the pages anew
    doc/draw.py --check   only says which ones are out of date, and fails
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "build" / "py"))

from drover.ops.migration_settings import CAPABILITIES, PARAMETERS, Setting  # noqa: E402
from drover.ops.slots import BRIDGES, BusKind  # noqa: E402
from drover.qmp.session import MOVES, State  # noqa: E402
from drover.qmp.timeouts import COMMAND_TIMEOUTS, DEFAULT_TIMEOUT  # noqa: E402

BLOCK = re.compile(r"(<!-- draw: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def session_states() -> str:
    """The states of a QMP session and its moves, as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {state.name}: {state.value}" for state in State]
    lines += [f"    [*] --> {State.GREETING.name}"]
    lines += [f"    {state.name} --> {to.name}" for state in State for to in State if to in MOVES[state]]
    return "\n".join([*lines, "```"])


def settings(table: Mapping[str, Setting]) -> str:
    """A table of migration capabilities or parameters."""
    lines = ["| name | side | type | QEMU |", "|---|---|---|---|"]
    for name, setting in table.items():
        side = "both" if len(setting.side) > 1 else str(setting.side.name).lower()
        kind = setting.kind.__name__ + (f", {setting.unit}" if setting.unit else "")
        since = "{}.{} and later".format(*setting.since) if setting.since else ""
        until = "up to {}.{}".format(*setting.until) if setting.until else ""
        lines.append(f"| `{name}` | {side} | {kind} | {since or until or 'all'} |")
    return "\n".join(lines)


def timeouts() -> str:
    """The timeouts of commands that are slow by nature."""
    lines = ["| command | seconds |", "|---|---|", f"| any other | {DEFAULT_TIMEOUT:g} |"]
    return "\n".join([*lines, *(f"| `{command}` | {seconds:g} |" for command, seconds in COMMAND_TIMEOUTS.items())])


def bridges() -> str:
    """Which slots of which bridge take hotplug."""

    def slots(kind: BusKind) -> str:
        return f"{kind.first} to {kind.first + kind.slots - 1}" if kind.slots > 1 else ("none", "0")[kind.slots]

    rows = [f"| `{vendor:04x}:{device:04x}` | {slots(kind)} |" for (vendor, device), kind in BRIDGES.items()]
    return "\n".join(["| PCI id of the bridge | slots |", "|---|---|", *rows])


DRAWINGS: dict[str, Callable[[], str]] = {
    "session-states": session_states,
    "capabilities": lambda: settings(CAPABILITIES),
    "parameters": lambda: settings(PARAMETERS),
    "timeouts": timeouts,
    "bridges": bridges,
}


def redrawn(text: str) -> str:
    """The page with each drawing made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{DRAWINGS[found[2]]()}\n{found[3]}", text)


def main() -> int:
    """Redraw the pages, or check them."""
    check = sys.argv[1:] == ["--check"]
    stale = [page for page in sorted(HERE.glob("**/*.md")) if redrawn(page.read_text()) != page.read_text()]
    for page in stale:
        if check:
            print(f"{page.relative_to(HERE.parent)}: not what the tables say; run doc/draw.py")
        else:
            page.write_text(redrawn(page.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
