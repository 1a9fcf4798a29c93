"""A virtual clock: what is to happen, in the order of its time."""

import heapq
from collections.abc import Callable
from typing import Any

Delay = Callable[[], float]


class Clock:
    """Time goes on to whatever is next.

    :ivar now: seconds
    """

    __slots__ = ("_count", "_heap", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call it in so many seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, call, args))

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Call it at a time; what is at the same time happens in the order in which it was asked for."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, call, args))

    def step(self) -> bool:
        """Let the next thing happen; False: nothing will any more."""
        if not self._heap:
            return False
        self.now, _, call, args = heapq.heappop(self._heap)
        call(*args)
        return True

    def until(self, end: float) -> None:
        """Let happen what does up to a time."""
        while self._heap and self._heap[0][0] <= end:
            self.step()
        self.now = end
