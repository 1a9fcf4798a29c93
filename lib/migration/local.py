"""A machine goes over to a second QEMU on its own host: by the same tables, with both sides here.

One document, under its lock from the first step to the last, is what two nodes have a store and two documents for: it
is the register of who may run the machine (:class:`_Record`), and says which of two runs that is. The memory goes over
a pair of sockets. Whatever comes of it but success is settled as a crash is: by the document alone
(:mod:`drover.kvm.upgrade`).
"""

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from msgspec import structs

from ..errors import CommandError, DroverError, MigrationError, NotSupported, OperationCancelled, StartFailed
from ..kvm import launch
from ..kvm.deadlines import ANSWER_TIMEOUT
from ..kvm.ending import log_tail, running
from ..kvm.handover import TARGET, Settings
from ..kvm.host import Host
from ..kvm.instance import Instance
from ..kvm.kinds import connect_nics
from ..kvm.ledger import Ledger
from ..kvm.mend import mend
from ..kvm.parcel import Parcel
from ..kvm.record import SWITCHED, UPGRADE, has_switched, load, runtime_of
from ..kvm.upgrade import Beside, Upgraded, complete, exchange, finish_switch, intend, is_wanted, parcel_for
from ..kvm.witness import witness
from ..monitor.connection import QmpConnection
from ..ops.migration_settings import loses_writes
from ..store.owner import Owner, Phase
from . import driver
from .account import Account, Begun, tell
from .arrival import Arrival, Newcomer
from .driver import Driver
from .knowledge import Plan
from .machine import Machine
from .means import Terms, Wishes, agree, arming
from .pace import Pace, View
from .ports import Peer, Register
from .source import Departure, Source
from .states import State
from .storage import Plan as Disks
from .target import Waiting
from .words import Asked, Begin, Cancel, End, Result, TargetDid, TargetSaid, TargetVerb, Tell, TellDid

_HERE: Final = "this host"
_MARK: Final = "b"
# Seconds until the guest stands still for the rest, if it writes faster than is sent; None: as between two nodes.
_PATIENCE: Final[float | None] = None
_REST: Final = 600.0  # seconds for what is left then, when nothing has to be sent twice
_LOOK: Final = 0.1  # seconds between two looks whether somebody wants it to end
# Seconds for which nobody can tell how things are, until whoever comes next is to: both sides are on this host.
_DOUBT: Final = 15.0
# What the document says that comes next, in each phase; what begins the second one's start is a step of its own.
_STEPS: Final = {
    Phase.MIGRATING: "claim", Phase.SWITCHOVER: "stand", Phase.COMMIT: SWITCHED, Phase.BACK: "back",
    Phase.RUNNING: "stay",
}  # fmt: skip


def upgrade(instance: Instance, *, emulator: str = "") -> Upgraded:
    """Have a machine go over to a new QEMU while it runs, as onto the binary of an update; nothing if it runs that.

    If that fails, it runs on where it is.

    :param emulator: the QEMU, where it is to be another one; the next starts have it, too
    :returns: what came of it
    :raises WrongState: it does not run
    :raises NotSupported: there cannot be two QEMUs of it at once; says what to do instead
    :raises NoRoom: the host has not the memory for both
    :raises StartFailed: the new one did not come up, or did not take it
    :raises MigrationError: it did not go over
    :raises OperationCancelled: who looks on wanted it to end
    """
    leaving = _Leaving(instance, emulator)
    leaving.begin(again=False)
    try:
        parcel, host, ledger = leaving.parcel, leaving.host, leaving.ledger
        if parcel is None:
            return Upgraded(moved=False, version=runtime_of(ledger.document).version)
        intend(host, ledger, parcel, paused=leaving.paused, emulator=emulator)
        second = _Second(host, leaving, parcel)
        try:
            report = asyncio.run(_go(leaving, second))
        except BaseException as error:
            _settle(host, ledger, second, error)
            raise
        return _finish(leaving, second, report)
    finally:
        leaving.close()


async def _go(leaving: "_Leaving", second: "_Second") -> Upgraded:
    with second:
        return await _Move(leaving, second).run()


def _finish(leaving: "_Leaving", second: "_Second", report: Upgraded) -> Upgraded:
    """It has gone over: the first QEMU has ended, and the second one takes its place for good."""
    ledger = leaving.ledger
    notices = [*second.notices, *finish_switch(leaving.host, ledger)]
    if leaving.paused:
        notices += connect_nics(runtime_of(ledger.document))
    complete(ledger)
    return structs.replace(report, version=runtime_of(ledger.document).version, notices=notices)


