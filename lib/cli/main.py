"""The program `drover`: a tree of sub-commands, each one's module loaded only when that command is typed.

`drover --help` and `drover --version` import click and nothing else of weight, so they answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from drover.cli.choice import HERE_ONLY, must_be_local
from drover.cli.commands import COMMANDS
from drover.cli.completion import VARIABLE
from drover.cli.failures import EXIT_STATUS, INTERRUPTED, advice
from drover.cli.lazy import LazyGroup
from drover.cli.text import harmless
from drover.errors import DroverError
from drover.version import __version__


class Root(LazyGroup):
    """All of `drover`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it exits with."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), text) for status, text in EXIT_STATUS.items()])


@click.group(cls=Root, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="drover", message="%(prog)s %(version)s")
@click.option("--context", metavar="NAME", help="The node that is meant; see drover context.")
@click.pass_context
def group(ctx: click.Context, context: str | None) -> None:
    """Drive QEMU/KVM virtual machines.

    Commands speak to the node of a context, if one is meant; else to the node daemon of this host, where it runs; else
    they do what they do themselves.
    """
    if ctx.invoked_subcommand in HERE_ONLY and not {"-h", "--help"} & set(sys.argv):
        must_be_local(ctx.invoked_subcommand)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `drover` with these arguments (those of the process unless given), and exit the process.

    A `DroverError` is told on standard error: what is wrong in one line, and what to do about it in another; so is what
    the system says of a file. Anything else is a fault of ours and keeps its traceback. What it exits with:
    :data:`.failures.EXIT_STATUS`.
    """
    if VARIABLE in os.environ:
        sys.stderr = io.StringIO()  # a shell that completes shows nothing else
    try:
        status = group.main(args=arguments, prog_name="drover", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("drover: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except DroverError as error:
        _fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"drover: {os.fsdecode(error.filename)}: {error.strerror}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: DroverError) -> NoReturn:
    click.echo(f"drover: {harmless(str(error))}", err=True)
    found = advice(error)
    if found.then:
        click.echo(f"  {found.then}", err=True)
    sys.exit(found.status)
