"""What the commands of the shells share: their options, and the choice between a person and a script."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, TypeVar

import click

from drover.errors import ArgumentError

from .signals import ended_by_signals, run_until_signal
from .talk import Options, Prepare
from .view import View

F = TypeVar("F", bound=Callable[..., Any])

SOCKET_VARIABLE: Final = "QMP_SOCKET"


_OPTIONS: Final = (
    click.option("-c", "--command", "commands", multiple=True, metavar="LINE", help="Run LINE and leave; may be given"
                 " several times. Without it, and without a terminal, the lines come from standard input."),
    click.option("-k", "--keep-going", is_flag=True, help="Go on behind a line that failed."),
    click.option("-e", "--events", is_flag=True, help="Print events in a script, too."),
    click.option("--json", is_flag=True, help="Print one JSON document a line, errors too, and nothing else."),
    click.option("-p", "--pretty", is_flag=True, help="Print JSON over several lines."),
    click.option("-v", "--verbose", is_flag=True, help="Print what is sent, too."),
    click.option("-l", "--logfile", metavar="FILE", help="Append all messages to FILE, secrets hidden."),
)  # fmt: skip


def shell_options(function: F) -> F:
    """The options that every shell has."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def find_address(address: str | None) -> str:
    """The address that was given, else that of ``$QMP_SOCKET``.

    :raises click.UsageError: there is neither
    """
    found = address or os.environ.get(SOCKET_VARIABLE)
    if not found:
        raise click.UsageError(f"no ADDRESS, and ${SOCKET_VARIABLE} is not set")
    return found


def run_shell(prepare: Prepare, options: Options, title: str) -> int:
    """Be a shell for whoever is there: a terminal, or a script. Returns the exit code.

    :param prepare: makes what the lines are typed to
    :param title: names the history file
    """
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        log = _open_log(stack, options.logfile)
        interactive = not options.commands and sys.stdin.isatty() and sys.stdout.isatty()
        try:
            if interactive and not options.json:
                from .app import run_app

                return run_until_signal(run_app(prepare, options, title, log))
            from .script import given, read_lines, run_script

            shown = {"json": options.json, "pretty": options.pretty, "verbose": options.verbose}
            view = View(_print, _print_error, log=log, **shown)
            view.events = options.events
            lines = given(options.commands) if options.commands else read_lines(sys.stdin.fileno())
            return run_until_signal(run_script(prepare(view), lines, keep_going=options.keep_going))
        except ArgumentError as error:
            raise click.UsageError(str(error)) from error


def _open_log(stack: ExitStack, path: str | None) -> Callable[[str], None] | None:
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from error
    file = stack.enter_context(os.fdopen(fd, "w", encoding="utf-8", buffering=1))

    def write(line: str) -> None:
        file.write(line + "\n")

    return write


def _print(text: str) -> None:
    click.echo(text)


def _print_error(text: str) -> None:
    click.echo(text, err=True)


def leave(code: int) -> None:
    """End the command with this exit code."""
    click.get_current_context().exit(code)
