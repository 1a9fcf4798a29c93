"""The live picture of all instances of a host: read at any time, at no cost, and never held up by one that hangs.

A task for each instance holds its socket ``control``, and knows by QEMU's events what it does. Whoever takes the
instance's lock, in this process or another one, needs that socket, for QEMU serves one client: inotify tells of the
lock, the task lets go at once, and comes back when the lock is free, to read the document anew. Since nothing is
changed without the lock, nothing is missed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyinotify

from ..errors import ArgumentError
from ..kvm.ends import Restart
from ..kvm.inotify import forget, new_manager, watch
from ..kvm.lock import is_let_go, is_locked
from ..kvm.node import Node
from ..kvm.record import Document
from ..kvm.state import State
from .member import Member, Timed, Timing
from .summary import Summary

_SUFFIX: Final = ".lock"
_SETTLING: Final = 5.0  # s, at the start; a thousand take about one
_FRESH: Final = 1.0  # s: it takes a few ms
_LAGS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # s: it takes some µs, and whoever is preempted there takes longer
_WATCH: Final = 1.0  # s between two looks whether the folder is the one that is watched
_MASK: Final = pyinotify.IN_MODIFY | pyinotify.IN_CLOSE_WRITE

log = logging.getLogger("drover.node")

# What is to be done about a run that has ended, or a restart whose time has come: called with the instance's name, and
# with the restart.
Act = Callable[[str, Restart | None], None]


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
        self._timing_listeners: list[Timed] = []
        self._notifier: Any = None
        self._manager: Any = None
        self._watched = (-1, -1)  # the folder of locks: the number of its watch, and its inode
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find all instances, connect to those that run, and stay with them.

        :raises OSError: the folder of locks cannot be made or watched
        """
        self._manager = new_manager()
        # before the first look, so that nothing comes in between
        loop = asyncio.get_running_loop()
        self._notifier = pyinotify.AsyncioNotifier(self._manager, loop, default_proc_fun=self._heard)
        self._watch()
        self._look_for_all()
        self._watching = asyncio.create_task(self._keep_watch(), name="watch of the locks")
        waits = [asyncio.create_task(member.settled.wait()) for member in self._members.values()]
        if waits:  # one that hangs, or is worked on, is not waited for
            _, late = await asyncio.wait(waits, timeout=_SETTLING)
            for task in late:
                task.cancel()

    async def stop(self) -> None:
        """Let go of all of them; they run on."""
        if self._watching is not None:
            self._watching.cancel()
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

    def member(self, name: str) -> Member | None:
        """Who follows an instance; None where there is no such instance."""
        return self._members.get(name)

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

    def show(self, name: str, document: Document, state: State, detail: str = "") -> None:
        """Whoever works on an instance for long says what it does."""
        if name not in self._members:
            self._look_at(name)
        if member := self._members.get(name):
            member.show(document, state, detail)

    def on_change(self, listener: Callable[[Summary | None, str], None]) -> None:
        """Have something called with each new row and the instance's name; with None when an instance is no more."""
        self._listeners.append(listener)

    def on_timing(self, listener: Timed) -> None:
        """Have something called with each time that was taken of a monitor, in seconds."""
        self._timing_listeners.append(listener)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Hear of the locks in the folder that is there now.

        :raises OSError: it cannot be made or watched
        """
        locks = self._host.paths.locks
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        forget(self._manager, self._watched[0])  # it may have been moved away
        self._watched = (-1, -1)
        number = watch(self._manager, locks, _MASK)
        self._watched = (number, locks.stat().st_ino)

    async def _keep_watch(self) -> None:
        """Notice where the folder of locks was removed, or another one is in its place; then nobody's word is heard."""
        told = ""
        while True:
            await asyncio.sleep(_WATCH)
            try:
                with suppress(FileNotFoundError):
                    if self._host.paths.locks.stat().st_ino == self._watched[1]:
                        continue
                self._watch()
                self._look_for_all()
                log.warning("the folder of locks is another one; it is watched again")
                told = ""
            except OSError as error:  # whoever changes something meanwhile finds the monitors taken
                if str(error) != told:
                    log.error("what others do is not seen: %s", error)
                told = str(error)

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
            member = self._members[name] = Member(self._host, name, self._changed, self._act, self._timed)
            member.start(free=self._is_free(name))
        elif self._is_free(name):
            member.look_again()
        else:
            member.let_go()

    def _is_free(self, name: str) -> bool:
        """Whether nobody works on an instance; where that cannot be told, somebody may, and it is asked again."""
        path = self._host.paths.locks / f"{name}{_SUFFIX}"
        try:
            return _is_free(path)
        except OSError as error:
            log.warning("%s: whether it is locked cannot be told: %s", name, error, extra={"instance": name})
            asyncio.get_running_loop().call_later(_WATCH, self._closed, name, path, ())
            return False

    def _changed(self, name: str, summary: Summary | None) -> None:
        if summary is None:
            self._members.pop(name, None)
        for listener in self._listeners:
            listener(summary, name)

    def _timed(self, what: Timing, seconds: float) -> None:
        for listener in self._timing_listeners:
            listener(what, seconds)

    def _heard(self, event: Any) -> None:
        """inotify. What goes wrong in here would be swallowed."""
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            self._look_for_all()
            return
        name = str(event.name).removesuffix(_SUFFIX)
        if not event.name.endswith(_SUFFIX) or name.startswith("."):
            return
        if event.mask & pyinotify.IN_MODIFY:
            if (member := self._members.get(name)) and not _says_free(Path(event.pathname)):
                member.let_go()
        else:
            self._closed(name, Path(event.pathname), _LAGS)

    def _closed(self, name: str, path: Path, lags: Sequence[float]) -> None:
        """Somebody has closed a lock's file: its holder, or one who waited and gave up.

        The kernel tells of it before it takes the lock away: so one that is held still is looked at again.
        """
        loop = asyncio.get_running_loop()
        try:
            if _is_free(path):
                self._look_at(name)
            elif lags:
                loop.call_later(lags[0], self._closed, name, path, lags[1:])
        except OSError:  # as without descriptors
            loop.call_later(_WATCH, self._closed, name, path, _LAGS)


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock. The kernel is asked only where it has to be: for as long we hear nothing.

    :raises OSError: that cannot be told
    """
    return is_let_go(path) or not is_locked(path)


def _says_free(path: Path) -> bool:
    """Whether the words in a lock's file are those of nobody; where they cannot be read, they may be somebody's."""
    with suppress(OSError):
        return is_let_go(path)
    return False
