"""What is tried: each step of a migration that the tables have, each actor, two moments; and what may come of it.

A migration comes to a step on its way, or is led to it: by a cancel, a QEMU that dies, a daemon that is killed or
stands still. `led` says by what. Beside the tables' steps are the *seams*: where a daemon writes something down.
"""

from collections.abc import Iterator
from itertools import cycle
from random import Random
from typing import Any, Final, NamedTuple

from nodes.blows import BLOWS

DRIVER, ARRIVAL, SEAM_HERE, SEAM_THERE = "driver", "arrival", "seam-here", "seam-there"
SLOWLY: Final = (("bandwidth", 128 << 10),)  # a machine with nothing in it has 1 MB to send
PAIRS: Final = (("10.0", "10.0"), ("7.2", "7.2"), ("7.2", "10.0"), ("10.0", "7.2"))


class Place(NamedTuple):
    """Where a daemon stops."""

    role: str
    state: str
    moment: str

    def __str__(self) -> str:
        return f"{self.role} {self.state} {self.moment}"

    @property
    def here(self) -> bool:
        """It is the source's daemon that stops."""
        return self.role in (DRIVER, SEAM_HERE)


class Lead(NamedTuple):
    """What leads a migration off its way.

    :ivar blow: of :data:`nodes.blows.BLOWS`, or ``cancel``
    :ivar lasts: it is healed with all else at the end; else before it goes on
    """

    at: Place
    blow: str
    lasts: bool = False


class Way(NamedTuple):
    """How a migration goes if nothing else comes.

    :ivar role: whose states they are that it comes to
    :ivar states: which
    :ivar params: of ``migrate``
    """

    role: str
    states: str
    leads: tuple[Lead, ...] = ()
    params: tuple[tuple[str, Any], ...] = ()


_TARGET_DIES: Final = (Lead(Place(DRIVER, "hand-over", "entered"), "kill the target's QEMU"),)
# Before it is told to send: what has been heard then may be that all is sent, if it stood there for long.
_CANCELLED: Final = (Lead(Place(DRIVER, "send", "entered"), "cancel"),)
_DEAF: Final = Lead(Place(DRIVER, "cancel", "entered"), "stop the target's daemon", lasts=True)
WAYS: Final = {
    "plain": Way(DRIVER, "look claim accept set send fence switch hand-over run quit settle"),
    "arrival": Way(ARRIVAL, "check launch start settle"),
    # What is heard there first may come when all is sent, where that takes some ms.
    "held": Way(ARRIVAL, "hold", (), SLOWLY),
    "cancelled": Way(DRIVER, "cancel reset", _CANCELLED, SLOWLY),
    "cancelled, apart": Way(DRIVER, "discard", (*_CANCELLED, _DEAF), SLOWLY),
    "cancelled there": Way(ARRIVAL, "kill", _CANCELLED, SLOWLY),
    "taken back": Way(DRIVER, "take-back resume", _TARGET_DIES),
    "taken back, begun anew": Way(
        DRIVER,
        "reap",
        (
            *_TARGET_DIES,
            Lead(Place(DRIVER, "take-back", "entered"), "stop the target's daemon", lasts=True),
            Lead(Place(DRIVER, "resume", "entered"), "kill the source's daemon"),
        ),
    ),
    "begun anew": Way(DRIVER, "ask", (Lead(Place(DRIVER, "switch", "entered"), "kill the source's daemon"),)),
    "apart": Way(DRIVER, "doubt", (Lead(Place(DRIVER, "run", "entered"), "stop the target's daemon", lasts=True),)),
    "seams": Way(SEAM_HERE, "keep set-out gone end forget"),
    "seams there": Way(SEAM_THERE, "put launched learn arrived"),
    "seams of a cancel": Way(SEAM_THERE, "ended delete", _CANCELLED, SLOWLY),
}


class Case(NamedTuple):
    """One blow at one place.

    :ivar leads: what happens before
    :ivar seconds: how long it lasts
    :ivar versions: of both QEMUs
    """

    place: Place
    blow: str
    seconds: float
    leads: tuple[Lead, ...] = ()
    params: tuple[tuple[str, Any], ...] = ()
    versions: tuple[str, str] = PAIRS[0]

    def __str__(self) -> str:
        way = "".join(f"{lead.blow} at {lead.at}, " for lead in self.leads)
        return f"{'→'.join(self.versions)}: {way}{self.blow} at {self.place} for {self.seconds:g} s"


