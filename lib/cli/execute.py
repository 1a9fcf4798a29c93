"""`drover exec`: a program in a guest, by the guest's agent."""

import base64
import sys
from typing import Any, Final

import click
from msgspec import convert

from drover.cli.backend import connected
from drover.cli.complete import instance_argument
from drover.cli.output import data, for_people, notice, output_option
from drover.errors import ArgumentError
from drover.node.client import RemoteInstance

# As a shell has it: this and the number of the signal that ended a program.
_SIGNALLED: Final = 128


@click.command("exec", context_settings={"allow_interspersed_args": False})
@instance_argument()
@click.argument("program")
@click.argument("args", nargs=-1)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Of its environment, which has nothing else.")
@click.option("-i", "--stdin", is_flag=True, help="Let it read standard input, all of which is read first.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds; after that it is killed.")
@output_option
@click.pass_context
def execute(
    context: click.Context,
    name: str,
    program: str,
    args: tuple[str, ...],
    env: tuple[str, ...],
    stdin: bool,
    timeout: float,
    output: str,
) -> None:
    """Run PROGRAM in a guest, by the guest's agent, and print what it printed when it has ended.

    No shell takes ARGS apart: drover exec web1 /bin/sh -c 'df | sort'. The exit status is the program's own, and
    128 and its number where a signal ended it.
    """
    pairs = dict(_pair(each) for each in env)
    given = base64.b64encode(sys.stdin.buffer.read()).decode() if stdin else None
    said = {"path": program, "args": list(args), "env": pairs or None, "input": given, "timeout": timeout}
    ended = run(name, said)
    if for_people(output):
        for stream, whole in ((sys.stdout.buffer, "stdout"), (sys.stderr.buffer, "stderr")):
            stream.write(base64.b64decode(ended[whole]))
            stream.flush()
            if ended[f"{whole}_truncated"]:
                notice(f"there was more on {whole} than is told")
    else:
        data(output, ended)
    context.exit(_SIGNALLED + ended["signal"] if ended["signal"] is not None else ended["exit_code"])


def run(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """Run a program in the guest of an instance; how it ended, bytes in base64."""
    instance = connected().instance(name)
    if isinstance(instance, RemoteInstance):
        return instance.run_program(**said)
    from drover.node import guest

    return guest.execute(instance, convert(said, guest.Exec))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentError("--env", text, "NAME=VALUE")
    return name, value
