"""What `drover top` shows: a row for each instance, of the list and of what each uses; in an order, and filtered."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from drover.cli.stats import size, total
from drover.cli.text import harmless

COLUMNS: Final = (
    *("NAME", "STATE", "CPU", "MEMORY", "GUEST"), *("READ/S", "WRITE/S", "RECV/S", "SENT/S"),
    *("EVENTS", "MIGRATION", "LAST"),
)  # fmt: skip


class Row(Struct, frozen=True, kw_only=True):
    """An instance, and what it uses.

    :ivar state: what it does, and `detail` of that
    :ivar cpu: percent of one processor; None where that is not known, as all of these
    :ivar memory: bytes that its process has, and `guest`, that the guest has
    :ivar read: bytes a second of all its disks, with `written`; of its cards `received` and `sent`
    :ivar events: that it had since the table is there
    :ivar migration: how far one is that is under way
    :ivar last: what happened last
    """

    name: str
    state: str
    detail: str = ""
    cpu: float | None = None
    memory: float | None = None
    guest: float | None = None
    read: float | None = None
    written: float | None = None
    received: float | None = None
    sent: float | None = None
    events: int = 0
    migration: str = ""
    last: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells, by :data:`COLUMNS`."""
        sizes = (self.memory, self.guest, self.read, self.written, self.received, self.sent)
        cpu = "" if self.cpu is None else f"{self.cpu:.1f}%"
        events = str(self.events) if self.events else ""
        return (self.name, self.state, cpu, *(size(each) or "" for each in sizes), events, self.migration, self.last)


def rows(
    told: Iterable[Mapping[str, Any]],
    used: Iterable[Mapping[str, Any]],
    last: Mapping[str, str],
    events: Mapping[str, int],
) -> list[Row]:
    """A row for each instance.

    :param told: the list, as the daemon tells it
    :param used: what each that runs uses, likewise
    :param last: what happened to each last
    :param events: how many events each had
    """
    by_name = {each["name"]: each for each in used}
    found = []
    for each in told:
        name, of = each["name"], by_name.get(each["name"])
        row = {"name": name, "state": each["state"], "detail": harmless(each["detail"])}
        row |= {"last": last.get(name, ""), "events": events.get(name, 0)}
        if of is not None:
            row |= {
                "cpu": of["cpu_percent"],
                "memory": of["resident"],
                "guest": of["balloon"],
                "read": total(of["disks"], "read_rate"),
                "written": total(of["disks"], "write_rate"),
                "received": total(of["nics"], "receive_rate"),
                "sent": total(of["nics"], "send_rate"),
                "migration": _migration(of["migration"]),
            }
        found.append(Row(**row))
    return found


def _migration(of: Mapping[str, Any] | None) -> str:
    if of is None:
        return ""
    if of["status"] in ("active", "device", "pre-switchover", "setup") and of["total"]:
        return f"{100 * (1 - of['remaining'] / of['total']):.0f}% {size(of['rate'])}/s"
    return str(of["status"])


# By what rows can be ordered: those with the most of it first, but for words.
_BY: Final[Mapping[str, Callable[[Row], Any]]] = {
    "name": lambda row: row.name,
    "state": lambda row: row.state,
    "cpu": lambda row: -(row.cpu or 0),
    "memory": lambda row: -(row.memory or 0),
    "disk": lambda row: -((row.read or 0) + (row.written or 0)),
    "events": lambda row: -row.events,
    "net": lambda row: -((row.received or 0) + (row.sent or 0)),
}


def ordered(found: Sequence[Row], by: str, *, reverse: bool = False, only: str = "") -> list[Row]:
    """Rows in an order; those of one rank by name.

    :param only: what a row's name, state or detail has to have in it
    """
    wanted = [row for row in found if only.lower() in f"{row.name} {row.state} {row.detail}".lower()]
    return sorted(sorted(wanted, key=lambda row: row.name), key=_BY[by], reverse=reverse)
