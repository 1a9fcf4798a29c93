"""The terminal as a guest's: every key goes through, and what comes is shown as it is."""

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final

ESCAPE: Final = b"\x1d"  # Ctrl-], as with telnet and virsh


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def write_out(data: bytes) -> None:
    """Show all of it as it is."""
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
