"""What is asked for in each state: when it begins, and again after each silence.

Each of it may be asked again without harm: the record is only changed if it is as expected, and both nodes do a thing
once.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ..store.owner import Owner, Phase
from .knowledge import ALL, FLOWING, OWNER, SOURCE, TARGET, Knowledge
from .states import State
from .words import Action, OnSource, OnTarget, Read, SourceVerb, Swap, TargetVerb

Asking = Callable[[Knowledge], list[Action]]

READ: Final = Read()
ASK_SOURCE: Final = OnSource(SourceVerb.ASK)


def _source(verb: SourceVerb) -> Asking:
    """Ask something of the source, and how it is then."""
    return lambda known: _tell(known, verb)


def _tell(known: Knowledge, verb: SourceVerb) -> list[Action]:
    """Tell the source to do something, unless it still may do so because it was told before."""
    if verb in known.outstanding:
        return [ASK_SOURCE]
    known.outstanding.add(verb)
    return [OnSource(verb), ASK_SOURCE]


def _target(verb: TargetVerb) -> Asking:
    """Ask something of the other node."""

    def ask(known: Knowledge) -> list[Action]:
        return [OnTarget(verb, known.owner.epoch if known.owner is not None else 0)]

    return ask


def _swap(phase: Phase, come_from: tuple[Phase, ...], *, to_target: bool = False) -> Asking:
    """Have the record in another phase, from wherever it may be; where it is not known, read it first."""

    def ask(known: Knowledge) -> list[Action]:
        owner = known.owner
        if owner is None or owner.phase not in come_from or (known.epoch and known.usurped()):
            return [READ]
        new_owner: Owner = known.plan.target if to_target else known.plan.source
        return [Swap(owner, owner.to(phase, owner=new_owner))]

    return ask


def _claim(known: Knowledge) -> list[Action]:
    actions = _swap(Phase.MIGRATING, (Phase.RUNNING,))(known)
    if isinstance(actions[0], Swap):
        known.epoch = actions[0].new.epoch
    return actions


def _reset(known: Knowledge) -> list[Action]:
    owner = known.owner
    if owner is None or not owner.same_process(known.plan.source):
        return [READ]
    known.floor = known.floor or owner.epoch + 1
    return [Swap(owner, owner.to(Phase.RUNNING))]


def _fence(known: Knowledge) -> list[Action]:
    ask = _swap(Phase.SWITCHOVER, (Phase.MIGRATING,))(known)
    # A postcopy that goes on with a connection that is broken is lost: whether it is one, the other side knows.
    return [*ask, *_target(TargetVerb.ASK)(known)] if known.postcopy else ask


def _mirror(known: Knowledge) -> list[Action]:
    # it may take hours
    return [*_tell(known, SourceVerb.MIRROR), *_target(TargetVerb.ASK)(known)]


def _send(known: Knowledge) -> list[Action]:
    if known.source.status in FLOWING or known.sent:
        return [ASK_SOURCE, *_target(TargetVerb.ASK)(known)]
    return _tell(known, SourceVerb.SEND)


def _switch(known: Knowledge) -> list[Action]:
    stands = known.source_stopped() and (not known.silences or known.heard & SOURCE)  # else that is old
    tell: list[Action] = _tell(known, SourceVerb.CONTINUE) if stands else [ASK_SOURCE]
    if known.silences or known.postcopy:
        return [*tell, *_target(TargetVerb.ASK)(known)]
    return tell[:1]  # no question that would hold up QEMU: both sides say by themselves when all is sent


def _both(known: Knowledge) -> list[Action]:
    return [ASK_SOURCE, *_target(TargetVerb.ASK)(known)]


def _all(known: Knowledge) -> list[Action]:
    return [READ, ASK_SOURCE, *_target(TargetVerb.ASK)(known)]


def _nothing(_: Knowledge) -> list[Action]:
    return []


ASKS: Final[Mapping[State, Asking]] = {
    State.LOOK: lambda _: [READ],
    State.CLAIM: _claim,
    State.ACCEPT: _target(TargetVerb.ACCEPT),
    State.SET: _source(SourceVerb.PREPARE),
    State.MIRROR: _mirror,
    State.SEND: _send,
    State.FENCE: _fence,
    State.SYNC: _source(SourceVerb.SYNC),
    State.SWITCH: _switch,
    State.HAND_OVER: _swap(Phase.COMMIT, (Phase.SWITCHOVER,), to_target=True),
    State.RUN: _target(TargetVerb.RUN),
    State.DRAIN: _both,
    State.QUIT: _source(SourceVerb.QUIT),
    State.SETTLE: _swap(Phase.RUNNING, (Phase.COMMIT,), to_target=True),
    State.CANCEL: _source(SourceVerb.CANCEL),
    State.RESET: _reset,
    State.DISCARD: _target(TargetVerb.DISCARD),
    State.TAKE_BACK: _swap(Phase.BACK, (Phase.MIGRATING, Phase.SWITCHOVER, Phase.COMMIT)),
    State.REAP: _target(TargetVerb.DISCARD),
    State.RESUME: _source(SourceVerb.CONT),
    State.ASK: _all,
    State.REOPEN: _target(TargetVerb.REOPEN),
    State.REJOIN: _source(SourceVerb.REJOIN),
    State.DOUBT: _all,
    State.DONE: _nothing,
    State.FAILED: _nothing,
    State.LOST: _nothing,
}

# The answers that a state waits for.
EXPECTED: Final[Mapping[State, SourceVerb | TargetVerb]] = {
    State.SET: SourceVerb.PREPARE,
    State.MIRROR: SourceVerb.MIRROR,
    State.SEND: SourceVerb.SEND,
    State.SYNC: SourceVerb.SYNC,
    State.RESUME: SourceVerb.CONT,
    State.REOPEN: TargetVerb.REOPEN,
    State.REJOIN: SourceVerb.REJOIN,
}
# Whose silence it is in a state, if nobody says anything: of others nobody is asked.
AWAITED: Final[Mapping[State, int]] = {
    **dict.fromkeys((State.LOOK, State.CLAIM, State.FENCE, State.HAND_OVER, State.SETTLE, State.RESET), OWNER),
    State.TAKE_BACK: OWNER,
    **dict.fromkeys((State.ACCEPT, State.RUN, State.DISCARD, State.REAP, State.REOPEN), TARGET),
    State.SWITCH: SOURCE | TARGET,
    State.DRAIN: SOURCE | TARGET,
    State.ASK: ALL,
    State.DOUBT: ALL,
}
# States that change the record: where it turns out to be another one than was expected, they ask again at once.
SWAPPING: Final = frozenset({State.CLAIM, State.FENCE, State.HAND_OVER, State.SETTLE, State.RESET, State.TAKE_BACK})

# s; how long until it is asked again: twice as long each time. Short where the machine stands still meanwhile.
WAIT: Final[Mapping[State, float]] = {
    State.ACCEPT: 30.0,  # QEMU starts
    State.SET: 10.0,
    State.MIRROR: 30.0,
    State.FENCE: 1.0,
    State.SWITCH: 1.0,
    State.HAND_OVER: 0.5,
    State.RUN: 1.0,
    State.SETTLE: 2.0,
    State.RESET: 2.0,
    State.TAKE_BACK: 1.0,
    State.REAP: 1.0,
    State.REOPEN: 2.0,
    State.REJOIN: 5.0,
    State.ASK: 3.0,
    State.DOUBT: 2.0,
}
USUAL_WAIT: Final = 5.0
LONGEST_WAIT: Final = 60.0
# Silences until it is in doubt, or given up.
PATIENCE: Final[Mapping[State, int]] = {
    State.FENCE: 2,  # the machine stands still, and QEMU lets it run on as soon as this is given up
    State.SWITCH: 4,
    State.HAND_OVER: 4,
    State.REJOIN: 1,  # then the other is to listen anew
}
USUAL_PATIENCE: Final = 3
SLOW_SWITCH: Final = 10  # silences, of 5 min in all, where much of the memory goes over while the machine stands still


