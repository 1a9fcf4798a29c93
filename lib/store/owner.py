"""Who may run a machine: one record for each, and the only word on it.

::

    {node, boot_id, incarnation, epoch, phase}

Every change is one compare-and-swap against the whole record, so whoever acts on what it read a while ago changes
nothing. The *epoch* is the fencing token: it grows with each change of what is allowed, and never comes back; a call
that carries a smaller one is from somebody who has been overtaken. What may follow what is :data:`MOVES`.

A record has no lease. That nobody has heard of its owner frees no machine.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import ArgumentError, Fenced, NotOwned, OwnerMoveError, RecordError, RevisionConflict, StoreBusy
from ..qmp.ready import ready
from .records import Store, Watch

OWNERS: Final = "owners/"  # the prefix of their keys
_NAME: Final = re.compile(r"[!-.0-~]{1,256}")  # of a machine, in a key: neither blanks nor slashes
_TRIES: Final = 100  # each time, somebody else wrote the same record: so many in a row say that something is wrong


class Phase(StrEnum):
    """How far a machine is on its way from its owner to another one."""

    RUNNING = "running"
    """On no way: the owner runs it, or may start it."""
    MIGRATING = "migrating"
    """The owner runs it, and sends it to another."""
    SWITCHOVER = "switchover"
    """The owner has stopped it to hand it over, and may still run it."""
    COMMIT = "commit"
    """The owner is the new one, which may run it from now on, and is not known to."""
    BACK = "back"
    """The owner is the old one again, which may run it as soon as the new one is seen dead."""


class Step(Struct, frozen=True):
    """What else changes from one phase to another.

    :ivar epoch: by how much the epoch grows
    :ivar moves: whether the owner becomes another; None: either way
    """

    epoch: int
    moves: bool | None = False


_FENCE: Final = Step(1)

# Within one epoch a record only goes forward; whatever takes something back has a new epoch, and so fences what the old
# one still has under way.
MOVES: Final[Mapping[Phase, Mapping[Phase, Step]]] = {
    Phase.RUNNING: {Phase.RUNNING: Step(1, None), Phase.MIGRATING: _FENCE},
    Phase.MIGRATING: {Phase.SWITCHOVER: Step(0), Phase.RUNNING: _FENCE, Phase.BACK: _FENCE},
    Phase.SWITCHOVER: {Phase.COMMIT: Step(1, True), Phase.RUNNING: _FENCE, Phase.BACK: _FENCE},
    Phase.COMMIT: {Phase.RUNNING: Step(0), Phase.BACK: Step(1, True)},
    Phase.BACK: {Phase.RUNNING: _FENCE},
}
# Of two records of one epoch the later one: by it old news is told from new.
_ORDER: Final = {Phase.MIGRATING: 0, Phase.SWITCHOVER: 1, Phase.COMMIT: 2, Phase.BACK: 2, Phase.RUNNING: 3}


class Owner(Struct, frozen=True, kw_only=True):
    """Who may run a machine.

    :ivar node: the name of the node
    :ivar boot_id: of the node's system: once it has booted anew, whatever ran there does not
    :ivar incarnation: the QEMU process, by a name that it was started under and that no other one ever has
    :ivar epoch: 1 for a machine's first owner
    :ivar phase: how far it is on its way to another
    """

    node: str
    boot_id: str
    incarnation: str
    epoch: int = 1
    phase: Phase = Phase.RUNNING

    def __str__(self) -> str:
        return f"{self.incarnation} on {self.node}, epoch {self.epoch}, {self.phase}"

    @property
    def age(self) -> tuple[int, int]:
        """By which of two states of one machine's record the later one is told."""
        return self.epoch, _ORDER[self.phase]

    def same_process(self, other: "Owner") -> bool:
        """Whether both name the same process."""
        return (self.node, self.boot_id, self.incarnation) == (other.node, other.boot_id, other.incarnation)

    def to(self, phase: Phase, *, owner: "Owner | None" = None) -> "Owner":
        """This record in another phase, with the epoch that belongs to it.

        :param owner: whose process owns it then; None: the same one
        :raises OwnerMoveError: that phase does not come after this one
        """
        who = owner or self
        step = MOVES[self.phase].get(phase)
        if step is None or (step.moves is not None and step.moves == self.same_process(who)):
            raise OwnerMoveError(str(self), f"{who.incarnation} on {who.node}, {phase}")
        fields: dict[str, Any] = {"node": who.node, "boot_id": who.boot_id, "incarnation": who.incarnation}
        return replace(self, epoch=self.epoch + step.epoch, phase=phase, **fields)