def _settle(host: Host, ledger: Ledger, second: "_Second", error: BaseException) -> None:
    """After a failure: as after a crash. Where even that fails, the intent stays, for whoever comes next."""
    try:
        if second.refused and has_switched(ledger.document):  # it has not run: it is the machine no more
            exchange(ledger.document)
            ledger.step(_STEPS[Phase.BACK])
        mend(host, ledger, ANSWER_TIMEOUT)
    except (DroverError, OSError) as failure:
        error.add_note(f"undo of the upgrade failed: {failure}")


class _Leaving(Departure):
    """The machine, in the hands of whoever moves it.

    :ivar parcel: as the second QEMU is to have it; None: it runs what it is to run
    :ivar paused: it is to stand still
    :ivar blind: QEMU does not see all that it writes while it is sent: it stands still from the beginning
    """

    operation = UPGRADE

    def __init__(self, instance: Instance, emulator: str) -> None:
        super().__init__(instance.host, instance.name, instance.lock_timeout)
        self._emulator = emulator
        self.parcel: Parcel | None = None
        self.paused = self.blind = False

    def gone(self) -> None:
        """The document says so already."""

    def _examine(self, vm: QmpConnection) -> None:
        old = runtime_of(self.ledger.document)
        if not is_wanted(old, self._emulator):
            return
        self.parcel, self.paused = parcel_for(old, vm, self._emulator)
        self.blind = loses_writes(old.accelerator, old.version)
        self.capabilities = frozenset(vm.get_migration_capabilities())


class _Record(Register):
    """The owner record: the machine's own document, which nobody else changes meanwhile.

    :param writing: held by whoever writes it
    """

    def __init__(self, host: Host, ledger: Ledger, writing: threading.Lock) -> None:
        self._boot_id = host.boot_id
        self._ledger = ledger
        self._writing = writing

    def now(self) -> Owner:
        """The record as it is."""
        document, pending = self._ledger.document, self._ledger.document.pending
        assert pending is not None
        generation, phase = runtime_of(document).generation, Phase(pending.arguments["phase"])
        return self.run(generation, epoch=document.epoch, phase=phase)

    def run(self, generation: int, *, epoch: int = 1, phase: Phase = Phase.RUNNING) -> Owner:
        """A run of the machine, as the record names it."""
        incarnation = f"{self._ledger.document.spec.uuid}/{generation}"
        return Owner(node=_HERE, boot_id=self._boot_id, incarnation=incarnation, epoch=epoch, phase=phase)

    async def read(self) -> Owner | None:
        return self.now()

    async def swap(self, expect: Owner, new: Owner) -> Owner:
        return await asyncio.to_thread(self._swap, expect, new)

    def _swap(self, expect: Owner, new: Owner) -> Owner:
        ledger = self._ledger
        with self._writing:
            if (now := self.now()) != expect:
                return now
            moves = not now.same_process(new)
            try:
                if moves:
                    exchange(ledger.document)
                ledger.document.epoch = new.epoch
                if has_switched(ledger.document) and not moves:  # it stays the machine, whatever comes
                    ledger.step(SWITCHED, phase=str(new.phase))
                else:
                    ledger.step(_STEPS[new.phase], phase=str(new.phase))
            except OSError:
                ledger.document = load(ledger.paths.document)  # what is written is so
                raise
            return new


