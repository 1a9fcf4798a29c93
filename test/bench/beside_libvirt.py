"""The node daemon beside libvirt's, in one run on the same QEMU: what lists, figures of all, starts, boots and new
devices take, typed and over a connection that is held, and how much memory each daemon takes for a machine.

As root, after ``tools/libvirt build/libvirt``. libvirtd runs in the Debian of that folder, without systemd and without
/dev/kvm, which would make it look at QEMU for seconds at each start; machines of both sides run under TCG, their guests
stand still, and the sides take turns. Where libvirt cannot be had, it says so, and ours are measured alone.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

TOP: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "build" / "py")]
sys.path.append(str(TOP / "test"))

from daemons_of import FRESH, GUEST, LIBVIRT, Daemon, Libvirtd, NodeDaemon, has_libvirt  # noqa: E402
from frame import CPU_MS, WALL, WALL_MS, Bar, BenchError, Clock, Column, Result, Side, Versus, Within, measure  # noqa: E402
from report import table  # noqa: E402
from run import progress, summary, write  # noqa: E402

OURS: Final = "drover"
THEIRS: Final = "libvirt"
MEMORY: Final = Column("memory", "kB", 1 / 1024)
FIVE_TIMES: Final = Versus(OURS, 0.2, WALL, THEIRS)
FASTER: Final = Versus(OURS, 1.0, WALL, THEIRS)
AIMED_AT: Final = 200  # machines, for lists and figures
BUDGET: Final = 120.0  # seconds for a figure

# What is read: its name, of what, whether it is typed, how often in one round, and what is aimed at.
READS: Final = (
    ("drover list, virsh list", "list", True, 3, FIVE_TIMES),
    ("drover stats, virsh domstats", "stats", True, 3, FIVE_TIMES),
    ("names and states, called", "names", False, 5, FIVE_TIMES),
    ("states in one call", "states", False, 5, FASTER),
    ("figures of all, called", "stats", False, 3, FIVE_TIMES),
    ("figures that both have, called", "stats_alike", False, 3, FIVE_TIMES),
)


class Turn(Side):
    """One act of one daemon's.

    :param act: seconds that it took, each time
    :param before: what it takes, each round; `after`, what undoes it
    """

    def __init__(
        self,
        name: str,
        daemon: Daemon,
        act: Callable[[Daemon], list[float]],
        before: Callable[[Daemon], object] | None = None,
        after: Callable[[Daemon], object] | None = None,
    ) -> None:
        super().__init__(name)
        self._daemon, self._act, self._before, self._after = daemon, act, before, after

    def setup(self) -> None:
        """What it takes."""
        if self._before is not None:
            self._before(self._daemon)

    def run(self, clock: Clock, count: int) -> None:
        """By the wall the middle one of the repetitions; CPU is the daemon's, for each."""
        before = self._daemon.cpu()
        seconds = sorted(self._act(self._daemon))
        clock.add((self._daemon.cpu() - before) / len(seconds), seconds[len(seconds) // 2])

    def teardown(self) -> None:
        """Undo it."""
        if self._after is not None:
            self._after(self._daemon)


Sides = dict[str, Daemon]


def reads(sides: Sides, size: int, rounds: int) -> Iterator[Result]:
    """Lists and figures, of so many machines."""
    for title, verb, typed, times, bar in READS:
        turns = [Turn(name, side, lambda it: it.read(verb, typed, times)) for name, side in sides.items()]  # noqa: B023
        name = f"{'typed' if typed else 'called'} {verb}"
        bars = [bar] if size >= AIMED_AT else []
        yield _measured(10, name, f"{title}, {size} machines", turns, rounds, bars, size)


def starts(sides: Sides, size: int, rounds: int) -> Iterator[Result]:
    """Starts and disks of a machine that is new in each round; its guest stands still."""

    def define(daemon: Daemon) -> None:
        daemon.call("define", [daemon.document(FRESH)])

    def begin(daemon: Daemon) -> None:
        define(daemon)
        daemon.call("start", [FRESH])

    def forget(daemon: Daemon) -> None:
        daemon.call("forget", [FRESH])

    for row, verb, title, before in (
        (9, "start", "start of a machine", define),
        (8, "attach disk", "a new disk", begin),
    ):
        for typed in (True, False):
            how = "typed" if typed else "called"
            turns = [
                Turn(name, side, lambda it: it.change(verb, typed), before, forget)  # noqa: B023
                for name, side in sides.items()
            ]
            title_here = f"{title}, {how}, until it returns, beside {size} machines"
            yield _measured(row, f"{how} {verb}", title_here, turns, rounds, [FASTER])


def guests(sides: Sides, rounds: int) -> Iterator[Result]:
    """A guest that boots, and then what it gets while it runs."""

    def define(daemon: Daemon) -> None:
        daemon.call("define", [daemon.bootable(GUEST)])

    def forget(daemon: Daemon) -> None:
        daemon.call("forget", [GUEST])

    turns = [Turn(name, side, Daemon.boot, define, forget) for name, side in sides.items()]
    yield _measured(9, "boot", "start of a machine, called, until its guest has a prompt", turns, rounds, [FASTER])
    for side in sides.values():
        define(side)
        side.boot()
    for kind, what in (("disk", "a new disk"), ("nic", "a new card")):
        for typed in (True, False):
            turns = [
                Turn(name, side, lambda it: it.plug(kind, typed), after=lambda it: it.unplug(kind))  # noqa: B023
                for name, side in sides.items()
            ]
            how = "typed" if typed else "called"
            title = f"{what}, {how}, until the guest sees it"
            yield _measured(8, f"{how} {kind}", title, turns, 2 * rounds, [FASTER])
    for side in sides.values():
        forget(side)


def _measured(
    row: int, name: str, title: str, turns: list[Turn], rounds: int, bars: list[Bar], size: int | None = None
) -> Result:
    result = Result(row, name, title, "time", bars=bars, columns=(CPU_MS, WALL_MS), size=size)
    return measure(result, turns, rounds, BUDGET, progress)


class Slope(Side):
    """Memory of a daemon for each machine: what was found before."""

    def __init__(self, name: str, each: float) -> None:
        super().__init__(name)
        self._each = each

    def setup(self) -> None:
        """It is known."""

    def run(self, clock: Clock, count: int) -> None:
        """Tell it."""
        clock.notes[MEMORY.name] = self._each

    def teardown(self) -> None:
        """It stays."""


def slopes(memory: dict[str, dict[int, int]]) -> Iterator[Result]:
    """What each machine adds to the memory of its daemon, from the first size to the last."""
    low, high = (pick(next(iter(memory.values()))) for pick in (min, max))
    if low == high:
        return
    found = {name: (sizes[high] - sizes[low]) / (high - low) for name, sizes in memory.items()}
    bars = [Within(OURS, 300, MEMORY), Versus(OURS, 0.5, MEMORY, THEIRS)]
    title = f"memory of the daemon for each machine, from {low} machines to {high}"
    result = Result(11, "slope", title, "daemon", bars=bars, columns=[MEMORY])
    yield measure(result, [Slope(name, each) for name, each in found.items()], 1, 0, progress)
    for name, sizes in memory.items():
        each = ", ".join(f"{count}: {size >> 10:,} kB" for count, size in sizes.items())
        print(f"  {name}: {each}; base {(sizes[low] - low * found[name]) / 1024:,.0f} kB")


def main() -> int:
    """Measure, and print."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended too
    results: list[Any] = []
    with ExitStack() as stack:
        sides: Sides = {OURS: stack.enter_context(NodeDaemon())}
        missing = []
        if not options.alone and has_libvirt(THEIRS):
            sides[THEIRS] = stack.enter_context(Libvirtd(LIBVIRT))
        else:
            missing = [THEIRS]
        for side in sides.values():
            print(*side.about(), sep="\n")
        for result in everything(sides, options.counts, options.rounds):
            print(*table(result), "", sep="\n", flush=True)
            results.append(result)
            write(results, missing, options.keep)
    summary(results, options.keep)
    return 0


def everything(sides: Sides, counts: list[int], rounds: int) -> Iterator[Result]:
    """All figures: with a guest first, then beside ever more machines."""
    yield from guests(sides, rounds)
    memory: dict[str, dict[int, int]] = {name: {} for name in sides}
    for count in counts:
        for name, side in sides.items():
            progress(f"{name}: up to {count} machines")
            side.grow(count)
        yield from reads(sides, count, rounds)
        for name, side in sides.items():
            memory[name][count] = side.memory()
    yield from starts(sides, max(counts), rounds)
    yield from slopes(memory)


def arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    counts = [1, 10, 20, 100, 200]
    parser.add_argument("--counts", type=int, nargs="+", default=counts, help="machines on each side, growing")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", action="store_true", help="without libvirt")
    parser.add_argument("--keep", type=Path, metavar="FILE.json", help="write every round there, and pictures beside")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
