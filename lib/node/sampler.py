"""Keeps what each machine uses in memory: asks them in the background, a few at a time, and never for a reader.

Each is asked every ten seconds, spread evenly, and every second while somebody reads. One QEMU that hangs delays
nobody: each is asked by a task of its own, and is not asked again before it has answered, or its time is up.
"""

import asyncio
import heapq
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from msgspec import ValidationError, structs

from ..errors import DroverError
from ..kvm.record import Runtime
from ..kvm.usage import LinkCounters, Links, process_usage, thread_seconds
from ..monitor.aio import AsyncQmpConnection
from ..ops.counters import Counters
from .member import ANSWER_TIMEOUT, Member
from .model import Model
from .stats import Stats, disk_stats, migration_stats, nic_stats, percent, vcpu_stats
from .summary import Summary

# Seconds between two samples of a machine when nobody reads, and while somebody does.
AT_REST: Final = 10.0
WATCHED: Final = 1.0
# Seconds after the last reader that they are taken so often.
_LINGER: Final = 5.0
# Samples a second of all machines together: so many take a tenth of a core.
_MOST: Final = 400
# Seconds between two strokes of work, at rest and while somebody looks: of those that are asked at one stroke the
# answers come together, too, and the fewer strokes, the less it costs.
_STROKES: Final = (0.5, 0.05)
# Seconds from the first sample of a run to the second one, which rates take.
_SECOND: Final = 1.0
# Seconds that are too short to reckon a rate over: the kernel counts CPU time in hundredths.
_SHORTEST: Final = 0.3
# vCPUs of one machine that are looked at, each at 9 µs.
_VCPUS: Final = 64
# Where in their period they are asked: multiples of it, less the whole part, spread evenly however many there are.
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
# What QEMU tells, of a sample.
_QEMUS: Final = ("told_at", "balloon", "guest", "disks", "migration")
log = logging.getLogger("drover.node")


class _Kept:
    """What is kept of one machine that runs.

    :ivar phase: where in each period it is asked, from 0 to 1
    :ivar due: when it is to be asked next, by the loop's clock
    :ivar run: the generation and the pid that all is of
    :ivar last: the last sample, and `base` the one that its rates are reckoned from
    :ivar threads: its vCPUs, by number; asked once for each connection, which every change of them ends
    """

    def __init__(self, phase: float) -> None:
        self.phase = phase
        self.due = 0.0
        self.run = (0, 0)
        self.last: Stats | None = None
        self.base: Stats | None = None
        self.asked: AsyncQmpConnection | None = None
        self.threads: list[tuple[int, int]] = []
        self.task: asyncio.Task[None] | None = None


