"""An instance on its way from one node to another: what each of the two nodes does, step by step.

Who orders the steps, and in which order that never lets two copies run, is `lib/migration`'s business. Here each step
is done on one node, and refuses what would be wrong there, whoever orders it: an instance that arrives is not started
but by its QEMU, one that has left is not started at all, and a call whose *epoch* is not that of the passage is one
from somebody who has been overtaken.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from msgspec import Struct, structs

from ..errors import ArgumentError, CommandError, MigrationError, Overtaken
from ..monitor.connection import QmpConnection
from ..ops.migration import MigrationInfo
from . import faults, launch
from .ending import QUIT_GRACE, conclude, end_process
from .ends import Stop
from .host import Host
from .keys import Keys, place
from .kinds import connect_nics
from .ledger import Ledger
from .packing import check_portable, parcel_of
from .parcel import Parcel
from .record import LEAVE, Passage, Way, runtime_of

# Of the run state of a QEMU whose machine has wholly gone: the only one that it never leaves by itself.
_SENT = "postmigrate"
_ARRIVED = "paused"
_POSTCOPY = "postcopy-ram"
log = logging.getLogger("drover.kvm")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a machine goes over: set, and read back, before anything moves.

    :ivar capabilities: of QEMU's, such as ``multifd``
    :ivar parameters: of QEMU's, such as ``max-bandwidth`` in bytes a second
    """

    capabilities: dict[str, bool] = {}
    parameters: dict[str, Any] = {}

    @property
    def multifd(self) -> bool:
        """Whether memory goes over several connections."""
        return self.capabilities.get("multifd", False)


class Going(Struct, frozen=True, kw_only=True):
    """How far an instance's passage is, as one side sees it.

    :ivar way: ``in``, ``out`` or ``gone``; empty: it is on none
    :ivar epoch: of the passage
    :ivar other: the node at the other end
    :ivar tls: its memory goes by TLS
    :ivar run_state: QEMU's own; empty where none runs
    :ivar migration: QEMU's own word of it
    """

    way: Way | str = ""
    epoch: int = 0
    other: str = ""
    tls: bool = False
    run_state: str = ""
    migration: MigrationInfo = MigrationInfo()


# Without these a source says that all is well though the other side has failed, and a paused target holds the disks.
SOURCE: Mapping[str, bool] = {"return-path": True, "events": True, "pause-before-switchover": True}
TARGET: Mapping[str, bool] = {"return-path": True, "events": True, "late-block-activate": True}


def receive(vm: QmpConnection, uri: str, settings: Settings, keys: Keys | None, ledger: Ledger) -> MigrationInfo:
    """Have a QEMU that was started for it listen for its machine.

    :returns: what it says then; where it listens is in it
    """
    if keys is not None:
        folder = place(ledger.paths.private, keys, runtime_of(ledger.document).uid)
        vm.arm_tls_server(folder, keys.peer, multifd=settings.multifd)
    if settings.capabilities.get(_POSTCOPY):
        faults.grant(runtime_of(ledger.document).uid)
    _apply(vm, settings, TARGET)
    return vm.migrate_incoming(uri)


class Arrival(Struct, frozen=True, kw_only=True):
    """Where an instance is awaited.

    :ivar listens: the addresses, in QEMU's words (``SocketAddress``)
    :ivar status: QEMU's own word of the migration, since it listens
    :ivar generation: of the QEMU that waits: with the instance's uuid it names it for ever
    :ivar version: of it
    :ivar notices: what the host lacks, in words
    """

    listens: list[dict[str, Any]]
    status: str
    generation: int
    version: tuple[int, int, int]
    notices: list[str] = []


