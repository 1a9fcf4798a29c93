"""Follows one instance: hears its events, sees its run end and takes note, starts it again when that is due.

It listens on the instance's socket `events`, and acts by the instance's own verbs, under its lock, in a thread: the
socket `control` is taken for moments only, as by anybody else. Nothing is kept here that would be missed: what is to be
done follows from the document and from what QEMU says, so whoever comes next does what this one did not.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Final

from ..errors import ConnectTimeout, DroverError, InstanceBusy, InstanceNotFound, MonitorError, MonitorTimeout
from ..kvm.deadlines import ANSWER_TIMEOUT
from ..kvm.ending import QUIT_GRACE, running
from ..kvm.ends import Restart
from ..kvm.instance import Instance
from ..kvm.launch import GREETING_TIMEOUT
from ..kvm.ledger import Ledger
from ..kvm.process import Process
from ..kvm.record import RESTORE, Document, Runtime, load
from ..kvm.restart import is_due, seconds_left
from ..kvm.sockets import reach
from ..monitor.aio import AsyncQmpConnection
from .journal import Journal
from .listen import FIRST_PAUSE, LONGEST_PAUSE, Storage, attend
from .marks import mark_begin, mark_end
from .recorder import Recorder
from .segment import ENDED, LOST
from .verdict import who_ended
from .work import Work

# Seconds to wait in a thread for somebody else who works on the instance.
_LOCK_TIMEOUT: Final = 2.0
# Seconds between two looks at what somebody is at.
_LOOK: Final = 0.25
# Seconds after which a QEMU whose connection has ended, and that is there, is asked again.
_ENDING: Final = 1.0
# Events that a connection keeps for who waits for one: all are in the journal.
_KEPT: Final = 32


class Follower:
    """Follows one instance for as long as it runs, or is to run again.

    :ivar logs: the paths of those that others write to
    """

    def __init__(self, work: Work, name: str) -> None:
        self.name = name
        self.paths = work.host.paths.instance(name)
        self.logs = (os.fspath(self.paths.log), os.fspath(self.paths.console_log))
        self._work = work
        self._instance = Instance(work.host, name, lock_timeout=_LOCK_TIMEOUT)
        self._news = asyncio.Event()
        self._journal: Journal | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._trouble = ""
        self._told = ""
        self._storage = Storage(self._sources, lambda: work.do(self._instance.go_on), self._say)
        self._heard = False  # something of this run

    def look_again(self) -> None:
        """Something was done to it: what is waited for may have come."""
        self._news.set()

    @property
    def has_news(self) -> bool:
        """Something was done to it since it was looked at."""
        return self._news.is_set()

    async def run(self) -> None:
        """Follow it, until it has stopped and is to stay so. Nothing that is wrong with it ends this."""
        try:
            await self._run()
        finally:
            if self._journal is not None:
                await asyncio.shield(self._work.let_go(self._journal))

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            since = time.monotonic()
            try:
                if not await self._round():
                    return
                continue
            except InstanceNotFound:
                return
            except InstanceBusy:
                await self._sleep(FIRST_PAUSE)  # somebody works on it for long, which is his right
                continue
            except (DroverError, OSError) as error:
                self._in_trouble(error)
            if time.monotonic() - since > 2 * LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _sleep(self, seconds: float) -> bool:
        """Let time pass; True: something was done to it meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        return self._news.is_set()

    # -- one round: from where it is to its next end -------------------------------------------------------------------

    async def _round(self) -> bool:
        """See it to the end of its run, or to its next start.

        :returns: whether there is more to see
        """
        self._news.clear()
        try:
            document = load(self.paths.document)  # only to look, and so without the lock
        except FileNotFoundError:
            return False
        lost, runtime = None, document.runtime
        if runtime is None and document.pending is None:
            return await self._start_again(document)
        try:
            if runtime is not None:
                lost = await self._attend(document, runtime)
            await self._mend()
            after = load(self.paths.document)
        except (FileNotFoundError, InstanceNotFound):
            if self.paths.document.exists():
                raise
            await self._renamed(runtime)
            return False
        if lost is not None and after.runtime is not None and after.generation == document.generation:
            raise lost  # it is there still
        self._troubled(None)
        if runtime is not None:
            self._ended(self.name, after, runtime)
        return True

    async def _attend(self, document: Document, runtime: Runtime) -> MonitorError | None:
        """Listen to a run, and meanwhile bring to its end what somebody has begun and left.

        :returns: what ended the connection; None where the guest came to its end
        """
        self._told, self._heard = "", False
        await self._open_journal(runtime)
        process = running(self._work.host, Ledger(self.paths, document))
        if process is None and (runtime.pid or document.pending is None):
            return None  # it is over
        if process is not None:
            process.close()
        mark_begin(self._work.host.paths, self.name)
        begins = document.pending is not None and document.pending.operation in ("start", RESTORE)
        listening = asyncio.create_task(self._listen(runtime, starting=process is None, begins=begins))
        settling = None if document.pending is None else asyncio.create_task(self._settle())
        try:
            if settling is not None:
                await asyncio.wait({listening, settling}, return_when=asyncio.FIRST_COMPLETED)
                if not listening.done() and not self._is_current(runtime):
                    return None
            lost = await listening
            if lost is not None:
                await self._see_it_end()
            return lost
        finally:
            for task in (listening, settling):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, DroverError, OSError):
                        await task

    def _is_current(self, runtime: Runtime) -> bool:
        """Whether a run is the one that the document has, and not one that was about to be."""
        now = load(self.paths.document).runtime
        return now is not None and now.generation == runtime.generation and bool(now.pid)

    async def _settle(self) -> None:
        """Complete or undo what somebody has left; nothing if who has begun it ends it himself."""
        while load(self.paths.document).pending is not None:
            pause = _LOOK
            try:
                await self._mend(patient=False)
                return
            except InstanceBusy:
                pass  # he is at it
            except (DroverError, OSError) as error:
                self._in_trouble(error)
                pause = LONGEST_PAUSE
            await asyncio.sleep(pause)

    async def _listen(self, runtime: Runtime, *, starting: bool, begins: bool) -> MonitorError | None:
        """Listen to QEMU until the run has come to its end.

        :param starting: QEMU is still to come
        :param begins: somebody is at its start
        :returns: what ended the connection; None where the guest came to its end
        :raises MonitorTimeout: QEMU hangs
        """
        path = self.paths.socket("events")
        recorder = None
        try:
            timeout = GREETING_TIMEOUT if starting else ANSWER_TIMEOUT
            vm = AsyncQmpConnection(path if starting else reach(path), timeout=timeout, log_size=_KEPT)
            if self._journal is not None:
                recorder = Recorder(self._journal, runtime.generation, self._work.flusher.dirty, begins=begins)
                vm.event_log.on_events = recorder.take
            async with nullcontext() if starting else self._work.turn():
                await vm.connect()
            async with vm:
                self._heard = True
                vm.timeout = ANSWER_TIMEOUT
                await attend(vm, self._storage, lambda complete: self._begin(recorder, complete), self._troubled)
        except ConnectTimeout:
            if not starting:
                raise
        except MonitorTimeout:
            raise
        except MonitorError as error:
            return error
        finally:
            if recorder is not None:
                recorder.end(heard=self._heard)
                self._told = recorder.reason
        return None

    @staticmethod
    def _begin(recorder: Recorder | None, complete: bool) -> None:
        if recorder is not None:
            recorder.begin(complete=complete)

    async def _see_it_end(self) -> None:
        """Wait until QEMU is gone: its monitors close before it is. One that listens still has only cut us off."""
        process = running(self._work.host, Ledger(self.paths, load(self.paths.document)))
        if process is None:
            return
        with process:
            if await _has_ended(process, _ENDING):
                return
            try:
                address = reach(self.paths.socket("events"))
            except MonitorError:
                await _has_ended(process, QUIT_GRACE)
            else:
                if isinstance(address, socket.socket):
                    address.close()

    async def _mend(self, *, patient: bool = True) -> None:
        """Bring document and machine together. Who is cancelled meanwhile leaves it to come to its end alone.

        :param patient: wait for who works on it
        """
        while self._mending is not None:
            await asyncio.wait([self._mending])
        self._mending = asyncio.create_task(self._mend_now(_LOCK_TIMEOUT if patient else 0.0))
        self._mending.add_done_callback(self._mended)
        await asyncio.shield(self._mending)

    def _mended(self, task: "asyncio.Task[None]") -> None:
        self._mending = None
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def _mend_now(self, lock_timeout: float) -> None:
        told, instance = self._told, Instance(self._work.host, self.name, lock_timeout=lock_timeout)
        if notices := await self._work.do(lambda: instance.mend(told=told)):
            self._say("mended", "; ".join(notices))

    async def _start_again(self, document: Document) -> bool:
        """Start it when its restart is due. False: it is to stay as it is."""
        due = document.restart
        if self._restarting is not None and not self._restarting.done():
            return await self._see_it_begin(self._restarting)
        if due is None or not is_due(document, self._work.host.boot_id):
            return False
        left = seconds_left(due)
        self._say("waiting", f"it will be started again in {left:.0f} s, for the {_nth(due.count)} time in a row")
        while await self._sleep(seconds_left(due)):
            self._news.clear()
            if not self.paths.document.exists() or load(self.paths.document) != document:
                return True
        self._restarting = asyncio.create_task(self._restart(due))
        return await self._see_it_begin(self._restarting)

    async def _see_it_begin(self, restarting: "asyncio.Task[None]") -> bool:
        """Wait until a restart has made the run's folder, to hear it from its first word; or has failed."""
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait({restarting, news}, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        return True

    async def _restart(self, due: Restart) -> None:
        try:
            notices = await self._work.do(lambda: self._instance.restart_due(due))
        except InstanceBusy:
            await asyncio.sleep(FIRST_PAUSE)
        except (DroverError, OSError) as error:
            self._say("failed", f"it could not be started again: {error}")
        else:
            if notices is not None:
                self._say("restarted", "; ".join(["it was started again", *notices]))

    # -- its journal ---------------------------------------------------------------------------------------------------

    async def _open_journal(self, runtime: Runtime) -> None:
        """Without its journal it is followed all the same."""
        if self._journal is None:
            try:
                journal = self._journal = await self._work.journal(runtime.spec.uuid)
                if journal.waits:  # it has found that something is missing
                    self._work.flusher.dirty(journal)
            except OSError as error:
                self._say("trouble", f"its journal cannot be opened: {error}")

    async def _renamed(self, runtime: Runtime | None) -> None:
        """There is none of its name any more, so it does not run: one that is called otherwise now has ended before."""
        if runtime is not None and (found := await self._work.find(runtime.spec.uuid)) is not None:
            self._ended(*found, runtime)

    def _ended(self, name: str, after: Document, runtime: Runtime) -> None:
        """A run is over: say who ended it.

        :param name: that it has by now
        :param after: what is written of it by now; the next run may go on already
        """
        stop = after.last_stop
        if stop is None or stop.generation != runtime.generation:
            return  # nobody has taken note, or of a later one
        who = who_ended(stop)
        if after.runtime is None:
            mark_end(self._work.host.paths, name, stop)
        journal = self._journal
        if journal is None or journal.has_end_of(runtime.generation):
            return
        if not self._heard and not journal.ends_in_gap:
            journal.note(LOST, {"reason": "not-listening", "since": journal.at}, runtime.generation)
        told = {"who": who, "reason": stop.reason, "detail": stop.detail, "forced": stop.forced}
        journal.note(ENDED, told, runtime.generation)
        self._work.flusher.dirty(journal)

    # -- what is wrong, and what it waits for --------------------------------------------------------------------------

    def _sources(self) -> Mapping[str, str | None] | None:
        """Where the images of what runs are; None where it does not."""
        runtime = load(self.paths.document).runtime
        return None if runtime is None else {disk.id: disk.source for disk in runtime.spec.disks}

    def _troubled(self, error: Exception | None) -> None:
        if error is not None:
            self._in_trouble(error)
        elif self._trouble:
            self._say("well", "that is over")
            self._trouble = ""

    def _in_trouble(self, error: Exception) -> None:
        text = f"QEMU does not answer: {error}" if isinstance(error, MonitorTimeout) else str(error)
        if text != self._trouble:
            self._say("trouble", text)
            self._trouble = text

    def _say(self, what: str, text: str) -> None:
        self._work.say(self.name, what, text)


async def _has_ended(process: Process, timeout: float) -> bool:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.fileno(), ended.set)
    try:
        async with asyncio.timeout(timeout):
            return await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(process.fileno())


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
