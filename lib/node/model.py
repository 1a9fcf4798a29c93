"""The live picture of all instances of a host: read at any time, at no cost, and never held up by one that hangs.

A task for each instance holds its socket ``control``, and knows by QEMU's events what it does. Whoever takes the
instance's lock, in this process or another one, needs that socket, for QEMU serves one client: inotify tells of the
lock, the task lets go at once, and comes back when the lock is free, to read the document anew. Since nothing is
changed without the lock, nothing is missed.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyinotify

from ..errors import ArgumentError
from ..kvm.node import Node
from .member import Member
from .summary import Summary

_SUFFIX: Final = ".lock"
_SETTLING: Final = 5.0  # s, at the start; a thousand take about one
_FRESH: Final = 1.0  # s: it takes a few ms
_LAGS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # s: it takes some µs, and whoever is preempted there takes longer
_MASK: Final = pyinotify.IN_MODIFY | pyinotify.IN_CLOSE_WRITE

# What is to be done about a run that has ended, or a restart that is due: called with the instance's name.
Act = Callable[[str], None]


class Model:
    """The instances of a host, as they are.

    :param node: whose instances
    :param act: what to do about an instance whose run has ended, or is to be begun again; must not block
    """

    def __init__(self, node: Node, act: Act) -> None:
        self._node = node
        self._host = node.host
        self._act = act
        self._members: dict[str, Member] = {}
        self._listeners: list[Callable[[Summary | None, str], None]] = []
        self._notifier: Any = None

    async def start(self) -> None:
        """Find all instances, connect to those that run, and stay with them."""
        locks = self._host.paths.locks
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        manager = pyinotify.WatchManager()
        # before the first look, so that nothing comes in between
        self._notifier = pyinotify.AsyncioNotifier(manager, asyncio.get_running_loop(), default_proc_fun=self._heard)
        manager.add_watch(os.fspath(locks), _MASK, quiet=False)
        self._look_for_all()
        waits = [asyncio.create_task(member.settled.wait()) for member in self._members.values()]
        if waits:  # one that hangs, or is worked on, is not waited for
            _, late = await asyncio.wait(waits, timeout=_SETTLING)
            for task in late:
                task.cancel()

    async def stop(self) -> None:
        """Let go of all of them; they run on."""
        if self._notifier is not None:
            self._notifier.stop()
        await asyncio.gather(*(member.stop() for member in self._members.values()))
        self._members.clear()

    @property
    def summaries(self) -> list[Summary]:
        """A row for each instance, by name."""
        rows = (self._members[name].summary for name in sorted(self._members))
        return [row for row in rows if row is not None]

    def summary(self, name: str) -> Summary | None:
        """The row of one; None where there is no such instance."""
        member = self._members.get(name)
        return member.summary if member else None

    def round_trips(self) -> list[tuple[str, float]]:
        """How long each QEMU that runs took to answer the last question, in seconds."""
        return [(name, member.round_trip) for name, member in self._members.items() if member.round_trip is not None]

    async def refreshed(self, name: str) -> None:
        """Wait until what was done to an instance just now is in its row; one that hangs is not waited for."""
        self._look_at(name)
        if member := self._members.get(name):
            with suppress(TimeoutError):
                async with asyncio.timeout(_FRESH):
                    await member.settled.wait()

    def on_change(self, listener: Callable[[Summary | None, str], None]) -> None:
        """Have something called with each new row and the instance's name; with None when an instance is no more."""
        self._listeners.append(listener)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _look_for_all(self) -> None:
        for name in {*self._node.names, *self._members}:
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        """Somebody has let go of its lock: it may be new, other, or gone."""
        member = self._members.get(name)
        if member is None:
            try:
                if not self._host.paths.instance(name).document.exists():
                    return
            except ArgumentError:
                return  # somebody's own file among ours: no instance can be called so
            member = self._members[name] = Member(self._host, name, self._changed, self._act)
            member.start(free=not is_locked(self._host.paths.locks / f"{name}{_SUFFIX}"))
            return
        member.look_again()

    def _changed(self, name: str, summary: Summary | None) -> None:
        if summary is None:
            self._members.pop(name, None)
        for listener in self._listeners:
            listener(summary, name)

    def _heard(self, event: Any) -> None:
        """inotify. What goes wrong in here would be swallowed."""
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            self._look_for_all()
            return
        name = str(event.name).removesuffix(_SUFFIX)
        if not event.name.endswith(_SUFFIX) or name.startswith("."):
            return
        if event.mask & pyinotify.IN_MODIFY:
            if member := self._members.get(name):
                member.let_go()
        else:
            self._closed(name, Path(event.pathname), _LAGS)

    def _closed(self, name: str, path: Path, lags: Sequence[float]) -> None:
        """Somebody has closed a lock's file: its holder, or one who waited and gave up.

        The kernel tells of it before it takes the lock away: so one that is held still is looked at again.
        """
        if not is_locked(path):
            self._look_at(name)
        elif lags:
            asyncio.get_running_loop().call_later(lags[0], self._closed, name, path, lags[1:])


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock on a file by flock(2). Asked of the kernel, not tried: that would be a lock."""
    with suppress(FileNotFoundError):
        inode = str(path.stat().st_ino)
        with open("/proc/locks", encoding="ascii") as locks:
            return any(_inode(line) == inode for line in locks if " FLOCK " in line and "->" not in line)
    return False


def _inode(line: str) -> str:
    return line.split()[5].rpartition(":")[2]
