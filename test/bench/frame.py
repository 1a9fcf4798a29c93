"""The frame of every figure: sides measured in turns, in one run, by the processor's clock and the wall's.

The machine is noisy, and what makes it noisy changes within seconds. So the sides take turns in short
rounds, and two sides are compared round by round: what disturbed one has mostly disturbed the other.
"""

import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

FEWEST_ROUNDS = 3  # below that there is no median


@dataclass(frozen=True)
class Column:
    """One thing that is measured in each round.

    :ivar scale: times a value it is in `unit`
    """

    name: str
    unit: str
    scale: float = 1.0


CPU = Column("CPU", "µs", 1e6)
WALL = Column("wall", "µs", 1e6)
CPU_MS = Column("CPU", "ms", 1e3)
WALL_MS = Column("wall", "ms", 1e3)


class Clock:
    """Adds up what runs inside of ``with clock``: CPU seconds of this process, and seconds by the wall.

    :ivar notes: whatever else was measured, by the name of its column
    """

    def __init__(self) -> None:
        self.cpu = 0.0
        self.wall = 0.0
        self.notes: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()

    def add(self, cpu: float, wall: float) -> None:
        """Seconds that another process has measured, of itself."""
        self.cpu += cpu
        self.wall += wall


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

    def close(self) -> None:  # noqa: B027 - most keep nothing
        """Let go of what was kept from round to round."""


class Series:
    """What one side came to: for each column one value a round; seconds are those of a single operation."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {}

    def add(self, clock: Clock, count: int) -> None:
        """Another round."""
        for name, value in {CPU.name: clock.cpu / count, WALL.name: clock.wall / count, **clock.notes}.items():
            self.columns.setdefault(name, []).append(value)

    def __getitem__(self, column: Column) -> list[float]:
        return self.columns[column.name]

    @property
    def cpu(self) -> list[float]:
        """Seconds of CPU."""
        return self[CPU]

    @property
    def wall(self) -> list[float]:
        """Seconds by the wall."""
        return self[WALL]


AllSeries = Mapping[str, Series]


@dataclass(frozen=True)
class Bar(ABC):
    """What one of ours aims at; `column` is what is looked at."""

    ours: str
    limit: float
    column: Column = CPU

    @property
    def beside(self) -> str:
        """The side that it is compared with; empty: none."""
        return ""

    @property
    @abstractmethod
    def name(self) -> str:
        """What is compared, in words."""

    @property
    def aim(self) -> str:
        """In words."""
        return f"at most {self.limit:g}"

    @abstractmethod
    def values(self, series: AllSeries) -> list[float]:
        """What it was in each round."""

    def is_met(self, median: float) -> bool:
        """Whether that is on the right side of the limit."""
        return median <= self.limit


@dataclass(frozen=True)
class Versus(Bar):
    """A share of another side's cost."""

    other: str = ""

    @property
    def beside(self) -> str:
        return self.other

    @property
    def name(self) -> str:
        return f"{self.ours} ÷ {self.other}, {self.column.name}"

    def values(self, series: AllSeries) -> list[float]:
        pairs = zip(series[self.ours][self.column], series[self.other][self.column], strict=True)
        return [ours / other for ours, other in pairs]


@dataclass(frozen=True)
class Added(Versus):
    """What ours takes longer than another side; the limit is in the column's unit."""

    @property
    def name(self) -> str:
        return f"{self.ours} − {self.other}, {self.column.name}, {self.column.unit}"

    def values(self, series: AllSeries) -> list[float]:
        pairs = zip(series[self.ours][self.column], series[self.other][self.column], strict=True)
        return [(ours - other) * self.column.scale for ours, other in pairs]


@dataclass(frozen=True)
class Within(Bar):
    """What ours takes, in the column's unit."""

    @property
    def name(self) -> str:
        return ", ".join(word for word in (self.ours, self.column.name, self.column.unit) if word)

    def values(self, series: AllSeries) -> list[float]:
        return [value * self.column.scale for value in series[self.ours][self.column]]


@dataclass(frozen=True)
class Rate(Bar):
    """How many operations ours does in a second."""

    @property
    def name(self) -> str:
        return f"{self.ours}, a second, {self.column.name}"

    @property
    def aim(self) -> str:
        return f"at least {self.limit:,g}"

    def values(self, series: AllSeries) -> list[float]:
        return [1 / seconds for seconds in series[self.ours][self.column]]

    def is_met(self, median: float) -> bool:
        return median >= self.limit


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles: half of the rounds lie between them. The extremes tell only of the machine."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], scale: float = 1.0) -> Self:
        """The spread of `values`, each times `scale`."""
        found = [value * scale for value in values]
        if len(found) == 1:
            found *= 2
        low, median, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Result:
    """What one figure came to.

    :ivar row: of the plan's table
    :ivar what: one operation: "call", "event"
    :ivar count: operations in a round
    :ivar is_rate: shown as operations in a second, instead of the time for one
    :ivar size: of how many, for a figure that is taken at several sizes
    """

    row: int
    name: str
    title: str
    what: str
    count: int = 1
    is_rate: bool = False
    bars: Sequence[Bar] = ()
    columns: Sequence[Column] = (CPU, WALL)
    size: int | None = None
    series: dict[str, Series] = field(default_factory=dict)


def measure(
    result: Result, sides: Sequence[Side], rounds: int, budget: float, progress: Callable[[str], None]
) -> Result:
    """Let all sides run in turns, and fill in `result`.

    :param budget: seconds after which no round is begun, except for the first few: a busy machine gets fewer
    :param progress: told what runs, before it does
    """
    present = {side.name for side in sides}
    result.bars = [bar for bar in result.bars if {bar.ours, bar.beside} - {""} <= present]
    result.series = {side.name: Series() for side in sides}
    deadline = time.monotonic() + budget
    try:
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
                break
            # every other round backwards, so that no side always comes after the same one
            for side in sides if number % 2 == 0 else reversed(sides):
                progress(f"{result.title}: round {number + 1} of {rounds}, {side.name}")
                result.series[side.name].add(_one_round(side, result.count), result.count)
    finally:
        for side in sides:
            side.close()
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
