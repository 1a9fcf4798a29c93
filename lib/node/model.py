"""The live picture of all instances of a host: read at any time, at no cost, and never held up by one that hangs.

A task for each instance holds its socket ``control``, and knows by QEMU's events what it does. Whoever takes the
instance's lock, in this process or another one, needs that socket, for QEMU serves one client: inotify tells of the
lock, the task lets go at once, and comes back when the lock is free, to read the document anew. Since nothing is
changed without the lock, nothing is missed.
"""

import asyncio
import logging
from collections.abc import Callable
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
_LAGS: Final = (0.003, 0.03, 0.3)  # s: it takes some µs, and whoever is preempted there takes longer
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
        self._asking: dict[str, asyncio.Task[None]] = {}

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
        for task in self._asking.values():
            task.cancel()
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
        """Somebody has let go of its lock, or may have: it may be new, other, or gone."""
        member, is_free = self._members.get(name), self._is_free(name)
        self._ask_no_more(name)
        if member is None:
            try:
                if not self._host.paths.instance(name).document.exists():
                    return
            except ArgumentError:
                return  # somebody's own file among ours: no instance can be called so
            member = self._members[name] = Member(self._host, name, self._changed, self._act, self._timed)
            member.start(free=is_free)
        elif is_free:
            member.look_again()
        if not is_free:
            self._ask(name)

    def _is_free(self, name: str) -> bool:
        """Whether nobody works on an instance, as far as can be told at once: by the words in its lock's file."""
        path = self._path(name)
        with suppress(OSError):
            return is_let_go(path) or not path.exists()
        return False

    def _ask(self, name: str) -> None:
        """Find out whether somebody works on an instance, as its lock's file says. Who is killed leaves their words."""
        task = self._asking[name] = asyncio.create_task(self._know(name), name=f"lock of {name}")
        task.add_done_callback(lambda done: self._asking.get(name) is done and self._asking.pop(name))

    def _ask_no_more(self, name: str) -> None:
        """Something has happened since: what the kernel says may be of before it."""
        if (asking := self._asking.pop(name, None)) is not None:
            asking.cancel()

    async def _know(self, name: str) -> None:
        """By the kernel's word, which takes its time.

        It tells of one that was killed before it takes the lock away: so one that is held still is looked at again.
        """
        lags = [0.0, *_LAGS]
        while lags:
            await asyncio.sleep(lags.pop(0))
            held = await asyncio.to_thread(self._is_held, name)
            if (member := self._members.get(name)) is None:
                return
            if held is None:
                lags.insert(0, _WATCH)
            elif held:
                member.let_go()
            else:
                member.look_again()
                return

    def _is_held(self, name: str) -> bool | None:
        """None: it cannot be told, as without descriptors. Blocks."""
        try:
            return is_locked(self._path(name))
        except OSError as error:
            log.warning("%s: whether it is locked cannot be told: %s", name, error, extra={"instance": name})
            return None

    def _path(self, name: str) -> Path:
        return self._host.paths.locks / f"{name}{_SUFFIX}"

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
        if event.mask & pyinotify.IN_CLOSE_WRITE:  # by its holder, or one who waited and gave up
            self._look_at(name)
        elif (member := self._members.get(name)) and not self._is_free(name):
            self._ask_no_more(name)
            member.let_go()
