"""drover-kvmd: hears the machines of one host, keeps what they say, and acts on it."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Final

from ..errors import DroverError
from ..kvm import service_log
from ..kvm.node import Node
from ..kvm.paths import default_paths
from ..kvm.service import allow_many_files, notify, show_life
from ..kvm.spec.types import size_of
from ..version import __version__
from .journal import LIMIT
from .watcher import Notice, Watcher

_LEAST: Final = 64 << 10  # bytes of a journal: a hundred events or more
_WORSE: Final = ("trouble", "failed", "io-error")
log = logging.getLogger("drover.events")


async def serve(watcher: Watcher) -> None:
    """Watch until a signal says stop; tell systemd how it goes."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, watcher.stop)
    loop.add_signal_handler(signal.SIGHUP, watcher.rescan)
    watched = asyncio.create_task(show_life())
    try:
        await watcher.watch(lambda: notify("READY=1"))
    finally:
        notify("STOPPING=1")
        watched.cancel()


def _tell(notice: Notice) -> None:
    level = logging.WARNING if notice.what in _WORSE else logging.INFO
    log.log(level, "%s %s: %s", notice.name, notice.what, notice.text, extra={"instance": notice.name})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon, in the foreground."""
    parser = argparse.ArgumentParser("drover-kvmd", description="Hears this host's machines, and acts on it.")
    size = f"bytes kept of each machine's events, such as 64MiB; {LIMIT >> 20}MiB by default"
    parser.add_argument("--journal-size", type=_size, default=LIMIT, metavar="SIZE", help=size)
    parser.add_argument("--log-level", choices=("debug", "info", "warning"), default="info")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    chosen = parser.parse_args(arguments)
    service_log.begin(chosen.log_level)
    allow_many_files()
    watcher = Watcher(Node(default_paths()), _tell, journal_limit=chosen.journal_size)
    try:
        with watcher.alone():
            asyncio.run(serve(watcher))
    except (DroverError, OSError) as error:
        sys.exit(f"drover-kvmd: {error}")


def _size(text: str) -> int:
    if (size := size_of(text)) is None or size < _LEAST:
        raise argparse.ArgumentTypeError(f"{text} is no size of at least {_LEAST >> 10}KiB")
    return size