class _Second(Waiting):
    """The QEMU that waits.

    :ivar notices: what the host lacks, in words
    :ivar error: why it did not come up; None: it did, as far as is known
    :ivar refused: it has the machine, and QEMU does not let it run: why; empty: it does, as far as is known
    :ivar ours: the end of the pair that the machine is sent into; open within the block
    """

    def __init__(self, host: Host, leaving: _Leaving, parcel: Parcel) -> None:
        super().__init__()
        self.notices: list[str] = []
        self.error: DroverError | OSError | None = None
        self.refused, self._killed = "", False
        self.writing = threading.Lock()
        self._host = host
        self._parcel = parcel
        self._mark = "" if runtime_of(leaving.ledger.document).mark else _MARK
        self._beside = Beside(leaving.ledger, self.writing)
        self._launching = asyncio.Lock()
        self.ours, self._theirs = socket.socketpair()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self._theirs.close()

    @property
    def died(self) -> bool:
        """Whether it has ended by itself."""
        return self._qemu is not None and self._qemu.gone and not self._killed

    async def launch(self) -> None:
        async with self._launching:
            try:
                await asyncio.to_thread(self._launch)
            except (DroverError, OSError) as error:
                self.error = error
                raise
            process = running(self._host, self._beside)
            if process is not None:
                self._listen(self._beside.paths.socket("control"), process)

    def _launch(self) -> None:
        new, self.notices = launch.start_beside(self._host, self._beside, self._parcel, self._mark)
        with new, self._theirs:
            new.reset_migration_capabilities(TARGET)
            new.migrate_incoming(fd=self._theirs.fileno())

    async def cont(self) -> None:
        self.notices += await asyncio.to_thread(connect_nics, runtime_of(self._beside.document))
        try:
            await self._run()
        except CommandError as error:
            self.refused = str(error)
            raise
        self.refused = ""

    async def reopen(self) -> None:
        raise NotSupported("postcopy", by="a machine that stays on its host")

    async def kill(self) -> None:
        async with self._launching:  # what comes up only then is not forgotten
            self._killed = True
            await super().kill()


class _First(Source):
    """The QEMU that the machine leaves.

    :param stands: called when the guest was made to stand still
    """

    def __init__(self, leaving: _Leaving, settings: Settings, second: _Second, stands: Callable[[], None]) -> None:
        super().__init__(leaving.host, leaving, settings, Disks(), paused=leaving.paused)
        self._leaving = leaving
        self._second = second
        self._stands = stands

    async def prepare(self) -> None:
        await self._qemu.tell(lambda vm: vm.reset_migration_capabilities({}))  # of a migration before
        await super().prepare()

    async def send(self) -> None:
        self._sent = True
        if self._leaving.blind:
            await self.stand_still()
        await asyncio.to_thread(self._write)
        with self._second.ours as ours:
            await self._qemu.tell(lambda vm: vm.migrate(fd=ours.fileno()))

    async def stand_still(self) -> None:
        """Have the guest write nothing more."""
        await self._qemu.tell(lambda vm: vm.stop())
        self._stands()

    def _write(self) -> None:
        with self._second.writing:
            self._leaving.ledger.step("send")


class _Neighbour(Peer):
    """The side that the machine comes to: driven by its own table, in this process.

    :param hear: called with what it says
    """

    def __init__(self, newcomer: Newcomer, register: Register, second: _Second) -> None:
        self.hear: Callable[[TargetSaid | TargetDid], None]
        self.host = driver.Host(Arrival(newcomer), register, second, self._answer)
        second.hear = self.host.hear
        self._newcomer = newcomer
        self._order = itertools.count(1)
        self._begun = False

    async def ask(self, verb: TargetVerb, epoch: int) -> None:
        if self._begun:
            self.host.hear(Asked(verb, epoch))
        elif verb is TargetVerb.ACCEPT:
            self._begun = True
            self.host.hear(Begin())
        else:  # it was never started
            self.hear(TargetSaid(self._newcomer.process.incarnation, next(self._order), gone=True))

    def _answer(self, told: Tell | TellDid) -> None:
        if isinstance(told, TellDid):
            self.hear(TargetDid(told.verb, told.why))
            return
        known = self.host.arrival.known
        qemu, incarnation = known.qemu, self._newcomer.process.incarnation
        self.hear(
            TargetSaid(incarnation, next(self._order), qemu.status, qemu.run, qemu.gone, known.ran, told.refused)
        )


class _LocalPace(Pace):
    """One that has a lever more, which always does: the guest stands still for the rest."""

    stand_still: Callable[[], None]
    _stands = False

    def _give_up(self, why: str) -> None:
        if self._stands:
            super()._give_up(why)
            return
        self._stands = True
        self._terms = structs.replace(self._terms, deadline=self._at() + _REST)
        self.pulled.append(f"it stands still until all is sent: {why}")
        self.stand_still()


