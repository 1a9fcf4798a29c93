"""`drover stats`: what machines use, from the node daemon's memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import click

from drover.cli.backend import daemon
from drover.cli.complete import instance_argument
from drover.cli.output import data, for_people, output_option, table
from drover.errors import CallFailed

_COLUMNS: Final = ("name", "cpu", "memory", "guest", "read/s", "written/s", "received/s", "sent/s", "migration", "age")
_WIDE: Final = ("cpu_time", "read", "written", "reads", "writes", "received", "sent")
_DEVICE: Final = ("device", "read/s", "written/s", "read", "written", "reads", "writes", "received/s", "sent/s",
                  "received", "sent")  # fmt: skip
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP: Final = 1024


@click.command("stats")
@instance_argument(required=False)
@output_option
def stats(name: str | None, output: str) -> None:
    """Show what the machines that run use, or one of them with each of its disks and network cards.

    Rates are of the last seconds: AGE says how old the figures are. Who asks again gets newer ones.
    """
    there = daemon()
    if not there.answers():
        raise CallFailed("no-daemon", f"there is no node daemon at {there.where}, which keeps these figures")
    if name is None:
        told = there.call("GET", "/v1/stats")
        found = told["stats"]
    else:
        told = there.call("GET", f"/v1/instances/{quote(name, safe='')}/stats")
        found = [told["stats"]] if told["stats"] else []
    if not for_people(output):
        data(output, found, indent=1)
        return
    table(output, [row(each, told["now"]) for each in found], _COLUMNS, _WIDE)
    if name is not None and found and (devices := devices_of(found[0])):
        click.echo()
        table(output, devices, _DEVICE)


def row(of: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The cells of a machine's row, by column.

    :param of: as the daemon tells it
    :param now: Unix time of that
    """
    cpu, disks, nics, migration = of["cpu_percent"], of["disks"], of["nics"], of["migration"]
    return {
        "name": of["name"],
        "cpu": None if cpu is None else f"{cpu:.1f}%",
        "memory": size(of["resident"]),
        "guest": size(of["balloon"]),
        "read/s": size(total(disks, "read_rate")),
        "written/s": size(total(disks, "write_rate")),
        "received/s": size(total(nics, "receive_rate")),
        "sent/s": size(total(nics, "send_rate")),
        "migration": migration and migration["status"],
        "age": f"{max(0.0, now - min(of['at'], of['told_at'] or of['at'])):.0f} s",
        "cpu_time": f"{of['cpu_seconds']:.1f} s",
        "read": size(total(disks, "read_bytes")),
        "written": size(total(disks, "written_bytes")),
        "reads": total(disks, "read_ops"),
        "writes": total(disks, "write_ops"),
        "received": size(total(nics, "received_bytes")),
        "sent": size(total(nics, "sent_bytes")),
    }


def devices_of(of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each disk and network card."""
    disks = [
        {
            "device": disk["id"], "read/s": size(disk["read_rate"]), "written/s": size(disk["write_rate"]),
            "read": size(disk["read_bytes"]), "written": size(disk["written_bytes"]),
            "reads": disk["read_ops"], "writes": disk["write_ops"],
        }
        for disk in of["disks"]
    ]  # fmt: skip
    nics = [
        {
            "device": nic["id"], "received/s": size(nic["receive_rate"]), "sent/s": size(nic["send_rate"]),
            "received": size(nic["received_bytes"]), "sent": size(nic["sent_bytes"]),
        }
        for nic in of["nics"]
    ]  # fmt: skip
    return [*disks, *nics]


def total(devices: Sequence[Mapping[str, Any]], figure: str) -> float | None:
    """Of all devices; None where it is known of none."""
    known = [device[figure] for device in devices if device[figure] is not None]
    return sum(known) if known else None


def size(count: float | None) -> str | None:
    """Bytes for people: three digits and a unit."""
    if count is None:
        return None
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= _STEP
    return f"{value:.0f} {unit}" if unit == _UNITS[0] or value >= 99.95 else f"{value:.1f} {unit}"
