"""The figure of events through many connections of one process: does it cost more where there are more of them?"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from contenders import ASYNC, QEMU_QMP, UVLOOP, contenders
from frame import Bar, Clock, Rate, Result, Side, measure
from servers import flood
from sides import TRIGGER, Decodes, check_events


class Crowd(Side):
    """A client for each connection, all on one event loop, and a consumer that waits for the events of each."""

    def __init__(self, name: str, make: Callable[[str], Any], new_loop: Callable[[], Any], paths: list[str]) -> None:
        super().__init__(name)
        self._make, self._new_loop, self._paths = make, new_loop, paths

    def setup(self) -> None:
        """Connect."""
        self._runner = asyncio.Runner(loop_factory=self._new_loop)
        self._runner.run(self._connect())

    async def _connect(self) -> None:
        self._clients = [self._make(path) for path in self._paths]
        for client in self._clients:
            await client.connect()

    def run(self, clock: Clock, count: int) -> None:
        """Take all events."""
        self._runner.run(self._take(clock, count // len(self._paths)))

    async def _take(self, clock: Clock, each: int) -> None:
        with clock:
            await asyncio.gather(*[self._take_from(client, each) for client in self._clients])

    async def _take_from(self, client: Any, each: int) -> None:
        source, seen = client.events(), 0
        await client.execute(TRIGGER)
        async for _ in source:
            seen += 1
            if seen == each:
                break
        check_events(self.name, source, seen, each)

    async def _leave(self) -> None:
        for client in self._clients:
            await client.close()

    def teardown(self) -> None:
        """Disconnect."""
        with self._runner:
            self._runner.run(self._leave())


@dataclass(frozen=True)
class Crowds:
    """The figure, at several sizes."""

    name: str = "crowd"
    row: int = 4
    sizes: Sequence[int] = (1, 10, 100, 1000)
    quick: Sequence[int] = (1, 10, 100)
    bars: Sequence[Bar] = (Rate(ASYNC, 600_000),)

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        for size in self.quick if quick else self.sizes:
            count = 10_000 if quick else 100_000
            with flood(count, size) as paths:
                sides: list[Side] = [
                    Crowd(it.name, it.make, it.new_loop, paths)
                    for it in contenders()
                    if it.name in (ASYNC, UVLOOP, QEMU_QMP) and it.new_loop is not None
                ]
                title = f"events through {size} connections of one process, to a consumer of each"
                result = Result(self.row, self.name, title, "event", count, True, self.bars, size=size)
                yield measure(result, [*sides, Decodes()], 3 if quick else 7, 40.0, progress)


FIGURES: Final = (Crowds(),)