class _Move:
    """All that drives it."""

    def __init__(self, leaving: _Leaving, second: _Second) -> None:
        ledger = leaving.ledger
        self._name = ledger.name
        self._second = second
        self._leaving = leaving
        self._cancelled = False
        self._doubt: asyncio.TimerHandle | None = None
        self._news: asyncio.Queue[Begun | View] = asyncio.Queue()
        self._tasks: set[asyncio.Future[None]] = set()
        self.account = Account(time.monotonic(), self._news.put_nowait)
        terms = _terms(leaving)
        capabilities, _, parameters = arming(terms)
        self._source = _First(
            leaving, Settings(capabilities=capabilities, parameters=parameters), second, self.account.stands
        )
        record = _Record(leaving.host, ledger, second.writing)
        source, target = record.now(), record.run(ledger.document.generation + 1)
        newcomer = Newcomer(machine=self._name, process=target, epoch=source.epoch + 1, paused=leaving.paused)
        self._neighbour = _Neighbour(newcomer, record, second)
        plan = Plan(machine=self._name, source=source, target=target, paused=leaving.paused)
        self._driver = Driver(Machine(plan), record, self._source, self._neighbour, self._told)
        self._neighbour.hear = self._hears
        self._source.hear = self._driver.hear
        self._pace = _LocalPace(
            self._driver, self._source, terms, self.account.at, self.account.seen, lambda *_: None, _keep_nothing
        )
        self._pace.stand_still = lambda: self._spawn(self._stand_still())
        self._source.levers = self._pace.levers

    async def run(self) -> Upgraded:
        """Drive it to its end.

        :raises DroverError: it did not go over
        """
        self._source.start()
        self._spawn(self._pace.run())
        self._spawn(self._tell())
        try:
            end = await self._driver.run(again=False)
            if end.result is not Result.DONE:
                raise self._failure(end)
            return self._report()
        finally:
            for task in self._tasks:
                task.cancel()
            self._driver.stop()
            self._neighbour.host.stop()
            await self._second.close()
            await self._source.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    async def _tell(self) -> None:
        """Tell how far it is, and ask whether it is to end."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    news = await self._news.get()
                await asyncio.to_thread(tell, news)
            if witness().wants_end() and not self._cancelled:
                self._cancelled = True
                self._driver.hear(Cancel())

    async def _stand_still(self) -> None:
        with suppress(DroverError):  # then it is given up at the next look
            await self._source.stand_still()

    def _hears(self, said: TargetSaid | TargetDid) -> None:
        if isinstance(said, TargetSaid) and said.run == "running":
            self.account.runs()
        self._driver.hear(said)
        if self._second.refused:  # it has not run, and the first one can: no reason to let the guest stand still
            self._end(f"its second QEMU does not let it run: {self._second.refused}")

    def _told(self) -> None:
        """It is in another state, maybe."""
        machine, alarm = self._driver.machine, self._driver.alarm
        self.account.comes_to(machine.step)
        if machine.state is State.DOUBT and self._doubt is None:
            self._doubt = asyncio.get_running_loop().call_later(_DOUBT, self._end_in_doubt)
        elif machine.state is not State.DOUBT and self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        if alarm is not None and alarm.text not in self.account.alarms:
            self.account.alarms.append(alarm.text)

    def _end_in_doubt(self) -> None:
        self._end(self.account.alarms[-1] if self.account.alarms else "nobody can tell how it is")

    def _end(self, why: str) -> None:
        """Drive it no further; what became of it, the document says."""
        if not self._driver.ended.done():
            self._driver.ended.set_exception(MigrationError(f"{self._name}: {why}"))

    def _failure(self, end: End) -> Exception:
        second, name = self._second, self._name
        if second.error is not None:
            return second.error
        if self._cancelled:
            return OperationCancelled(name, UPGRADE)
        if second.died:
            return StartFailed(name, "the second QEMU did not take the machine", log_tail(self._leaving.ledger))
        stays = "stays where it was" if end.result is Result.FAILED else "is lost, and can be started"
        return MigrationError(f"{name} {stays}: {self._pace.gave_up or end.why}", str(end.result))

    def _report(self) -> Upgraded:
        told = self.account.report(self._pace, self._source.qemu)
        return Upgraded(
            moved=True, version=(0, 0, 0), seconds=told["seconds"], steps=told["steps"],
            blackout=told.get("blackout_ms", 0.0) / 1000, qemu_blackout=told.get("qemu_blackout_ms", 0) / 1000,
            transferred=told["transferred"], rounds=told["rounds"], helped=told["helped"],
        )  # fmt: skip


def _terms(leaving: _Leaving) -> Terms:
    """What may be done so that it comes to its end; what may be on this host's side may be on the other, too."""
    parcel = leaving.parcel
    assert parcel is not None
    able = leaving.capabilities
    return agree(Wishes(deadline=_PATIENCE), able, able, memory=parcel.spec.memory.size)


async def _keep_nothing(_: object) -> None:
    """Nobody takes it up where it was: whoever comes after a crash sets the levers back."""
