"""All instances of a host: each that runs, or is to run again, is followed; also those that come later.

A run's folder is made before its QEMU is started, and inotify tells of it. Where it may have missed something, and
every now and then, all documents are looked at. Logs are kept within their bounds meanwhile.
"""

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyinotify
from msgspec import Struct

from ..errors import InstanceBusy, RecordError, WatcherRuns
from ..kvm.inotify import new_manager, watch
from ..kvm.lock import Alone
from ..kvm.logs import LIMIT, bound
from ..kvm.node import Node
from ..kvm.record import load
from ..kvm.restart import is_due
from . import journal
from .follow import Follower
from .segment import WRITER
from .work import Work

# Seconds between two looks at all documents, for what inotify did not tell.
RESCAN: Final = 30.0
# Seconds between two looks at the logs.
TICK: Final = 1.0
_STOP_TIMEOUT: Final = 5.0  # seconds, for all followers: what they are at is in the documents
_MASK: Final = (
    pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO | pyinotify.IN_DELETE | pyinotify.IN_MOVE_SELF | pyinotify.IN_ONLYDIR
)


log = logging.getLogger("drover.events")


class Notice(Struct, kw_only=True):
    """Something that the watcher did or saw.

    :ivar at: Unix time
    :ivar name: of the instance
    :ivar what: ``mended`` (a run's end was written down, or a change completed or undone), ``waiting`` (a restart is
        due), ``restarted``, ``failed`` (a restart), ``io-error``, ``resumed``, ``log`` (one was too long),
        ``trouble``, ``well`` (that is over)
    :ivar text: in words
    """

    at: float
    name: str
    what: str
    text: str


