"""How fast something gets on, and when it will be done: pure, from what was seen of it and when."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

WINDOW: Final = 30.0  # s that the rate is taken over: it follows a change, and a pause of a few seconds does not show
MIN_SPAN: Final = 0.5  # s between the first and the last look; from less, a rate says nothing
GAP: Final = 1.0  # s between samples that are kept, the last one apart: so there are WINDOW / GAP of them, or few more


class Progress(Struct, frozen=True, kw_only=True):
    """How far a job is.

    :ivar done: how much of it is, in `unit`
    :ivar of: of how much; 0 where nobody knows
    :ivar unit: ``bytes``, ``instances``, …
    :ivar rate: how much each second, by the last half minute; None where that is not known
    :ivar eta: seconds to the end from then, at this rate; None where that is not known
    :ivar detail: more of it, in words
    :ivar at: Unix time of it
    """

    done: float
    of: float = 0
    unit: str = ""
    rate: float | None = None
    eta: float | None = None
    detail: str = ""
    at: float = 0.0


class Sample(NamedTuple):
    """One look.

    :ivar at: when, in seconds of a clock that never jumps
    :ivar done: how much was done
    """

    at: float
    done: float


def with_sample(samples: Sequence[Sample], new: Sample) -> tuple[Sample, ...]:
    """The samples with one more, without those that no longer count.

    What is done never gets less. Where it does, it is counted anew, as in the next pass of a copy.
    """
    if samples and new.done < samples[-1].done:
        return (new,)
    # where looks are rarer than the window is long, the last one still says what the rate was since
    recent = [it for it in samples if it.at >= new.at - WINDOW] or list(samples[-1:])
    if len(recent) > 1 and recent[-1].at - recent[-2].at < GAP:
        recent.pop()
    return (*recent, new)


def rate(samples: Sequence[Sample]) -> float | None:
    """How much is done each second.

    :returns: None where too little was seen of it
    """
    if len(samples) < 2 or (span := samples[-1].at - samples[0].at) < MIN_SPAN:
        return None
    return (samples[-1].done - samples[0].done) / span


def eta(done: float, of: float, rate: float | None) -> float | None:
    """Seconds to the end.

    :param rate: how much is done each second
    :returns: None where nobody knows: how much there is in all is not known, or nothing moves
    """
    if of <= 0:
        return None
    if done >= of:
        return 0.0
    return (of - done) / rate if rate else None
