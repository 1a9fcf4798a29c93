"""The daemons of the two nodes: the state machines as they are, and what they ask for done in a simulated world."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from drover.migration.arrival import Arrival, Newcomer
from drover.migration.words import (
    ArrivalVerb,
    Asked,
    Begin,
    Clear,
    End,
    OnArrival,
    OnSource,
    OnTarget,
    Raise,
    Read,
    Silence,
    SourceVerb,
    Swap,
    TargetDid,
    TargetSaid,
    TargetVerb,
    Tell,
    TellDid,
    Wait,
)
from drover.store.owner import Owner

if TYPE_CHECKING:
    from sim.world import World

THERE: Final = Owner(node="b", boot_id="boot-b", incarnation="vm.2")


class Daemon:
    """What both daemons are: a process that can be killed and started again, with one line to its QEMU.

    :ivar life: how many times it was started; answers to an earlier life are lost
    :ivar alarm: what it tells people now
    """

    def __init__(self, world: "World", node: str) -> None:
        self.world, self.node, self.clock = world, node, world.clock
        self.alive, self.life, self.timer = True, 0, 0
        self.alarm: Raise | None = None
        self.ended: End | None = None
        self.out_at = self.in_at = 0.0  # commands are carried out in their order, and answers and events come in theirs
        self.store_cut = self.frozen = False
        self.unread: list[tuple[Callable[[Any, int], None], Any, int]] = []

    def hear(self, event: Any) -> None:
        """Give it to the state machine, and do what that asks for."""
        raise NotImplementedError

    def begin(self) -> None:
        """A life begins."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        self.life += 1
        if self.ended is None:  # what is said of the end is written down
            self.alarm = None

    def start(self) -> None:
        """Start it again."""
        if not self.alive:
            self.alive = True
            self.life += 1
            self.begin()

    def later(self, event: Any, life: int) -> None:
        """An answer has come: to whom it was for, or to nobody."""
        if life == self.life and self.alive:
            self.hear(event)

    def from_qemu(self, *events: Any) -> None:
        """QEMU says something; in its order."""
        clock = self.clock
        at = self.in_at = max(self.in_at, clock.now + self.world.delay())
        for event in events:
            clock.at(at, self.later, event, self.life)

    def to_qemu(self, do: Callable[[Any, int], None], verb: Any) -> None:
        """QEMU is told something; in its order. Of what a daemon has sent when it is killed some is done."""
        clock = self.clock
        at = self.out_at = max(self.out_at, clock.now + self.world.delay())
        clock.at(at, self._carry_out, do, verb, self.life)

    def _carry_out(self, do: Callable[[Any, int], None], verb: Any, life: int) -> None:
        if self.frozen and verb not in (SourceVerb.QUIT, ArrivalVerb.KILL):  # which are signals
            self.unread.append((do, verb, life))
        elif life == self.life or self.world.random() < 0.5:
            do(verb, life)

    def freeze(self) -> None:
        """SIGSTOP for the QEMU."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT: what it was told meanwhile it does now, in its order."""
        self.frozen = False
        unread, self.unread = self.unread, []
        for each in unread:
            self._carry_out(*each)

    def wait(self, action: Wait) -> None:
        """A timer in the place of the last one."""
        self.timer += 1
        self.clock.after(action.seconds, self._rings, self.life, self.timer)

    def _rings(self, life: int, timer: int) -> None:
        if life == self.life and timer == self.timer and self.alive:
            self.hear(Silence())

    def read(self, _: Read) -> None:
        """Ask the store."""
        self.world.ask_store(self, None)

    def swap(self, action: Swap) -> None:
        """Have the store change something."""
        self.world.ask_store(self, action)

    def raise_alarm(self, action: Raise) -> None:
        """People are told."""
        self.alarm = action

    def clear_alarm(self, _: Clear) -> None:
        """And told that it is over."""
        self.alarm = None

    def end(self, action: End) -> None:
        """It is over."""
        self.ended = action


class SourceDaemon(Daemon):
    """The one that drives."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, "a")
        self.machine = world.make_machine()
        self.does: dict[type, Callable[[Any], None]] = {
            Read: self.read, Swap: self.swap, OnSource: self.on_source, OnTarget: self.on_target, Wait: self.wait,
            Raise: self.raise_alarm, Clear: self.clear_alarm, End: self.end,
        }  # fmt: skip

    def begin(self) -> None:
        if self.ended is not None:
            return
        again = self.life > 0
        if again:
            self.machine = self.world.make_machine()
        self.hear(Begin(again))

    def hear(self, event: Any) -> None:
        does = self.does
        for action in self.machine.hear(event):
            does[type(action)](action)

    def on_source(self, action: OnSource) -> None:
        self.to_qemu(self.world.do_on_source, action.verb)

    def on_target(self, action: OnTarget) -> None:
        self.world.to_target(action)


class TargetDaemon(Daemon):
    """The one that holds the newcomer."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, "b")
        self.arrival: Arrival | None = None
        self.accepted: Newcomer | None = None  # its journal
        self.does: dict[type, Callable[[Any], None]] = {
            Read: self.read, Swap: self.swap, OnArrival: self.on_arrival, Tell: self.tell, TellDid: self.tell_did,
            Wait: self.wait, Raise: self.raise_alarm, Clear: self.clear_alarm, End: self.end,
        }  # fmt: skip

    def begin(self) -> None:
        if self.accepted is not None:
            self.arrival = Arrival(self.accepted)
            self._do(Begin(again=True))

    def kill(self) -> None:
        super().kill()
        self.arrival = None

    def hear(self, event: Any) -> None:
        if self.arrival is not None:
            self._do(event)

    def _do(self, event: Any) -> None:
        assert self.arrival is not None
        does = self.does
        for action in self.arrival.hear(event):
            does[type(action)](action)

    def asked(self, verb: TargetVerb, epoch: int) -> None:
        """The other node asks."""
        if not self.alive:
            return
        if self.arrival is not None:
            self._do(Asked(verb, epoch))
        elif verb is TargetVerb.ACCEPT and self.accepted is None:
            self.accepted = Newcomer(machine="vm", process=THERE, epoch=epoch)
            self.arrival = Arrival(self.accepted)
            self._do(Begin())
        else:
            world = self.world
            world.to_source(TargetSaid(THERE.incarnation, world.number(), gone=True))

    def on_arrival(self, action: OnArrival) -> None:
        self.to_qemu(self.world.do_on_arrival, action.verb)

    def tell(self, action: Tell) -> None:
        assert self.arrival is not None
        known = self.arrival.known
        qemu = known.qemu
        world = self.world
        world.to_source(
            TargetSaid(
                THERE.incarnation, world.number(), qemu.status, qemu.run, qemu.gone, known.ran, action.refused
            )
        )

    def tell_did(self, action: TellDid) -> None:
        self.world.to_source(TargetDid(action.verb, action.why))