class Owners:
    """The owner records in a store.

    :param store: which
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, machine: str) -> Owner:
        """The record of a machine.

        :raises NotOwned: it has none
        :raises RecordError: it cannot be read
        """
        return self._load(machine)[0]

    def all(self) -> dict[str, Owner]:
        """The records of all machines, by name."""
        found = self.store.range(OWNERS)
        return {key.removeprefix(OWNERS): self._decode(key, record.value) for key, record in found}

    def watch(self, after: int) -> Watch:
        """Follow the changes of all records.

        :param after: the store's revision after which
        """
        return self.store.watch(OWNERS, after)

    def create(self, machine: str, owner: Owner) -> Owner:
        """Give a machine its first owner.

        :raises Fenced: it has one
        :raises StoreError: unknown whether it was written; call again
        """
        key = _key(machine)
        try:
            self.store.put(key, msgspec.json.encode(owner), expect=0)
        except RevisionConflict:
            self._same(machine, owner, self.read(machine), "none")
        return owner

    def swap(self, machine: str, expect: Owner, new: Owner) -> Owner:
        """Change a record, if it is as expected. Where it already is as wanted, that is well: the answer to an earlier
        call was lost.

        :param expect: how it has to be now, in all of it
        :param new: how it is to be; see :meth:`Owner.to`
        :returns: `new`
        :raises OwnerMoveError: that does not come after what is expected; nothing was asked
        :raises Fenced: it is otherwise: whoever asks was overtaken, and has to look again; nothing was changed
        :raises NotOwned: there is none; nothing was changed
        :raises StoreError: unknown whether it was changed; call again, or read
        """
        if expect.to(new.phase, owner=new) != new:
            raise OwnerMoveError(str(expect), str(new))
        for _ in range(_TRIES):
            found, revision = self._load(machine)
            if found != expect:
                self._same(machine, new, found, str(expect))
                return new
            try:
                self.store.put(_key(machine), msgspec.json.encode(new), expect=revision)
                return new
            except RevisionConflict:
                continue
        raise StoreBusy(self.store.name, 0)

    def follow(self, machine: str, owner: Owner) -> Owner:
        """Copy into this store what another one says of a machine, unless what is here is later.

        For nodes without a store in common: there the old owner's says who runs it until the new one has it.

        :returns: what is here now
        :raises StoreError: unknown whether it was written; call again
        """
        for _ in range(_TRIES):
            try:
                found, revision = self._load(machine)
                if found.age >= owner.age:
                    return found
            except NotOwned:
                revision = 0
            try:
                self.store.put(_key(machine), msgspec.json.encode(owner), expect=revision)
                return owner
            except RevisionConflict:
                continue
        raise StoreBusy(self.store.name, 0)

    def remove(self, machine: str, expect: Owner) -> None:
        """Drop the record of a machine that is no more. Where there is none, nothing is done.

        :param expect: how it has to be now
        :raises Fenced: it is otherwise; nothing was changed
        :raises StoreError: unknown whether it was removed; call again
        """
        for _ in range(_TRIES):
            try:
                found, revision = self._load(machine)
            except NotOwned:
                return
            if found != expect:
                raise Fenced(machine, str(expect), str(found))
            try:
                self.store.delete(_key(machine), expect=revision)
                return
            except RevisionConflict:
                continue
        raise StoreBusy(self.store.name, 0)

    def _same(self, machine: str, wanted: Owner, found: Owner, expected: str) -> None:
        if found != wanted:
            raise Fenced(machine, expected, str(found))

    def _load(self, machine: str) -> tuple[Owner, int]:
        record = self.store.get(_key(machine))
        if record is None:
            raise NotOwned(machine)
        return self._decode(_key(machine), record.value), record.revision

    def _decode(self, key: str, value: bytes) -> Owner:
        try:
            return msgspec.json.decode(value, type=Owner)
        except msgspec.MsgspecError as error:
            raise RecordError(f"{self.store.name}: {key}", f"it cannot be read: {error}") from error


def _key(machine: str) -> str:
    if not _NAME.fullmatch(machine):
        raise ArgumentError("machine", machine, "1 to 256 characters of printable ASCII, without blanks and slashes")
    return OWNERS + machine


ready(Owner)