class Handover(ABC):
    """The steps of one instance's passage."""

    host: Host
    name: str

    @abstractmethod
    def _running(self, operation: str, *, moving: bool = False) -> AbstractContextManager[tuple[Ledger, QmpConnection]]:
        """Its document under its lock, mended, and a connection to its QEMU."""

    @abstractmethod
    def _opened(self, operation: str, *, patient: bool = True) -> AbstractContextManager[Ledger]:
        """Its document under its lock, mended."""

    def parcel(self) -> Parcel:
        """What another node has to know to receive it.

        :raises NotSupported: it has something that cannot go over
        """
        with self._running("parcel", moving=True) as (ledger, vm):
            runtime = runtime_of(ledger.document)
            check_portable(runtime)
            return parcel_of(runtime, vm)

    def await_arrival(
        self,
        uri: str,
        *,
        epoch: int,
        settings: Settings = Settings(),  # noqa: B008
        keys: Keys | None = None,
        exports: bool = False,
    ) -> Arrival:
        """Start a QEMU that waits for its machine; nothing if one does. See :meth:`drover.kvm.node.Node.accept`.

        :param uri: where to listen: ``tcp:192.0.2.7:0``, ``unix:/path``
        :param keys: of TLS; None: it comes in the clear
        :param exports: it is ready only once it exports disks: where it listens is not written down yet
        """

        def take_in(ledger: Ledger, vm: QmpConnection) -> MigrationInfo:
            info = receive(vm, uri, settings, keys, ledger)
            if (passage := ledger.document.passage) is not None and not exports:
                ledger.document.passage = passage.heard_at(to_dial(info.socket_address, uri), "")
            return info

        with self._opened("accept") as ledger:
            self._passage(ledger, epoch, "in")
            if ledger.document.runtime is None:
                if settings.capabilities.get(_POSTCOPY):
                    faults.check(self.host.binary(ledger.document.spec.emulator).version, rootless=self.host.rootless)
                said: list[MigrationInfo] = []
                notices = launch.start(self.host, ledger, arrives=lambda vm: said.append(take_in(ledger, vm)))
                return _arrival(ledger, said[0], notices)
        with self._running("accept", moving=True) as (ledger, vm):
            if not (info := vm.query_migrate()).socket_address:  # its start was cut off
                info = take_in(ledger, vm)
                ledger.save()
            return _arrival(ledger, info, [])

    def send(self, uri: str, *, epoch: int, other: str, settings: Settings = Settings()) -> None:  # noqa: B008
        """Begin to send it. It runs on here, until it stands in ``pre-switchover``.

        :param uri: where the other side listens
        :param epoch: of the passage; higher than that of any before
        :param other: the node that it goes to
        :raises Overtaken: there was a later one
        """
        with self._running("migrate", moving=True) as (ledger, vm):
            document = ledger.document
            passage = document.passage
            if document.epoch >= epoch or (passage is not None and passage.way != "out"):
                raise Overtaken(self.name, epoch, str(passage or f"the last one was of epoch {document.epoch}"))
            check_portable(runtime_of(document))
            _apply(vm, settings, SOURCE)
            document.passage, document.epoch = Passage(way="out", epoch=epoch, other=other), epoch
            ledger.begin("migrate", uri=uri)  # from here on nobody starts it by itself
            try:
                vm.migrate(uri)
            except CommandError:
                document.passage = passage
                ledger.commit()
                raise
            ledger.commit()

    def switch_over(self, *, epoch: int) -> None:
        """Let a machine that stands in ``pre-switchover`` go over. From here on there may be no way back."""
        with self._running("migrate-continue", moving=True) as (ledger, vm):
            self._passage(ledger, epoch, "out")
            vm.migrate_continue()

    def going(self) -> Going:
        """How far its passage is."""
        with self._opened("migration") as ledger:
            passage = ledger.document.passage
            known = (
                Going(way=passage.way, epoch=passage.epoch, other=passage.other, tls=passage.tls)
                if passage
                else Going()
            )
            if ledger.document.runtime is None:
                return known
        with self._running("migration", moving=True) as (_, vm):
            return structs.replace(known, run_state=vm.query_status().status, migration=vm.query_migrate())

    def finish_passage(self, *, epoch: int) -> Stop | None:
        """Where it has arrived: let it run. Where it has left: end its QEMU, and remember where it is.

        May be repeated. Who calls has seen to it that one of the two may run alone.

        :returns: how its run ended, where it has left
        :raises MigrationError: there is no proof that it has wholly arrived, or left
        """
        with self._opened("finish-migration") as ledger:
            passage = ledger.document.passage
            if passage is None:
                return None  # it runs here, and did before
            self._passage(ledger, epoch)
            if passage.way == "gone":
                return ledger.document.last_stop
            if ledger.document.runtime is None:
                raise MigrationError(f"{self.name}: its QEMU has ended, and nobody has seen that all went over")
        with self._running("finish-migration", moving=True) as (ledger, vm):
            if self._passage(ledger, epoch).way == "in":
                self._run_here(ledger, vm)
                return None
            return self._leave(ledger, vm)

    def abort_passage(self, *, epoch: int) -> str:
        """Where it was to arrive: end its QEMU, which has not run. Where it is: stop sending; it runs on.

        May be repeated.

        :returns: QEMU's word for what became of the migration; ``none`` where there is none any more
        :raises MigrationError: it has arrived, or is beyond the point of no return
        """
        with self._opened("abort-migration", patient=False) as ledger:
            passage = ledger.document.passage
            if passage is None:
                return "none"
            self._passage(ledger, epoch)
            if passage.way == "gone":
                raise MigrationError(f"{self.name} has gone to {passage.other}", "completed")
            if ledger.document.runtime is None:
                return "none"  # where it was to arrive, the document stays, so that it is not started
        with self._running("abort-migration", moving=True) as (ledger, vm):
            if passage.way == "in":
                self._end_arrival(ledger, vm)
                return "none"
            info = vm.migrate_cancel()
            if info.status == "completed":
                raise MigrationError(f"{self.name} has left: only whoever owns it may let it run again", info.status)
            ledger.document.passage = None
            ledger.save()
            return info.status

    # -- how ----------------------------------------------------------------------------------------------------------

    def _passage(self, ledger: Ledger, epoch: int, way: Way | None = None) -> Passage:
        passage = ledger.document.passage
        if passage is None or passage.epoch != epoch or way not in (None, passage.way):
            raise Overtaken(self.name, epoch, str(passage or "it is on none"))
        return passage

    def _leave(self, ledger: Ledger, vm: QmpConnection) -> Stop | None:
        info, status = vm.query_migrate().status, vm.query_status().status
        if (info, status) != ("completed", _SENT):
            raise MigrationError(f"{self.name} has not left: its QEMU is '{status}', the migration '{info}'", info)
        passage = ledger.document.passage
        assert passage is not None
        ledger.document.passage = passage.at_its_end()
        ledger.begin(LEAVE)
        vm.quit()
        end_process(self.host, ledger, grace=QUIT_GRACE)
        conclude(self.host, ledger, Stop(reason="migrated", at=0, detail=f"it went to {passage.other}"))
        return ledger.document.last_stop

    def _run_here(self, ledger: Ledger, vm: QmpConnection) -> None:
        runtime = runtime_of(ledger.document)
        status = vm.query_status().status
        if status == _ARRIVED and vm.query_migrate().status == "completed":
            for notice in connect_nics(runtime):
                log.warning("%s: %s", self.name, notice)
            vm.cont()
            vm.announce_arrival()
        elif status != "running":
            raise MigrationError(f"{self.name} has not arrived: its QEMU is '{status}'", vm.query_migrate().status)
        faults.take_back(runtime.uid)
        runtime.paused = False
        ledger.document.passage = None
        ledger.commit()

    def _end_arrival(self, ledger: Ledger, vm: QmpConnection) -> None:
        """End a QEMU whose machine has not run here.

        :raises MigrationError: it runs, or may be the only one that has all of it
        """
        info, status = vm.query_migrate().status, vm.query_status().status
        if status not in (_ARRIVED, "inmigrate") or info == "completed":
            raise MigrationError(f"{self.name} is here: its QEMU is '{status}', the migration '{info}'", info)
        end_process(self.host, ledger)
        conclude(self.host, ledger, Stop(reason="migrated", at=0, detail="it did not come"))


