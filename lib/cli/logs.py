"""`drover logs NAME`: what its guest wrote to the serial port, or what its QEMU printed."""

import base64
import sys
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import click

from drover.cli.backend import connected, daemon
from drover.cli.complete import instance_argument
from drover.kvm.logs import Piece, piece
from drover.node.client import RemoteNode

_PIECE: Final = 256 << 10  # bytes of one read
_LOOK: Final = 0.5  # seconds between two looks at a log that is followed
# What a terminal would obey, but for what makes lines.
_OBEYED: Final = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)), "")

Read = Callable[[int, int], Piece]


@click.command
@instance_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Only the last N; all of it by default.")
@click.option("--kind", type=click.Choice(["serial", "qemu"]), default="serial", show_default=True, help="Whose words.")
def logs(name: str, follow: bool, lines: int | None, kind: str) -> None:
    """Print the log of an instance's serial port, or of its QEMU.

    On a terminal, what would move the cursor or change colours is left out; a pipe or a file gets every byte.
    """
    read = _reader(name, kind)
    at = 0 if lines is None else _last(read, lines)
    while True:
        found = read(at, 0)
        if found.data:
            _write(found.data)
        at = found.next
        if found.next < found.size:
            continue
        if not follow:
            return
        time.sleep(_LOOK)


def _reader(name: str, kind: str) -> Read:
    """What reads the log: from a byte on, or so many bytes before its end."""
    node = connected()
    if isinstance(node, RemoteNode):
        there, path = daemon(), f"/v1/instances/{quote(name, safe='')}/log?kind={kind}&limit={_PIECE}"

        def ask(after: int, tail: int) -> Piece:
            told = there.call("GET", f"{path}&after={after}&tail={tail}")
            return Piece(told["start"], told["next"], told["size"], base64.b64decode(told["data"]))

        return ask
    paths = node.host.paths.instance(node.instance(name).name)
    log = paths.log if kind == "qemu" else paths.console_log
    return lambda after, tail: piece(log, after=after, tail=tail, limit=_PIECE)


def _last(read: Read, lines: int) -> int:
    """Where the last lines begin, of those that are in the last piece."""
    found = read(0, _PIECE)
    data = found.data[:-1] if found.data.endswith(b"\n") else found.data
    at = len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return found.start
    return found.start + at + 1 if lines else found.size


def _write(data: bytes) -> None:
    out = sys.stdout.buffer
    if sys.stdout.isatty():
        data = data.decode(errors="replace").replace("\r\n", "\n").translate(_OBEYED).encode()
    out.write(data)
    out.flush()
