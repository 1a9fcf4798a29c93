"""What is to be expected of a migration: when it is over, and how long the guest will stand still. Pure."""

from math import exp
from typing import Final, NamedTuple

from msgspec.structs import replace

from .course import SMOOTH, Course, Look, Phase
from .forecast import Setting, Walk, walk
from .means import LEVERS, Means, Terms, pull

# Seconds before the deadline: QEMU takes up to 0.1 s to cancel, and what follows is work for two nodes.
RESERVE: Final = 2.0
# Of what has passed: for no less the expected end is averaged, so that one round that is odd does not upset it.
SMOOTH_SHARE: Final = 0.04
# Ends of rounds that all say it will not end, before a lever is pulled, and seconds. One that took so long does alone.
STUCK: Final = 2
STUCK_FOR: Final = 1.0
SURE: Final = 5.0
# Ends of rounds that say so, with all levers pulled, before that is told as what is to be expected.
LOST: Final = 4
# Of a round, what the next is to leave while there is no better guess, and yet hope.
HOPE: Final = 0.75
# Seconds without a round that left less than any before: however it looks, it does not get better.
PATIENCE: Final = 5.0
# Of a cap: who uses as much is held back by it.
CAPPED: Final = 0.9
# Percent: what is not over yet is not all.
NEARLY: Final = 99.9


class Outlook(NamedTuple):
    """What is to be expected.

    :ivar eta: seconds until it is over, with all that may be done
    :ivar now: what comes of it as the levers stand; it ends only if that is in time
    :ivar means: what would have to be done then
    :ivar setting: where the levers would stand then
    """

    eta: float
    now: Walk
    means: Means | None = None
    setting: Setting | None = None


def expect(terms: Terms, course: Course) -> Outlook:
    """Go through the rounds to come, as the levers stand; if they come to no end, as they will have to be pulled."""
    seen, left = course.seen, terms.deadline - RESERVE - course.seen.at
    if seen.phase is Phase.DONE:
        return Outlook(0.0, Walk(0.0, 0.0, True))
    if not course.bandwidth:
        return Outlook(max(0.0, left), Walk(left, terms.memory, False))
    if seen.phase in (Phase.SWITCHOVER, Phase.POSTCOPY):
        walked = Walk(seen.remaining / course.bandwidth, seen.remaining, True)
        return Outlook(walked.seconds, walked)
    ahead, remaining = first_pass(terms, course)
    since = seen.at - course.began if seen.phase is Phase.MEMORY else 0.0
    lags = seen.throttle < course.setting.throttle
    walked = walk(
        remaining,
        since,
        course.bandwidth,
        course.setting,
        course.dirtying,
        vcpus=terms.vcpus,
        throttle=seen.throttle if lags else None,
    )
    now = walked._replace(seconds=ahead + walked.seconds, ends=walked.ends and not _standstill(course))
    if now.ends and now.seconds <= left:
        return Outlook(now.seconds, now)
    best = _pulls(terms, course, now, left)
    if best is None and (course.stuck < LOST or pull(terms, course.setting, course.bandwidth) is not None):
        hopes = now.seconds + now.left / course.bandwidth / (1 - HOPE)
        return Outlook(max(0.0, min(hopes, left)), now._replace(ends=False))
    return Outlook(max(0.0, left), now._replace(ends=False)) if best is None else best


def _pulls(terms: Terms, course: Course, now: Walk, left: float) -> Outlook | None:
    """Pull in thought, lever after lever, until it comes to its end in time; None if it does not.

    They are pulled together then: to wait for each of them to fail would take rounds.
    """
    setting, bandwidth, was = course.setting, course.bandwidth, course.setting.throttle
    waits = min(_waits(course, now), left)
    while (pulled := pull(terms, setting, bandwidth)) is not None:
        means, after = pulled
        bandwidth, setting = faster(bandwidth, setting, after), after
        lag = was if setting.throttle > was else None
        walked = walk(now.after, 0.0, bandwidth, setting, course.dirtying, vcpus=terms.vcpus, throttle=lag)
        eta = waits + LEVERS[means].settles + walked.seconds
        if walked.ends and eta <= left:
            return Outlook(eta, now._replace(ends=False), means, setting)
    return None