def _arrival(ledger: Ledger, info: MigrationInfo, notices: list[str]) -> Arrival:
    runtime = runtime_of(ledger.document)
    return Arrival(
        listens=info.socket_address, status=info.status, generation=runtime.generation, version=runtime.version,
        notices=notices,
    )  # fmt: skip


def to_dial(listens: list[dict[str, Any]], asked: str) -> str:
    """Where a QEMU listens, as the other side is to dial it.

    :param listens: in QEMU's words
    :param asked: where it was told to listen: the host that the other side reaches
    """
    first = listens[0]
    if first["type"] == "unix":
        return f"unix:{first['path']}"
    return f"{asked.rpartition(':')[0]}:{first['port']}"


def source_settings(settings: Settings) -> Settings:
    """With what has to be on at the source.

    :raises ArgumentError: that is to be off
    """
    return _with(settings, SOURCE)


def _with(settings: Settings, always: Mapping[str, bool]) -> Settings:
    for name in always:
        if settings.capabilities.get(name, True) is False:
            allowed = "on, always: without it a failure is not told from success"
            raise ArgumentError(f"capabilities.{name}", False, allowed)
    return structs.replace(settings, capabilities={**settings.capabilities, **always})


def _apply(vm: QmpConnection, settings: Settings, always: Mapping[str, bool]) -> None:
    wanted = _with(settings, always)
    vm.arm_migration(wanted.capabilities, wanted.parameters)
