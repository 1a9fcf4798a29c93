"""How commands answer: a table or a line for people, JSON or YAML for programs."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from drover.cli.text import harmless

F = TypeVar("F", bound=Callable[..., Any])

FORMATS: Final = ("text", "wide", "json", "yaml")
_GAP: Final = "  "
_CUT: Final = "…"
# No column of a table that has to fit is made narrower than that; what is too long still is cut at its end.
_NARROWEST: Final = 8
COLOURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("running", "done"), "green"),
    **dict.fromkeys(("paused", "saved", "starting", "migrating", "busy", "queued", "io-error"), "yellow"),
    **dict.fromkeys(("panicked", "unresponsive", "unknown", "failed", "lost", "!"), "red"),
}


def output_option(function: F) -> F:
    """The option ``-o``, which every command has that answers."""
    text = "How to answer: for people, with more columns, or for programs; text by default."
    return click.option("-o", "--output", type=click.Choice(FORMATS), default="text", help=text)(function)


def for_people(output: str) -> bool:
    """Whether a person reads the answer."""
    return output in ("text", "wide")


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType  # which click before 8.4 says nothing more of


class Size(_IntType):
    """A size in bytes, as a specification has it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of a text such as ``512MiB``."""
        from drover.kvm.spec.types import size_of  # with all of specifications, which a list needs not

        size = size_of(int(value) if isinstance(value, str) and value.isdecimal() else value)
        if size is None:
            self.fail(f"{value!r} is no size: bytes, or a text such as 512MiB or 4GiB", param, ctx)
        return size


def data(output: str, value: Any, *, indent: int | None = None) -> None:
    """An answer for programs.

    :param output: ``json`` or ``yaml``
    :param indent: of JSON, where it is long
    """
    if output == "yaml":
        from msgspec import yaml  # 20 ms, for the few that want it

        click.echo(yaml.encode(value).decode(), nl=False)
    else:
        click.echo(json.dumps(value, indent=indent))


def answer(output: str, text: str, value: Mapping[str, Any]) -> None:
    """Say what was done."""
    if not for_people(output):
        data(output, value)
    elif text:
        click.echo(text)


def one_of_many(output: str, text: str, value: Mapping[str, Any]) -> None:
    """One of the things that a command tells as they happen: a line, or a document of YAML."""
    if output == "yaml":
        click.echo("---")
    answer(output, text, value)


def table(output: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], wide: Sequence[str] = ()) -> None:
    """Rows for people in columns, for programs whole.

    On a terminal a table is as wide as that at most: what does not fit is cut, unless it was asked to be wide.

    :param wide: more columns, with ``-o wide``
    """
    if not for_people(output):
        data(output, list(rows), indent=1)
        return
    if output == "wide":
        columns = [*columns, *wide]
    lines = [[column.replace("_", " ").upper() for column in columns]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    fits = output != "wide" and sys.stdout.isatty()
    if fits:
        import shutil  # 3 ms, of which a list read by a program has no use

        widths = fitted(widths, shutil.get_terminal_size().columns)
    for number, line in enumerate(lines):
        cells = [_shortened(cell, width) if fits else cell for cell, width in zip(line, widths, strict=True)]
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        styled = [coloured(cell, bold=True) if number == 0 else coloured(cell) for cell in padded]
        click.echo(_GAP.join(styled).rstrip())


def fitted(widths: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit into the room there is: the widest lose first, and of those the last ones."""
    fitting = list(widths)
    while sum(fitting) + len(_GAP) * (len(fitting) - 1) > room:
        number = max(range(len(fitting)), key=lambda each: (fitting[each], each))
        if fitting[number] <= _NARROWEST:
            break
        fitting[number] -= 1
    return fitting


def coloured(text: str, *, bold: bool = False) -> str:
    """A word in the colour that it has, on a terminal that wants colours."""
    colour = COLOURS.get(text.strip())
    if not (colour or bold) or not wants_colours():
        return text
    return click.style(text, fg=colour, bold=bold or None)


def wants_colours() -> bool:
    """Whether there is a terminal, and nobody who would rather have no colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def notice(text: str) -> None:
    """Something that a person should know, and no program waits for."""
    click.echo(f"note: {text}", err=True)


def _cell(value: Any) -> str:
    return "" if value is None else harmless(str(value))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + _CUT