class Watcher:
    """The watcher of a host's instances; there is one at a time.

    It keeps what machines say, takes note of the end of runs, starts instances again as their specification says, and
    lets guests run on whose storage was full and is not any more. What happened while there was no watcher is found at
    its start.

    :param node: whose instances
    :param tell: called with each thing that it does, on its loop
    :param log_limit: bytes of each log of a machine that runs; a log grows beyond for a second at most
    :param journal_limit: bytes of what is kept of each machine's events
    """

    def __init__(
        self,
        node: Node,
        tell: Callable[[Notice], None],
        *,
        log_limit: int = LIMIT,
        journal_limit: int = journal.LIMIT,
    ) -> None:
        self._node = node
        self._tell = tell
        self._log_limit = log_limit
        self._journal_limit = journal_limit
        self._log_faults: dict[str, int | None] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._follower: dict[str, Follower] = {}
        self._stopping = False
        self._rescan_at = 0.0
        self._watched: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._work: Work | None = None
        self._alone: Alone | None = None
        self._fault = ""  # of ours, which was told

    def stop(self) -> None:
        """Let :meth:`run` return soon; from any thread, or a signal's handler."""
        self._stopping = True
        self._nudge()

    def rescan(self) -> None:
        """Look at all documents now; from any thread, or a signal's handler."""
        self._rescan_at = 0.0
        self._nudge()

    def run(self) -> None:
        """Watch, until :meth:`stop`.

        :raises WatcherRuns: there is one already
        :raises OSError: the folder of what runs cannot be made or watched
        """
        with self.alone():
            asyncio.run(self.watch())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the host's only watcher.

        :raises WatcherRuns: there is one already
        """
        try:
            self._alone = Alone(self._node.host.paths.locks, WRITER, "watch")
        except InstanceBusy as busy:
            raise WatcherRuns(busy.holder) from None
        try:
            yield
        finally:
            self._alone.close()
            self._alone = None

    async def watch(self, ready: Callable[[], None] = lambda: None) -> None:
        """What :meth:`run` does, for who is alone and has a loop.

        :param ready: called when all that runs is followed
        """
        self._loop = asyncio.get_running_loop()
        self._work = Work(self._node.host, self._say, journal_limit=self._journal_limit)
        manager = new_manager()
        notifier = pyinotify.AsyncioNotifier(manager, self._loop, default_proc_fun=self._heard)
        try:
            await self._tick(manager)
            ready()
            while not self._stopping:
                await self._pause()
                await self._tick_on(manager)
        finally:
            notifier.stop()
            await self._stop_followers()
            self._work.close()
            self._loop = None

    def _nudge(self) -> None:
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._wake.set)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(TICK):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _tick_on(self, manager: Any) -> None:
        """What has gone well once is tried until it does again, as where there are no descriptors or watches left."""
        try:
            if self._alone is not None:
                self._alone.renew()
            await self._tick(manager)
        except (InstanceBusy, OSError) as error:
            if str(error) != self._fault:
                log.error("machines that begin may not be heard: %s", error)
            self._fault = str(error)
            return
        if self._fault:
            log.info("that is over")
            self._fault = ""

    async def _tick(self, manager: Any) -> None:
        if self._watched is None:
            self._begin_watch(manager)
        if time.monotonic() >= self._rescan_at:
            self._rescan()
            self._rescan_at = time.monotonic() + RESCAN
        await self._bound_logs()

    def _begin_watch(self, manager: Any) -> None:
        folder = self._node.host.paths.runs
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._watched = watch(manager, folder, _MASK)
        self._rescan_at = 0.0  # for what came before

    def _heard(self, event: Any) -> None:
        """inotify. What goes wrong in here would be swallowed."""
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            self.rescan()
        elif event.mask & pyinotify.IN_IGNORED:
            if event.wd == self._watched:
                self._watched = None  # the folder itself is gone
                self._nudge()
        elif event.mask & pyinotify.IN_MOVE_SELF:
            self._watched = None  # it has another name; in its place we make a new one
            self._nudge()
        elif event.name:
            self._follow(event.name)

    def _rescan(self) -> None:
        for name in self._node.names:
            if name in self._followers:
                continue
            try:
                document = load(self._node.host.paths.instance(name).document)
            except FileNotFoundError:
                continue
            except (RecordError, OSError):
                document = None  # who follows it will tell
            if document is None or document.runtime or document.pending or is_due(document, self._node.host.boot_id):
                self._follow(name)

    # -- logs ---------------------------------------------------------------------------------------------------------

    async def _bound_logs(self) -> None:
        """Keep the logs of all that run within their bounds: QEMU writes to them, and knows none."""
        for name, follower in tuple(self._follower.items()):
            for path in follower.logs:
                if path in self._log_faults or is_too_long(path, self._log_limit):
                    await self._bound_log(name, path)

    async def _bound_log(self, name: str, path: str) -> None:
        if self._work is None:
            return
        file = Path(path)
        try:
            taken = await self._work.do(lambda: bound(file, self._log_limit))
            self._log_faults.pop(path, None)
            if taken:
                self._say(name, "log", f"{file.name} was too long: {taken} bytes of its middle are out")
        except OSError as error:
            if self._log_faults.get(path) != error.errno:  # once, and not every second
                self._say(name, "trouble", f"{file.name} cannot be kept short: {error}")
            self._log_faults[path] = error.errno

    # -- those who follow ----------------------------------------------------------------------------------------------

    def _follow(self, name: str) -> None:
        """Have somebody look at an instance now, and follow it."""
        if (follower := self._follower.get(name)) is not None:
            follower.look_again()
        elif self._work is not None and not self._stopping:
            follower = self._follower[name] = Follower(self._work, name)
            self._followers[name] = asyncio.create_task(self._run(follower), name=f"follow {name}")

    async def _run(self, follower: Follower) -> None:
        try:
            await follower.run()
        finally:
            del self._followers[follower.name], self._follower[follower.name]
            if follower.has_news:  # which came when it had looked for the last time
                self._follow(follower.name)

    async def _stop_followers(self) -> None:
        self._stopping = True
        tasks = tuple(self._followers.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_TIMEOUT)

    def _say(self, name: str, what: str, text: str) -> None:
        self._tell(Notice(at=time.time(), name=name, what=what, text=text))


def is_too_long(path: str, limit: int) -> bool:
    """Whether there is something to do about a log; also where what is there is no log."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return found.st_size > limit or not stat.S_ISREG(found.st_mode)
