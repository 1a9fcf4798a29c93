"""Blocking work on instances, in threads: one thing at a time on each, and a stuck one never delays another."""

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ..errors import DroverError, InstanceBusy, InstanceNotFound
from ..kvm.ends import Restart
from ..kvm.node import Node

T = TypeVar("T")

# Each waits for its own QEMU. So many may hang before others have to wait for them; a thread takes 30 kB.
_THREADS: Final = 256
_TURNS: Final = 32  # calls that may wait for one instance, which may hang
log = logging.getLogger("drover.node")


class Worker:
    """Does what blocks.

    :param node: whose instances
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._threads = ThreadPoolExecutor(_THREADS, "work")
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[str, int] = defaultdict(int)
        self._at_work = 0
        self._asked = self._begun = 0
        self._counting = threading.Lock()
        self._tending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def do(self, name: str, act: Callable[[], T]) -> T:
        """Do something to an instance when nothing else is done to it from here; an empty name: to none of them.

        A caller that goes away while it is done changes nothing: it is done to its end.

        :raises InstanceBusy: so many wait for their turn already
        """
        if not name:
            return await self._in_thread(act)
        if self._waiting[name] >= _TURNS:
            raise InstanceBusy(name, f"{_TURNS} calls that wait for their turn", 0)
        self._waiting[name] += 1
        try:
            async with self._turns[name]:
                return await asyncio.shield(self._in_thread(act))
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._turns[name]

    def tend(self, name: str, due: Restart | None) -> None:
        """Take note of a run's end, and begin the next one if its time has come. Returns at once.

        :param due: the restart whose time has come: whoever says so has waited for it, whatever the clock says
        """
        if name not in self._tending:
            self._tending.add(name)
            task = asyncio.create_task(self._tend(name, due), name=f"tend {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Begin nothing more. What is under way is in the journal."""
        for task in self._tasks:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _tend(self, name: str, due: Restart | None) -> None:
        try:
            for text in await self.do(name, lambda: _tended(self.node, name, due)):
                log.info("%s: %s", name, text, extra={"instance": name})
        except InstanceNotFound:
            pass
        except (DroverError, OSError) as error:
            log.warning("%s: %s", name, error, extra={"instance": name})
        finally:
            self._tending.discard(name)

    @property
    def at_work(self) -> int:
        """How many threads do something."""
        return self._at_work

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn, each behind another one on the same instance."""
        return sum(count - 1 for count in tuple(self._waiting.values()))

    @property
    def queued(self) -> int:
        """How many calls have their turn, and wait for a thread."""
        return self._asked - self._begun

    def _in_thread(self, act: Callable[[], T]) -> "asyncio.Future[T]":
        self._asked += 1
        return asyncio.get_running_loop().run_in_executor(self._threads, self._counted, act)

    def _counted(self, act: Callable[[], T]) -> T:
        with self._counting:
            self._at_work += 1
            self._begun += 1
        try:
            return act()
        finally:
            with self._counting:
                self._at_work -= 1


def _tended(node: Node, name: str, due: Restart | None) -> list[str]:
    instance = node.instance(name)
    done: list[str] = list(instance.mend())
    started: Any = instance.restart_due(due) if due else None
    if started is not None:
        done += ["it was started again", *started]
    return done
