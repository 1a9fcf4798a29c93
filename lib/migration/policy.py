"""Whether a migration will come to its end, when, and what to do so that it does.

Pure: :func:`look` takes what is known of a migration so far and what QEMU tells now, and returns what is known then,
and an advice. Who asks QEMU, at most every 100 ms, and does what is advised is the caller. A :class:`~.course.Course`
is plain data: kept in a journal, it lets another process go on where this one was.

Every way ends by the deadline: it is asked for at each look, by the time that the caller gives, whatever QEMU says or
fails to say. Only a postcopy cannot be ended; so it is begun early enough to be done by then.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from .course import Course, Look, Phase, see
from .forecast import ENDLESS, Setting
from .means import LEVERS, Means, Terms, parameters, pull
from .outlook import RESERVE, Outlook, blackout, expect, faster, first_pass, judge, sure

# Times what the rest would take: pages fetched one by one slow a postcopy down; and when to begin it at the latest.
SLOWER: Final = 1.1
LATEST: Final = 1.25
# Seconds without a byte: a link that is dead. TCP itself takes 15 minutes to say so.
STALLED: Final = 30.0
# Seconds for which not even the whole link would do, before we believe it.
HOPELESS: Final = 10.0


class Act(StrEnum):
    """What to do now.

    To set is said once: who is not sure that it was done sets :func:`~.means.parameters` of the course's setting again.
    The others are said at each look until it shows that they were done.
    """

    NONE = "none"
    SET = "set"
    POSTCOPY = "postcopy"
    GIVE_UP = "give up"


class Why(StrEnum):
    """Why to give up."""

    DEADLINE = "it does not come to its end by the deadline with what may be done"
    STALLED = "nothing has gone over the link"
    HOPELESS = "the link is too slow for what is left, until the deadline"


class Advice(Struct, frozen=True, kw_only=True):
    """What comes of a look.

    :ivar act: what to do
    :ivar parameters: to be set, if that is it
    :ivar means: by which of them
    :ivar why: to give up, if that is it
    :ivar eta: seconds until it is over, be it well or not
    :ivar blackout: seconds that the guest is expected to stand still
    :ivar converges: whether it is expected to end well as the levers stand
    :ivar percent: 0 to 100; it never goes back
    :ivar overdue: a postcopy goes on beyond the deadline, and nothing can be done about that
    """

    eta: float
    blackout: float
    converges: bool
    percent: float
    act: Act = Act.NONE
    parameters: dict[str, int] = {}
    means: Means | None = None
    why: Why | None = None
    overdue: bool = False


def look(terms: Terms, before: Course, seen: Look) -> tuple[Course, Advice]:
    """Take a look: learn from it, and say what to expect and what to do.

    :param before: what was known
    """
    course = see(terms, before, seen)
    outlook = expect(terms, course)
    course = judge(terms, course, outlook, before.seen)
    move = next((move for rule in RULES[seen.phase] if (move := rule(terms, course, outlook))), Move(Act.NONE))
    advice = Advice(
        eta=outlook.eta if course.end is None else course.end - seen.at,
        blackout=blackout(terms, course, outlook.now),
        converges=outlook.now.ends,
        percent=course.percent,
        act=move.act,
        means=move.means,
        why=move.why,
        overdue=seen.phase is Phase.POSTCOPY and seen.at > terms.deadline,
    )
    if move.setting is None or move.means is None:
        return course, advice
    was, now = parameters(course.setting), parameters(move.setting)
    changed = {name: value for name, value in now.items() if was.get(name) != value}
    lever = LEVERS[move.means]
    settled, shown = seen.at + lever.settles, seen.rounds + lever.rounds
    course = replace(
        course,
        setting=move.setting,
        bandwidth=faster(course.bandwidth, course.setting, move.setting),
        settled=settled,
        shown=shown,
        stuck=0,
        least=ENDLESS,
        better=settled,
        end=None,
    )
    return course, replace(advice, parameters=changed)


# --- what to do ----------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """What a rule wants done."""

    act: Act
    means: Means | None = None
    setting: Setting | None = None
    why: Why | None = None


Rule = Callable[[Terms, Course, Outlook], Move | None]


def _too_late(terms: Terms, course: Course, _: Outlook) -> Move | None:
    late = course.seen.at >= terms.deadline - RESERVE
    return Move(Act.GIVE_UP, why=Why.DEADLINE) if late else None


def _dead_link(_: Terms, course: Course, __: Outlook) -> Move | None:
    dead = course.seen.at - course.moved >= STALLED
    return Move(Act.GIVE_UP, why=Why.STALLED) if dead else None


def _hopeless(_: Terms, course: Course, __: Outlook) -> Move | None:
    hopeless = course.seen.at - course.hopeful >= HOPELESS
    return Move(Act.GIVE_UP, why=Why.HOPELESS) if hopeless else None


def _asked_for(_: Terms, course: Course, __: Outlook) -> Move | None:
    """A postcopy that has not begun is asked for again."""
    return Move(Act.POSTCOPY, Means.POSTCOPY) if course.setting.postcopy else None


def _postcopy_takes(terms: Terms, course: Course) -> float:
    """Return the seconds that a postcopy would take that began now."""
    ahead, remaining = first_pass(terms, course)
    remaining += course.dirtying.within(course.seen.at - course.began, course.seen.throttle)
    return ahead + remaining / course.bandwidth if course.bandwidth else ENDLESS


def _last_moment(terms: Terms, course: Course, outlook: Outlook) -> Move | None:
    """Later than now, a postcopy would not be done by the deadline; and precopy does not look as if it would be."""
    if Means.POSTCOPY not in terms.means or outlook.now.ends:
        return None
    left, takes = terms.deadline - RESERVE - course.seen.at, _postcopy_takes(terms, course)
    if not SLOWER * takes <= left <= LATEST * takes:
        return None
    return Move(Act.POSTCOPY, Means.POSTCOPY, replace(course.setting, postcopy=True))


def _one_round(terms: Terms, course: Course, _: Outlook) -> Move | None:
    """There is but one, and before its end nobody can tell for how long the guest then stands still."""
    if not course.setting.once or Means.POSTCOPY not in terms.means:
        return None
    if SLOWER * _postcopy_takes(terms, course) > terms.deadline - RESERVE - course.seen.at:
        return None  # it could not be ended at the deadline
    return Move(Act.POSTCOPY, Means.POSTCOPY, replace(course.setting, postcopy=True))


def _next_lever(terms: Terms, course: Course, outlook: Outlook) -> Move | None:
    """What was done has had its time, and it will not end."""
    if not sure(course) or course.seen.at < course.settled or course.seen.rounds < course.shown:
        return None
    setting, means = outlook.setting, outlook.means
    if setting is None:  # nothing seems to do: then each notch, one after another
        pulled = pull(terms, course.setting, course.bandwidth)
        if pulled is None:
            return None
        means, setting = pulled
    if not setting.postcopy:
        return Move(Act.SET, means, setting)
    if SLOWER * _postcopy_takes(terms, course) > terms.deadline - RESERVE - course.seen.at:
        return None  # it could not be ended at the deadline
    # whatever else was pulled in thought would not have done
    return Move(Act.POSTCOPY, means, replace(course.setting, postcopy=True))


RULES: Final[Mapping[Phase, Sequence[Rule]]] = {
    Phase.STORAGE: (_too_late, _dead_link, _hopeless),
    Phase.MEMORY: (_too_late, _dead_link, _hopeless, _asked_for, _one_round, _last_moment, _next_lever),
    # until the other side owns the machine there is a way back; whether there still is, the caller knows
    Phase.SWITCHOVER: (_too_late,),
    Phase.POSTCOPY: (),
    Phase.DONE: (),
}
"""Asked in this order; the first that has something to say is heard."""
