"""The states of a migration as the node sees it that the machine leaves, and the steps that they belong to."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Step(StrEnum):
    """What a migration is at, for people and for the job's record."""

    PLAN = "plan"
    PREPARE = "prepare"
    STORAGE = "storage"
    MEMORY = "memory"
    SWITCHOVER = "switchover"
    COMMIT = "commit"
    FINISH = "finish"
    ROLLBACK = "rollback"
    RECOVER = "recover"
    END = "end"


class State(StrEnum):
    """What is being waited for."""

    LOOK = "look"
    """The record: is the machine ours to give?"""
    CLAIM = "claim"
    """The record is to say that it is on its way."""
    ACCEPT = "accept"
    """The other node starts a QEMU that waits, and makes its settings."""
    SET = "set"
    """The source's settings, made and read back."""
    MIRROR = "mirror"
    """Disks that are not shared: mirrored, until both are the same."""
    SEND = "send"
    """The memory."""
    FENCE = "fence"
    """The machine stands still. The record is to say so, which proves that the store can be reached."""
    SYNC = "sync"
    """The mirrors are ended, with both sides the same."""
    SWITCH = "switch"
    """The rest is sent. The proofs of both sides."""
    HAND_OVER = "hand-over"
    """The record is to name the new owner."""
    RUN = "run"
    """The new owner is to run."""
    DRAIN = "drain"
    """Postcopy: it runs, and fetches what is still here."""
    QUIT = "quit"
    """The old QEMU is to end."""
    SETTLE = "settle"
    """The record is to say that all is done."""
    CANCEL = "cancel"
    """QEMU ends the migration, and lets the machine run on by itself."""
    RESET = "reset"
    """The record is to say that the machine is on no way any more: with a new epoch, so that nothing old has effect."""
    DISCARD = "discard"
    """The other node ends the QEMU that waited."""
    TAKE_BACK = "take-back"
    """All was sent, and the new owner is dead or never was one: the record is to name the old one, with a new epoch."""
    REAP = "reap"
    """The QEMU on the other node is to be seen dead."""
    RESUME = "resume"
    """The old QEMU is to run again."""
    ASK = "ask"
    """Nothing is known: the record and both sides are asked."""
    REOPEN = "reopen"
    """Postcopy was cut: the other QEMU is to listen anew, out of band."""
    REJOIN = "rejoin"
    """Postcopy was cut: the source is to connect anew."""
    DOUBT = "doubt"
    """It cannot be told how things are. All stays as it is, people are told, and the questions go on."""
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"


_OF: Final[Mapping[Step, str]] = {
    Step.PLAN: "look claim",
    Step.PREPARE: "accept set",
    Step.STORAGE: "mirror",
    Step.MEMORY: "send",
    Step.SWITCHOVER: "fence sync switch",
    Step.COMMIT: "hand-over run",
    Step.FINISH: "drain quit settle",
    Step.ROLLBACK: "cancel reset discard take-back reap resume",
    Step.RECOVER: "ask reopen rejoin doubt",
    Step.END: "done failed lost",
}
STEP: Final[Mapping[State, Step]] = {State(name): step for step, names in _OF.items() for name in names.split()}
ENDS: Final = frozenset({State.DONE, State.FAILED, State.LOST})
