"""A model of a guest that makes memory dirty, of a link, and of QEMU's precopy between them: small, on its own clock.

It does what QEMU does where the policy can tell the difference: sends up to a cap in slices of time, looks for dirty
memory when less is left than the threshold, stops the guest if it is still less then, and throttles at the second look
at which more was dirty than half of what was sent.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from drover.migration.course import Look, Phase
from drover.migration.forecast import Round
from drover.migration.means import Terms, arming
from drover.migration.policy import Act, Advice

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
TICK = 0.05
FAR = 5.0  # seconds to the next thing that happens, from which on a tick may be LONG
LONG = 0.25
ZEROS = 3 * GIB  # bytes a second that it goes through where nothing is
SAMPLES = 4096  # pages of each GiB that calc-dirty-rate looks at
DATA = Path(__file__).parents[1] / "data" / "migration"

Shape = Callable[[float], float]
"""How busy a region is at a second: 0 to 1."""


def steady(_: float) -> float:
    """It is always as busy."""
    return 1.0


@dataclass
class Region:
    """Some of a guest's memory whose pages are all alike: which of them is written to next is chance.

    :ivar size: bytes
    :ivar rate: bytes a second of pages written to at its busiest, pages that are dirty already among them
    :ivar todo: bytes known to be dirty, and not sent yet
    :ivar log: bytes that got dirty since QEMU looked last
    """

    size: float
    rate: float = 0.0
    shape: Shape = steady
    zeros: bool = False
    todo: float = 0.0
    log: float = 0.0

    def run(self, now: float, seconds: float, share: float, most: float) -> float:
        """Let the guest run, and return what got dirty."""
        rate = min(self.rate * self.shape(now) * share, most)
        new = (self.size - self.log) * -math.expm1(-rate * seconds / self.size)
        self.log += new
        return new

    def sync(self) -> float:
        """Look what has got dirty; return what was not known to be."""
        new = self.log * (1 - self.todo / self.size)
        self.todo, self.log = self.todo + new, 0.0
        return new


@dataclass
class Link:
    """What of a link this migration gets: so much, with noise, and less while others take a part.

    :ivar rate: bytes a second
    :ivar noise: standard deviation, as a share
    :ivar dips: (from, to, share that is left)
    """

    rate: float
    noise: float
    random: Random
    dips: Sequence[tuple[float, float, float]] = ()
    off: float = 0.0

    def at(self, now: float) -> float:
        """Bytes a second in this tick."""
        self.off = 0.9 * self.off + self.random.gauss(0, self.noise) * 0.44  # keeps the deviation at `noise`
        share = math.prod(left for start, end, left in self.dips if start <= now < end)
        return self.rate * share * min(1.3, max(0.3, 1 + self.off))


@dataclass
class Case:
    """All that a run is made of.

    :ivar overhead: seconds that the guest stands still besides for memory
    :ivar feels: how much of a throttle it feels; one that keeps to a clock and mostly waits feels nothing
    """

    name: str
    regions: list[Region]
    link: Link
    terms: Terms
    to_copy: float = 0.0
    overhead: float = 0.02
    feels: float = 1.0


@dataclass
class Precopy:
    """One migration. :meth:`tick` lets time go by, :meth:`look` asks, :meth:`obey` does what is advised."""

    case: Case
    now: float = 0.0
    phase: Phase = Phase.MEMORY
    rounds: int = 1
    transferred: float = 0.0
    scanned: float = 0.0
    copied: float = 0.0
    bandwidth: float = 0.0
    throttle: int = 0
    blackout: float = 0.0
    given_up: bool = False
    setting: dict[str, Any] = field(default_factory=dict)
    period: tuple[float, float, float] = (0.0, 0.0, 0.0)
    high: int = 0
    measured: float = 0.0
    window: float = 1.0

    def __post_init__(self) -> None:
        self.setting = arming(self.case.terms)[2]
        self.phase = Phase.STORAGE if self.case.to_copy else Phase.MEMORY
        for region in self.case.regions:
            region.todo = region.size

    @property
    def remaining(self) -> float:
        """Bytes known to be dirty."""
        return sum(region.todo for region in self.case.regions)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.given_up or self.phase is Phase.DONE

    def look(self) -> Look:
        """What QEMU tells."""
        return Look(
            at=self.now,
            phase=self.phase,
            transferred=self.transferred,
            scanned=self.scanned,
            remaining=self.remaining if self.phase is not Phase.STORAGE else 0,
            rounds=self.rounds if self.phase is not Phase.STORAGE else 0,
            throttle=self.throttle,
            copied=self.copied,
            to_copy=self.case.to_copy,
            measured=self._measure(),
        )

    def _measure(self) -> Round | None:
        """What a sample of pages tells until the first round has ended; over 1 s, 2 s, 4 s and so on."""
        if self.rounds > 1 or self.now < self.measured:
            return None
        seconds = self.window
        self.window = min(2 * seconds, 60.0)
        self.measured = self.now + self.window
        dirty = 0.0
        for region in self.case.regions:
            busy = sum(region.shape(self.now - seconds * part / 8) for part in range(8)) / 8
            dirty += region.size * -math.expm1(-region.rate * busy * seconds / region.size)
        # QEMU takes so many pages of each GiB, and tells whole MiB a second
        memory = self.case.terms.memory
        share, pages = dirty / memory, SAMPLES * memory / GIB
        seen = memory * max(0.0, self.case.link.random.gauss(share, math.sqrt(share * (1 - share) / pages)))
        return Round(seconds, seen / seconds // MIB * MIB * seconds)

    def obey(self, advice: Advice) -> None:
        """Do what the policy wants."""
        if advice.act is Act.SET:
            self.setting |= advice.parameters
        elif advice.act is Act.GIVE_UP:
            self.given_up = True
        elif advice.act is Act.POSTCOPY and self.phase is Phase.MEMORY:
            self._sync()
            self.blackout = self.case.overhead
            self.now += self.blackout
            self.phase = Phase.POSTCOPY

    def tick(self) -> None:
        """Let a tick go by."""
        left = self.case.to_copy - self.copied if self.phase is Phase.STORAGE else self.remaining
        seconds = LONG if left > FAR * self.bandwidth > 0 else TICK
        rate = min(self.case.link.at(self.now), self.setting.get("max-bandwidth", math.inf))
        self.bandwidth = 0.5 * self.bandwidth + 0.5 * rate if self.bandwidth else rate
        self.now += seconds
        if self.phase is Phase.STORAGE:
            self.copied = min(self.case.to_copy, self.copied + rate * seconds)
            if self.copied >= self.case.to_copy:
                self.phase, self.bandwidth, self.period = Phase.MEMORY, 0.0, (self.now, 0.0, 0.0)
            return
        self._send(seconds, rate * (0.9 if self.phase is Phase.POSTCOPY else 1.0))
        if self.phase is Phase.POSTCOPY:
            self.phase = Phase.DONE if self.remaining < PAGE else self.phase
            return
        self._run(seconds)
        threshold = self.bandwidth * self.setting["downtime-limit"] / 1000
        if self.remaining < threshold:
            self._sync()
            if self.remaining < threshold:
                self._switch_over()

    def _run(self, seconds: float) -> None:
        share = 1 - self.case.feels * self.throttle / 100
        limit = self.setting.get("vcpu-dirty-limit", math.inf) * MIB * self.case.terms.vcpus
        busy = [region for region in self.case.regions if region.rate]
        for region in busy:
            region.run(self.now, seconds, share, limit / len(busy))

    def _send(self, seconds: float, rate: float) -> None:
        left = 1.0  # of the tick
        for region in self.case.regions:
            most = seconds * (ZEROS if region.zeros else rate)
            gone = min(region.todo, most * left)
            left -= gone / most
            region.todo -= gone
            self.scanned += gone
            self.transferred += 0 if region.zeros else gone

    def _sync(self) -> None:
        dirtied = sum(region.sync() for region in self.case.regions)
        self.rounds += 1
        since, sent, dirty = self.period
        if self.now - since < 1.0:
            self.period = since, sent, dirty + dirtied
            return
        if dirty + dirtied > 0.5 * (self.transferred - sent):
            self.high += 1
        if self.high >= 2 and "max-cpu-throttle" in self.setting:
            self.high = 0
            more, most = self.setting["cpu-throttle-increment"], self.setting["max-cpu-throttle"]
            self.throttle = min(self.throttle + more, most) if self.throttle else self.setting["cpu-throttle-initial"]
        self.period = self.now, self.transferred, 0.0

    def _switch_over(self) -> None:
        late = sum(region.run(self.now, 0.005, 1.0, math.inf) for region in self.case.regions)
        self.blackout = (self.remaining + late) / self.case.link.at(self.now) + self.case.overhead
        self.now += self.blackout
        self.phase = Phase.DONE


# --- made-up and recorded guests ------------------------------------------------------------------------------------


def bursts(length: float, pause: float, offset: float) -> Shape:
    """Busy for `length` seconds, then nearly idle for `pause`."""
    return lambda now: 1.0 if (now + offset) % (length + pause) < length else 0.05


def growing(seconds: float) -> Shape:
    """Ever busier for some seconds."""
    return lambda now: min(1.0, 0.1 + 0.9 * now / seconds)


def diurnal(period: float, offset: float) -> Shape:
    """As the hours of a day, only faster."""
    return lambda now: 0.55 + 0.45 * math.sin(2 * math.pi * (now / period + offset))


def recorded(name: str) -> tuple[float, Shape]:
    """A recording's dirty rate, over and over: bytes a second at its busiest, and how busy when."""
    table = json.loads((DATA / f"{name}.json").read_text(encoding="ascii"))
    at, rate = (table["columns"].index(column) for column in ("ms", "dirty_rate"))
    points = [(row[at] / 1000, float(row[rate])) for row in table["rows"] if row[rate]]
    if not points:
        return 0.0, steady
    start, most = points[0][0], max(rate for _, rate in points)
    length = points[-1][0] - start + 0.1

    def shape(now: float) -> float:
        index = int((now % length) / length * len(points))
        return points[index][1] / most

    return most, shape
