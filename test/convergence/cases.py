"""Made-up and recorded migrations, one for each seed."""

from collections.abc import Callable
from random import Random

from msgspec.structs import replace

from convergence.precopy import GIB, MIB, Case, Link, Region, Shape, bursts, diurnal, growing, recorded, steady
from drover.migration.forecast import ENDLESS
from drover.migration.means import MEANS, Means, Terms, Wishes, deadline

RECORDED = ("uniform-10", "bursts-10", "growing-10", "waves-10", "sweep-10", "hot-cold-10")
Guest = Callable[[Random, float, float], list[Region]]
"""From chance, bytes of memory and bytes a second of the link to what is busy in it."""


def _share(chance: Random, least: float, most: float) -> float:
    """Chance on a log scale: a guest that dirties a tenth of another's is as likely as the other."""
    return least * (most / least) ** chance.random()


def _idle(chance: Random, memory: float, link: float) -> list[Region]:
    return [Region(memory * 0.02, link * chance.uniform(0, 0.02))]


def _uniform(chance: Random, memory: float, link: float, shape: Shape = steady) -> list[Region]:
    return [Region(memory * _share(chance, 0.02, 0.7), link * _share(chance, 0.01, 1.5), shape)]


def _hot_cold(chance: Random, memory: float, link: float) -> list[Region]:
    hot = Region(memory * _share(chance, 0.0005, 0.03), link * _share(chance, 0.05, 3))
    return [hot, Region(memory * chance.uniform(0.1, 0.5), link * _share(chance, 0.01, 0.3))]


def _bursts(chance: Random, memory: float, link: float) -> list[Region]:
    return _uniform(chance, memory, link, bursts(chance.uniform(1, 8), chance.uniform(2, 15), chance.uniform(0, 20)))


def _growing(chance: Random, memory: float, link: float) -> list[Region]:
    return _uniform(chance, memory, link, growing(chance.uniform(20, 120)))


def _diurnal(chance: Random, memory: float, link: float) -> list[Region]:
    return _uniform(chance, memory, link, diurnal(chance.uniform(40, 300), chance.random()))


def _recorded(chance: Random, memory: float, link: float) -> list[Region]:
    most, shape = recorded(chance.choice(RECORDED))
    # the recordings are of 512 MiB over 48 MiB/s
    return [Region(memory / 2, most * link / (48 * MIB), shape)]


GUESTS: dict[str, Guest] = {
    "idle": _idle,
    "uniform": _uniform,
    "hot-cold": _hot_cold,
    "bursts": _bursts,
    "growing": _growing,
    "diurnal": _diurnal,
    "recorded": _recorded,
}


def _link(chance: Random, rate: float) -> Link:
    dips = []
    if chance.random() < 0.2:  # somebody else's migration takes its part for a while
        start = chance.uniform(0, 60)
        dips.append((start, start + chance.uniform(5, 40), chance.uniform(0.5, 0.8)))
    return Link(rate, chance.uniform(0, 0.08), chance, dips)


def hard_case(seed: int) -> Case:
    """A guest that dirties about as much as the link can carry, or up to four times as much, and little time."""
    made = case(seed)
    chance = Random(-seed)
    busy = next((region for region in made.regions if region.rate), made.regions[0])
    busy.rate = made.link.rate * _share(chance, 0.5, 4)
    means = tuple(one for one in Means if chance.random() < 0.5 and one is not Means.DIRTY_LIMIT)
    hurry = made.terms.deadline * chance.uniform(0.2, 1)
    made.terms = replace(made.terms, means=means, deadline=hurry)
    return made


def case(seed: int) -> Case:
    """The migration of this seed."""
    chance = Random(seed)
    name = list(GUESTS)[seed % len(GUESTS)]
    memory = GIB * 2 ** chance.uniform(0, 4)
    link = _link(chance, MIB * 2 ** chance.uniform(6.7, 10))
    busy = GUESTS[name](chance, memory, link.rate)
    rest = memory - sum(region.size for region in busy)
    empty = rest * chance.choice((0, 0, 0.3, 0.9))
    regions = [*busy, Region(rest - empty), Region(empty, zeros=True)]
    chance.shuffle(regions)
    to_copy = memory * chance.choice((0, 0, 0, 0.5, 1))
    means = tuple(one for one in MEANS if chance.random() < 0.85)
    if chance.random() < 0.4:
        means = (*means, Means.POSTCOPY)
    capped = chance.random() < 0.3
    terms = Terms(
        deadline=deadline(memory, to_copy),
        memory=memory,
        wishes=Wishes(cap=link.rate * 0.4 if capped else ENDLESS, ceiling=link.rate if capped else ENDLESS),
        means=means,
        granted=link.rate,
        resident=(memory - empty) * chance.uniform(1, 1.1),
    )
    overhead, feels = chance.uniform(0.005, 0.03), chance.choice((1.0, 1.0, 0.5, 0.0))
    return Case(name, [region for region in regions if region.size], link, terms, to_copy, overhead, feels)
