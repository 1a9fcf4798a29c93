"""Care where something is destroyed: to say first what would be done, and to ask."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from drover.cli.output import answer

F = TypeVar("F", bound=Callable[..., Any])


class Declined(click.ClickException):
    """Whoever was asked said no. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("nothing was done")


def dry_run_option(function: F) -> F:
    """The option ``--dry-run``."""
    text = "Only say what would be done, or why it cannot be; do nothing."
    return click.option("--dry-run", is_flag=True, help=text)(function)


def yes_option(function: F) -> F:
    """The option ``--yes``."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask. Without a terminal it has to be said.")(function)


def confirm(question: str, yes: bool) -> None:
    """Ask whether it is to be done, unless that was said.

    :raises Declined: it is not
    :raises click.UsageError: nobody is there to be asked
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here: say --yes", click.get_current_context())
    if not click.confirm(question, err=True):
        raise Declined


def would(output: str, text: str, value: Mapping[str, Any]) -> None:
    """Say what a dry run has found: what would be done."""
    answer(output, f"It would {text}", {"dry_run": True, **value})
