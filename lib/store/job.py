"""What is kept of one job, the states it goes through, and which come after which."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import JobWrongState
from ..qmp.ready import ready
from .progress import Progress
from .runner import Runner

MAX_STEPS: Final = 200  # kept of one job, the newest: a job that takes more goes round in a loop


class JobState(StrEnum):
    """How far a job has come."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Who ran it is gone, and nobody can say what became of it."""

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return not MOVES[self]


MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    # what cannot be run at all fails without having run
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.LOST}),
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.LOST: frozenset(),
}


class Caller(Struct, frozen=True, kw_only=True):
    """On whose behalf a job is done.

    :ivar who: the name that they are known by
    :ivar role: in which role
    :ivar request: the id of the request
    """

    who: str = ""
    role: str = ""
    request: str = ""


class Step(Struct, frozen=True):
    """A step that a job has come to.

    :ivar name: which
    :ivar at: Unix time when it began
    """

    name: str
    at: float


class Failure(Struct, frozen=True, kw_only=True):
    """Why a job failed.

    :ivar code: stays the same, such as ``instance-not-found``
    :ivar message: for people
    :ivar field: of the parameters, which is wrong
    :ivar instance: whose error it is
    :ivar qemu_class: QEMU's own class of errors
    :ivar blockers: what is in the way, of each the code, what it is about, why, and the remedy
    """

    code: str
    message: str
    field: str = ""
    instance: str = ""
    qemu_class: str = ""
    blockers: list[dict[str, str]] = []


class Job(Struct, frozen=True, kw_only=True):
    """What is known of a job.

    :ivar id: its number; later ones have higher ones
    :ivar kind: what is done, such as ``start``
    :ivar instance: to which; empty: to none
    :ivar params: how; JSON values without secrets
    :ivar partial: something secret was left out of them, so that nobody else can carry it out
    :ivar caller: on whose behalf
    :ivar idempotency_key: by which the caller knows that it asked before
    :ivar created: Unix time when it was asked for
    :ivar started: when it began; 0: it has not; `ended` likewise
    :ivar before: how things were then; JSON values, by which whoever takes the job over sees what became of it
    :ivar steps: which it has come to; `steps_dropped` earlier ones were not kept
    :ivar progress: how far it is; None where that is not told
    :ivar result: what came of it; JSON values
    :ivar error: why it failed
    :ivar cancel_asked: Unix time when somebody wanted it to be cancelled; 0: nobody has
    :ivar runner: the process that runs it, or did; `epoch` counts them
    """

    id: int
    kind: str
    instance: str = ""
    params: Any = None
    partial: bool = False
    caller: Caller = Caller()
    idempotency_key: str = ""
    state: JobState = JobState.QUEUED
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    before: Any = None
    steps: tuple[Step, ...] = ()
    steps_dropped: int = 0
    progress: Progress | None = None
    result: Any = None
    error: Failure | None = None
    cancel_asked: float = 0.0
    runner: Runner | None = None
    epoch: int = 0


def moved(job: Job, to: JobState, at: float, **fields: Any) -> Job:
    """A job in its next state.

    :param at: Unix time
    :param fields: what else changes
    :raises JobWrongState: it is not one that comes after its own
    """
    if to not in MOVES[job.state]:
        raise JobWrongState(job.id, job.state, to)
    if to.ended:
        fields["ended"] = at
    return replace(job, state=to, **fields)


ready(Job)
