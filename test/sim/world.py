"""A world for one migration: two nodes with a daemon and a QEMU each, a store, a network, and what goes wrong.

Time is virtual, and all that is chance comes from one seed. After each thing that happens :meth:`World.check` holds the
world to what must be so whatever happens.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from drover.migration.knowledge import Plan
from drover.migration.machine import Machine
from drover.migration.states import State
from drover.migration.words import (
    ArrivalDid,
    ArrivalVerb,
    OnTarget,
    OwnerIs,
    QemuSaid,
    SourceDid,
    SourceVerb,
    Swap,
)  # fmt: skip
from drover.store.owner import Owner
from sim.clock import Clock
from sim.daemons import THERE, Daemon, SourceDaemon, TargetDaemon
from sim.qemu import Qemu, Refused, Wire

HERE: Final = Owner(node="a", boot_id="boot-a", incarnation="vm.1")
GONE: Final = QemuSaid(gone=True)
END_OF_TIME: Final = 2000.0  # s; a migration that has not ended by then, with all healed, never does


class Wrong(AssertionError):
    """The world is as it must never be."""


class World:
    """All of it.

    :ivar acked: how much the guest has been told is written
    :param rng: all that is chance
    :param versions: of the QEMUs, 7 or 10
    """

    def __init__(
        self,
        rng: Random,
        *,
        versions: tuple[int, int] = (10, 10),
        storage: bool = False,
        postcopy: bool = False,
        journal: bool = False,
        make_machine: Callable[[Plan], Machine] = Machine,
    ) -> None:
        self.random = rng.random
        self.clock = Clock()
        self.plan = Plan(machine="vm", source=HERE, target=THERE, storage=storage, postcopy=postcopy)
        self.journal = journal
        self._make = make_machine
        self.owner = HERE
        self.versions = versions
        self.source = Qemu(versions[0], "running")
        self.target = Qemu(versions[1], "inmigrate")
        self.target.alive = self.launched = False
        for qemu in (self.source, self.target):
            qemu.postcopy = postcopy
        self.target.touches = rng.random() < 0.7
        self.wire = Wire(self.clock, self.source, self.target, self.delay)
        self.acked = 0
        self.mirrored: str = "no"
        self.disk = 0
        self.forth_cut = self.back_cut = False
        self.loss = 0.0
        self._count = self.happened = 0
        self.slow = 0.02
        self.killed: set[str] = set()  # the QEMUs that the faults have killed, and not whoever may
        self.forever = False  # something is broken that nobody mends
        self.here, self.there = SourceDaemon(self), TargetDaemon(self)
        self.source.changed = self._source_changed
        self.target.changed = self._target_changed

    def make_machine(self) -> Machine:
        """A state machine for this migration."""
        return self._make(self.plan)

    def delay(self) -> float:
        """How long something takes: mostly little, sometimes long enough to be overtaken."""
        chance = self.random()
        return chance * 0.01 if chance < 0.9 else chance * chance * self.slow * 10

    def number(self) -> int:
        """A number that grows."""
        self._count += 1
        return self._count

    # -- the network between the daemons -------------------------------------------------------------------------------

    def to_target(self, action: OnTarget) -> None:
        """A question goes to the other node; it may be lost, or come twice."""
        self._post(lambda: self.forth_cut, self.there.asked, action.verb, action.epoch)

    def to_source(self, said: Any) -> None:
        """An answer goes back."""
        self._post(lambda: self.back_cut, self.here.later, said, self.here.life)

    def _post(self, cut: Callable[[], bool], deliver: Callable[..., None], *args: Any) -> None:
        if cut():
            return
        chance = self.random() if self.loss else 1.0
        if chance < self.loss:
            return
        self.clock.after(self.delay(), deliver, *args)
        if chance < 2 * self.loss:
            self.clock.after(self.delay() * 20, deliver, *args)

    # -- the store -----------------------------------------------------------------------------------------------------

    def ask_store(self, daemon: Daemon, action: Swap | None) -> None:
        """Read it or change it; the question, or the answer, may be lost."""
        if daemon.store_cut or self._journal_away(daemon):
            return
        chance = self.random() if self.loss else 1.0
        if chance < self.loss:
            return
        self.clock.after(self.delay(), self._in_store, daemon, daemon.life, action)
        if chance < 2 * self.loss:  # a client that tries again by itself, and the first one arrives at last
            self.clock.after(self.delay() * 20, self._in_store, daemon, daemon.life, action)

    def _journal_away(self, daemon: Daemon) -> bool:
        """Without a store in common it is the source's own journal, which its daemon answers for."""
        return self.journal and daemon is self.there and (self.forth_cut or self.back_cut or not self.here.alive)

    def _in_store(self, daemon: Daemon, life: int, action: Swap | None) -> None:
        if action is not None:
            self.do_swap(action)
        if not daemon.store_cut and not self._journal_away(daemon) and self.random() >= self.loss:
            self.clock.after(self.delay(), daemon.later, OwnerIs(self.owner), life)

    def do_swap(self, action: Swap) -> None:
        """Compare all of it, and change it."""
        if self.same(self.owner, action.expect):
            self.owner = action.new

    @staticmethod
    def same(found: Owner, expected: Owner) -> bool:
        """Whether a record is the one that was expected: in all of it."""
        return found == expected

    # -- the QEMUs -----------------------------------------------------------------------------------------------------

    def _source_changed(self) -> None:
        if self.here.alive:
            self.here.from_qemu(self._said(self.source))

    def _target_changed(self) -> None:
        if self.there.alive:
            self.there.from_qemu(self._said(self.target))

    @staticmethod
    def _said(qemu: Qemu) -> QemuSaid:
        return QemuSaid(qemu.status, qemu.run) if qemu.alive else GONE

    def do_on_source(self, verb: SourceVerb, life: int) -> None:
        """The source's QEMU, or whoever does it there, does it."""
        qemu, here = self.source, self.here
        why = ""
        if qemu.alive and verb is not SourceVerb.ASK:
            try:
                done = _ON_SOURCE[verb](self)
            except Refused as error:
                why = str(error)
            else:
                if done is _LATER:
                    return
        if life == here.life and here.alive:
            if verb is SourceVerb.ASK or not qemu.alive:
                here.from_qemu(self._said(qemu))
            else:
                here.from_qemu(SourceDid(verb, why), self._said(qemu))

    def _prepare(self) -> None:
        if self.random() < self.loss / 2:
            raise Refused("it does not take the settings")

    def _mirror(self) -> object:
        if self.mirrored == "no":
            self.mirrored = "under way"
            self.clock.after(self.delay() * 5, self._mirror_ready)
        elif self.mirrored == "ready":
            return None
        return _LATER

    def _mirror_ready(self) -> None:
        if self.mirrored != "under way" or not self.source.alive:
            return
        ok = self.target.alive and self.wire.forth and self.wire.back
        self.mirrored = "ready" if ok else "no"
        if ok:
            self.disk = self.acked
        if self.here.alive:  # a later life has asked for it, too, or does when it comes there
            self.here.from_qemu(SourceDid(SourceVerb.MIRROR, "" if ok else "the mirror broke"))

    def _sync(self) -> None:
        if self.mirrored == "ended":
            return
        if self.mirrored != "ready" or not self.target.alive or not (self.wire.forth and self.wire.back):
            raise Refused("the mirror broke")
        self.mirrored = "ended"

    def _cancel(self) -> None:
        if self.source.status.startswith("postcopy"):
            raise Wrong("a postcopy was cancelled")
        if self.mirrored == "under way" and self.here.alive:
            self.here.from_qemu(SourceDid(SourceVerb.MIRROR, "its jobs were cancelled"))
        self.mirrored = "no"
        self.source.cancel()

    def do_on_arrival(self, verb: ArrivalVerb, life: int) -> None:
        """The QEMU that waits, or whoever does it there, does it."""
        qemu, there = self.target, self.there
        why = ""
        if qemu.blocked and qemu.alive and verb in (ArrivalVerb.ASK, ArrivalVerb.CONT):
            return  # the main loop hangs
        if verb is not ArrivalVerb.ASK:
            try:
                _ON_ARRIVAL[verb](self)
            except Refused as error:
                why = str(error)
        if life == there.life and there.alive:
            if verb is ArrivalVerb.ASK:
                there.from_qemu(self._said(qemu))
            else:
                there.from_qemu(ArrivalDid(verb, why), self._said(qemu))

    def _launch(self) -> None:
        if not self.launched:
            self.launched = self.target.alive = True
            self.target.listen()

    def _cont_target(self) -> None:
        if not self.target.alive:
            raise Refused("it is dead")
        if self.target.run == "inmigrate":
            raise Wrong("cont in inmigrate")
        self.target.cont()

    def _kill_target(self) -> None:
        self.launched = True  # this incarnation is never started again
        self.target.die()

    def _reopen(self) -> None:
        if not self.target.alive:
            raise Refused("it is dead")
        if self.target.status == "postcopy-active":  # `migrate-pause`: it has not noticed yet
            self.target.lost_source()
            self.wire.cut()
        self.target.recover()

    # -- what must be so -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nobody runs but the owner, and with all that the guest was told is written.

        :raises Wrong: it is not so
        """
        source, target = self.source, self.target
        here, there = source.run == "running" and source.alive, target.run == "running" and target.alive
        if here:
            if there:
                raise Wrong("two copies run")
            if self.owner.node != "a":
                raise Wrong(f"the source runs, and the owner is {self.owner}")
            if source.memory != self.acked:
                raise Wrong("the source runs without what was written on the target")
            self.acked = source.memory = source.memory + 1
            if self.mirrored == "ready":
                self.disk = self.acked
        elif there:
            if self.owner.node != "b":
                raise Wrong(f"the target runs, and the owner is {self.owner}")
            if target.memory != self.acked:
                raise Wrong("the target runs without what was written on the source")
            if self.plan.storage and self.disk != self.acked:
                raise Wrong("the target runs on a disk that lacks what was written on the source")
            self.acked = target.memory = self.disk = target.memory + 1

    def run(
        self, faults: "Sequence[tuple[int, Callable[[World], None]]]" = (), trail: list[State] | None = None
    ) -> None:
        """Let it happen.

        :param faults: after how many things what goes wrong; in order
        :param trail: where to note the driver's state after each thing
        :raises Wrong: it was as it must never be
        """
        clock, check, step = self.clock, self.check, self.clock.step
        self.here.begin()
        happened = 0
        upcoming = iter([*faults, (1 << 60, _no_fault)])
        due, fault = next(upcoming)
        while step():
            check()
            happened += 1
            if trail is not None:
                trail.append(self.here.machine.state)
            while happened >= due:
                fault(self)
                check()
                due, fault = next(upcoming)
            if clock.now > END_OF_TIME:
                break
        self.happened = happened


_LATER: Final = object()
_ON_SOURCE: Final[dict[SourceVerb, Callable[[World], object]]] = {
    SourceVerb.PREPARE: World._prepare,
    SourceVerb.MIRROR: World._mirror,
    SourceVerb.SEND: lambda world: world.source.migrate(world.wire),
    SourceVerb.POSTCOPY: lambda world: world.source.start_postcopy(),
    SourceVerb.SYNC: World._sync,
    SourceVerb.CONTINUE: lambda world: world.source.go_on(),
    SourceVerb.CANCEL: World._cancel,
    SourceVerb.CONT: lambda world: world.source.cont(),
    SourceVerb.REJOIN: lambda world: world.source.rejoin(),
    SourceVerb.QUIT: lambda world: world.source.die(),
}
_ON_ARRIVAL: Final[dict[ArrivalVerb, Callable[[World], None]]] = {
    ArrivalVerb.LAUNCH: World._launch,
    ArrivalVerb.CONT: World._cont_target,
    ArrivalVerb.KILL: World._kill_target,
    ArrivalVerb.REOPEN: World._reopen,
}


def _no_fault(_: World) -> None: ...
