"""`drover watch`: the watcher of this host's instances, in the foreground."""

import contextlib
import signal
from collections.abc import Callable
from datetime import datetime

import click
from msgspec import to_builtins

from drover.cli.output import one_of_many, output_option
from drover.cli.text import harmless
from drover.events.watcher import Notice, Watcher
from drover.kvm.node import Node


@click.command
@output_option
def watch(output: str) -> None:
    """Watch all instances of this host, until Ctrl-C or SIGTERM.

    Takes note of runs that end, starts instances again whose `restart` says so (after a second at first, then twice as
    long each time, five minutes at most, until one has run for ten minutes), lets guests run on that stood still
    because their disk's file system was full, and keeps the logs of what runs short. Whatever it does it prints, one
    line each, with -o json as an object, with -o yaml as a document.

    Exit status: 0 if it was asked to end, 1 if it could not watch, such as when somebody else does.
    """
    watcher = Watcher(Node(), _printer(output))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watcher.stop())
    watcher.run()


def _printer(output: str) -> Callable[[Notice], None]:
    def tell(notice: Notice) -> None:
        when = datetime.fromtimestamp(notice.at).astimezone()
        line = f"{when:%Y-%m-%d %H:%M:%S} {notice.name} {notice.what}: {harmless(notice.text)}"
        # instances are watched also when nobody reads any more what is said of them
        with contextlib.suppress(OSError):
            one_of_many(output, line, to_builtins(notice))

    return tell
