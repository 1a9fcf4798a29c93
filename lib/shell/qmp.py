"""`drover qmp`, also installed as `drover-qmp-shell` and `drover-qmp-shell-wrap`: talk QMP to a machine."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from drover.errors import ConnectError
from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .qmp_talk import QmpTalker
from .start import find_address, leave, run_shell, shell_options
from .talk import LOST, Options, Talker
from .view import View

_EPILOG = """\b
ADDRESS is that of a QMP socket: a path, @NAME, HOST:PORT, [IPV6]:PORT or
vsock:CID:PORT; $QMP_SOCKET if it is not given.
\b
Examples:
  drover qmp /run/vm.qmp
  drover qmp /run/vm.qmp -c 'query-status'
  drover qmp /run/vm.qmp --json -c 'device_add driver=virtio-rng-pci id=rng1'
  drover qmp --wrap -- qemu-system-x86_64 -display none -m 512
\b
Exit status with -c or a script: 0 done, 1 QEMU refused, 2 the line is wrong
(nothing was sent), 3 no connection, or it ended.
"""

_hmp = click.option("-H", "--hmp", is_flag=True, help="Speak HMP, through QMP or to a text monitor.")
_no_check = click.option("--no-check", is_flag=True, help="Send arguments as they are, not checked by QEMU's schema.")
_timeout = click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for connecting, and for a command that is not slow by nature.",
)


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[ADDRESS]")
@click.option("--wrap", is_flag=True, help="Start the QEMU whose command line follows behind --, and end it at exit.")
@_hmp
@click.option("-N", "--skip-negotiation", is_flag=True, help="Speak with qemu-ga, as `drover qga` does.")
@_no_check
@_timeout
@shell_options
def command(words: tuple[str, ...], wrap: bool, **options: Any) -> None:
    """Talk QMP to a machine: a shell on a terminal, else a script."""
    if wrap:
        _run_wrapped(words, **options)
        return
    if len(words) > 1:
        raise click.UsageError(f"one ADDRESS, not {len(words)} (with --wrap, QEMU's command line)")
    _run(find_address(words[0] if words else None), **options)


@click.command(context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, required=True, metavar="QEMU…", type=click.UNPROCESSED)
@_hmp
@_no_check
@_timeout
@shell_options
def wrap_command(words: tuple[str, ...], **options: Any) -> None:
    """Start a QEMU by its command line, talk QMP to it, and end it at exit."""
    _run_wrapped(words, skip_negotiation=False, **options)


def _run_wrapped(words: Sequence[str], **options: Any) -> None:
    from .wrap import wrapped

    if not words:
        raise click.UsageError("behind --wrap -- belongs the command line of a QEMU")
    try:
        with wrapped(words) as qemu:
            _run(qemu.address, qemu.check, **options)
    except ConnectError as error:
        click.echo(str(error), err=True)
        leave(LOST)


def _run(
    address: str,
    alive: Callable[[], None] | None = None,
    *,
    hmp: bool,
    skip_negotiation: bool,
    no_check: bool,
    timeout: float,
    **options: Any,
) -> None:
    def prepare(view: View) -> Talker:
        talker = _talker(view)
        talker.alive = alive or talker.alive
        return talker

    def _talker(view: View) -> Talker:
        if hmp:
            from .hmp_talk import HmpTalker

            return HmpTalker(address, timeout, view)
        if skip_negotiation:
            from drover.monitor.agent import AsyncGuestAgent

            from .qga_talk import QgaTalker

            return QgaTalker(AsyncGuestAgent(address, timeout=timeout), view)
        return QmpTalker(AsyncQmpConnection(address, timeout=timeout), view, verify=not no_check)

    title = "hmp" if hmp else "qga" if skip_negotiation else "qmp"
    leave(run_shell(prepare, Options(**options), title))


def main() -> None:
    """The program `drover-qmp-shell`: `drover qmp`, which goes on behind a line that failed, as qmp-shell does."""
    command.main(prog_name="drover-qmp-shell", default_map={"keep_going": True})


def main_wrap() -> None:
    """The program `drover-qmp-shell-wrap`."""
    wrap_command.main(prog_name="drover-qmp-shell-wrap", default_map={"keep_going": True})
