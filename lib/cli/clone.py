"""The command `drover clone`: an instance made like another one, with a bar while its images are copied."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from drover.cli.backend import connected
from drover.cli.choice import path_there
from drover.cli.clerk import no_wait_option
from drover.cli.complete import instance_argument
from drover.cli.output import answer, for_people, notice, output_option
from drover.node.client import RemoteNode

_NETWORK = ("nbd:", "nbd+unix:", "rbd:")


def _disks(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Sources by the ids of disks."""
    found: dict[str, str] = {}
    for value in values:
        disk, _, source = value.partition("=")
        if not disk or not source or disk in found:
            raise click.BadParameter(f"{value!r} is not ID=PATH, with each ID once", ctx, param)
        found[disk] = source if source.startswith(_NETWORK) else path_there(source)
    return found


@click.command
@instance_argument()
@click.argument("new")
@click.option("--disk", "disks", metavar="ID=PATH", multiple=True, callback=_disks,
              help="Where the copy of a disk goes; of a disk that is no file, the source to use instead.")  # fmt: skip
@click.option("--linked", is_flag=True, help="Overlays on the old images, whose disks have to be read only.")
@no_wait_option
@output_option
def clone(name: str, new: str, disks: dict[str, str], linked: bool, no_wait: bool, output: str) -> None:
    """Make an instance like one that does not run, with a uuid and addresses of its own.

    Images that can be written to are copied, as files, with their holes; a copy of which no path is said lies beside
    the old image. Read-only disks, media of CD drives and the images beneath others are shared.
    """
    node = connected(no_wait=no_wait)
    notices: Sequence[str]
    if isinstance(node, RemoteNode):
        instance, notices = node.clone(name, new, disks=disks, linked=linked)
        spec = instance.show().document.spec
    else:
        with _bar(output) as tell:
            made = node.clone(name, new, disks=disks, linked=linked, tell=tell)
        spec, notices = made.instance.show().document.spec, made.notices
    for text in notices:
        notice(text)
    data = {"name": spec.name, "uuid": spec.uuid, "disks": {disk.id: disk.source for disk in spec.disks}}
    answer(output, f"{new} is there, with uuid {spec.uuid}.", data | {"notices": list(notices)})


@contextmanager
def _bar(output: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for who waits at a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not for_people(output) or not console.is_terminal:
        yield lambda done, of: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("copying"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("copying", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
