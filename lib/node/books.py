"""What a node keeps of who may run its machines: the owner records, and the journeys that are under way."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import Fenced, NotOwned, RevisionConflict
from ..kvm.handover import Settings
from ..migration import storage
from ..migration.forecast import Setting
from ..migration.knowledge import Plan
from ..migration.means import Terms
from ..migration.ports import Register
from ..qmp.ready import ready
from ..store.owner import Owner, Owners, Phase
from ..store.sqlite import SqliteStore
from .work import Worker

FILE: Final = "owners.db"  # in the folder of what lasts; not the jobs': nothing that waits for them stands in its way
_JOURNEYS: Final = "journeys/"
_LIVES: Final = "lives"


class Journey(Struct, frozen=True, kw_only=True):
    """A migration that this node drives, for whoever takes it up after a crash.

    :ivar plan: what is to be done
    :ivar to: where the other node's daemon answers
    :ivar source: how it goes over, as its source has it
    :ivar target: likewise
    :ivar disks: what becomes of its images
    :ivar emulator: the QEMU that is to wait; empty: the specification's
    :ivar terms: what may be done so that it comes to its end
    :ivar began: Unix time
    :ivar peer: by TLS: whom the other side's certificate has to name; empty: all goes over in the clear
    :ivar setting: where the levers stand that were pulled so that it does; None: none was
    :ivar notices: what is not as it was asked for, in words
    """

    plan: Plan
    to: list[str]
    source: Settings
    target: Settings
    disks: storage.Plan
    emulator: str
    terms: Terms
    began: float
    peer: str = ""
    setting: Setting | None = None
    notices: tuple[str, ...] = ()


class Books:
    """A node's own store of owners. Any thread may use it.

    :param folder: of what lasts
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._opening = threading.Lock()
        self._opened: SqliteStore | None = None
        self._life = 0

    @property
    def owners(self) -> Owners:
        """The owner records."""
        return Owners(self._store())

    @property
    def life(self) -> int:
        """Counts the daemons that there were: what grows with it grows for ever."""
        self._store()
        return self._life

    def claimable(self, machine: str, run: Owner) -> Owner:
        """The record of a machine that runs here and is on no way, as its run is now.

        :param run: it, with the epoch that the record has at least
        :returns: the record
        """
        owners = self.owners
        try:
            found = owners.read(machine)
        except NotOwned:
            return owners.create(machine, run)
        if found.phase is not Phase.RUNNING or (found.same_process(run) and found.epoch >= run.epoch):
            return found
        if found.epoch < run.epoch:  # it has been elsewhere, by steps that somebody did by hand
            return owners.follow(machine, run)
        return owners.swap(machine, found, found.to(Phase.RUNNING, owner=run))

    def learn(self, machine: str, owner: Owner) -> None:
        """Have the record of a machine that has come here, as the node it comes from has it.

        One of this name that was here before, and is no more, leaves nothing.
        """
        with suppress(NotOwned):
            found = self.owners.read(machine)
            if uuid_of(found) != uuid_of(owner):
                self.owners.remove(machine, found)
        self.owners.follow(machine, owner)

    def keep(self, machine: str, journey: Journey) -> None:
        """Keep a journey until its end."""
        self._store().put(_JOURNEYS + machine, msgspec.json.encode(journey))

    def journey(self, machine: str) -> Journey | None:
        """The one that a machine is on."""
        record = self._store().get(_JOURNEYS + machine)
        return None if record is None else msgspec.json.decode(record.value, type=Journey)

    def keep_setting(self, machine: str, epoch: int, setting: Setting) -> None:
        """Keep where the levers of a journey stand. Not where it has come to its end meanwhile."""
        store, key = self._store(), _JOURNEYS + machine
        if (record := store.get(key)) is None:
            return
        journey = msgspec.json.decode(record.value, type=Journey)
        with suppress(RevisionConflict):
            if journey.plan.source.epoch == epoch:
                changed = msgspec.structs.replace(journey, setting=setting)
                store.put(key, msgspec.json.encode(changed), expect=record.revision)

    def forget(self, machine: str) -> None:
        """A journey has come to its end."""
        self._store().delete(_JOURNEYS + machine)

    def close(self) -> None:
        """Close the file."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()

    def _store(self) -> SqliteStore:
        with self._opening:
            if self._opened is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                store = SqliteStore(self._path)
                record = store.get(_LIVES)
                self._life = 1 + (int(record.value) if record is not None else 0)
                store.put(_LIVES, str(self._life).encode())
                self._opened = store
            return self._opened


class OwnRegister(Register):
    """The record of one machine, in this node's own store.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker, books: Books, machine: str) -> None:
        self._worker = worker
        self._books = books
        self._machine = machine

    async def read(self) -> Owner | None:
        return await self._worker.do("", self._read)

    async def swap(self, expect: Owner, new: Owner) -> Owner:
        def swap() -> Owner:
            try:
                return self._books.owners.swap(self._machine, expect, new)
            except Fenced:
                return self._books.owners.read(self._machine)

        return await self._worker.do("", swap)

    def _read(self) -> Owner | None:
        try:
            return self._books.owners.read(self._machine)
        except NotOwned:
            return None


def uuid_of(owner: Owner) -> str:
    """Of the machine that a record is about."""
    return owner.incarnation.partition("/")[0]


ready(Journey)
