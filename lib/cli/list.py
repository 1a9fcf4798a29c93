"""`drover list`: a row for each instance. It loads little, for it is typed often."""

from datetime import datetime
from typing import Any, Final

import click

from drover.cli.backend import connected, rows
from drover.cli.output import output_option, table
from drover.kvm.ends import Restart, Stop
from drover.node.summary import Summary

_OUTDATED: Final = "runs a QEMU that was replaced since (drover upgrade)"
_WIDE: Final = ("since", "qemu", "accelerator", "machine", "disks", "nics", "autostart", "uuid")


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
    table(output, shown, ("name", "state", "pid", "vcpus", "memory_mib", "detail"), _WIDE)


def row(of: Summary) -> dict[str, Any]:
    """The cells of an instance's row, by column."""
    ended = told(of.last_stop) + restarts(of.restart) if of.last_stop and not of.pid else ""
    since = f"{datetime.fromtimestamp(of.since).astimezone():%Y-%m-%d %H:%M:%S}" if of.since else None
    return {
        "name": of.name,
        "state": str(of.state),
        "pid": of.pid or None,
        "vcpus": of.vcpus or None,
        "memory_mib": of.memory >> 20 or None,
        "detail": "; ".join(filter(None, (of.detail or ended, _OUTDATED if of.outdated else ""))),
        "since": since,
        "qemu": of.version or None,
        "outdated": of.outdated,
        "accelerator": of.accelerator or None,
        "machine": of.machine or None,
        "disks": of.disks,
        "nics": of.nics,
        "autostart": of.autostart,
        "uuid": of.uuid or None,
    }