def _waits(course: Course, now: Walk) -> float:
    """Return the seconds until the next lever is pulled, if it is."""
    took = now.round + course.seen.at - course.began
    one_does = took >= SURE or course.stuck + 1 >= STUCK
    another = 0.0 if one_does else max(STUCK_FOR, now.after / course.bandwidth)
    return max(course.settled - course.seen.at, now.round + another)


def sure(course: Course) -> bool:
    """Whether it has seemed for long enough that it will not end."""
    last = course.learnt[-1].seconds if course.learnt else 0.0
    return course.stuck * last >= (STUCK_FOR if course.stuck >= STUCK else SURE)


def _standstill(course: Course) -> bool:
    """Whether rounds have gone on and on without leaving less, whatever the forecast says."""
    last = course.learnt[-1].seconds if course.learnt else 0.0
    return course.began - course.better > max(PATIENCE, 3 * last)


def first_pass(terms: Terms, course: Course) -> tuple[float, float]:
    """Return the seconds that go by before, and the bytes that the present round has to send."""
    seen = course.seen
    if seen.phase is Phase.STORAGE:
        return max(0.0, seen.to_copy - seen.copied) / course.bandwidth, min(terms.memory, terms.resident)
    if seen.rounds > 1:
        return 0.0, seen.remaining
    # the rest of what is not known to have contents is zeros, and QEMU comes to them when it comes to them
    sent = min(seen.remaining, max(0.0, terms.resident - seen.transferred))
    return (seen.remaining - sent) / course.zeros, sent


def faster(bandwidth: float, before: Setting, after: Setting) -> float:
    """The bandwidth to be expected after a pull: where the cap was not what held it back, it does not grow."""
    if after.cap > before.cap and bandwidth > before.cap * CAPPED:
        return bandwidth * after.cap / before.cap
    return bandwidth


def blackout(terms: Terms, course: Course, now: Walk) -> float:
    """Return the seconds that the guest will stand still; if it comes to no end, that it would, stopped at its best."""
    after = course.seen.phase in (Phase.POSTCOPY, Phase.DONE)
    if after or course.setting.postcopy or not course.bandwidth:
        return terms.overhead
    return terms.overhead + now.left / course.bandwidth


def judge(terms: Terms, course: Course, outlook: Outlook, before: Look) -> Course:
    """Count how often it seemed that it would not end, and when it last could; say how far it is."""
    seen, left = course.seen, terms.deadline - course.seen.at
    if seen.phase is Phase.DONE:
        return replace(course, end=seen.at, percent=100.0)
    end = seen.at + outlook.eta
    if course.end is not None:
        # the end of a long round tells much
        span = course.learnt[-1].seconds if seen.rounds > before.rounds and course.learnt else seen.at - before.at
        keep = exp(-max(0.0, span) / max(SMOOTH, seen.at * SMOOTH_SHARE))
        end = max(seen.at, keep * course.end + (1 - keep) * end)
    if course.bandwidth and end > 0:
        percent = max(course.percent, min(100.0 * seen.at / end, NEARLY))
        course = replace(course, end=end, percent=percent)
    if seen.rounds > 1 and course.began == seen.at:
        course = replace(course, stuck=0 if outlook.now.ends else course.stuck + 1)
    # not even the link's whole bandwidth would do; who does not know the link can always hope
    ahead, remaining = first_pass(terms, course) if course.bandwidth else (0.0, 0.0)
    if ahead * course.bandwidth + remaining <= max(terms.link, course.bandwidth) * left:
        course = replace(course, hopeful=seen.at)
    return course
