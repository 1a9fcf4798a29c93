"""Each step and each actor: everybody is killed, stopped or cut off once after each thing that happens.

A *way* is a migration in which something leads it through certain states: nothing at all, a cancel, a target that dies
at the end, a postcopy that is cut. Along each way every blow falls once at every moment.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final, NamedTuple

from drover.migration.states import ENDS, State
from sim.faults import FAULTS, Schedule, run
from sim.world import World


class Way(NamedTuple):
    """How a migration goes if nothing else comes.

    :ivar modes: of the world
    :ivar faults: what is in its way; in place of a number of things, so many after the driver has come to a state
    """

    name: str
    modes: dict[str, Any]
    faults: tuple[tuple[State, int, str, float], ...] = ()


_POSTCOPY: Final = (State.SEND, 3, "go postcopy", 0.0)
WAYS: Final = (
    Way("plain", {}),
    Way("plain, 7.2", {"versions": (7, 7)}),
    Way("the source's own journal", {"journal": True}),
    Way("with disks", {"storage": True}),
    Way("postcopy", {"postcopy": True}, (_POSTCOPY,)),
    Way("cancelled early", {}, ((State.ACCEPT, 1, "cancel", 0.0),)),
    Way("cancelled", {"storage": True}, ((State.SEND, 1, "cancel", 0.0),)),
    Way("cancelled at the end", {}, ((State.FENCE, 1, "cancel", 0.0),)),
    Way("the target dies at the end", {}, ((State.HAND_OVER, 1, "kill the target's QEMU", 0.0),)),
    Way("the target dies at the end, 7.2", {"versions": (7, 7)}, ((State.RUN, 1, "kill the target's QEMU", 0.0),)),
    Way("the answer is cut", {}, ((State.SWITCH, 3, "cut it the other way", 0.4),)),
    Way("the connection breaks", {"storage": True}, ((State.SWITCH, 1, "break the migration's connection", 0.0),)),
    Way("the store is away", {}, ((State.HAND_OVER, 1, "cut the store", 20.0),)),
    Way("the nodes are apart", {}, ((State.RUN, 1, "cut the daemons' network", 30.0),)),
    Way("the driver begins anew", {}, ((State.SWITCH, 1, "kill the source's daemon", 0.2),)),
    Way("postcopy is cut", {"postcopy": True}, (_POSTCOPY, (State.DRAIN, 1, "cut the network", 3.0))),
    Way("postcopy breaks", {"postcopy": True}, (_POSTCOPY, (State.RUN, 1, "break the migration's connection", 0.0))),
    Way("postcopy is torn", {"postcopy": True}, (_POSTCOPY, (State.HAND_OVER, 1, "kill the target's QEMU", 0.0))),
    Way(
        "it is taken back, and the driver begins anew",
        {},
        (
            (State.HAND_OVER, 1, "kill the target's QEMU", 0.0),
            (State.RESUME, 1, "kill the target's daemon", 10.0),
            (State.RESUME, 1, "kill the source's daemon", 0.2),
        ),
    ),
)
# Who is killed, stopped or cut off; for how long.
BLOWS: Final = (
    ("kill the source's daemon", 0.05),
    ("kill the source's daemon", 20.0),
    ("kill the target's daemon", 0.05),
    ("kill the target's daemon", 20.0),
    ("kill both daemons", 1.0),
    ("kill the source's QEMU", 0.0),
    ("kill the target's QEMU", 0.0),
    ("stop the source's QEMU", 8.0),
    ("stop the target's QEMU", 8.0),
    ("cut the network", 15.0),
    ("cut it one way", 15.0),
    ("cut it the other way", 15.0),
    ("cut the store", 15.0),
    ("lose the target's node", 0.0),
    ("lose the source's node", 0.0),
    ("cancel", 0.0),
)
SEED: Final = 5


def world(way: Way) -> World:
    """The world of a way; the same each time."""
    found = World(Random(SEED), **way.modes)
    found.wire.least = 1.0
    return found


def laid(way: Way) -> tuple[Schedule, list[State]]:
    """When what is in the way happens, and in which state the driver is after each thing."""
    faults: Schedule = []
    trail: list[State] = []
    for state, after, name, seconds in way.faults:
        trail = _trail(way, faults)
        faults.append((trail.index(state) + after, name, seconds))
        faults.sort()
    return faults, _trail(way, faults)


def _trail(way: Way, faults: Schedule) -> list[State]:
    trail: list[State] = []

    def blow(name: str, seconds: float) -> Callable[[World], None]:
        return lambda world: FAULTS[name](world, seconds)

    world(way).run([(at, blow(name, seconds)) for at, name, seconds in faults], trail)
    return trail


class Case(NamedTuple):
    """One blow at one moment."""

    way: Way
    faults: Schedule
    state: State
    blow: str


def cases(ways: tuple[Way, ...] = WAYS, every: int = 1) -> Iterator[Case]:
    """Each blow at each moment of each way.

    :param every: at each so manieth moment only, another one for each blow
    """
    for way in ways:
        faults, trail = laid(way)
        last = next((at for at, state in enumerate(trail) if state in ENDS), len(trail))
        for at, state in enumerate(trail[: last + 1]):
            for number, (name, seconds) in enumerate(BLOWS):
                if (at + number) % every:
                    continue
                yield Case(way, sorted([*faults, (at + 1, name, seconds)]), state, name)


def walk(ways: tuple[Way, ...] = WAYS, every: int = 1) -> Counter[tuple[State, str]]:
    """Go ways with all blows.

    :param every: see :func:`cases`
    :returns: how often each blow has fallen in each state
    :raises AssertionError: one went wrong; says how to see it again
    """
    fallen: Counter[tuple[State, str]] = Counter()
    for case in cases(ways, every):
        try:
            run(world(case.way), case.faults)
        except AssertionError as error:
            raise AssertionError(f"{case.way.name}, {case.blow} in {case.state}: {error}: {case.faults}") from error
        fallen[case.state, case.blow] += 1
    return fallen
