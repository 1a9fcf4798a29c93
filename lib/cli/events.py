"""`drover events`: what happens on a node, or what one machine says, as it was and as it comes."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import click
from msgspec import json

from drover.cli.backend import daemon
from drover.cli.complete import instance_argument
from drover.cli.output import notice, one_of_many, output_option
from drover.cli.text import harmless
from drover.errors import ArgumentError
from drover.node.hearing import Heard, Hearing


@click.command("events")
@instance_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Wait for more, until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), metavar="N", help="Only what came after the event of this number.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these, such as STOP; may be repeated.")
@output_option
def events(name: str | None, follow: bool, after: int | None, kinds: tuple[str, ...], output: str) -> None:
    """Show what happens: to all instances of a node, or what the machine of one says.

    Without NAME that is what the node daemon tells: instances that change, come and go, and jobs. With NAME it is what
    QEMU itself told, out of the journal that drover-kvmd keeps; where no node daemon runs, that is read from its files,
    of all instances if there is no NAME.

    Each event has a number: --after N goes on from there. Where something is missing, that is told. All that is kept is
    shown; with -f what comes from now on, or, with --after, that and all since, --after 0: everything.
    """
    there = daemon()
    if there.answers():
        away = "the node daemon has gone; waiting until it is there again"
        hearing = Hearing(there, name or "", after=after, follow=follow, kinds=kinds, gone=lambda: notice(away))
        found: Iterator[Heard] = iter(hearing)
    else:
        found = _from_journals(name, follow, after, kinds)
    try:
        for event in found:
            one_of_many(output, line(event, name or ""), event)
    except KeyboardInterrupt:
        pass  # it is how one leaves
    except BrokenPipeError:
        _forget_output()


def _from_journals(name: str | None, follow: bool, after: int | None, kinds: tuple[str, ...]) -> Iterator[Heard]:
    """What the event daemon's files say, where there is no node daemon."""
    from drover.events.journals import Journals
    from drover.events.segment import LOST, WRITER, shown
    from drover.kvm.lock import is_locked
    from drover.kvm.node import Node

    node = Node()
    if after is not None and name is None:
        raise ArgumentError("--after", after, "with NAME: where no node daemon runs, each machine has its own numbers")
    paths = node.host.paths
    wanted = None if name is None else _uuid(node, node.instance(name).name)
    journals = Journals(paths, lambda: _names(node, wanted), after or 0)
    if not is_locked(paths.locks / f"{WRITER}.lock"):
        yield _ours("kvmd-absent")
    if after and wanted and journals.first(wanted) > after + 1:
        yield _ours("missed", reason="too-old", after=after)
    if follow and after is None:
        journals.skip()
    for whose, entry in journals.follow(until_gone=name is not None) if follow else journals.read():
        if not kinds or entry.name in kinds or entry.name == LOST:
            yield shown(entry) | ({} if name else {"instance": whose})
    if follow and name:
        yield _ours("gone", instance=name)


def _ours(kind: str, **members: Any) -> Heard:
    return {"kind": kind, "at": time.time(), **members}


def _names(node: Any, wanted: str | None) -> Mapping[str, str]:
    """What instances are called, by their uuids; of all, or of one."""
    found = {uuid: name for name in node.names if (uuid := _uuid(node, name))}
    return found if wanted is None else {uuid: name for uuid, name in found.items() if uuid == wanted}


def _uuid(node: Any, name: str) -> str:
    """Empty where its document cannot be read, or is there no more."""
    from drover.errors import RecordError
    from drover.kvm.record import load

    try:
        return load(node.host.paths.instance(name).document).spec.uuid
    except (RecordError, OSError):
        return ""


def _forget_output() -> None:
    """Nobody reads what is said: say nothing of it at the end either."""
    import os
    import sys

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- for people --------------------------------------------------------------------------------------------------------


def line(event: Heard, name: str) -> str:
    """An event in one line.

    :param name: of the instance whose events these are; empty: it is in each
    """
    when = datetime.fromtimestamp(event["at"]).astimezone()
    said = _SAID.get(event["kind"], _qemu)(event)
    whose = name or str(event.get("instance", ""))
    return harmless(f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} {whose} {said}")


def _qemu(event: Heard) -> str:
    data = event.get("data") or {}
    return f"{event['kind']} {json.encode(data).decode() if data else ''}"


def _instance(event: Heard) -> str:
    row = event["summary"]
    return f"is {row['state']}{': ' if row['detail'] else ''}{row['detail']}"


def _job(event: Heard) -> str:
    job = event["job"]
    return f"job {job['id']}, {job['kind']}: {job['state']}"


def _ended(event: Heard) -> str:
    data = event.get("data") or {}
    return f"has ended: {data.get('who', '')} ({data.get('reason', '')})"


def _missing(event: Heard) -> str:
    told = event.get("data") or event
    count = f", {told['count']} of them" if "count" in told else ""
    return f"-- here events are or may be missing{count}: {told.get('reason', '')}"


_SAID: Final[Mapping[str, Callable[[Heard], str]]] = {
    "instance": _instance,
    "gone": lambda event: "is gone",
    "job": _job,
    "began": lambda event: f"the node daemon has begun; instances: {len(event['instances'])}",
    "ended": _ended,
    "missed": _missing,
    "lost": _missing,
    "kvmd-absent": lambda event: "-- no event daemon listens (drover-kvmd): what comes is not heard",
}
