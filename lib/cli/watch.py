"""`drover watch`: the watcher of this host's instances, in the foreground."""

import contextlib
import json
import signal
from collections.abc import Callable
from datetime import datetime

import click
from msgspec import to_builtins

from drover.cli.output import output_option
from drover.events.watcher import Notice, Watcher
from drover.kvm.node import Node


@click.command
@output_option
def watch(output: str) -> None:
    """Watch all instances of this host, until Ctrl-C or SIGTERM.

    Takes note of runs that end, starts instances again whose `restart` says so (after a second at first, then twice as
    long each time, five minutes at most, until one has run for ten minutes), lets guests run on that stood still
    because their disk's file system was full, and keeps the logs of what runs short. Whatever it does it prints, one
    line each, with -o json as an object.

    Exit status: 0 if it was asked to end, 1 if it could not watch, such as when somebody else does.
    """
    watcher = Watcher(Node(), _printer(output))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watcher.stop())
    watcher.run()


def _printer(output: str) -> Callable[[Notice], None]:
    def as_json(notice: Notice) -> str:
        return json.dumps(to_builtins(notice))

    def as_text(notice: Notice) -> str:
        when = datetime.fromtimestamp(notice.at).astimezone()
        return f"{when:%Y-%m-%d %H:%M:%S} {notice.name} {notice.what}: {' '.join(notice.text.split())}"

    line = as_json if output == "json" else as_text

    def tell(notice: Notice) -> None:
        # instances are watched also when nobody reads any more what is said of them
        with contextlib.suppress(OSError):
            click.echo(line(notice))

    return tell
