"""How commands answer: a table or a line for people, JSON for programs."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from drover.kvm.spec.types import size_of

F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """The option ``-o``, which every command has."""
    choice = click.Choice(["text", "json"])
    return click.option("-o", "--output", type=choice, default="text", help="How to answer; text by default.")(function)


class Size(click.ParamType[int]):
    """A size in bytes, as a specification has it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of a text such as ``512MiB``."""
        size = size_of(int(value) if isinstance(value, str) and value.isdecimal() else value)
        if size is None:
            self.fail(f"{value!r} is no size: bytes, or a text such as 512MiB or 4GiB", param, ctx)
        return size


def answer(output: str, text: str, data: Mapping[str, Any]) -> None:
    """Say what was done."""
    if output == "json":
        click.echo(json.dumps(data))
    elif text:
        click.echo(text)


def table(output: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows for people in columns, for programs whole."""
    if output == "json":
        click.echo(json.dumps(list(rows), indent=1))
        return
    lines = [[column.upper() for column in columns], *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def notice(text: str) -> None:
    """Something that a person should know, and no program waits for."""
    click.echo(f"note: {text}", err=True)
