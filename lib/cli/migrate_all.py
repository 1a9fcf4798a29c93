"""The command `drover migrate-all`: all that runs on a node goes to another one, a few at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import click

from drover.cli.backend import daemon
from drover.cli.clerk import ENDED, LOOK, Told, begun, look, outcome
from drover.cli.failures import INTERRUPTED
from drover.cli.migrate import asked_for, going_options, in_the_way, told_of
from drover.cli.output import data, for_people, notice, output_option
from drover.cli.text import harmless
from drover.errors import CallFailed, DroverError
from drover.kvm.state import State
from drover.node.client import Daemon, RemoteNode

# So many fill a link, also while some of them begin and others end; more would make each slower, so that its guest
# makes more of its memory dirty again meanwhile.
AT_ONCE: Final = 4
_STAY: Final = frozenset({State.STOPPED, State.SAVED})  # of which nobody expects that they move


class Moved(NamedTuple):
    """What became of one.

    :ivar told: by its job: its report, or what is in its way; None: there is none
    :ivar error: why it stays
    :ivar job: the number of one that goes on without us; 0: none does
    """

    name: str
    told: Told | None = None
    error: CallFailed | None = None
    job: int = 0

    @property
    def stays(self) -> bool:
        """Whether it is still here, or is to be."""
        return self.error is not None or bool((self.told or {}).get("blockers"))


@click.command
@click.argument("node")
@click.option("--at-once", type=click.IntRange(1, 64), default=AT_ONCE, show_default=True, metavar="COUNT",
              help="So many at a time.")  # fmt: skip
@going_options
@click.option("--check", is_flag=True, help="Only say of each whether it can go, and what is in the way.")
@output_option
@click.pass_context
def migrate_all(context: click.Context, /, node: str, at_once: int, check: bool, output: str, **more: Any) -> None:
    """Move all instances that run here to another node, while they run; as before there is work to do on this host.

    Each is a job as by `drover migrate`, whose options these are; as soon as one has ended the next one begins. One
    that does not go stays as it was, and keeps no other from going. After Ctrl-C no more are begun; those that are on
    their way go on.

    Exit status: 0 if all of them run there now, 1 if one does not.
    """
    there = daemon()
    if not there.answers():
        raise click.UsageError("only a node daemon moves machines, and none answers", context)
    names = list(_to_move(there))
    asked = asked_for(node, **more) | ({"check": True} if check else {})
    found = list[Moved]()
    try:
        for moved in _moved(there, names, asked, at_once):
            found.append(moved)
            if for_people(output):
                _say(moved)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    _finish(output, found)


def _to_move(there: Daemon) -> Iterator[str]:
    for row in RemoteNode(there).rows():
        if row.state in (State.RUNNING, State.PAUSED):
            yield row.name
        elif row.state not in _STAY:
            notice(f"{row.name} is {row.state}: it is not moved")


def _moved(there: Daemon, names: Sequence[str], asked: Told, at_once: int) -> Iterator[Moved]:
    """Each when it has ended.

    :raises KeyboardInterrupt: no more of them is begun; it was said which ones go on
    """
    from drover.cli.bar import showing

    left = threading.Event()
    with showing() as show, ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_move, there, name, asked, show, left) for name in names]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            left.set()
            pool.shutdown(cancel_futures=True)
            begun = [future.result() for future in futures if not future.cancelled()]
            goes_on = ", ".join(f"{moved.job} ({moved.name})" for moved in begun if moved.job)
            click.echo(f"\nNo more is begun. Jobs that go on: {goes_on or 'none'}; drover jobs shows them.", err=True)
            raise


def _move(there: Daemon, name: str, asked: Told, show: Callable[[Told], None], left: threading.Event) -> Moved:
    try:
        job = begun(there, "POST", f"/v1/instances/{quote(name, safe='')}/migrate", asked)
        while True:
            show(job)
            if job["state"] in ENDED:
                return Moved(name, outcome(job))
            if left.is_set():
                return Moved(name, job=job["id"])
            job = look(there, job["id"], LOOK)
    except CallFailed as error:
        return Moved(name, error=error)


def _say(moved: Moved) -> None:
    if moved.error is not None:
        click.echo(f"{moved.name} stays: {harmless(str(moved.error))}")
    elif moved.told is not None and "blockers" in moved.told:
        click.echo(in_the_way(moved.name, moved.told))
    elif moved.told is not None:
        for text in moved.told["alarms"]:
            notice(f"{moved.name}: on the way: {text}")
        click.echo(told_of(moved.name, moved.told))


def _finish(output: str, found: Sequence[Moved]) -> None:
    stay = sorted(moved.name for moved in found if moved.stays)
    if not for_people(output):
        data(output, [_row(moved) for moved in found], indent=1)
    else:
        click.echo(f"{len(found)} instances, {len(stay)} stay.")
    if stay:
        raise DroverError(f"{len(stay)} of {len(found)} stay: {', '.join(stay)}")


def _row(moved: Moved) -> Told:
    error = None if moved.error is None else {"code": moved.error.code, "text": str(moved.error)}
    return {"name": moved.name, **(moved.told or {}), "error": error}
