"""What people are told of a migration: on its way, and at its end."""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ..kvm.witness import witness
from .pace import Pace, View
from .qemu import Qemu
from .states import Step

TELL_EVERY: Final = 0.5  # s between two words of how far it is


class Begun(NamedTuple):
    """A step that has begun.

    :ivar at: Unix time
    """

    step: Step
    at: float


class Account:
    """Of one migration.

    :ivar alarms: all that people were told of, that kept it from going on
    :param began: when it began, on the clock that never goes back
    :param news: called with each step, and at times with how far it is
    """

    def __init__(self, began: float, news: Callable[[Begun | View], None]) -> None:
        self.alarms: list[str] = []
        self._began = began
        self._news = news
        self._steps: list[tuple[Step, float]] = []
        self._stood: float | None = None
        self._ran: float | None = None
        self._told_at = 0.0

    def at(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def comes_to(self, step: Step) -> bool:
        """It is at a step.

        :returns: whether that has just begun
        """
        if step is Step.SWITCHOVER:
            self.stands()
        if self._steps and self._steps[-1][0] is step:
            return False
        self._steps.append((step, time.monotonic()))
        self._news(Begun(step, time.time()))
        return True

    def stands(self) -> None:
        """The guest stands still, if it did not before."""
        if self._stood is None:
            self._stood = time.monotonic()

    def runs(self) -> None:
        """The guest runs where it goes to."""
        if self._ran is None:
            self._ran = time.monotonic()

    def seen(self, view: View) -> bool:
        """It was looked at.

        :returns: whether that was told
        """
        now = time.monotonic()
        if now < self._told_at + TELL_EVERY:
            return False
        self._told_at = now
        self._news(view)
        return True

    def report(self, pace: Pace, qemu: Qemu | None) -> dict[str, Any]:
        """What is told at the end.

        :param qemu: that the machine has left
        """
        now = time.monotonic()
        ends = [at for _, at in self._steps[1:]] + [now]
        seconds: dict[str, float] = {}
        for (step, at), end in zip(self._steps, ends, strict=True):
            seconds[step.value] = round(seconds.get(step.value, 0.0) + end - at, 4)
        seconds.pop(Step.END.value, None)
        told: dict[str, Any] = {
            "seconds": round(now - self._began, 4),
            "steps": seconds,
            "transferred": pace.view.transferred,
            "rounds": pace.view.rounds,
            "helped": pace.pulled,
            "alarms": self.alarms,
        }
        if qemu is not None:
            ram = qemu.info.ram
            told |= {"transferred": ram.transferred, "rounds": ram.dirty_sync_count}
            told["qemu_blackout_ms"] = qemu.info.downtime
        if self._stood is not None and self._ran is not None:
            told["blackout_ms"] = round((self._ran - self._stood) * 1000, 1)
        return told


def tell(news: Begun | View) -> None:
    """Tell whoever looks on, in this thread."""
    if isinstance(news, Begun):
        witness().step(news.step, news.at)
        return
    megabytes = news.dirty_rate / 1e6
    text = f"{news.percent:.0f} %, round {news.rounds}, {megabytes:.1f} MB/s made dirty"
    if news.blackout is not None:
        text += f", it is expected to stand still for {news.blackout * 1000:.0f} ms"
    done, of = news.transferred, news.transferred + news.remaining
    witness().progress(done, of, "bytes", eta=news.eta, detail=text)
