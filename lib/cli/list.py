"""`drover list`: a row for each instance. It loads little, for it is typed often."""

from datetime import datetime
from typing import Any

import click

from drover.cli.backend import connected, rows
from drover.cli.output import output_option, table
from drover.kvm.record import Restart, Stop
from drover.node.summary import Summary


def told(stop: Stop) -> str:
    """How a run ended, in words."""
    detail = f": {stop.detail}" if stop.detail else ""
    when = f" at {datetime.fromtimestamp(stop.at).astimezone():%Y-%m-%d %H:%M:%S}" if stop.at else ""
    return f"{stop.reason}{detail}{when}"


def restarts(restart: Restart | None) -> str:
    """Whether it is to be started again, in words."""
    if restart is None or not restart.due:
        return ""
    when = datetime.fromtimestamp(restart.at).astimezone()
    return f"; to be started again by the watcher, at {when:%H:%M:%S}"


@click.command("list")
@click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds for each QEMU to answer.")
@output_option
def list_(timeout: float, output: str) -> None:
    """Show all instances. One that hangs keeps no other waiting."""
    shown = [row(each) for each in rows(connected(), timeout)]
    table(output, shown, ("name", "state", "pid", "vcpus", "memory_mib", "detail"))


def row(of: Summary) -> dict[str, Any]:
    """The cells of an instance's row, by column."""
    known = {"pid": of.pid or "", "vcpus": of.vcpus or "", "memory_mib": of.memory >> 20 or ""}
    ended = told(of.last_stop) + restarts(of.restart) if of.last_stop and not of.pid else ""
    return {"name": of.name, "state": str(of.state)} | known | {"detail": of.detail or ended}
