"""How a guest makes memory dirty, and what becomes of a migration then. Pure arithmetic on what was seen.

Precopy goes in rounds. A round sends what was found dirty. As soon as less is left than QEMU can send while the guest
may stand still (``downtime-limit``), it looks what has become dirty meanwhile, and stops the guest if it is still less
then. So what is sent in a round is what lies *above* that threshold, and rounds shrink only if the guest makes less
dirty in a round than the round sends.
"""

from collections.abc import Sequence
from itertools import product
from math import exp, expm1, log, log1p
from typing import Final, NamedTuple

from msgspec import Struct

# Of bytes, or of bytes a second: more than there is. A journal in JSON holds no infinity.
ENDLESS: Final = 1e18
# Seconds. QEMU sends for so long before it looks how much is left, so no round is shorter.
SLICE: Final = 0.05
# Of rounds in a forecast: who has not come to an end by then comes to none.
ROUNDS: Final = 40
# Rounds until QEMU throttles: it does at the second that dirties too much.
LAG: Final = 2
# A round that leaves more than this share of the one before does not bring the end nearer in any useful time.
STANDSTILL: Final = 0.97
# The weight of a round, of that of the next one.
MEMORY: Final = 0.6
# Bytes: a round that dirtied nothing has a logarithm all the same.
PAGE: Final = 4096

# What is tried on the rounds seen. Of the least that a round has dirtied, what is hot: dirty again at once.
HOT: Final = (0.0, 0.3, 0.6, 0.9)
# Times the most that a round has dirtied: the memory that is written to at all.
WORKING: Final = (1.02, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 60.0)
# How much of a throttle a guest feels: one that waits most of the time does as much with less of it.
FEELS: Final = (1.0, 0.5, 0.0)
# What a guess must do better than the first of its row, so that little evidence does not lead far astray.
DOUBT: Final = 0.003


class Dirtying(Struct, frozen=True):
    """What a guest makes dirty: some memory at once, and of the rest of what it works on whatever chance hits.

    :ivar hot: bytes that are dirty at once
    :ivar working: bytes that are written to besides
    :ivar rate: bytes a second of that, pages that are dirty already among them
    :ivar feels: the share of a throttle that slows it down
    """

    hot: float = 0.0
    working: float = 0.0
    rate: float = 0.0
    feels: float = 1.0

    def within(self, seconds: float, throttle: float = 0.0) -> float:
        """Return the bytes that are dirty after some seconds, of memory that was clean.

        :param throttle: percent
        """
        if not self.working or seconds <= 0:
            return 0.0
        guest = seconds * (1 - self.feels * throttle / 100)
        return self.hot + self.working * -expm1(-self.rate * guest / self.working)

    def fresh(self, rest: float) -> float:
        """Return the share of what gets dirty that is not among the `rest` bytes that are dirty anyhow."""
        return 1 - min(1.0, rest / (self.hot + self.working)) if self.working else 1.0


class Round(Struct, frozen=True, array_like=True):
    """What was seen of a round, or of a measurement.

    :ivar seconds: that it took
    :ivar dirtied: bytes
    :ivar throttle: percent of the vCPUs' time that was taken away
    """

    seconds: float
    dirtied: float
    throttle: float = 0.0


def learn(rounds: Sequence[Round], memory: float) -> Dirtying:
    """Find the guest that would have done what was seen: of a grid of guesses, the one that comes nearest.

    :param rounds: the newest last; later ones count for more
    :param memory: bytes of it
    """
    if not any(one.dirtied for one in rounds):
        return Dirtying()
    weights = [MEMORY**age for age in reversed(range(len(rounds)))]
    least, most = (pick(max(one.dirtied, PAGE) for one in rounds) for pick in (min, max))
    feels = FEELS if len({one.throttle for one in rounds}) > 1 else FEELS[:1]
    guesses = (
        _guess(rounds, weights, memory, share * least, min(times * most, memory), felt)
        for share, times, felt in product(HOT if len(rounds) > 2 else HOT[:1], WORKING, feels)
    )
    return min(guesses, key=lambda guess: guess[0])[1]


