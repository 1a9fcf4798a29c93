"""The side of a machine that leaves: its QEMU, told by one connection, and its document, under its lock all the way."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from ..errors import DroverError, JobError, MigrationError, MonitorError, WrongState
from ..kvm import logs
from ..kvm.deadlines import ANSWER_TIMEOUT
from ..kvm.ending import QUIT_GRACE, conclude, running, why_it_ended
from ..kvm.ends import Stop
from ..kvm.handover import Settings, source_settings
from ..kvm.host import Host
from ..kvm.keys import Keys, are_placed, folder_of, place, sweep
from ..kvm.ledger import Ledger, opened
from ..kvm.lock import LOCK_TIMEOUT
from ..kvm.mend import attach
from ..kvm.process import stuck
from ..kvm.record import LEAVE, Passage, Runtime, check_settled, runtime_of
from ..kvm.state import State
from ..monitor.connection import QmpConnection
from ..ops.migration_tls import CREDENTIALS
from ..ops.mirrors import Mirror, MirrorProgress
from ..ops.nbd import Nbd
from ..ops.port import Port
from . import disks
from .checks import Need
from .combinations import Feature
from .needs import examined
from .ports import Side
from .qemu import GONE, Qemu
from .storage import Plan
from .words import End, QemuSaid, Result

_CONSOLE: Final = 64 << 10  # bytes: some 1,000 lines, sent while the guest stands still
_LOCKED_BESIDES: Final = 64 << 20  # bytes: ROMs, the screen, and headers
_KILL: Final = 30.0  # s that the kernel may take to end what was killed
# Seconds between two looks whether QEMU hangs in a handshake, and until it is taken to: the guest stands still so long.
_LOOK, _PATIENCE = 1.0, 2.0
# How often it is looked whether QEMU has let go of what was cancelled, seconds between two looks, and at which one it
# is taken not to do so by itself.
_LOOKS, _SOON, _ITSELF = 20, 0.1, 3
# Statuses in which the last handshake there was is over.
_BEYOND: Final = frozenset({"active", "pre-switchover", "device", "completed", "postcopy-active"})
log = logging.getLogger("drover.migration")


class Departure:
    """A machine that is to leave, in the hands of whoever moves it: nobody else changes it meanwhile.

    :cvar operation: what it is taken for
    :ivar ledger: its document
    :ivar need: what it needs of the other node; None where it cannot be asked any more
    :ivar capabilities: of migration, that its QEMU has
    :ivar theirs: keys of TLS for the other side; None where there are none, or are known no more
    """

    operation: ClassVar[str] = "migrate"

    def __init__(self, host: Host, name: str, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.host = host
        self._name = name
        self._lock_timeout = lock_timeout
        self._stack = ExitStack()
        self.need: Need | None = None
        self.capabilities: frozenset[str] = frozenset()
        self.theirs: Keys | None = None
        self.ledger: Ledger
        self._writing = threading.Lock()  # whoever has its QEMU end may be at it still when it has ended
        self._over = False

    def begin(self, *, again: bool) -> None:
        """Take it. Blocks.

        :param again: somebody had it before, and ended in the middle: it is taken as it is, and not asked
        :raises InstanceBusy: somebody else works on it
        :raises WrongState: it does not run
        """
        with ExitStack() as stack:
            self.ledger = stack.enter_context(opened(self.host.paths, self._name, self.operation, self._lock_timeout))
            if not again:
                check_settled(self.ledger.document, State.RUNNING)
                with ExitStack() as talk:
                    _, vm = attach(self.host, self.ledger, ANSWER_TIMEOUT, talk)
                    if vm is None:
                        raise WrongState(self._name, State.STOPPED, State.RUNNING)
                    self._examine(vm)
            self._stack = stack.pop_all()

    def place(self, keys: Keys) -> None:
        """Put the keys of TLS where its QEMU, and whoever takes this up, finds them. Blocks.

        :raises OSError: they could not be written
        """
        place(self.ledger.paths.private, keys, runtime_of(self.ledger.document).uid)

    def set_out(self, epoch: int, other: str) -> None:
        """Write down that it is on its way, before anybody else does."""
        document = self.ledger.document
        document.passage = Passage(way="out", epoch=epoch, other=other, tls=self.theirs is not None)
        document.epoch = epoch
        self.ledger.save()

    def console(self) -> bytes:
        """The end of what its guest wrote on its console, for the log of it on the other node."""
        with suppress(OSError):
            return logs.tail(self.ledger.paths.console_log, _CONSOLE)
        return b""

    def gone(self) -> None:
        """Write down that it runs elsewhere: its QEMU here may end."""
        with self._writing:
            passage = self.ledger.document.passage
            if passage is not None and not self._over:
                self.ledger.document.passage = passage.at_its_end()
                self.ledger.begin(LEAVE)

    def end(self, end: End, *, dead: bool, elsewhere: bool) -> None:
        """Write down what became of it. Blocks. May be repeated.

        :param dead: its QEMU here has ended
        :param elsewhere: the owner record names the other node
        """
        with self._writing:
            self._over = True
            self._end(end, dead=dead, elsewhere=elsewhere)

    def _end(self, end: End, *, dead: bool, elsewhere: bool) -> None:
        ledger = self.ledger
        document = ledger.document
        passage = document.passage
        if passage is not None and passage.way == "out":
            if elsewhere:
                document.passage = passage.at_its_end()
            elif end.result is Result.LOST and not dead:
                document.passage = passage.torn()  # what is left of it must not run on
            else:
                document.passage = None
        if not dead:
            ledger.commit()
        elif document.runtime is not None:
            moved = Stop(reason="migrated", at=0, detail=f"it went to {passage.other if passage else 'another node'}")
            conclude(self.host, ledger, moved if elsewhere else why_it_ended(self.host, ledger))
        else:
            ledger.commit()

    def close(self) -> None:
        """Let go of it."""
        self._stack.close()

    def _examine(self, vm: QmpConnection) -> None:
        self.need = examined(runtime_of(self.ledger.document), vm)
        self.capabilities = frozenset(vm.get_migration_capabilities())


class Source(Side):
    """Its QEMU.

    :ivar where: the address that the other side listens at, as soon as it is known
    :ivar exports: where the other side exports disks: a host and a port; as soon as it is known
    :ivar go_over: has the other side export the disks, once what is beneath them is there
    :ivar copied: how far the disks are
    :ivar qemu: None where it was dead when it was first looked at
    :ivar hear: called with what it says; to be set before :meth:`start`
    :ivar broke: called where a disk that was in step is not any more, with what happened; likewise
    :ivar levers: how what may speed it up is to stand now; likewise
    :param settings: how it goes over
    :param plan: what becomes of its disks
    :param peer: whom the other side's certificate has to name; empty: all goes over in the clear
    :param paused: its guest stands still, and is to
    """

    hear: Callable[[QemuSaid], None]
    broke: Callable[[str], None]
    levers: Callable[[], dict[str, int]]
    go_over: Callable[[], Awaitable[None]]

    def __init__(
        self, host: Host, departure: Departure, settings: Settings, plan: Plan, peer: str = "", *, paused: bool
    ) -> None:
        self.where = self.exports = ""
        self.copied: MirrorProgress | None = None
        self._plan = plan
        self._sent = False
        self._speed = 0
        self._mirroring: Sequence[Mirror] = plan.mirrors
        self._disks_watch: asyncio.Task[None] | None = None
        self._departure = departure
        self._settings = settings
        self._peer = peer
        self._paused = paused
        self._watching: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[dict[str, int]] | None = None
        self.qemu: Qemu | None = None
        if (process := running(host, departure.ledger)) is not None:
            self.qemu = Qemu(departure.ledger.paths.socket("control"), process, self._says)

    @property
    def dead(self) -> bool:
        """Whether its process has ended."""
        return self.qemu is None or self.qemu.gone

    def start(self) -> None:
        """Begin to listen to it."""
        if self.qemu is not None:
            self.qemu.start()
            self._watching = asyncio.create_task(self._watch(self.qemu), name=f"connections of {self.qemu.pid}")

    def get_ready(self) -> None:
        """Begin with what :meth:`prepare` does: until that is wanted the other side has to start a QEMU."""
        self._preparing = asyncio.create_task(self._arm(), name="source arms")
        self._preparing.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may not be wanted

    async def close(self) -> None:
        """Let go of it."""
        for task in (self._watching, self._preparing):
            if task is not None:
                task.cancel()
        await self._watch_no_more()
        if self.qemu is not None:
            await self.qemu.close()

    async def ask(self) -> QemuSaid:
        return GONE if self.qemu is None else await self.qemu.ask()

    async def prepare(self) -> None:
        begun, self._preparing = self._preparing, None
        stood = await (self._arm() if begun is None else begun)
        if (levers := self.levers()) != stood:  # another one was pulled meanwhile, and may have been overtaken
            await self._qemu.tell(lambda vm: vm.set_migration_parameters(levers))

    async def mirror(self) -> None:
        if not self.exports:
            raise MigrationError("the other node has not said where it exports the disks")
        credentials = CREDENTIALS if self._peer else None
        plan, server = self._plan, Nbd(address=self.exports, tls_creds=credentials, tls_hostname=self._peer or None)

        def copied(port: Port) -> Coroutine[Any, Any, None]:
            return disks.mirror(port, plan, server, self.go_over, speeds=self._speeds, progress=self._is_copied)

        await self._qemu.tell(lambda vm: vm.perform(copied))
        await self._watch_no_more()
        self._watch_them()

    def watch_over(self) -> None:
        """The memory goes: see that the disks stay in step meanwhile, whoever brought them there. May be repeated."""
        self._sent = True
        if self._plan.mirrors and self._disks_watch is None:
            self._watch_them()

    async def set_speed(self, rate: int) -> None:
        """Limit how fast disks are copied.

        :param rate: bytes a second, of all of them together; 0: no limit
        """
        self._speed = rate
        if self._mirroring:
            speeds = self._speeds(self._mirroring)
            await self._qemu.tell(lambda vm: vm.set_mirror_speeds(speeds))

    async def send(self) -> None:
        if not self.where:
            raise MigrationError("the other node has not said where its QEMU listens")
        self._sent = True
        await self._dial()

    async def postcopy(self) -> None:
        await self._qemu.tell(lambda vm: vm.migrate_start_postcopy())

    async def sync(self) -> None:
        await self._watch_no_more()
        await self._qemu.tell(lambda vm: vm.perform(lambda port: disks.sync(port, self._plan)))

    async def go_on(self) -> None:
        await self._qemu.tell(lambda vm: vm.migrate_continue())

    async def cancel(self) -> None:
        await self._watch_no_more()
        plan = self._plan
        along = [*plan.mirrors, *plan.copies]
        if along:  # else what QEMU waits for there holds it up
            await self._qemu.tell(lambda vm: vm.cut_mirrors(along))
        await self._qemu.tell(lambda vm: vm.execute("migrate_cancel"))
        if along:
            streamed = self._sent
            await self._qemu.tell(lambda vm: vm.perform(lambda port: disks.cancel(port, plan, streamed=streamed)))

    async def tidy(self) -> None:
        """It stays here: take away what was begun for its disks, and its keys."""
        plan, streamed = self._plan, self._sent
        if self._preparing is not None:  # nobody came to want it
            await asyncio.wait([self._preparing], timeout=ANSWER_TIMEOUT)
            self._preparing.cancel()  # its QEMU hangs
        if self.dead:
            return
        with suppress(DroverError, TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._let_go()
        if plan.mirrors or plan.copies:
            with suppress(DroverError):
                await self._qemu.tell(lambda vm: vm.perform(lambda port: disks.cancel(port, plan, streamed=streamed)))
        if self._peer and are_placed(self._private):
            with suppress(DroverError):  # whoever comes next does it then
                await self._qemu.tell(lambda vm: vm.disarm_tls())
                await asyncio.to_thread(sweep, self._private)

    async def cont(self) -> None:
        if self._paused:
            return
        await self._qemu.tell(lambda vm: vm.cont())

    async def rejoin(self) -> None:
        await self._dial(resume=True)

    async def quit(self) -> None:
        if self.qemu is None:
            return
        await asyncio.to_thread(self._departure.gone)
        with suppress(DroverError, TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self.qemu.tell(lambda vm: vm.execute("quit"))
        if not await self.qemu.wait_end(QUIT_GRACE):
            await self.kill()

    async def kill(self) -> None:
        """End it, whatever it does.

        :raises ProcessStuck: it sits in the kernel
        """
        if self.qemu is not None:
            await end(self.qemu)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _arm(self) -> dict[str, int]:
        """Have QEMU know how it is to send; how the levers stood then."""
        settings, levers = source_settings(self._settings), self.levers()
        if settings.capabilities.get(Feature.ZERO_COPY):
            self._let_lock()
        if self._peer:
            folder, peer = folder_of(self._private), self._peer
            await self._qemu.tell(lambda vm: vm.arm_tls_client(folder, peer, multifd=settings.multifd))
        else:
            await self._qemu.tell(lambda vm: vm.disarm_tls())  # of one before
        await self._qemu.tell(lambda vm: vm.arm_migration(settings.capabilities, settings.parameters | levers))
        return levers

    @property
    def _beyond(self) -> frozenset[str]:
        """Statuses in which the last handshake there was is over. The one of preempt comes while memory goes."""
        return _BEYOND - {"active"} if self._settings.capabilities.get(Feature.PREEMPT) else _BEYOND

    @property
    def _private(self) -> Path:
        return self._departure.ledger.paths.private

    async def _dial(self, **more: bool) -> None:
        where = self.where
        if self._peer:
            await self._qemu.tell(lambda vm: vm.check_tls_target(where))
        await self._qemu.tell(lambda vm: vm.execute("migrate", {"uri": where, **more}))

    async def _watch(self, qemu: Qemu) -> None:
        """Where the other side falls silent in a handshake, QEMU hangs, and the guest with it: it is freed.

        So it is of a connection that is still being made, where QEMU is "cancelling" until that has failed (7.2).
        """
        while not qemu.gone:
            await asyncio.sleep(_LOOK)
            if (before := qemu.said.status) in self._beyond:
                continue
            try:
                async with asyncio.timeout(_PATIENCE):
                    now = (await qemu.ask()).status
            except TimeoutError:
                await self._free(qemu, others=False)
            except DroverError as error:
                log.debug("it is not known whether QEMU hangs: %s", error)
            else:
                if before == now == "cancelling":
                    await self._free(qemu, others=True)

    async def _free(self, qemu: Qemu, *, others: bool) -> None:
        name = self._departure.ledger.document.spec.name
        about = {"instance": name}
        try:
            for whom in await asyncio.to_thread(qemu.sever, others=others):
                text = "%s: %s does not answer, and holds up QEMU: its connection was cut"
                log.warning(text, name, whom, extra=about)
        except OSError as error:
            log.error("%s: QEMU may hang on a connection, and that cannot be cut: %s", name, error, extra=about)

    async def _let_go(self) -> None:
        """Have it let go of a connection that it was still making when it was cancelled.

        QEMU 10.0 says at once that all is cancelled, takes no other migration for the two minutes that this lasts, and
        is in "setup" after it has refused one.
        """
        for look in range(_LOOKS):
            if not any(each.type == "migration" for each in await self._qemu.tell(lambda vm: vm.query_yank())):
                return
            if look == _ITSELF:
                await self._free(self._qemu, others=True)
            await asyncio.sleep(_SOON)
        name = self._departure.ledger.document.spec.name
        text = "%s: QEMU has not let go of the migration that was cancelled, and takes no other until it has"
        log.warning(text, name, extra={"instance": name})

    def _speeds(self, running: Sequence[Mirror]) -> dict[str, int]:
        """What each of those gets that run at once."""
        self._mirroring = running
        return {mirror.name: max(1, self._speed // len(running)) if self._speed else 0 for mirror in running}

    def _watch_them(self) -> None:
        self._disks_watch = asyncio.create_task(self._watch_disks(), name="watch of the disks")

    async def _watch_disks(self) -> None:
        """See that disks that are in step stay so: else the guest waits for its writes, and nobody says so."""
        while True:
            try:
                await self._qemu.tell(lambda vm: vm.perform(lambda port: disks.watch(port, self._plan)))
            except JobError as error:
                self.broke(str(error))
                return
            except DroverError:
                if self.dead:
                    return
                await asyncio.sleep(disks.LOOK)

    async def _watch_no_more(self) -> None:
        if self._disks_watch is not None:
            self._disks_watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._disks_watch
            self._disks_watch = None

    def _is_copied(self, progress: MirrorProgress) -> None:
        self.copied = progress

    def _let_lock(self) -> None:
        """What the kernel sends from where it lies it locks until that has arrived.

        It stays allowed: the QEMU ends with the migration, or has gained what its own memory may take.
        """
        try:
            self._qemu.let_lock(to_lock(runtime_of(self._departure.ledger.document)))
        except OSError as error:
            raise MigrationError(f"QEMU cannot be let lock memory: {error.strerror}") from error

    def _says(self, said: QemuSaid) -> None:
        self.hear(said)

    @property
    def _qemu(self) -> Qemu:
        if self.qemu is None:
            raise MonitorError("its process is dead")
        return self.qemu


def to_lock(runtime: Runtime) -> int:
    """Return the bytes that a QEMU has to be let lock which is to send memory from where it lies."""
    return runtime.spec.memory.size + _LOCKED_BESIDES


async def end(qemu: Qemu) -> None:
    """Kill a QEMU, and see it end.

    :raises ProcessStuck: it sits in the kernel
    """
    qemu.kill()
    if not await qemu.wait_end(_KILL):
        raise stuck(qemu.pid, _KILL)
