"""A machine that is to come, as the node holds it that it comes to: every state and move in one table.

What it does to QEMU it does by the owner record alone. The other node's word is a reason to look, and in one case as
good as a look: that the record names this process (``run``) stays true until this process is dead, for the record does
not go back before. So whoever drives the migration may die, come back, or repeat itself: this side comes to its end as
soon as it can read the record, and until then holds still.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

from ..store.owner import Owner, Phase
from .words import (
    ArrivalAction,
    ArrivalDid,
    ArrivalEvent,
    ArrivalVerb,
    Asked,
    Begin,
    Clear,
    End,
    OnArrival,
    OwnerIs,
    QemuSaid,
    Raise,
    Read,
    Result,
    Silence,
    Swap,
    TargetVerb,
    Tell,
    TellDid,
    Wait,
)


class Arrived(StrEnum):
    """What is being waited for."""

    CHECK = "check"
    """The record: is the machine on its way to us?"""
    LAUNCH = "launch"
    """A QEMU that does not run by itself (``-S -incoming defer``), its settings, and its listening."""
    HOLD = "hold"
    """The machine, and that it may run or is to end."""
    START = "start"
    """That it runs."""
    SETTLE = "settle"
    """The record is to say so."""
    KILL = "kill"
    """That it is dead."""
    MOVED = "moved"
    GONE = "gone"


class Newcomer(Struct, frozen=True, kw_only=True):
    """A machine that is to come.

    :ivar machine: its name
    :ivar process: the process that is to take it, as the record will name it
    :ivar epoch: the record's while the machine is on its way
    :ivar paused: it is to stand still here
    """

    machine: str
    process: Owner
    epoch: int
    paused: bool = False


class Known:
    """What has been heard.

    :ivar ran: whether the process was ever told to run, or that it is the machine and stands still; None: it is not
        known
    :ivar named: the record names the process: it may run
    :ivar unwanted: somebody has said so: the record is to be asked
    """

    __slots__ = ("done", "heard", "it", "named", "owner", "qemu", "ran", "refusal", "silences", "unwanted")

    def __init__(self, it: Newcomer) -> None:
        self.it = it
        self.owner: Owner | None = None
        self.qemu = QemuSaid()
        self.ran: bool | None = False
        self.named = self.heard = self.unwanted = False
        self.refusal = ""
        self.done = False
        self.silences = 0

    def expected(self) -> bool:
        """The record says that the machine is on its way, and this one was accepted for it."""
        owner = self.owner
        return self.heard and owner is not None and (owner.epoch, owner.phase) == (self.it.epoch, Phase.MIGRATING)

    def other_record(self) -> bool:
        """The record is another one."""
        return self.heard

    def tired(self) -> bool:
        """It has not been heard for too long."""
        return self.silences >= PATIENCE

    def did_it(self) -> bool:
        """What was asked is done."""
        return self.done

    def refused(self) -> bool:
        """It was refused."""
        return bool(self.refusal)

    def gone(self) -> bool:
        """The process is dead."""
        return self.qemu.gone

    def failed(self) -> bool:
        """It could not load the machine."""
        return self.qemu.status == "failed"

    def may_run(self) -> bool:
        """The record names it, and it has the machine and does not run. Never before: QEMU would run it too early."""
        return self._stands() and not self.it.paused

    def runs(self) -> bool:
        """It runs, as it may; or stands still, as it is to."""
        return (self.named and self.qemu.run == "running") or (self._stands() and self.it.paused)

    def overtaken(self) -> bool:
        """The record has a later epoch and names another: this process is never to run."""
        owner = self.owner
        return owner is not None and owner.epoch > self.it.epoch and not owner.same_process(self.it.process)

    def forsaken(self) -> bool:
        """Nothing of the machine has come, and nobody has asked for long. To end it harms nothing: the source runs."""
        return self.silences >= GIVE_UP and self.qemu.status == "setup"

    def settled(self) -> bool:
        """The record says that it runs here, or has gone on from there."""
        owner = self.owner
        return owner is not None and owner.age > (self.it.epoch + 1, 2)

    def _stands(self) -> bool:
        return self.named and self.qemu.status in LOADED and self.qemu.run == "paused"


Moves: TypeAlias = tuple[tuple[Callable[[Known], bool], Arrived], ...]
LOADED: Final = frozenset({"completed", "postcopy-active", "postcopy-paused", "postcopy-recover"})

MOVES: Final[Mapping[Arrived, Moves]] = {
    Arrived.CHECK: (
        (Known.expected, Arrived.LAUNCH),
        (Known.other_record, Arrived.GONE),
        (Known.tired, Arrived.GONE),
    ),
    Arrived.LAUNCH: (
        (Known.gone, Arrived.GONE),
        (Known.refused, Arrived.KILL),
        (Known.did_it, Arrived.HOLD),
        (Known.tired, Arrived.KILL),
    ),
    Arrived.HOLD: (
        (Known.gone, Arrived.GONE),
        (Known.overtaken, Arrived.KILL),
        (Known.runs, Arrived.SETTLE),
        (Known.may_run, Arrived.START),
        (Known.failed, Arrived.KILL),
        (Known.forsaken, Arrived.KILL),
    ),
    Arrived.START: (
        (Known.gone, Arrived.GONE),
        (Known.runs, Arrived.SETTLE),
    ),
    Arrived.SETTLE: (
        (Known.gone, Arrived.GONE),
        (Known.settled, Arrived.MOVED),
    ),
    Arrived.KILL: ((Known.gone, Arrived.GONE),),
    Arrived.MOVED: ((Known.gone, Arrived.GONE),),
    Arrived.GONE: (),
}

PATIENCE: Final = 3
# s
WAIT: Final[Mapping[Arrived, float]] = {
    Arrived.LAUNCH: 30.0,  # QEMU starts
    Arrived.HOLD: 5.0,
}
USUAL_WAIT: Final = 2.0
LONGEST_WAIT: Final = 60.0
ALARM_AFTER: Final = 3  # silences, of some s each, until people are told that nobody asks for it any more
GIVE_UP: Final = 15  # silences, of some min in all, until a QEMU that nobody has sent anything is not kept any longer


class Arrival:
    """One machine that is to come.

    :ivar state: where it is
    :ivar known: what has been heard
    :param it: which
    """

    __slots__ = ("_alarmed", "known", "state")

    def __init__(self, it: Newcomer) -> None:
        self.known = Known(it)
        self.state = Arrived.CHECK
        self._alarmed = False

    def hear(self, event: ArrivalEvent) -> list[ArrivalAction]:
        """Take in what happened.

        :returns: what is to be done, in this order
        """
        known = self.known
        if isinstance(event, Begin):
            return self._begin(event)
        owner, qemu = known.owner, known.qemu
        _TAKE[type(event)](known, event)
        actions = self._go()
        if isinstance(event, Asked):
            return [*actions, *self._answer(event)]
        if actions:
            return actions
        if isinstance(event, Silence):
            return [*self._ask(), *self._doubt(), self._wait()] if self.state not in _ENDS else []
        if isinstance(event, OwnerIs):
            return self._ask() if self.state is Arrived.SETTLE and known.owner != owner else []
        if isinstance(event, ArrivalDid):
            return [TellDid(TargetVerb.REOPEN, event.why)] if event.verb is ArrivalVerb.REOPEN else []
        # one that is still being launched is not ready, whatever it says
        return [self._tell()] if known.qemu != qemu and self.state not in _BEFORE else []

    def _begin(self, event: Begin) -> list[ArrivalAction]:
        if event.again:
            self.known.ran = None
            self.state = Arrived.HOLD
        return [*self._ask(), self._wait()]

    def _go(self) -> list[ArrivalAction]:
        """Go on as far as what is known leads; what is to be done then."""
        known, before = self.known, self.state
        actions: list[ArrivalAction] = []
        while (to := self._next()) is not None:
            self.state = to
            known.done, known.heard, known.silences = False, False, 0
            if self._alarmed:
                self._alarmed = False
                actions.append(Clear())
        if self.state is before:
            return []
        if self.state is Arrived.GONE:
            known.qemu = QemuSaid(gone=True)
            end = [] if before is Arrived.MOVED else [End(Result.FAILED, known.refusal)]
            return [*actions, self._tell(), *end]
        if self.state is Arrived.MOVED:
            return [*actions, self._tell(), End(Result.DONE)]
        tell = [self._tell()] if self.state in (Arrived.HOLD, Arrived.SETTLE) else []
        # the record was read before it was launched, and the memory comes at once: whoever resets it says so
        ask = [_LOOK] if self.state is Arrived.HOLD and not known.unwanted else self._ask()
        return [*actions, *ask, *tell, self._wait()]

    def _next(self) -> Arrived | None:
        known = self.known
        for fact, to in MOVES[self.state]:
            if fact(known):
                return to
        return None

    def _ask(self) -> list[ArrivalAction]:
        known = self.known
        match self.state:
            case Arrived.START:
                known.ran = True
            case Arrived.SETTLE:
                known.ran = True  # also one that stands still: it is the machine from now on
                owner = known.owner
                if owner is None or owner.phase is not Phase.COMMIT:
                    return [_READ]
                return [Swap(owner, owner.to(Phase.RUNNING))]
        return _ASKS[self.state]

    def _answer(self, event: Asked) -> list[ArrivalAction]:
        """Answer the other node: at once with what is known, and again when QEMU has said something else."""
        if self.state in _BEFORE:
            return []  # it is told once that is over
        tell = self._tell()
        if self.state in _ENDS and self.known.qemu.gone:
            return [tell]
        if event.verb is TargetVerb.REOPEN:
            return [OnArrival(ArrivalVerb.REOPEN)]
        if event.verb is TargetVerb.DISCARD and self.state is Arrived.HOLD:
            return [_READ, tell]
        return [tell, _LOOK]

    def _tell(self) -> Tell:
        return Tell(self.known.refusal or ("it is being ended" if self.state is Arrived.KILL else ""))

    def _doubt(self) -> list[ArrivalAction]:
        known = self.known
        if self._alarmed or known.silences < ALARM_AFTER or self.state not in _STANDING:
            return []
        self._alarmed = True
        it = known.it
        about = self.state if not known.named else Arrived.START
        text = _STANDING[about].format(it.process.node, known.refusal or known.qemu.status or "it does not answer")
        return [Raise(text, f"drover show {it.machine}")]

    def _wait(self) -> Wait:
        seconds = WAIT.get(self.state, USUAL_WAIT) * float(1 << min(self.known.silences, 6))
        return Wait(min(seconds, LONGEST_WAIT))


_BEFORE: Final = frozenset({Arrived.CHECK, Arrived.LAUNCH})
_READ: Final = Read()
_LOOK: Final = OnArrival(ArrivalVerb.ASK)
_STANDING: Final[Mapping[Arrived, str]] = {
    Arrived.HOLD: "it is to come to {}, and nobody asks for it any more, nor says whether it may run here",
    Arrived.START: "it is to run on {}, and QEMU does not let it: {}",
}
_ENDS: Final = frozenset({Arrived.MOVED, Arrived.GONE})
_ASKS: Final[Mapping[Arrived, list[ArrivalAction]]] = {
    Arrived.CHECK: [_READ],
    Arrived.LAUNCH: [OnArrival(ArrivalVerb.LAUNCH)],
    Arrived.HOLD: [_READ, _LOOK],
    Arrived.START: [OnArrival(ArrivalVerb.CONT), _LOOK],
    Arrived.KILL: [OnArrival(ArrivalVerb.KILL)],
    Arrived.MOVED: [],
    Arrived.GONE: [],
}


def _owner_is(known: Known, event: OwnerIs) -> None:
    owner = event.owner
    known.heard = True
    if owner is not None and (known.owner is None or owner.age >= known.owner.age):
        known.owner = owner
        known.named = known.named or owner.same_process(known.it.process)


def _did(known: Known, event: ArrivalDid) -> None:
    if event.verb is ArrivalVerb.LAUNCH:
        known.done = not event.why
    if event.verb is not ArrivalVerb.REOPEN:
        known.refusal = event.why


def _qemu(known: Known, event: QemuSaid) -> None:
    if not known.qemu.gone:
        known.qemu = event


def _silence(known: Known, _: Silence) -> None:
    known.silences += 1


def _asked(known: Known, event: Asked) -> None:
    known.silences = 0
    known.unwanted = known.unwanted or event.verb is TargetVerb.DISCARD
    if event.verb is TargetVerb.RUN:
        known.named = known.named or event.epoch == known.it.epoch + 1


_TAKE: Final[Mapping[type, Callable[..., None]]] = {
    OwnerIs: _owner_is,
    ArrivalDid: _did,
    QemuSaid: _qemu,
    Silence: _silence,
    Asked: _asked,
}
