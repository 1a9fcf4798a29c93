"""The frame of every figure: sides measured in turns, in one run, by the processor's clock and the wall's.

The machine is noisy, and what makes it noisy changes within seconds. So the sides take turns in short
rounds, and two sides are compared round by round: what disturbed one has mostly disturbed the other.
"""

import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

FEWEST_ROUNDS = 3  # below that there is no median


class Clock:
    """Adds up what runs inside of ``with clock``: CPU seconds of this process, and seconds by the wall."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.wall = 0.0

    def __enter__(self) -> Self:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()


class BenchError(Exception):
    """A side did not do what it was asked: its time would mean nothing."""


class Side(ABC):
    """One client doing the work of one figure; set up anew for each round."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def setup(self) -> None:
        """Get ready; not measured."""

    @abstractmethod
    def run(self, clock: Clock, count: int) -> None:
        """Do the work `count` times, with the clock on."""

    @abstractmethod
    def teardown(self) -> None:
        """Let go of everything; not measured."""


@dataclass(frozen=True)
class Bar:
    """What one of ours aims at beside another side, in CPU: a share of its cost, or a multiple of its rate."""

    ours: str
    beside: str
    limit: float
    is_rate: bool = False

    @property
    def name(self) -> str:
        """What is compared."""
        return f"{self.ours} ÷ {self.beside}"

    @property
    def aim(self) -> str:
        """In words."""
        return f"at {'least' if self.is_rate else 'most'} {self.limit:g}"

    def ratios(self, series: dict[str, "Series"]) -> list[float]:
        """What it was in each round."""
        pairs = zip(series[self.ours].cpu, series[self.beside].cpu, strict=True)
        return [beside / ours if self.is_rate else ours / beside for ours, beside in pairs]

    def is_met(self, ratio: float) -> bool:
        """Whether `ratio` is on the right side of the limit."""
        return ratio >= self.limit if self.is_rate else ratio <= self.limit


@dataclass(frozen=True)
class Added(Bar):
    """What ours takes longer than another side, by the wall; the limit is in milliseconds."""

    @property
    def name(self) -> str:
        """What is compared."""
        return f"{self.ours} − {self.beside}, ms"

    def ratios(self, series: dict[str, "Series"]) -> list[float]:
        """Milliseconds in each round."""
        pairs = zip(series[self.ours].wall, series[self.beside].wall, strict=True)
        return [(ours - beside) * 1e3 for ours, beside in pairs]


@dataclass(frozen=True)
class Within(Bar):
    """What ours takes, by the wall; the limit is in milliseconds."""

    @property
    def name(self) -> str:
        """What is measured."""
        return f"{self.ours}, ms"

    def ratios(self, series: dict[str, "Series"]) -> list[float]:
        """Milliseconds in each round."""
        return [seconds * 1e3 for seconds in series[self.ours].wall]


@dataclass
class Series:
    """Seconds for each single operation of one side, one entry a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles: half of the rounds lie between them. The extremes tell only of the machine."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], scale: float = 1.0) -> Self:
        """The spread of `values`, each times `scale`."""
        low, median, high = statistics.quantiles((value * scale for value in values), n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Result:
    """What one figure came to."""

    name: str
    title: str
    what: str  # one operation: "call", "event"
    count: int
    is_rate: bool
    bars: Sequence[Bar]
    series: dict[str, Series] = field(default_factory=dict)


def measure(
    result: Result, sides: Sequence[Side], rounds: int, budget: float, progress: Callable[[str], None]
) -> Result:
    """Let all sides run in turns, and fill in `result`.

    :param budget: seconds after which no round is begun, except for the first few: a busy machine gets fewer
    :param progress: told what runs, before it does
    """
    result.series = {side.name: Series() for side in sides}
    deadline = time.monotonic() + budget
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        # every other round backwards, so that no side always comes after the same one
        for side in sides if number % 2 == 0 else reversed(sides):
            progress(f"{result.title}: round {number + 1} of {rounds}, {side.name}")
            clock = _one_round(side, result.count)
            result.series[side.name].cpu.append(clock.cpu / result.count)
            result.series[side.name].wall.append(clock.wall / result.count)
    return result


def _one_round(side: Side, count: int) -> Clock:
    clock = Clock()
    side.setup()
    try:
        gc.collect()  # what the side before left behind; during the run collection stays on, as in real life
        side.run(clock, count)
    finally:
        side.teardown()
    return clock