class Sampler:
    """The figures of all machines of a model.

    :param model: whose machines
    :param timeout: seconds for a QEMU to answer
    """

    def __init__(self, model: Model, timeout: float = ANSWER_TIMEOUT) -> None:
        self._model = model
        self._timeout = timeout
        self._kept: dict[str, _Kept] = {}
        self._heap: list[tuple[float, str]] = []
        self._count = 0
        self._watched_until = 0.0
        self._links = Links()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        model.on_change(self._changed)

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="sampler")

    async def stop(self) -> None:
        """Ask no more."""
        tasks = [self._task, *(kept.task for kept in self._kept.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def read(self) -> list[Stats]:
        """What is known of each machine that runs, by name; somebody looks at it, so it will be newer soon."""
        self._watch()
        return self.known()

    def read_one(self, name: str) -> Stats | None:
        """The same of one; None where it does not run, or was not looked at yet."""
        self._watch()
        kept = self._kept.get(name)
        return kept.last if kept else None

    def known(self) -> list[Stats]:
        """What is known of each machine that runs, by name, for one who comes by no sooner than it is renewed."""
        return [kept.last for _, kept in sorted(self._kept.items()) if kept.last is not None]

    # -- when ---------------------------------------------------------------------------------------------------------

    def _changed(self, summary: Summary | None, name: str) -> None:
        if summary is None or not summary.pid:
            if (kept := self._kept.pop(name, None)) and kept.task:
                kept.task.cancel()
        elif name not in self._kept:
            self._count += 1
            self._kept[name] = _Kept(self._count * _GOLDEN % 1)
            self._plan(name, 0.0)
            self._wake.set()

    def _watch(self) -> None:
        now = asyncio.get_running_loop().time()
        was_watched, self._watched_until = now < self._watched_until, now + _LINGER
        if not was_watched:
            interval = self._interval(now)
            for name, kept in self._kept.items():
                if (due := now + kept.phase * interval) < kept.due:
                    self._plan(name, due)
            self._wake.set()

    def _plan(self, name: str, due: float) -> None:
        self._kept[name].due = due
        heapq.heappush(self._heap, (due, name))

    def _interval(self, now: float) -> float:
        return max(WATCHED if now < self._watched_until else AT_REST, len(self._kept) / _MOST)

    def _tick(self, now: float) -> float:
        return _STROKES[now < self._watched_until]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._stroke(loop.time())
            now = loop.time()
            pause = max(self._tick(now), self._heap[0][0] - now) if self._heap else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            if (left := now + _STROKES[-1] - loop.time()) > 0:  # however often it is woken
                await asyncio.sleep(left)

    def _stroke(self, now: float) -> None:
        """Sample those that are due, or as many of them as may be at one stroke."""
        left = max(1, round(_MOST * self._tick(now)))
        while left and self._heap and self._heap[0][0] <= now:
            due, name = heapq.heappop(self._heap)
            kept = self._kept.get(name)
            if kept is None or kept.due != due:
                continue  # it was put off, or forward, or is gone
            first = kept.last is None
            try:
                self._sample(name, kept)
            except OSError as error:  # such as no descriptor that is free
                log.warning("%s: its figures: %s", name, error, extra={"instance": name})
            if name in self._kept:
                interval = self._interval(now)
                turn = (math.floor(now / interval - kept.phase) + 1 + kept.phase) * interval
                self._plan(name, min(now + _SECOND, turn) if first else turn)
            left -= 1

    # -- what ---------------------------------------------------------------------------------------------------------

    def _sample(self, name: str, kept: _Kept) -> None:
        member = self._model.member(name)
        if member is None or member.runtime is None:
            del self._kept[name]  # it comes back with its next row
            return
        run = (member.runtime.generation, member.runtime.pid)
        if kept.run != run:
            kept.run, kept.last, kept.base, kept.asked = run, None, None, None
            self._take(name, member.runtime, kept, None)  # so that there is something to tell of it at once
        if member.vm is not None and kept.task is None:
            kept.task = asyncio.create_task(self._ask(member, member.vm, kept), name=f"sample {name}")
        else:
            self._take(name, member.runtime, kept, None)

    async def _ask(self, member: Member, vm: AsyncQmpConnection, kept: _Kept) -> None:
        """Ask its QEMU, and read the kernel's figures when it has answered."""
        try:
            runtime, counters = member.runtime, None
            # one whose connection was let go of meanwhile would be connected anew by a question, and is somebody else's
            if runtime is not None and member.vm is vm:
                if kept.asked is not vm:
                    kept.threads = [(cpu.cpu_index, cpu.thread_id) for cpu in (await vm.query_cpus())[:_VCPUS]]
                    kept.asked = vm
                if member.vm is vm:
                    memory = runtime.spec.memory
                    counters = await vm.query_counters(
                        balloon=memory.balloon, guest_stats=memory.guest_stats > 0, timeout=self._timeout
                    )
            if member.runtime is runtime is not None:
                self._take(member.name, runtime, kept, counters)
        except (DroverError, OSError, ValidationError) as error:
            log.debug("%s: its figures: %s", member.name, error)
        finally:
            kept.task = None

    def _take(self, name: str, runtime: Runtime, kept: _Kept, counters: Counters | None) -> None:
        """Keep a new sample.

        :param counters: None where QEMU was not asked: it has something else to do, or does nothing any more
        """
        usage = process_usage(runtime.pid)
        if usage is None or usage.start_time != runtime.start_time:
            return  # it has ended, and its row will say so
        at, last = time.time(), kept.last
        if last is not None and at - last.at >= _SHORTEST:
            kept.base = last
        base = kept.base
        times = ((index, thread_seconds(runtime.pid, thread)) for index, thread in kept.threads)
        new = Stats(
            name=name,
            generation=runtime.generation,
            at=at,
            cpu_seconds=usage.cpu_seconds,
            cpu_percent=percent(usage.cpu_seconds, base.cpu_seconds if base else None, at - base.at if base else 0),
            resident=usage.resident,
            vcpus=vcpu_stats(((index, used) for index, used in times if used is not None), base, at),
        )
        if links := list(_counted(self._links, runtime)):
            nics_at = self._links.at
            new = structs.replace(new, nics_at=nics_at, nics=nic_stats(links, base, nics_at))
        kept.last = structs.replace(new, **_told(counters, base, last, at))


def _told(counters: Counters | None, base: Stats | None, last: Stats | None, at: float) -> dict[str, Any]:
    """QEMU's own figures: new ones, or those of before."""
    if counters is None:
        return {} if last is None else {field: getattr(last, field) for field in _QEMUS}
    return {
        "told_at": at,
        "balloon": counters.balloon,
        "guest": counters.guest,
        "disks": disk_stats(counters.disks, base, at),
        "migration": migration_stats(counters.migration),
    }


def _counted(links: Links, runtime: Runtime) -> Iterator[tuple[str, bool, LinkCounters]]:
    """Each card that stands on an interface of the host's: its id, whether that is the guest's side, its counters."""
    for nic in runtime.spec.nics:
        device = runtime.devices.get(nic.id)
        if device is not None and device.tap and (counters := links.counters(device.tap)):
            yield nic.id, nic.mode == "macvtap", counters
