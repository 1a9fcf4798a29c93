"""`drover qmp`, also installed as `drover-qmp-shell`: talk QMP to a machine."""

from typing import Any

import click

from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .qmp_talk import QmpTalker
from .start import find_address, leave, run_shell, shell_options
from .talk import Options
from .view import View

_EPILOG = """\b
ADDRESS is that of a QMP socket: a path, @NAME, HOST:PORT, [IPV6]:PORT or
vsock:CID:PORT; $QMP_SOCKET if it is not given.
\b
Examples:
  drover qmp /run/vm.qmp
  drover qmp /run/vm.qmp -c 'query-status'
  drover qmp /run/vm.qmp --json -c 'device_add driver=virtio-rng-pci id=rng1'
\b
Exit status with -c or a script: 0 done, 1 QEMU refused, 2 the line is wrong
(nothing was sent), 3 no connection, or it ended.
"""


@click.command(epilog=_EPILOG)
@click.argument("address", required=False)
@click.option("--no-check", is_flag=True, help="Send arguments as they are, not checked by QEMU's schema.")
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for connecting, and for a command that is not slow by nature.",
)
@shell_options
def command(address: str | None, no_check: bool, timeout: float, **options: Any) -> None:
    """Talk QMP to a machine: a shell on a terminal, else a script."""
    place = find_address(address)

    def prepare(view: View) -> QmpTalker:
        return QmpTalker(AsyncQmpConnection(place, timeout=timeout), view, verify=not no_check)

    leave(run_shell(prepare, Options(**options), "qmp"))


def main() -> None:
    """The program `drover-qmp-shell`."""
    command.main(prog_name="drover-qmp-shell")
