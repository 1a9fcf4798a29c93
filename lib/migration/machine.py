"""A migration, as the node drives it that the machine leaves: every state and move in one table.

No I/O, no clock: :meth:`Machine.hear` takes what happened (:mod:`.words`) and returns what is to be done. In each state
the moves are tried in their order; each is a fact of :class:`.knowledge.Knowledge`, by its name, and the state that
follows when it is true. Where none is, it waits; after a while of silence it asks again.

What the table keeps to:

- The record names a new owner only when both sides have proven that the old one never runs again by itself, and that
  the new one has the machine and does not run (``proven``).
- Nobody runs whom the record does not name, and nobody is told to but after a swap of the record that was seen done.
- What goes back after the source has sent all goes by the record, with a new epoch, and waits until the other is seen
  dead (``take-back``, ``reap``, ``resume``).
- A postcopy that was told to go on is never cancelled (``may_cancel``).
- Silence is no failure: it leads to the same question, to a way back that is open whatever the answer would have been,
  or to ``doubt``.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from .alarms import alarm, lost
from .asking import (
    ASKS,
    EXPECTED,
    LONGEST_WAIT,
    PATIENCE,
    SLOW_SWITCH,
    SWAPPING,
    USUAL_PATIENCE,
    USUAL_WAIT,
    WAIT,
)
from .knowledge import Knowledge as K
from .knowledge import Plan
from .states import ENDS, STEP, State, Step
from .words import (
    Action,
    Begin,
    Cancel,
    Clear,
    Confirmed,
    End,
    Event,
    GoPostcopy,
    OnSource,
    OwnerIs,
    QemuSaid,
    Raise,
    Result,
    Silence,
    SourceDid,
    SourceVerb,
    TargetDid,
    TargetSaid,
    Wait,
)

Fact: TypeAlias = Callable[[K], bool]
Moves: TypeAlias = tuple[tuple[Fact, State], ...]
S = State


def _all_of(*facts: Fact) -> Fact:
    """Several facts at once; of :class:`Knowledge`, so that the table can be drawn."""

    def both(known: K) -> bool:
        return all(fact(known) for fact in facts)

    both.__name__ = " and ".join(fact.__name__ for fact in facts)
    return both


# What is so, wherever nothing else is known: the record first, for it says who may run; then QEMU.
JUDGE: Final[Moves] = (
    (_all_of(K.new_owner_named, K.pages_lost), S.DOUBT),
    (_all_of(K.new_owner_named, K.source_gone, K.target_mute), S.DOUBT),
    (_all_of(K.new_owner_settled, K.source_gone, K.may_lack_pages), S.DRAIN),
    (_all_of(K.settled, K.source_gone), S.SETTLE),
    (_all_of(K.new_owner_settled, K.torn_apart), S.QUIT),
    (_all_of(K.settled, K.source_final), S.QUIT),
    (_all_of(K.new_owner_settled, K.source_postcopy), S.DRAIN),
    (_all_of(K.handed_over, K.both_gone, K.target_never_ran), S.TAKE_BACK),
    (_all_of(K.handed_over, K.both_gone), S.SETTLE),
    (_all_of(K.handed_over, K.target_had_run), S.QUIT),
    (_all_of(K.handed_over, K.torn_apart, K.target_never_ran), S.TAKE_BACK),
    (_all_of(K.handed_over, K.returns, K.target_never_ran), S.TAKE_BACK),
    (_all_of(K.handed_over, K.target_accepted), S.RUN),
    (_all_of(K.handed_over, K.source_cut, K.target_mute), S.REOPEN),
    (_all_of(K.taken_back, K.source_gone), S.RESET),
    (K.taken_back, S.REAP),
    (_all_of(K.record_is_free, K.source_gone), S.RESET),
    (_all_of(K.record_is_free, K.source_final), S.REAP),
    (_all_of(K.record_is_free, K.source_cut), S.DISCARD),
    (_all_of(K.record_is_free, K.source_caught), S.DISCARD),
    (_all_of(K.record_is_free, K.source_tame), S.CANCEL),
    (K.usurped, S.DOUBT),
    (_all_of(K.on_the_way, K.source_gone), S.RESET),
    (_all_of(K.on_the_way, K.source_idle), S.ACCEPT),
    (_all_of(K.on_the_way, K.source_flows), S.SEND),
    (_all_of(K.on_the_way, K.source_beyond), S.FENCE),
    (K.proven, S.SWITCH),
    (_all_of(K.standing, K.source_lost), S.RESET),
    (_all_of(K.standing, K.both_gone), S.RESET),
    (_all_of(K.standing, K.torn_apart), S.RESET),
    (_all_of(K.standing, K.source_cut), S.REOPEN),
    (_all_of(K.standing, K.source_stopped), S.FENCE),
    (_all_of(K.standing, K.source_stranded), S.TAKE_BACK),
    (_all_of(K.on_the_way, K.source_stranded), S.TAKE_BACK),
    (_all_of(K.standing, K.source_final), S.SWITCH),
    (_all_of(K.standing, K.source_beyond), S.SWITCH),
    (K.source_back, S.CANCEL),
)
# It is tried only once this has been heard.
GATES: Final[Mapping[State, Fact]] = {S.ASK: K.record_heard, S.DOUBT: K.all_heard}

MOVES: Final[Mapping[State, Moves]] = {
    S.LOOK: ((K.cancelled, S.FAILED), (K.record_is_free, S.CLAIM), (K.record_heard, S.FAILED), (K.tired, S.FAILED)),
    S.CLAIM: (
        (K.claimed, S.ACCEPT),
        (K.claim_lost, S.FAILED),
        (K.cancelled, S.RESET),
        (K.source_gone, S.RESET),
        (K.tired, S.DOUBT),
    ),
    S.ACCEPT: (
        (K.source_gone, S.RESET),
        (K.cancelled, S.RESET),
        (K.target_failed, S.RESET),
        (K.target_accepted, S.SET),
        (K.tired, S.RESET),
    ),
    S.SET: (
        (K.source_gone, S.RESET),
        (K.cancelled, S.CANCEL),
        (K.target_failed, S.CANCEL),
        (K.refused, S.CANCEL),
        (_all_of(K.did_it, K.with_storage), S.MIRROR),
        (K.did_it, S.SEND),
        (K.tired, S.CANCEL),
    ),
    S.MIRROR: (
        (K.source_gone, S.RESET),
        (K.cancelled, S.CANCEL),
        (K.target_failed, S.CANCEL),
        (K.refused, S.CANCEL),
        (K.did_it, S.SEND),
    ),
    S.SEND: (
        (K.source_gone, S.RESET),
        (K.cancelled, S.CANCEL),
        (K.target_failed, S.CANCEL),
        (K.refused, S.CANCEL),
        (K.source_beyond, S.FENCE),
        (K.source_failed, S.CANCEL),
    ),
    S.FENCE: (
        (K.usurped, S.DOUBT),
        (K.source_gone, S.RESET),
        (K.cancelled, S.CANCEL),
        (K.source_back, S.CANCEL),
        (K.target_failed, S.CANCEL),
        (_all_of(K.fenced, K.with_storage, K.source_stopped, K.target_waits), S.SYNC),
        (_all_of(K.fenced, K.target_waits), S.SWITCH),
        (K.tired, S.CANCEL),
    ),
    S.SYNC: (
        (K.source_gone, S.SWITCH),
        (K.cancelled, S.CANCEL),
        (K.source_back, S.CANCEL),
        (K.target_failed, S.CANCEL),
        (K.refused, S.CANCEL),
        (K.did_it, S.SWITCH),
        (K.tired, S.CANCEL),
    ),
    S.SWITCH: (
        (K.proven, S.HAND_OVER),
        (K.source_lost, S.RESET),
        (K.both_gone, S.RESET),
        (K.torn_apart, S.RESET),
        (K.returns, S.TAKE_BACK),
        (K.source_back, S.CANCEL),
        (K.source_stranded, S.TAKE_BACK),
        (K.stuck, S.RESET),
        (K.source_cut, S.REOPEN),
        (K.may_cancel, S.CANCEL),
        (K.tired, S.DOUBT),
    ),
    S.HAND_OVER: (
        (K.new_owner_named, S.RUN),
        (K.usurped, S.DOUBT),
        (K.both_gone, S.RESET),
        (K.torn_apart, S.RESET),
        (K.returns, S.TAKE_BACK),
        (K.tired, S.DOUBT),
    ),
    S.RUN: (
        (K.target_runs, S.DRAIN),
        (_all_of(K.both_gone, K.target_never_ran), S.TAKE_BACK),
        (K.both_gone, S.SETTLE),
        (K.target_had_run, S.QUIT),
        (K.pages_lost, S.DOUBT),
        (_all_of(K.torn_apart, K.target_never_ran), S.TAKE_BACK),
        (_all_of(K.returns, K.target_never_ran), S.TAKE_BACK),
        (K.target_gone, S.DOUBT),
        (_all_of(K.source_cut, K.target_stuck), S.REOPEN),
        (K.tired, S.DOUBT),
    ),
    S.DRAIN: (
        (K.both_gone, S.SETTLE),
        (_all_of(K.source_gone, K.target_done), S.SETTLE),
        (K.pages_lost, S.DOUBT),
        (K.sent_all, S.QUIT),
        (K.target_gone, S.QUIT),
        (_all_of(K.source_cut, K.target_done), S.QUIT),
        (K.source_cut, S.REOPEN),
        (_all_of(K.tired, K.source_gone), S.DOUBT),
    ),
    S.QUIT: ((K.source_gone, S.SETTLE), (K.tired, S.DOUBT)),
    S.SETTLE: (
        (_all_of(K.settled, K.target_gone), S.LOST),
        (K.settled, S.DONE),
        (K.tired, S.DOUBT),
    ),
    S.CANCEL: (
        (K.source_gone, S.ASK),
        (K.source_back, S.RESET),
        (K.source_stranded, S.TAKE_BACK),
        (K.source_final, S.ASK),
        (K.source_postcopy, S.ASK),
        (K.tired, S.DOUBT),
    ),
    S.RESET: (
        (K.reset, S.DISCARD),
        (K.new_owner_named, S.ASK),
        (K.usurped, S.DOUBT),
        (K.tired, S.DOUBT),
    ),
    S.DISCARD: (
        (K.both_gone, S.LOST),
        (K.torn_apart, S.LOST),
        (_all_of(K.target_gone, K.source_caught), S.LOST),
        (K.target_gone, S.FAILED),
        (_all_of(K.tired, K.source_gone), S.LOST),
        (_all_of(K.tired, K.source_cut), S.LOST),
        (_all_of(K.tired, K.source_caught), S.LOST),
        (K.tired, S.FAILED),
    ),
    S.TAKE_BACK: (
        (K.taken_back, S.REAP),
        (K.new_owner_settled, S.ASK),
        (_all_of(K.handed_over, K.target_may_have_run), S.ASK),
        (K.usurped, S.DOUBT),
        (K.tired, S.DOUBT),
    ),
    S.REAP: ((K.source_gone, S.RESET), (K.torn_apart, S.RESET), (K.target_gone, S.RESUME), (K.tired, S.DOUBT)),
    S.RESUME: ((K.source_gone, S.RESET), (K.source_runs, S.RESET), (K.refused, S.DOUBT), (K.tired, S.DOUBT)),
    S.ASK: ((K.tired, S.DOUBT),),
    S.REOPEN: (
        (K.source_gone, S.ASK),
        (K.target_gone, S.ASK),
        (K.source_joined, S.ASK),
        (K.target_done, S.ASK),
        (K.weary, S.DOUBT),
        (K.did_it, S.REJOIN),
        (K.tired, S.DOUBT),
    ),
    S.REJOIN: (
        (K.source_gone, S.ASK),
        (K.target_gone, S.ASK),
        (K.source_joined, S.ASK),
        (K.tired, S.REOPEN),
    ),
    S.DOUBT: (),
    S.DONE: (),
    S.FAILED: (),
    S.LOST: (),
}

_RESULT: Final = {S.DONE: Result.DONE, S.FAILED: Result.FAILED, S.LOST: Result.LOST}
_LONGEST_WAY: Final = 12  # states in a row without waiting; more would be a circle


class Machine:
    """One migration.

    :ivar state: where it is; before :class:`.words.Begin` it waits for that
    :ivar known: what has been heard
    :ivar why: what led it off the way, as far as anything did
    :param plan: what is to be done
    """

    __slots__ = ("_raised", "known", "state", "why")

    def __init__(self, plan: Plan) -> None:
        self.known = K(plan)
        self.state = S.LOOK
        self.why = ""
        self._raised: Raise | None = None

    @property
    def step(self) -> Step:
        """What it is at, for people."""
        return STEP[self.state]

    def hear(self, event: Event) -> list[Action]:
        """Take in what happened.

        :returns: what is to be done, in this order
        """
        state, known = self.state, self.known
        if state in ENDS:
            return []
        if type(event) is Begin:
            known.postcopy = event.again and known.plan.postcopy
            return self._enter(S.ASK if event.again else S.LOOK)
        owner = known.owner
        _TAKE[type(event)](known, event)
        to = self._next()
        if to is not None:
            return self._enter(to)
        if type(event) is Silence:
            return [*self._alarm(), *ASKS[state](known), self._wait()]
        if type(event) is OwnerIs and state in SWAPPING and known.owner != owner:
            return ASKS[state](known)
        if type(event) is GoPostcopy and state is S.SEND and known.plan.postcopy:
            known.postcopy = True
            return [OnSource(SourceVerb.POSTCOPY)]
        return []

    def _next(self) -> State | None:
        """The first move whose fact is true."""
        known, gate = self.known, GATES.get(self.state)
        if gate is not None and gate(known):
            for fact, to in JUDGE:
                if fact(known):
                    return to if to is not self.state else None
        for fact, to in MOVES[self.state]:
            if fact(known):
                if to in _OFF and not self.why:
                    words = known.refusal or known.target.refused or fact.__name__.replace("_", " ")
                    self.why = words if known.wanted else "cancelled"
                return to
        return None

    def _enter(self, to: State | None) -> list[Action]:
        """Go to a state, and on from it as far as what is known leads."""
        known = self.known
        actions: list[Action] = []
        for _ in range(_LONGEST_WAY):
            if to is None:
                break
            before, self.state = self.state, to
            if to in ENDS:
                return [*actions, *self._end()]
            if to is S.REOPEN:
                known.rounds += 1
            elif to is S.DOUBT:
                known.rounds = 0
                actions += self._raise(alarm(known, before))
            elif self._raised is not None and STEP[to] is not Step.RECOVER:
                self._raised = None
                actions.append(Clear())
            slow = to is S.SWITCH and known.plan.slow
            known.afresh(SLOW_SWITCH if slow else PATIENCE.get(to, USUAL_PATIENCE), EXPECTED.get(to))
            to = self._next()
        else:
            raise AssertionError(f"a circle in the table of moves, at {self.state}")
        return [*actions, *ASKS[self.state](known), self._wait()]

    def _raise(self, told: Raise) -> list[Action]:
        """Tell people, unless that is what they were told last."""
        if told == self._raised:
            return []
        self._raised = told
        return [told]

    def _alarm(self) -> list[Action]:
        """In doubt, after a round of questions: say what is in doubt now, and take no old answer for a new one."""
        if self.state is not S.DOUBT:
            return []
        told = self._raise(alarm(self.known, S.DOUBT))
        self.known.heard = 0
        return told

    def _wait(self) -> Wait:
        seconds = WAIT.get(self.state, USUAL_WAIT) * float(1 << min(self.known.silences, 6))
        return Wait(min(seconds, LONGEST_WAIT))

    def _end(self) -> list[Action]:
        end = End(_RESULT[self.state], self.known.refusal or self.known.target.refused or self.why)
        if self.state is S.LOST:
            return [lost(self.known), end]
        return [Clear(), end] if self._raised is not None else [end]


# States off the way: the first of them has the reason.
_OFF: Final = frozenset({S.CANCEL, S.RESET, S.TAKE_BACK, S.FAILED})


def _silence(known: K, _: object) -> None:
    known.silences += 1


def _cancel(known: K, _: object) -> None:
    known.wanted = False


def _confirm(known: K, _: object) -> None:
    known.confirm()


def _nothing(_: K, __: object) -> None: ...


_TAKE: Final[Mapping[type, Callable[..., None]]] = {
    QemuSaid: K.source_said,
    TargetSaid: K.target_said,
    OwnerIs: K.owner_is,
    SourceDid: K.did,
    TargetDid: K.did,
    Silence: _silence,
    Cancel: _cancel,
    Confirmed: _confirm,
    GoPostcopy: _nothing,
}
