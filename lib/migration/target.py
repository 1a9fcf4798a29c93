"""The side that a machine comes to: a QEMU that waits for it, its document under its lock as soon as there is one."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec

from ..errors import CommandError, DroverError, InstanceNotFound, MonitorError
from ..kvm import logs
from ..kvm.ending import conclude, log_tail, running
from ..kvm.ends import Stop
from ..kvm.faults import take_back
from ..kvm.handover import to_dial
from ..kvm.keys import are_placed, sweep
from ..kvm.kinds import connect_nics
from ..kvm.ledger import Ledger, opened
from ..kvm.node import Node
from ..kvm.process import Process
from ..kvm.record import replace
from ..ops.migration_tls import AUTHORIZED, CREDENTIALS
from ..ops.rescue import YankInstance
from . import disks
from .letters import Invitation
from .ports import Incoming
from .qemu import GONE, Qemu
from .source import end
from .storage import Plan
from .words import QemuSaid

log = logging.getLogger("drover.migration")

_NOTICES: Final = 5.0  # s that a QEMU takes at most to see that its connection is cut
_LACKS: Final = ("postcopy", "setup")  # 7.2 says setup for a moment when it listens anew
_MIGRATION: Final = (YankInstance("migration"),)


class Keep:
    """The images that were made for a machine that comes, until it has come or belongs elsewhere. Blocks.

    :param folder: of what lasts
    :param name: of the machine
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._images = folder / name
        self._plan = folder / f"{name}.json"

    def make(self, plan: Plan) -> None:
        """Make them."""
        if not plan.made:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(self._plan, msgspec.json.encode(plan))
        disks.make_images(plan, self._images)

    def plan(self) -> Plan:
        """What becomes of them."""
        try:
            return msgspec.json.decode(self._plan.read_bytes(), type=Plan)
        except FileNotFoundError:
            return Plan()

    def keep(self) -> None:
        """It runs with them."""
        if self._plan.exists():
            disks.keep_images(self._images)
            self._plan.unlink()

    def drop(self) -> None:
        """Remove them: their QEMU is dead, and has never run."""
        if self._plan.exists():
            disks.drop_images(self._images)
            self._plan.unlink()


class Waiting(Incoming):
    """A QEMU that waits for its machine, wherever that comes from.

    :ivar hear: called with what it says; to be set before anything is done
    """

    hear: Callable[[QemuSaid], None]

    def __init__(self) -> None:
        self._qemu: Qemu | None = None
        self._announcing: asyncio.Task[None] | None = None

    async def ask(self) -> QemuSaid:
        return GONE if self._qemu is None else await self._qemu.ask()

    async def kill(self) -> None:
        if self._qemu is not None:
            await end(self._qemu)
        self.hear(GONE)

    async def close(self) -> None:
        """Let go of it; it goes on."""
        if self._announcing is not None:
            self._announcing.cancel()
            with suppress(asyncio.CancelledError):
                await self._announcing
        if self._qemu is not None:
            await self._qemu.close()

    def _listen(self, path: Path, process: Process) -> None:
        """Begin to listen to it.

        :param path: of its control socket
        """
        self._qemu = Qemu(path, process, self.hear, trusts_events=True)
        self._qemu.start()

    async def _run(self) -> None:
        await self._told.tell(lambda vm: vm.cont())
        self._announcing = asyncio.create_task(self._announce())  # nobody waits for that

    async def _announce(self) -> None:
        with suppress(DroverError):  # its QEMU announces it by itself, too, if later
            await self._told.tell(lambda vm: vm.announce_arrival())

    @property
    def _told(self) -> Qemu:
        if self._qemu is None:
            raise MonitorError("its process is dead")
        return self._qemu


