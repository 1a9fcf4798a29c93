"""What an instance does, in a word."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What an instance does."""

    STOPPED = "stopped"
    SAVED = "saved"  # it does not run, and its memory is in a file
    RUNNING = "running"
    PAUSED = "paused"
    STARTING = "starting"  # QEMU is there, and the guest has never run
    SHUTDOWN = "shutdown"  # the guest has shut down, and QEMU waits for somebody to take note
    PANICKED = "panicked"
    IO_ERROR = "io-error"  # the guest waits for storage
    MIGRATING = "migrating"
    UNRESPONSIVE = "unresponsive"  # QEMU is there and does not answer
    ENDED = "ended"  # QEMU has gone, and nobody has taken note
    BUSY = "busy"  # somebody works on it, so QEMU was not asked
    UNKNOWN = "unknown"  # what is kept of it cannot be read


# QEMU's RunState (qapi/run-state.json) in these words.
_STATES: Final[Mapping[str, State]] = {
    "running": State.RUNNING,
    "suspended": State.RUNNING,
    "paused": State.PAUSED,
    "debug": State.PAUSED,
    "save-vm": State.PAUSED,
    "restore-vm": State.PAUSED,
    "watchdog": State.PAUSED,
    "colo": State.PAUSED,
    "prelaunch": State.STARTING,
    "shutdown": State.SHUTDOWN,
    "guest-panicked": State.PANICKED,
    "internal-error": State.PANICKED,
    "io-error": State.IO_ERROR,
    "inmigrate": State.MIGRATING,
    "postmigrate": State.MIGRATING,
    "finish-migrate": State.MIGRATING,
}


def state_named(status: str) -> State:
    """What a QEMU of this run state does (``RunState`` of qapi/run-state.json)."""
    return _STATES.get(status, State.PAUSED)
