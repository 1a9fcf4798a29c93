"""`drover hmp`: talk to a machine's human monitor."""

from typing import Any

import click

from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .hmp_talk import HmpTalker
from .start import find_address, leave, run_shell, shell_options
from .talk import Options

_EPILOG = """\b
ADDRESS is that of a text monitor (-monitor unix:PATH,server) or of a QMP
socket, which works as well; $QMP_SOCKET if it is not given.
\b
Examples:
  drover hmp /run/vm.hmp
  drover hmp /run/vm.qmp -c 'info block' -c 'info status'
\b
Exit status with -c or a script: 0 done, 1 QEMU refused, 2 the line cannot be
typed, 3 no connection, or it ended.
"""


@click.command(epilog=_EPILOG)
@click.argument("address", required=False)
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for connecting, and for a command that is not slow by nature.",
)
@shell_options
def command(address: str | None, timeout: float, **options: Any) -> None:
    """Talk to a machine's human monitor: a shell on a terminal, else a script."""
    place = find_address(address)
    leave(run_shell(lambda view: HmpTalker(place, timeout, view), Options(**options), "hmp"))
