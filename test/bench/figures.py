"""The figures: which work, at which server, how often, and what ours aims at."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from contenders import ASYNC, PLAIN, QEMU_QMP, SYNC, Contender, contenders
from frame import Bar, BenchError, Result, Side, measure
from servers import flood, qemu
from sides import AsyncCalls, AsyncConnects, AsyncEvents, BlockingCalls, BlockingConnects, BlockingEvents

from drover.testing.machine import qemu_binaries

# Seconds for one figure at one server. Two QEMUs, and the events with their own, fit into two minutes.
BUDGET: Final = 12.0


@dataclass(frozen=True)
class Figure:
    """One row of the plan.

    :ivar what: one operation, by name
    :ivar blocking: makes a side of a blocking client; `on_loop`, of one on an event loop
    :ivar rounds: how many of `count` operations each; `quick`, the same when in a hurry
    :ivar budget: seconds that it should not exceed
    :ivar is_rate: shown as operations in a second, instead of the time for one
    :ivar fake: the server is the sender of events, and not each QEMU that is found
    """

    name: str
    title: str
    what: str
    blocking: Callable[..., Side]
    on_loop: Callable[..., Side]
    rounds: tuple[int, int]
    quick: tuple[int, int]
    bars: Sequence[Bar] = ()
    is_rate: bool = False
    fake: bool = False
    budget: float = BUDGET

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, at each server that it has."""
        rounds, count = self.quick if quick else self.rounds
        for place, server in _servers(self, count).items():
            with server as address:
                sides = [_side(self, contender, address) for contender in contenders()]
                names = {side.name for side in sides}
                bars = [bar for bar in self.bars if bar.beside in names]
                title = f"{self.title}, {place}"
                result = Result(self.name, title, self.what, count, self.is_rate, bars)
                yield measure(result, sides, rounds, self.budget, progress)


FIGURES: Final = (
    Figure(
        name="status",
        title="query-status, call to answer",
        what="call",
        blocking=partial(BlockingCalls, command="query-status"),
        on_loop=partial(AsyncCalls, command="query-status"),
        rounds=(21, 200),
        quick=(5, 100),
        bars=(Bar(SYNC, PLAIN, 1.5), Bar(ASYNC, QEMU_QMP, 0.4)),
    ),
    Figure(
        name="schema",
        title="query-qmp-schema, call to answer",
        what="call",
        blocking=partial(BlockingCalls, command="query-qmp-schema"),
        on_loop=partial(AsyncCalls, command="query-qmp-schema"),
        rounds=(7, 5),
        quick=(3, 1),
        bars=(Bar(SYNC, QEMU_QMP, 0.35),),
    ),
    Figure(
        name="events",
        title="events to a waiting consumer",
        what="event",
        blocking=BlockingEvents,
        on_loop=AsyncEvents,
        rounds=(7, 100_000),
        quick=(3, 6_000),
        budget=30.0,
        bars=(Bar(SYNC, QEMU_QMP, 11, is_rate=True), Bar(ASYNC, QEMU_QMP, 11, is_rate=True)),
        is_rate=True,
        fake=True,
    ),
    Figure(
        name="connect",
        title="connect to ready (ours: supported commands too, of a known build)",
        what="connect",
        blocking=BlockingConnects,
        on_loop=AsyncConnects,
        rounds=(15, 50),
        quick=(3, 30),
    ),
)


def _servers(figure: Figure, count: int) -> dict[str, AbstractContextManager[str]]:
    if figure.fake:
        return {"fake server": flood(count)}
    binaries = _binaries()
    if not binaries:
        raise BenchError("no QEMU on this machine: install qemu-system-x86")
    return {f"QEMU {version}": qemu(binary) for version, binary in binaries.items()}


_binaries = cache(qemu_binaries)  # asks each QEMU for its version, which takes a while


def _side(figure: Figure, contender: Contender, address: str) -> Side:
    make: Callable[[], Any] = partial(contender.make, address)
    if contender.new_loop is None:
        return figure.blocking(contender.name, make)
    return figure.on_loop(contender.name, make, contender.new_loop)
