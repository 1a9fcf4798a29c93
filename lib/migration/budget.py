"""One link's bandwidth, shared fairly by the migrations that run over it. Pure: who measures and sets is the caller.

Fair is *max-min* fair: nobody can have more without somebody who has less losing some. It is done twice: the link is
shared by the migrations, and the part of each by its own streams, so that a machine with six disks takes no more of
the link than one that has none. What one cannot use goes to the others.

A migration runs over two links, its source's and its target's, and gets the lesser of the two parts. The other link
learns of that by the demand (:func:`demand_of`) and gives the rest away.

All amounts are bytes a second.
"""

from collections.abc import Hashable, Mapping
from math import inf, isfinite
from typing import Final, TypeVar

from msgspec import Struct

from ..errors import ArgumentError

# What keeps a stream alive: a migration that gets less makes no headway beside a guest that does anything at all.
FLOOR: Final = 1 << 20
# Of a stream's part. Each change is a command to a QEMU, and shifts its estimates of what is left to do.
HYSTERESIS: Final = 0.1
# Of its part: who uses as much is held back by nothing else, so may have more.
BUSY: Final = 0.9
# Parts that fit a link exactly add up to its capacity, but for what floating-point numbers lose.
ROUNDING: Final = 1e-9
# Times what is used: room to grow into, for who is held back by something else just now.
HEADROOM: Final = 1.25

Key = TypeVar("Key", bound=Hashable)


class Claim(Struct, frozen=True):
    """What a stream, or a whole migration, may be given.

    :ivar demand: it could use no more than this; infinite if nobody knows
    :ivar floor: it gets no less, as long as the link has that for all, and unless it wants less
    """

    demand: float = inf
    floor: float = FLOOR


Wishes = Mapping[str, Mapping[str, Claim]]
"""Of each migration its streams, such as ``memory`` and ``storage``."""
Grants = Mapping[str, Mapping[str, float]]
"""Of each migration, what each of its streams gets."""


def split(capacity: float, claims: Mapping[Key, Claim]) -> dict[Key, float]:
    """Share an amount among some, max-min fair between each one's floor and demand.

    :param capacity: what there is
    :returns: what each gets: in all no more than `capacity`, and all of it if they want it. Where it does not do for
        the floors, each gets the same share of its floor
    :raises ArgumentError: an amount is negative or not a number, or the capacity is infinite
    """
    if not isfinite(capacity) or capacity < 0:
        raise ArgumentError("capacity", capacity, "a number of bytes a second")
    bounds: dict[Key, tuple[float, float]] = {}
    for key, claim in claims.items():
        if not (claim.demand >= 0 and claim.floor >= 0):
            raise ArgumentError("claim", claim, "no negative amount")
        bounds[key] = (min(claim.floor, claim.demand), min(claim.demand, capacity))
    lowest = sum(low for low, _ in bounds.values())
    if lowest >= capacity:
        return {key: low * capacity / lowest if lowest else 0.0 for key, (low, _) in bounds.items()}
    level = _level(capacity, list(bounds.values()))
    return {key: _within(level, low, high) for key, (low, high) in bounds.items()}


def _within(level: float, low: float, high: float) -> float:
    return max(low, min(level, high))


def _level(capacity: float, bounds: list[tuple[float, float]]) -> float:
    """The height to which water stands that is poured in: everybody has as much, but for who wants less or has a floor.

    What is taken in all grows with the level, on straight lines between the floors and demands; so the level lies on
    the line where it comes to pass the capacity.
    """

    def taken(level: float) -> float:
        return sum(_within(level, low, high) for low, high in bounds)

    below, at_below = 0.0, taken(0.0)
    for point in sorted({bound for pair in bounds for bound in pair}):
        at_point = taken(point)
        if at_point > capacity:
            return below + (point - below) * (capacity - at_below) / (at_point - at_below)
        below, at_below = point, at_point
    return below


def allocate(capacity: float, wishes: Wishes) -> dict[str, dict[str, float]]:
    """Share a link among migrations, and the part of each among its streams.

    :param capacity: what the migrations may use of the link
    :raises ArgumentError: as of :func:`split`
    """
    whole = {
        name: Claim(sum(claim.demand for claim in streams.values()), sum(claim.floor for claim in streams.values()))
        for name, streams in wishes.items()
    }
    return {name: split(part, wishes[name]) for name, part in split(capacity, whole).items()}


def settle(before: Grants, capacity: float, wishes: Wishes) -> Grants:
    """Share anew, but leave all as it is while that is near enough.

    It changes when one comes or goes, when the link has become too small for what was granted, or when somebody's part
    is off by more than :data:`HYSTERESIS`; then it changes for all, so that the parts always fit into the link.

    :param before: what is granted now
    :returns: `before` itself, if nothing is to be done
    """
    after = allocate(capacity, wishes)
    now, then = _flat(before), _flat(after)
    if now.keys() != then.keys() or sum(now.values()) > capacity * (1 + ROUNDING):
        return after
    if any(abs(then[key] - part) > HYSTERESIS * part for key, part in now.items()):
        return after
    return before


def _flat(grants: Grants) -> dict[tuple[str, str], float]:
    return {(name, stream): part for name, streams in grants.items() for stream, part in streams.items()}


def demand_of(granted: float, used: float, limit: float = inf) -> float:
    """What a stream could use, judged by what it does use.

    :param granted: what it has had for the last second or more
    :param used: what it used of that
    :param limit: no more than this, as the other link or the policy allows no more
    """
    return min(limit, inf if used >= BUSY * granted else max(used * HEADROOM, FLOOR))
