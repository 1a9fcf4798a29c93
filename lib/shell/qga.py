"""`drover qga`: talk to the agent in a guest."""

from typing import Any

import click

from drover.monitor.agent import AsyncGuestAgent
from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .qga_talk import QgaTalker
from .start import find_address, leave, run_shell, shell_options
from .talk import Options
from .view import View

_EPILOG = """\b
ADDRESS is that of the agent's channel (-chardev socket,path=PATH,server=on
behind a virtserialport org.qemu.guest_agent.0); $QMP_SOCKET if not given.
\b
Examples:
  drover qga /run/vm.qga -c guest-ping
  drover qga /run/vm.qga --json -c guest-network-get-interfaces
\b
Exit status with -c or a script: 0 done, 1 the agent refused, 2 the line is
wrong (nothing was sent), 3 no connection, or no agent answers.
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
    """Talk to the agent in a guest (qemu-ga): a shell on a terminal, else a script."""
    place = find_address(address)

    def prepare(view: View) -> QgaTalker:
        return QgaTalker(AsyncGuestAgent(place, timeout=timeout), view)

    leave(run_shell(prepare, Options(**options), "qga"))
