"""Several cases at once, each in a lane: for most of the time of each goes by waiting."""

import os
import queue
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final

from nodes.cases import Case, Way
from nodes.lane import Lane, lane
from nodes.matrix import Run

SEED: Final = int(os.environ.get("DROVER_SEED") or random.randrange(1 << 30))
LANES: Final = 3


class Pool:
    """The lanes are made when they are needed; one in which something went wrong is not used again.

    :param folder: makes one for what a lane logs
    """

    def __init__(self, folder: Callable[[], Path], lanes: int = LANES) -> None:
        self._folder = folder
        self._free: queue.SimpleQueue[tuple[Lane, AbstractContextManager[Lane]]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(lanes)

    def run(self, cases: Iterable[Case]) -> list[str]:
        """Run cases; what is not as it must be, in words."""
        return [text for text in self._threads.map(self._one, cases) if text]

    def close(self) -> None:
        self._threads.shutdown()
        while not self._free.empty():
            self._free.get()[1].__exit__(None, None, None)

    def _one(self, case: Case) -> str:
        try:
            found = self._free.get_nowait()
        except queue.Empty:
            made = lane(self._folder())
            found = made.__enter__(), made
        run, began = Run(found[0], case), time.monotonic()
        try:
            became = run.go()
        except Exception as error:
            text = f"{case}\n  {type(error).__name__}: {error}\n  it came to {run.trail()}\n  {run.logs()}"
            print(f"WRONG after {time.monotonic() - began:.1f} s: {text}", flush=True)
            with ExitStack() as stack:
                stack.push(found[1])
            return text
        self._free.put(found)
        print(f"{case}: {became}, {time.monotonic() - began:.1f} s", flush=True)
        return ""


def dice_for(way: str, state: str) -> random.Random:
    """The same for one state of one way and one seed, whatever else is run."""
    print(f"DROVER_SEED={SEED}")
    return random.Random(f"{SEED} {way} {state}")


def states_of(ways: dict[str, Way], *names: str) -> list[tuple[str, str]]:
    """Each way with each of its states."""
    return [(name, state) for name in names or ways for state in ways[name].states.split()]
