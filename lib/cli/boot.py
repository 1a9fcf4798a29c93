"""The commands for the host's boot and shutdown: `drover start-all`, `drover stop-all`."""

from collections.abc import Sequence
from typing import Any

import click
from msgspec import to_builtins

from drover.cli.list import told
from drover.cli.output import data, for_people, notice, output_option
from drover.errors import DroverError
from drover.kvm.boot import Outcome
from drover.kvm.deadlines import SHUTDOWN_TIMEOUT
from drover.kvm.node import Node

_WORDS = {
    "started": "is running",
    "running": "runs already",
    "stopped": "has stopped",
    "forced": "was forced to stop",
    "failed": "failed",
}


@click.command
@output_option
def start_all(output: str) -> None:
    """Start the instances whose specification says `autostart`, those with a lower `autostart_order` first.

    Those that run are left alone. One that fails keeps no other from its start.

    Exit status: 0 if all of them run now, 1 if one does not.
    """
    _finish(output, Node().start_all(tell=_teller(output)), "did not start")


@click.command
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for each guest.")
@output_option
def stop_all(timeout: float, output: str) -> None:
    """Shut down all instances that run, those with a higher `autostart_order` first, those of one order at once.

    A guest that has not shut down in time is ended as if the plug was pulled. The next order's turn comes when none
    of the last one's runs.

    Exit status: 0 if none runs any more, forced or not, 1 if one does.
    """
    _finish(output, Node().stop_all(timeout=timeout, tell=_teller(output)), "did not stop")


def _teller(output: str) -> Any:
    """Who waits at a terminal, or at the host's console, sees each when it is done; a program gets all at the end."""
    return _say if for_people(output) else lambda outcome: None


def _say(outcome: Outcome) -> None:
    for text in outcome.notices:
        notice(f"{outcome.name}: {text}")
    detail = str(outcome.error) if outcome.error else told(outcome.stop) if outcome.stop else ""
    more = f": {detail}" if detail else ""
    click.echo(f"{outcome.name} {_WORDS[outcome.outcome]} ({outcome.seconds:.1f} s){more}")


def _finish(output: str, outcomes: Sequence[Outcome], problem: str) -> None:
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    if not for_people(output):
        data(output, [_row(outcome) for outcome in outcomes], indent=1)
    else:
        click.echo(f"{len(outcomes)} instances, {len(failed)} failed.")
    if failed:
        raise DroverError(f"{len(failed)} of {len(outcomes)} {problem}: {', '.join(failed)}")


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "order": outcome.order,
        "outcome": outcome.outcome,
        "seconds": round(outcome.seconds, 3),
        "notices": list(outcome.notices),
        "stop": to_builtins(outcome.stop),
        "error": str(outcome.error) if outcome.error else None,
    }