class Target(Waiting):
    """The QEMU that waits for a machine of another node, and what is kept of it.

    :ivar listens: where it listens, in QEMU's words; empty: nowhere yet
    :ivar exports: where it exports disks, a host and a port; empty: nowhere
    :ivar ledger: its document; None before it is launched, or where there is none any more
    :ivar at: the address of this host that it is to listen at, as the other node reaches it
    :ivar console: what its guest wrote last on its console before it came
    :param name: of the machine
    :param host: see `at`
    :param invitation: None where it was launched by an earlier life of the daemon
    """

    def __init__(self, node: Node, name: str, host: str, invitation: Invitation | None = None) -> None:
        super().__init__()
        self.listens = self.exports = ""
        self.console = b""
        self.ledger: Ledger | None = None
        self._node = node
        self._name = name
        self.at = host
        self._invitation = invitation
        self._stack = ExitStack()
        self._again = invitation is None
        self._keep = Keep(node.host.paths.along, name)

    async def launch(self) -> None:
        """Start it, as :meth:`.ports.Incoming.launch`; export the disks that are to be filled."""
        asked = self._invitation
        assert asked is not None
        try:
            uri, status = await asyncio.to_thread(self._accept, asked)
            self.hear(QemuSaid(status))  # whoever waits for that need not wait until we have a connection, too
        finally:  # where it waits, but that cannot be written down, it has to be ended
            self._follow()
        self._undelay(uri)
        if _serves(asked.disks):
            await self._serve(asked.disks, secured=asked.keys is not None)
            await self._listens_at(uri)
        self.listens = uri

    def _accept(self, asked: Invitation) -> tuple[str, str]:
        """Have it wait, and keep its lock from then on; where it listens, and what it says of that. Blocks."""
        self._keep.make(asked.disks)
        uri = f"{asked.scheme}:{_bracketed(self.at)}:0"
        arrival = self._node.accept(
            asked.parcel, uri, epoch=asked.epoch, other=asked.other, settings=asked.settings, emulator=asked.emulator,
            home=asked.home, process=asked.process.incarnation, keys=asked.keys, paused=asked.paused,
            exports=_serves(asked.disks),
        )  # fmt: skip
        self._take()
        return to_dial(arrival.listens, uri), arrival.status

    async def hold(self) -> None:
        """Take hold of it, if it runs."""
        await asyncio.to_thread(self._take)
        if self.ledger is not None and (passage := self.ledger.document.passage) is not None:
            self.listens, self.exports = passage.listens, passage.exports
        self._follow()

    def _undelay(self, uri: str) -> None:
        try:
            if self._qemu is not None and uri.startswith("tcp:"):
                self._qemu.undelay(int(uri.rpartition(":")[2]))
        except OSError as error:  # then the kernel takes its time by chance
            log.info("%s: its QEMU may answer late: %s", self._name, error, extra={"instance": self._name})

    def _follow(self) -> None:
        if self.ledger is not None and (process := running(self._node.host, self.ledger)) is not None:
            self._listen(self.ledger.paths.socket("control"), process)

    async def go_over(self) -> None:
        """Export the disks: what is beneath them is there."""
        plan = await asyncio.to_thread(self._keep.plan)
        await self._told.tell(lambda vm: vm.perform(lambda port: disks.go_over_to_disks(port, plan)))

    async def cont(self) -> None:
        await self.take_over()
        await self._run()

    async def take_over(self) -> None:
        """Have its disks and cards for itself: what it needs to run."""
        if self.exports or self._again:
            plan = await asyncio.to_thread(self._keep.plan)
            await self._told.tell(lambda vm: vm.perform(lambda port: disks.close(port, plan)))
        await asyncio.to_thread(self._make_ready)

    def _make_ready(self) -> None:
        """Let packets through to it from now on, and its console go on. What of that cannot be keeps it from nothing.

        All this time the guest stands still.
        """
        if self.ledger is None or self.ledger.document.runtime is None:
            return
        notices = connect_nics(self.ledger.document.runtime)
        try:
            if self.ledger.paths.console_log.exists():
                logs.take_over(self.ledger.paths.console_log, self.console)
        except OSError as error:
            notices.append(f"its console's log does not go on: {error}")
        for notice in notices:
            log.warning("%s: %s", self._name, notice, extra={"instance": self._name})

    async def reopen(self) -> None:
        qemu = self._told
        await _pause(qemu)
        uri = f"tcp:{_bracketed(self.at)}:0"
        await qemu.tell(lambda vm: vm.migrate_recover(uri))
        uri = to_dial((await qemu.tell(lambda vm: vm.query_migrate())).socket_address, uri)
        self._undelay(uri)
        await self._listens_at(uri)

    async def has_all(self) -> None:
        """Wait until nothing of it is left on the other side, or its QEMU has ended."""
        while self._qemu is not None and not self._qemu.gone and self._qemu.said.status.startswith(_LACKS):
            await self._qemu.news()

    async def disarm(self) -> None:
        """It has come, with all of it: its keys are of no use any more."""
        if self.ledger is None or not are_placed(self.ledger.paths.private):
            return
        with suppress(DroverError):  # whoever comes next does it then
            await self._told.tell(lambda vm: vm.disarm_tls())
            await asyncio.to_thread(sweep, self.ledger.paths.private)

    def arrived(self) -> None:
        """Write down that it is here, and belongs here. Blocks."""
        ledger = self.ledger
        assert ledger is not None
        document = ledger.document
        paused = document.passage is not None and document.passage.paused
        document.passage = None
        if document.runtime is not None:
            document.runtime.paused = paused
            take_back(document.runtime.uid)
        ledger.commit()
        self._keep.keep()

    def ended(self) -> None:
        """Write down that its QEMU has ended, if there was one. Blocks."""
        if self.ledger is not None and self.ledger.document.runtime is not None:
            if said := log_tail(self.ledger):  # such as what of the machine's state it could not read
                log.warning("%s did not come; its QEMU said last: %s", self._name, said, extra={"instance": self._name})
            stop = Stop(reason="migrated", at=0, detail="it did not come")
            conclude(self._node.host, self.ledger, stop)

    def forget(self) -> None:
        """It belongs elsewhere: remove what was made for it. Blocks."""
        self._keep.drop()

    async def close(self) -> None:
        """Let go of it; it goes on."""
        await super().close()
        self._stack.close()

    async def _serve(self, plan: Plan, *, secured: bool) -> None:
        """Export what is to be filled."""
        family = socket.AF_INET6 if ":" in self.at else socket.AF_INET
        with socket.create_server((self.at, 0), family=family) as listener:
            fd = listener.fileno()
            tls = {"tls_creds": CREDENTIALS, "tls_authz": AUTHORIZED} if secured else {}
            await self._told.tell(lambda vm: vm.perform(lambda port: disks.serve(port, plan, fd=fd, **tls)))
            self.exports = f"{'' if ':' in self.at else 'tcp:'}{_bracketed(self.at)}:{listener.getsockname()[1]}"

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _listens_at(self, uri: str) -> None:
        """It listens there: whoever takes this up after a crash has to know, and cannot ask QEMU for all of it."""
        self.listens = uri
        await asyncio.to_thread(self._note, uri)

    def _note(self, listens: str) -> None:
        if self.ledger is not None and (passage := self.ledger.document.passage) is not None:
            self.ledger.document.passage = passage.heard_at(listens, self.exports)
            self.ledger.save()

    def _take(self) -> None:
        try:
            self.ledger = self._stack.enter_context(opened(self._node.host.paths, self._name, "accept"))
        except InstanceNotFound:
            self.ledger = None


def _serves(plan: Plan) -> bool:
    """Whether there is something to be filled."""
    return bool(plan.copies or plan.mirrors)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _pause(qemu: Qemu) -> None:
    """Have it see that its postcopy is cut: it does by itself, unless the network is silent.

    Not by ``migrate-pause``: that looks at a connection which QEMU may just have taken away, and kills the machine.
    ``yank`` may come at any time; QEMU before 6.0 has none, and has to see it by itself. If it still sees nothing, what
    is asked of it next is refused.
    """

    def sees_it() -> bool:
        return qemu.gone or qemu.said.status == "postcopy-paused"

    with suppress(TimeoutError):
        async with asyncio.timeout(_NOTICES):
            while not sees_it():
                with suppress(CommandError):
                    await qemu.tell(lambda vm: vm.yank(_MIGRATION))
                if not sees_it():
                    await qemu.news()
