"""Follows one instance: sees its run end and takes note, starts it again, lets it run on when its storage has space.

It listens on the instance's socket `events`, and acts by the instance's own verbs, under its lock: the socket `control`
is taken for moments only, as by anybody else. Nothing is kept here that would be missed: what is to be done follows
from the document and from what QEMU says, so whoever comes next does what this one did not.
"""

import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from ..errors import DroverError, InstanceBusy, InstanceNotFound, MonitorError, MonitorTimeout
from ..monitor.connection import QmpConnection
from .condition import failed_disks, state_of
from .ending import running
from .host import Host
from .instance import ANSWER_TIMEOUT, Instance
from .ledger import Ledger
from .mend import ENDED_BY_GUEST, QUIT_GRACE
from .record import Document, Runtime, load
from .restart import is_due, seconds_left
from .sockets import dial
from .state import State

# Seconds between two tries of what does not work: a QEMU that hangs, a document that cannot be read.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
# Seconds after which a guest that was let run on has not failed at once.
_HOLDS: Final = 10.0
# Bytes: fewer would be full again with the next cluster or two of an image.
ROOM: Final = 1 << 20
# After each of these, what it does is asked for.
_EVENTS: Final = ("SHUTDOWN", "GUEST_PANICKED", "STOP", "RESUME")

Say = Callable[[str, str], None]


class Follower:
    """Follows one instance for as long as it runs, or is to run again.

    :param say: told what was done: a word for it, and a sentence
    """

    def __init__(self, host: Host, name: str, say: Say) -> None:
        self.name = name
        self.paths = host.paths.instance(name)
        self._host = host
        self._instance = Instance(host, name)
        self._say = say
        self._stopping = threading.Event()
        self._vm: QmpConnection | None = None
        self._trouble = ""
        self._delay = _FIRST_PAUSE
        self._let_go_on = -_HOLDS  # monotonic time

    def stop(self) -> None:
        """Let :meth:`run` return soon; from any thread."""
        self._stopping.set()
        if (vm := self._vm) is not None:
            vm.close()

    def run(self) -> None:
        """Follow it, until it has stopped and is to stay so. Nothing that is wrong with it ends this."""
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            since = time.monotonic()
            try:
                if not self._round():
                    return
                continue
            except InstanceNotFound:
                return
            except InstanceBusy:
                pass  # somebody works on it for long, which is his right
            except (DroverError, OSError) as error:
                self._in_trouble(error)
            if time.monotonic() - since > 2 * _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    # -- one round: from where it is to its next end -------------------------------------------------------------------

    def _round(self) -> bool:
        """See it to the end of its run, or to its next start.

        :returns: whether there is more to see
        """
        try:
            ledger = Ledger(self.paths, load(self.paths.document))  # only to look, and so without the lock
        except FileNotFoundError:
            return False
        document, lost = ledger.document, None
        if document.pending is None:
            if document.runtime is None:
                return self._start_again(document)
            if (process := running(self._host, ledger)) is not None:
                with process:
                    lost = self._listen(document.runtime)
                    if lost is not None and not self._stopping.is_set():
                        process.wait(QUIT_GRACE)  # its monitors close before it is gone
        if self._stopping.is_set():
            return False
        self._mend()
        after = load(self.paths.document).runtime
        if lost is not None and after is not None and after.generation == document.generation:
            raise lost  # it is there still
        return True

    def _listen(self, runtime: Runtime) -> MonitorError | None:
        """Listen to QEMU until the run has come to its end.

        :returns: what ended the connection; None where the guest came to its end
        :raises MonitorTimeout: QEMU hangs
        """
        try:
            with dial(self.paths.socket("events"), ANSWER_TIMEOUT) as vm:
                self._vm = vm
                events = vm.events(*_EVENTS)  # before it is asked, so that nothing comes in between
                while not self._stopping.is_set():
                    state, detail = state_of(vm)
                    self._out_of_trouble()
                    if state in ENDED_BY_GUEST:
                        return None
                    if state is State.IO_ERROR:
                        self._await_space(vm, runtime.generation, detail)
                    else:
                        next(events)
        except MonitorTimeout:
            raise
        except MonitorError as error:
            return error
        finally:
            self._vm = None
        return None

    def _mend(self) -> None:
        if notices := self._instance.mend():
            self._say("mended", "; ".join(notices))
        self._out_of_trouble()

    def _start_again(self, document: Document) -> bool:
        """Start it when its restart is due. False: it is to stay as it is."""
        due = document.restart
        if due is None or not is_due(document, self._host.boot_id):
            return False
        left = seconds_left(due)
        self._say("waiting", f"it will be started again in {left:.0f} s, for the {_nth(due.count)} time in a row")
        if self._stopping.wait(left):
            return False
        try:
            notices = self._instance.restart_due()
        except InstanceBusy:
            raise
        except (DroverError, OSError) as error:
            self._say("failed", f"it could not be started again: {error}")
            return True
        if notices is not None:
            more = "".join(f"; {text}" for text in notices)
            self._say("restarted", f"it was started again{more}")
        return True

    # -- storage that is full ------------------------------------------------------------------------------------------

    def _await_space(self, vm: QmpConnection, generation: int, detail: str) -> None:
        """Wait until the storage has space again, and let the guest run on; or until somebody else does."""
        failed = failed_disks(vm)
        self._say("io-error", f"the guest waits for its storage: {detail}")
        if time.monotonic() - self._let_go_on > _HOLDS:
            self._delay = _FIRST_PAUSE
        while not self._stopping.is_set():
            mark = vm.event_mark()
            if state_of(vm)[0] is not State.IO_ERROR:
                return
            try:
                vm.wait_event("RESUME", since=mark, timeout=self._delay)
                return
            except MonitorTimeout:
                self._delay = min(2 * self._delay, _LONGEST_PAUSE)
            if self._has_space(failed, generation) and self._instance.go_on():
                self._let_go_on = time.monotonic()
                self._say("resumed", f"there is space again, and the guest runs on: {', '.join(failed)}")
                return

    def _has_space(self, failed: Mapping[str, str], generation: int) -> bool:
        """Whether all that was wrong is a lack of space, and that is over."""
        runtime = load(self.paths.document).runtime
        if runtime is None or runtime.generation != generation or set(failed.values()) != {"nospace"}:
            return False
        return all(has_space(disk.source) for disk in runtime.spec.disks if disk.id in failed)

    # -- what is wrong -------------------------------------------------------------------------------------------------

    def _in_trouble(self, error: Exception) -> None:
        text = f"QEMU does not answer: {error}" if isinstance(error, MonitorTimeout) else str(error)
        if not self._stopping.is_set() and text != self._trouble:
            self._say("trouble", text)
            self._trouble = text

    def _out_of_trouble(self) -> None:
        if self._trouble:
            self._say("well", "that is over")
            self._trouble = ""


def has_space(source: str | None) -> bool:
    """Whether the file system of an image takes more. Where there is none to ask, only a try can tell: yes.

    :param source: a path, or a URI
    """
    if not source or "://" in source or not stat.S_ISREG(os.stat(source).st_mode):
        return True
    found = os.statvfs(source)
    return found.f_bavail * found.f_frsize >= ROOM


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