def _guess(
    rounds: Sequence[Round], weights: Sequence[float], memory: float, hot: float, working: float, feels: float
) -> tuple[float, Dirtying]:
    """Return how far off a guess is, and the guest, with the rate that fits it best."""
    rates = []
    for one in rounds:
        share = min(max(one.dirtied - hot, PAGE) / working, 0.98)
        felt = max(one.seconds, SLICE) * (1 - feels * one.throttle / 100)
        rates.append(-log1p(-share) * working / felt)
    total = sum(weights)
    rate = exp(sum(weight * log(rate) for weight, rate in zip(weights, rates, strict=True)) / total)
    guest = Dirtying(hot, working, rate, feels)
    off = sum(
        weight * log(guest.within(max(one.seconds, SLICE), one.throttle) / max(one.dirtied, PAGE)) ** 2
        for weight, one in zip(weights, rounds, strict=True)
    )
    # before rounds of different length have shown it: half way, on a log scale, from what was seen to all there is
    usual = (max(one.dirtied for one in rounds) * memory) ** 0.5
    doubt = log(working / usual) ** 2 + 5 * (hot > 0) + 6 * (1 - feels)
    return off / total + DOUBT * doubt, guest


class Setting(Struct, frozen=True):
    """Where the levers stand.

    :ivar downtime: seconds that QEMU may plan to have the guest stand still
    :ivar cap: bytes a second that the migration may take, if the link's budget grants that much
    :ivar throttle: percent of the vCPUs' time that auto-converge may take
    :ivar dirty_limit: bytes a second that each vCPU may make dirty
    :ivar postcopy: the guest is to run on the target, and memory to follow
    :ivar once: all goes in one round, and the guest stands still for what that has made dirty, however much
    """

    downtime: float
    cap: float = ENDLESS
    throttle: int = 0
    dirty_limit: float = ENDLESS
    postcopy: bool = False
    once: bool = False


class Walk(NamedTuple):
    """Where the rounds lead to.

    :ivar seconds: until the guest runs on the target with all its memory; or, if that never comes, until it shows
    :ivar left: bytes that are sent while the guest stands still; or that no round gets below
    :ivar ends: whether it comes to an end
    :ivar round: seconds until the present round ends
    :ivar after: bytes that are dirty then
    """

    seconds: float
    left: float
    ends: bool
    round: float = 0.0
    after: float = 0.0


def walk(
    remaining: float,
    since: float,
    bandwidth: float,
    setting: Setting,
    dirtying: Dirtying,
    *,
    vcpus: int = 1,
    throttle: float | None = None,
) -> Walk:
    """Go through the rounds that are to come.

    :param remaining: bytes that the present round has still to send
    :param since: seconds that it has taken already
    :param bandwidth: bytes a second, more than 0
    :param throttle: percent as it is now, if that is not the setting yet: for some rounds to come it stays so
    """
    if setting.postcopy:
        return Walk(remaining / bandwidth, 0.0, True)
    if setting.once:
        took = remaining / bandwidth
        left = dirtying.within(took + since, setting.throttle)
        return Walk(took + left / bandwidth, left, True, took, left)
    threshold = bandwidth * setting.downtime
    seconds, first, after, left = 0.0, 0.0, remaining, remaining
    for number in range(ROUNDS):
        sends = min(remaining, max(remaining - threshold, bandwidth * SLICE if number else 0.0))
        took = sends / bandwidth
        seconds += took
        felt = setting.throttle if throttle is None or number >= LAG else throttle
        dirtied = min(dirtying.within(took + since, felt), setting.dirty_limit * vcpus * (took + since))
        rest = remaining - sends
        left = rest + dirtied * dirtying.fresh(rest)
        if not number:
            first, after, since = took, left, 0.0
        if left <= threshold:
            return Walk(seconds + left / bandwidth, left, True, first, after)
        # the first round is begun already, or is the whole memory: it says nothing of the next
        still = left > threshold + STANDSTILL * (remaining - threshold)
        if still and number > (0 if throttle is None else LAG):
            break
        remaining = left
    return Walk(seconds, left, False, first, after)