# s; of those that are healed. The second is longer than it takes a daemon to notice that the other does not answer.
SHORT, LONG = 1.5, 12.0
_AT_ONCE: Final = 0.3  # s; a QEMU that is dead stays so


def moments(way: Way) -> tuple[str, str]:
    """Of each state of a way."""
    return ("entered", "heard") if way.role in (DRIVER, ARRIVAL) else ("before", "after")


def some(way: Way, state: str, dice: Random) -> Iterator[Case]:
    """Each blow in a state once; the rest by the dice."""
    for name in blows_at(way.role, state):
        place = Place(way.role, state, dice.choice(moments(way)))
        seconds = _seconds(name, dice.choice((*[SHORT] * 9, LONG)))
        yield Case(place, name, seconds, way.leads, way.params, dice.choice(PAIRS))


def every(way: Way, state: str) -> Iterator[Case]:
    """Each blow in a state at each moment with each pair of versions; and once so that it lasts."""
    lasting = cycle(PAIRS)
    for moment in moments(way):
        place = Place(way.role, state, moment)
        for name in blows_at(way.role, state):
            each = [(versions, _seconds(name, SHORT)) for versions in PAIRS]
            if not BLOWS[name].kills:
                each.append((next(lasting), LONG))
            for versions, seconds in each:
                yield Case(place, name, seconds, way.leads, way.params, versions)


def _seconds(blow: str, seconds: float) -> float:
    return _AT_ONCE if BLOWS[blow].kills else seconds


def blows_at(role: str, state: str) -> list[str]:
    """Who can be hit there."""
    if role in (SEAM_HERE, SEAM_THERE):
        return [f"kill the {'source' if role == SEAM_HERE else 'target'}'s daemon", "kill both daemons"]
    absent = _ABSENT.get((role, state), "nobody")
    return [name for name in BLOWS if f"{absent}'s QEMU" not in name]


# Which QEMU is not there yet, or not any more.
_ABSENT: Final = {
    (DRIVER, "look"): "target",
    (DRIVER, "claim"): "target",
    (ARRIVAL, "check"): "target",
    (DRIVER, "settle"): "source",
}


# Who comes back soon and takes it up: nothing that the other has said before is lost.
_TAKEN_UP: Final = ("kill the source's daemon", "kill the target's daemon", "kill both daemons")
# The driver's steps from which on the source has proven that it has sent all.
_PROVEN: Final = ("hand-over", "run", "quit", "settle")


def may_be(case: Case) -> set[str]:
    """Where the machine may be at the end: it runs ``here`` or ``there``; or ``nowhere``, for its QEMU was killed."""
    kills, place = BLOWS[case.blow].kills, case.place
    led = {BLOWS[lead.blow].kills for lead in case.leads if lead.blow in BLOWS} - {""}
    if not kills:
        if case.blow in _TAKEN_UP and place.state in ("set", "send") and not case.leads:
            return {"there"}
        return {"here"} if led or (case.leads and case.leads[0].blow == "cancel") else {"here", "there"}
    if case.leads:
        return {"here", "there", "nowhere"}
    if kills == "source":
        return _source_died(place)
    return _target_died(place)


def _source_died(place: Place) -> set[str]:
    if place.state in _PROVEN or place == Place(ARRIVAL, "start", place.moment):
        return {"there"}
    return {"nowhere", "there"} if (place.state, place.moment) == ("switch", "heard") else {"nowhere"}


def _target_died(place: Place) -> set[str]:
    if place == Place(ARRIVAL, "launch", "entered"):
        return {"there"}  # there was none yet
    if place.state == "accept":
        return {"there", "here"}  # there may have been none yet
    if place.state in ("quit", "settle"):
        return {"nowhere"}
    # once it was told to run, nobody can tell whether it did
    told = place.state == "start" or place == Place(DRIVER, "run", "heard")
    return {"here", "nowhere"} if told else {"here"}
