"""The figures of one connection: which work, at which server, how often, and what ours aims at."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from contenders import (
    ASYNC,
    AVOCADO,
    BARE,
    GANETI,
    LEGACY,
    OURS,
    PLAIN,
    PLAIN_LOOP,
    QEMU_QMP,
    SAME,
    SYNC,
    UVLOOP,
    Contender,
    contenders,
)
from frame import WALL, Bar, BenchError, Rate, Result, Side, Versus, measure
from limits import InC, compiler
from servers import flood, qemus
from sides import (
    IN_FLIGHT,
    KIND,
    AsyncCalls,
    AsyncConnects,
    AsyncEvents,
    AsyncFlights,
    BlockingCalls,
    BlockingConnects,
    BlockingEvents,
    Decodes,
)

from drover.testing.machine import qemu_binaries

# Seconds for one figure at one server.
BUDGET: Final = 20.0
EVERYBODY: Final = (*OURS, PLAIN, BARE, PLAIN_LOOP, QEMU_QMP, LEGACY, GANETI, AVOCADO)
ON_LOOPS: Final = (ASYNC, UVLOOP, PLAIN_LOOP, QEMU_QMP)


@dataclass(frozen=True)
class Figure:
    """One row of the plan.

    :ivar what: one operation, by name
    :ivar who: takes part
    :ivar blocking: makes a side of a blocking client; `on_loop`, of one on an event loop
    :ivar rounds: how many of `count` operations each; `quick`, the same when in a hurry
    :ivar limit: makes the side that nothing can be faster than, from an address
    :ivar is_rate: shown as operations in a second, instead of the time for one
    :ivar fake: the server is the sender of events, and not each QEMU that is found
    """

    row: int
    name: str
    title: str
    what: str
    on_loop: Callable[..., Side]
    rounds: tuple[int, int]
    quick: tuple[int, int]
    blocking: Callable[..., Side] | None = None
    who: Sequence[str] = EVERYBODY
    bars: Sequence[Bar] = ()
    limit: Callable[[str], Side | None] = lambda _: None
    is_rate: bool = False
    fake: bool = False

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, at each server that it has."""
        rounds, count = self.quick if quick else self.rounds
        for place, server in _servers(self, count).items():
            with server as (address,):
                possible = [_side(self, it, address) for it in contenders() if it.name in self.who]
                sides = [side for side in (*possible, self.limit(address)) if side is not None]
                title = f"{self.title}, {place}"
                result = Result(self.row, self.name, title, self.what, count, self.is_rate, self.bars)
                yield measure(result, sides, rounds, BUDGET, progress)


def in_c(command: str) -> Callable[[str], Side | None]:
    """The limit of calls."""
    return lambda address: InC("calls", command, [address]) if compiler() else None


FIGURES: Final = (
    Figure(
        row=1,
        name="status",
        title="query-status, call to answer",
        what="call",
        blocking=partial(BlockingCalls, command="query-status"),
        on_loop=partial(AsyncCalls, command="query-status"),
        rounds=(21, 200),
        quick=(5, 100),
        limit=in_c("query-status"),
        bars=(Versus(SYNC, 1.25, other=PLAIN), Versus(SYNC, 0.2, other=LEGACY), Versus(ASYNC, 0.35, other=QEMU_QMP)),
    ),
    Figure(
        row=2,
        name="flight",
        title=f"query-status, {IN_FLIGHT} in flight on an event loop",
        what="call",
        who=ON_LOOPS,
        on_loop=partial(AsyncFlights, command="query-status"),
        rounds=(21, 200 * IN_FLIGHT),
        quick=(5, 20 * IN_FLIGHT),
        bars=(Versus(ASYNC, 0.35, other=QEMU_QMP),),
    ),
    Figure(
        row=3,
        name="schema",
        title="query-qmp-schema, call to answer",
        what="call",
        blocking=partial(BlockingCalls, command="query-qmp-schema"),
        on_loop=partial(AsyncCalls, command="query-qmp-schema"),
        rounds=(9, 5),
        quick=(3, 1),
        limit=in_c("query-qmp-schema"),
        bars=(Versus(SYNC, 1.15, other=BARE), Versus(SYNC, 0.2, other=QEMU_QMP), Versus(ASYNC, 0.2, other=QEMU_QMP)),
    ),
    Figure(
        row=4,
        name="events",
        title="events to a waiting consumer",
        what="event",
        blocking=BlockingEvents,
        on_loop=AsyncEvents,
        rounds=(9, 100_000),
        quick=(3, 6_000),
        limit=lambda _: Decodes(),
        bars=(Rate(SYNC, 800_000), Rate(ASYNC, 600_000), Versus(SYNC, 1 / 11, other=QEMU_QMP)),
        is_rate=True,
        fake=True,
    ),
    Figure(
        row=4,
        name="filtered",
        title="events, of which the consumer wants a third",
        what="event",
        blocking=partial(BlockingEvents, names=(KIND,)),
        on_loop=partial(AsyncEvents, names=(KIND,)),
        rounds=(9, 100_000),
        quick=(3, 6_000),
        limit=lambda _: Decodes(),
        bars=(Rate(SYNC, 800_000), Rate(ASYNC, 600_000)),
        is_rate=True,
        fake=True,
    ),
    Figure(
        row=5,
        name="connect",
        title="connect to ready, supported commands known",
        what="connect",
        who=[SAME, *(name for name in EVERYBODY if name != AVOCADO)],  # that makes a folder for its log, each time
        blocking=BlockingConnects,
        on_loop=AsyncConnects,
        rounds=(21, 50),
        quick=(5, 30),
        bars=(Versus(SYNC, 1.15, WALL, SAME), Versus(ASYNC, 1.15, WALL, SAME), Versus(SYNC, 1.15, other=SAME)),
    ),
)


def _servers(figure: Figure, count: int) -> dict[str, AbstractContextManager[list[str]]]:
    if figure.fake:
        return {"fake server": flood(count)}
    if not binaries():
        raise BenchError("no QEMU on this machine: install qemu-system-x86")
    return {f"QEMU {version}": qemus(binary, 1) for version, binary in binaries().items()}


binaries = cache(qemu_binaries)  # asks each QEMU for its version, which takes a while


def _side(figure: Figure, contender: Contender, address: str) -> Side | None:
    make: Callable[[], Any] = partial(contender.make, address)
    if figure.fake and not contender.tells:
        return None
    if contender.new_loop is None:
        return figure.blocking(contender.name, make) if figure.blocking else None
    return figure.on_loop(contender.name, make, contender.new_loop)
