"""Waiting for what another process does."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], bool], timeout: float = 30, *, every: float = 0.02) -> None:
    """Wait until something is so.

    :param timeout: seconds until it is an error that it is not
    :param every: seconds between two looks
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(every)


def state_of(pid: int) -> str:
    """Of a process, in the kernel's letter; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_dead(pid: int) -> bool:
    """Whether a process has ended, be it that its parent has yet to ask how."""
    return state_of(pid) in ("", "Z")
