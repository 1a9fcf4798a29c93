"""What is known of a migration so far, learnt from one look at it after another. Pure and plain data."""

from enum import StrEnum
from math import exp
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..ops.migration import MigrationInfo
from .forecast import ENDLESS, STANDSTILL, Dirtying, Round, Setting, learn
from .means import Terms, first

# Seconds over which the bandwidth is averaged.
SMOOTH: Final = 1.5
# Bytes a second that QEMU goes through pages of zeros, which are not sent; until it is seen.
ZEROS: Final = float(4 << 30)
# Of rounds remembered. The oldest counts for 1/36.
REMEMBERED: Final = 8


class Phase(StrEnum):
    """What is under way."""

    STORAGE = "storage"
    MEMORY = "memory"
    SWITCHOVER = "switchover"
    """The guest stands still, and the rest goes over."""
    POSTCOPY = "postcopy"
    DONE = "done"


PHASES: Final = {
    "pre-switchover": Phase.SWITCHOVER,
    "device": Phase.SWITCHOVER,
    "completed": Phase.DONE,
}
"""What QEMU's status means; each other one, but those of a postcopy, is as good as memory."""


class Look(Struct, frozen=True, kw_only=True):
    """What is told of a migration at one moment. Bytes, as QEMU counts them.

    :ivar at: seconds since it began, on a clock that never goes back
    :ivar transferred: over the wire for memory, so far
    :ivar scanned: memory gone through: pages that were sent, and those of zeros
    :ivar remaining: of memory, as far as known
    :ivar rounds: QEMU's ``dirty-sync-count``
    :ivar throttle: percent, as it is now
    :ivar copied: of the disks, so far
    :ivar to_copy: of the disks, in all
    :ivar measured: what ``calc-dirty-rate`` has just measured. Worth doing once before it begins, over 1 s, and then
        over 2 s, 4 s and so on until the first round has ended: before that, QEMU knows nothing of dirty memory
    """

    at: float
    phase: Phase = Phase.MEMORY
    transferred: float = 0
    scanned: float = 0
    remaining: float = 0
    rounds: int = 0
    throttle: int = 0
    copied: float = 0
    to_copy: float = 0
    measured: Round | None = None

    @classmethod
    def of(
        cls, info: MigrationInfo, at: float, *, copied: float = 0, to_copy: float = 0, measured: Round | None = None
    ) -> "Look":
        """Return it from what ``query-migrate`` answered while memory moves."""
        ram = info.ram
        phase = Phase.POSTCOPY if info.status.startswith("postcopy") else PHASES.get(info.status, Phase.MEMORY)
        return cls(
            at=at,
            phase=phase,
            transferred=ram.transferred,
            scanned=ram.normal_bytes + ram.duplicate * ram.page_size,
            remaining=ram.remaining,
            rounds=ram.dirty_sync_count,
            throttle=info.cpu_throttle_percentage,
            copied=copied,
            to_copy=to_copy,
            measured=measured,
        )


class Course(Struct, frozen=True, kw_only=True):
    """What is known of a migration so far.

    :ivar seen: the last look
    :ivar setting: where the levers stand
    :ivar bandwidth: bytes a second, averaged; 0 before anything was sent
    :ivar zeros: bytes a second, where nothing is
    :ivar moved: when the last byte was sent
    :ivar hopeful: when it last could be done in time
    :ivar began: when the present round began
    :ivar settled: when the lever that was pulled last has had its time
    :ivar shown: and the round by which it must show
    :ivar stuck: at how many ends of rounds since then it seemed that it would not end
    :ivar least: bytes: the least that a round has left
    :ivar better: when that was, or when a lever was pulled
    :ivar learnt: the rounds seen, the newest last
    :ivar dirtying: what follows from them
    :ivar end: when it is expected to be over
    :ivar percent: told so far
    """

    seen: Look
    setting: Setting
    bandwidth: float = 0.0
    zeros: float = ZEROS
    moved: float = 0.0
    hopeful: float = 0.0
    began: float = 0.0
    settled: float = 0.0
    shown: int = 0
    stuck: int = 0
    least: float = ENDLESS
    better: float = 0.0
    learnt: tuple[Round, ...] = ()
    dirtying: Dirtying = Dirtying()
    end: float | None = None
    percent: float = 0.0


def begin(terms: Terms, at: float = 0.0, setting: Setting | None = None) -> Course:
    """Return what is known at the start.

    :param at: seconds for which it has been under way, unseen
    :param setting: where the levers stand, where somebody has pulled them meanwhile
    """
    granted = min(terms.granted, terms.wishes.cap)
    return Course(
        seen=Look(at=at, phase=Phase.STORAGE), setting=first(terms) if setting is None else setting, bandwidth=granted,
        moved=at, hopeful=at, began=at, better=at,
    )  # fmt: skip


def see(terms: Terms, before: Course, seen: Look) -> Course:
    """Learn from a look how fast it goes, and from the end of a round how the guest makes memory dirty."""
    last = before.seen
    if seen.measured is not None and seen.rounds <= 1:
        before = _remember(terms, before, seen.measured)
    if seen.phase is not last.phase:  # other counters: they begin anew
        return replace(before, seen=seen, began=seen.at, moved=seen.at, hopeful=seen.at, better=seen.at, end=None)
    span = seen.at - last.at
    sent = max(0.0, seen.transferred - last.transferred) + max(0.0, seen.copied - last.copied)
    course = replace(before, seen=seen, moved=seen.at if sent else before.moved)
    course = _meter(course, span, sent, max(0.0, seen.scanned - last.scanned - sent))
    if seen.phase is Phase.MEMORY and seen.rounds > max(last.rounds, 1):
        course = _end_round(terms, course, last)
    return course


def _meter(course: Course, span: float, sent: float, zeros: float) -> Course:
    """Learn how fast it goes, from what was sent in a span of time, and what was nothing but zeros."""
    if span <= 0:
        return course
    if zeros > sent:  # too little was sent to say how fast that goes; and if nearly nothing was, zeros took the time
        idle = span - (sent / course.bandwidth if course.bandwidth else span)
        return replace(course, zeros=zeros / idle) if idle > span / 2 else course
    keep = exp(-span / SMOOTH) if course.bandwidth else 0.0
    return replace(course, bandwidth=keep * course.bandwidth + (1 - keep) * sent / span)


def _end_round(terms: Terms, course: Course, last: Look) -> Course:
    """One round, or some that were too short to be seen alone, have ended between two looks."""
    seen = course.seen
    rounds = seen.rounds - max(last.rounds, 1)
    dirtied = max(0.0, seen.remaining - last.remaining + seen.scanned - last.scanned)
    course = _remember(terms, course, Round((seen.at - course.began) / rounds, dirtied / rounds, last.throttle))
    if seen.remaining < course.least * STANDSTILL:
        course = replace(course, least=seen.remaining, better=seen.at)
    return replace(course, began=seen.at)


def _remember(terms: Terms, course: Course, one: Round) -> Course:
    learnt = (*course.learnt, one)[-REMEMBERED:]
    return replace(course, learnt=learnt, dirtying=learn(learnt, terms.memory))
