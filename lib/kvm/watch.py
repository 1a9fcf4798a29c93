"""Watches all instances of a host: one thread follows each that runs, and this one finds those that start.

A run's folder is made before its QEMU is started, and inotify tells of it. Where it may have missed something, and
every now and then, all documents are looked at. Logs are kept within their bounds meanwhile.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyinotify
from msgspec import Struct

from ..errors import InstanceBusy, RecordError, WatcherRuns
from .follow import Follower
from .lock import locked
from .logs import LIMIT, bound
from .node import Node
from .record import load
from .restart import is_due

# Seconds between two looks at all documents, for what inotify did not tell.
RESCAN: Final = 30.0
# Seconds between two looks at the logs, and how long a request to stop may go unseen.
TICK: Final = 1.0
_STOP_TIMEOUT: Final = 5.0  # seconds, for all followers: what they are at is in the journal
_LOCK: Final = ".watch"  # no instance's name begins so
_MASK: Final = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO | pyinotify.IN_DELETE


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


Tell = Callable[[Notice], None]


class Watcher:
    """The watcher of a host's instances; there is one at a time.

    It takes note of the end of runs, starts instances again as their specification says, and lets guests run on whose
    storage was full and is not any more. What happened while there was no watcher is found at its start.

    :param node: whose instances
    :param tell: called with each thing that it does, by any thread, one at a time
    :param log_limit: bytes of each log of a machine that runs; a log grows beyond for a second at most
    """

    def __init__(self, node: Node, tell: Tell, *, log_limit: int = LIMIT) -> None:
        self._node = node
        self._tell = tell
        self._log_limit = log_limit
        self._logs_at = 0.0
        self._log_faults: dict[Path, int | None] = {}
        self._telling = threading.Lock()
        self._lock = threading.Lock()  # of the followers and who is to look again
        self._followers: dict[str, Follower] = {}
        self._again: set[str] = set()
        self._stopping = threading.Event()
        self._rescan_at = 0.0
        self._watched = False

    def stop(self) -> None:
        """Let :meth:`run` return soon; from any thread, or a signal's handler."""
        self._stopping.set()

    def run(self) -> None:
        """Watch, until :meth:`stop`.

        :raises WatcherRuns: there is one already
        :raises OSError: the folder of what runs cannot be made or watched
        """
        with self._alone():
            manager = pyinotify.WatchManager()
            notifier = pyinotify.Notifier(manager, self._heard)
            try:
                while not self._stopping.is_set():
                    self._tick(manager)
                    if notifier.check_events(TICK * 1000):
                        notifier.read_events()
                        notifier.process_events()
            finally:
                notifier.stop()
                self._stop_followers()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with locked(self._node.host.paths.locks, _LOCK, "watch", 0):
                yield
        except InstanceBusy as busy:
            raise WatcherRuns(busy.holder) from None

    def _tick(self, manager: Any) -> None:
        if not self._watched:
            self._watch(manager)
        if time.monotonic() >= self._rescan_at:
            self._rescan()
            self._rescan_at = time.monotonic() + RESCAN
        if time.monotonic() >= self._logs_at:
            self._bound_logs()
            self._logs_at = time.monotonic() + TICK

    def _bound_logs(self) -> None:
        """Keep the logs of all that run within their bounds: QEMU writes to them, and knows none."""
        with self._lock:
            followers = list(self._followers.values())
        for follower in followers:
            for path in (follower.paths.log, follower.paths.console_log):
                try:
                    taken = bound(path, self._log_limit)
                    self._log_faults.pop(path, None)
                    if taken:
                        self._say(
                            follower.name, "log", f"{path.name} was too long: {taken} bytes of its middle are out"
                        )
                except OSError as error:
                    if self._log_faults.get(path) != error.errno:  # once, and not every second
                        self._say(follower.name, "trouble", f"{path.name} cannot be kept short: {error}")
                    self._log_faults[path] = error.errno

    def _watch(self, manager: Any) -> None:
        folder = self._node.host.paths.runs
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        manager.add_watch(str(folder), _MASK | pyinotify.IN_ONLYDIR, quiet=False)
        self._watched = True
        self._rescan_at = 0.0  # for what came before

    def _heard(self, event: Any) -> None:
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            self._rescan_at = 0.0
        elif event.mask & pyinotify.IN_IGNORED:
            self._watched = False  # the folder itself is gone
        elif event.name:
            self._follow(event.name)

    def _rescan(self) -> None:
        for name in self._node.names:
            try:
                document = load(self._node.host.paths.instance(name).document)
            except FileNotFoundError:
                continue
            except (RecordError, OSError):
                document = None  # who follows it will tell
            if document is None or document.runtime or document.pending or is_due(document, self._node.host.boot_id):
                with self._lock:
                    known = name in self._followers
                if not known:
                    self._follow(name)

    # -- those who follow ----------------------------------------------------------------------------------------------

    def _follow(self, name: str) -> None:
        """Have somebody look at an instance now, and follow it."""
        with self._lock:
            if name in self._followers:
                self._again.add(name)  # he may be about to leave
                return
            follower = Follower(self._node.host, name, lambda what, text: self._say(name, what, text))
            self._followers[name] = follower
        threading.Thread(target=self._run, args=(follower,), name=f"watch {name}", daemon=True).start()

    def _run(self, follower: Follower) -> None:
        try:
            more = True
            while more:
                follower.run()
                with self._lock:
                    more = follower.name in self._again and not self._stopping.is_set()
                    self._again.discard(follower.name)
                    if not more:
                        del self._followers[follower.name]
        except BaseException:  # a fault of ours: the next look at all instances begins anew
            with self._lock:
                self._followers.pop(follower.name, None)
            raise

    def _stop_followers(self) -> None:
        self._stopping.set()
        deadline = time.monotonic() + _STOP_TIMEOUT
        while time.monotonic() < deadline:
            with self._lock:
                left = list(self._followers.values())
            if not left:
                return
            for follower in left:
                follower.stop()
            time.sleep(0.01)

    def _say(self, name: str, what: str, text: str) -> None:
        with self._telling:
            self._tell(Notice(at=time.time(), name=name, what=what, text=text))
