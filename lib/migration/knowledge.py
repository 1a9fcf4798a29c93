"""What the source's node has heard of a migration, and what follows from it.

Each public method without arguments is a fact that the table in :mod:`.machine` asks for, by its name. A fact is only
true when it has been heard: that nothing was heard makes none.
"""

from typing import Final

from msgspec import Struct

from ..store.owner import Owner, Phase
from .words import OwnerIs, QemuSaid, SourceDid, SourceVerb, TargetDid, TargetSaid, TargetVerb

# Statuses of the source's migration.
IDLE: Final = frozenset({"none", "failed", "cancelled"})
ENDED: Final = IDLE | {"completed"}  # which it stays, when the machine was taken back
FLOWING: Final = frozenset({"setup", "active", "wait-unplug"})
BEFORE_END: Final = frozenset({"pre-switchover", "device"})
# Run states in which QEMU has stopped a machine for a migration, and has not let go of it.
HELD: Final = frozenset({"finish-migrate", "postmigrate"})

NOBODY, OWNER, SOURCE, TARGET = 0, 1, 2, 4
ALL: Final = OWNER | SOURCE | TARGET
MAX_ROUNDS: Final = 5  # tries to mend a postcopy before people are told; they go on


class Plan(Struct, frozen=True, kw_only=True):
    """A migration that is to be.

    :ivar machine: its name
    :ivar source: the process that runs it, as the owner record names it
    :ivar target: the process that will; it is named before it is started
    :ivar storage: it has disks that go along
    :ivar postcopy: it may be finished by postcopy; both sides have the capability on
    :ivar slow: it may stand still for long at the switch, while much of its memory goes over
    :ivar paused: the machine is to stand still: nobody has it run, wherever it is
    """

    machine: str
    source: Owner
    target: Owner
    storage: bool = False
    postcopy: bool = False
    slow: bool = False
    paused: bool = False


class Knowledge:
    """What has been heard.

    :ivar plan: what is to be done
    :ivar owner: the newest record that was heard of
    :ivar source: what the source said last; `target` likewise
    :ivar epoch: of the record while the migration is under way
    :ivar heard: who has said anything since the state began
    :ivar silences: how often nobody has, since then
    :ivar patience: how many of these say that it is in doubt
    :ivar final: the source was seen to have sent all, and to be where it never leaves by itself
    :ivar outstanding: what the source was told, and has not answered: it may still do it, so it is not told again
    :ivar sent: the source has begun to send
    :ivar postcopy: it may be past the point from where a postcopy goes back: as far as is known, if it is not known
    :ivar wanted: nobody has cancelled it
    :ivar given_up: a person has said that the other QEMU is dead
    :ivar rounds: how often it was tried to mend a postcopy that was cut
    :ivar floor: the epoch that the record has at least, once it has been reset
    """

    __slots__ = (
        "done", "epoch", "expected", "final", "floor", "given_up", "heard", "no_record", "outstanding", "owner",
        "patience", "plan", "postcopy", "refusal", "rounds", "sent", "silences", "source", "target", "wanted",
    )  # fmt: skip

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.owner: Owner | None = None
        self.no_record = False
        self.source = QemuSaid()
        self.target = TargetSaid(plan.target.incarnation, 0)
        self.epoch = self.floor = 0
        self.heard = NOBODY
        self.silences, self.patience, self.rounds = 0, 1, 0
        self.expected: SourceVerb | TargetVerb | None = None
        self.done, self.refusal = False, ""
        self.sent = self.postcopy = self.final = False
        self.outstanding: set[SourceVerb] = set()
        self.wanted, self.given_up = True, False

    # -- hearing -------------------------------------------------------------------------------------------------------

    def afresh(self, patience: int, expected: SourceVerb | TargetVerb | None) -> None:
        """A new state has begun: nobody has said anything in it.

        :param expected: what is asked in it, so that the answer to something else is not taken for its
        """
        self.heard, self.silences, self.patience = NOBODY, 0, patience
        self.expected, self.done, self.refusal = expected, False, ""

    def source_said(self, said: QemuSaid) -> None:
        """Take in what the source says. Who was seen dead says nothing any more."""
        if self.source.gone:
            return
        self.heard |= SOURCE
        self.source = said
        if not said.gone:
            self.final = said.status == "completed" and said.run == "postmigrate"
        if said.status in FLOWING:
            self.sent = True
        elif said.status.startswith("postcopy"):
            self.postcopy = True

    def target_said(self, said: TargetSaid) -> None:
        """Take in what the other node says, unless it is of another process, or was overtaken on its way."""
        if said.incarnation != self.plan.target.incarnation or said.order <= self.target.order:
            return
        self.heard |= TARGET
        if not self.target.gone:
            self.target = said

    def owner_is(self, said: OwnerIs) -> None:
        """Take in the record, unless a later one was heard of before."""
        if said.owner is None:
            self.no_record = True
            self.heard |= OWNER
        elif self.owner is None or said.owner.age >= self.owner.age:
            self.owner = said.owner
            self.heard |= OWNER
            if not self.epoch and said.owner.phase in (Phase.MIGRATING, Phase.SWITCHOVER):
                self.epoch = said.owner.epoch

    def did(self, said: SourceDid | TargetDid) -> None:
        """Take in an answer."""
        if isinstance(said, SourceDid):
            self.outstanding.discard(said.verb)
            self.heard &= ~SOURCE  # what was said before it did this is old
        self.sent = self.sent or (said.verb is SourceVerb.SEND and not said.why)
        if said.verb is self.expected:
            self.done, self.refusal = not said.why, said.why

    def confirm(self) -> None:
        """Take a person's word for it that the other QEMU is dead; whether it ran is not known by that."""
        if not self.target.gone:
            self.target = TargetSaid(self.plan.target.incarnation, self.target.order, gone=True, ran=None)
        self.given_up = True

    # -- the record ----------------------------------------------------------------------------------------------------

    def _ours(self, phase: Phase) -> bool:
        owner = self.owner
        return owner is not None and owner.phase is phase and owner.same_process(self.plan.source)

    def _theirs(self, phase: Phase) -> bool:
        owner = self.owner
        return owner is not None and owner.phase is phase and owner.same_process(self.plan.target)

    def record_is_free(self) -> bool:
        """The source owns it, and it is on no way."""
        return bool(self.heard & OWNER) and self._ours(Phase.RUNNING)

    def record_heard(self) -> bool:
        """It was heard, and is none of what stands above."""
        return bool(self.heard & OWNER)

    def claimed(self) -> bool:
        """It says that this migration is under way."""
        return self._ours(Phase.MIGRATING) and self._epoch() == self.epoch

    def claim_lost(self) -> bool:
        """Somebody else was quicker."""
        return self.epoch > 0 and (self._epoch() >= self.epoch or self.no_record)

    def fenced(self) -> bool:
        """It says that the machine stands still to be handed over."""
        return self._ours(Phase.SWITCHOVER) and self._epoch() == self.epoch

    def handed_over(self) -> bool:
        """It names the new owner."""
        return self._theirs(Phase.COMMIT)

    def new_owner_settled(self) -> bool:
        """It names the new owner, and says that all is done."""
        return self._theirs(Phase.RUNNING)

    def settled(self) -> bool:
        """It says that all is done, or the new owner has gone on from there."""
        owner = self.owner
        return owner is not None and not owner.same_process(self.plan.source) and not self.handed_over()

    def reset(self) -> bool:
        """It says that the source owns it again, with an epoch that is new."""
        return self._ours(Phase.RUNNING) and 0 < self.floor <= self._epoch()

    def taken_back(self) -> bool:
        """It says that the source owns it again, and waits for the other to be dead."""
        return self._ours(Phase.BACK)

    def on_the_way(self) -> bool:
        """It says that the machine is being sent."""
        return self._ours(Phase.MIGRATING)

    def standing(self) -> bool:
        """It says that the machine stands still to be handed over."""
        return self._ours(Phase.SWITCHOVER)

    def new_owner_named(self) -> bool:
        """It names the new owner."""
        return self._theirs(Phase.COMMIT) or self._theirs(Phase.RUNNING)

    def usurped(self) -> bool:
        """It names neither of the two, or is about another migration; or there is none."""
        owner = self.owner
        if owner is None:
            return self.no_record
        if owner.same_process(self.plan.source):
            return owner.phase in (Phase.MIGRATING, Phase.SWITCHOVER) and owner.epoch != self.epoch > 0
        return not owner.same_process(self.plan.target)

    def _epoch(self) -> int:
        return self.owner.epoch if self.owner is not None else 0

    # -- the source ----------------------------------------------------------------------------------------------------

    def source_gone(self) -> bool:
        """Its process is dead."""
        return self.source.gone

    def source_stopped(self) -> bool:
        """It stands still before the end, and sends no more before it is told to."""
        return self.source.status == "pre-switchover" and SourceVerb.CONTINUE not in self.outstanding

    def source_failed(self) -> bool:
        """It sends no more."""
        return self.sent and bool(self.heard & SOURCE) and self.source.status in IDLE

    def source_flows(self) -> bool:
        """It sends the memory."""
        return bool(self.heard & SOURCE) and self.source.status in FLOWING

    def source_idle(self) -> bool:
        """It has sent nothing."""
        return bool(self.heard & SOURCE) and self.source.status == "none"

    def source_back(self) -> bool:
        """It sends no more, and has the machine for itself."""
        source = self.source
        if self.outstanding or not self.heard & SOURCE or source.gone:
            return False  # what it was told may still make something else of it
        return source.status in ENDED and source.run not in HELD

    def source_runs(self) -> bool:
        """The machine runs there, or stands still as it is to."""
        stands = self.plan.paused and not self.outstanding
        return bool(self.heard & SOURCE) and (self.source.run == "running" or stands)

    def source_final(self) -> bool:
        """It has sent all, and never runs by itself: the one state that QEMU does not leave; or it is dead."""
        return self.source.gone or self.final

    def source_beyond(self) -> bool:
        """It stands still, at the end or past it."""
        source = self.source
        if not self.heard & SOURCE or source.run not in HELD:
            return False
        return source.status in BEFORE_END or source.status == "completed" or source.status.startswith("postcopy")

    def source_cut(self) -> bool:
        """Postcopy: it has lost the other."""
        return self.source.status == "postcopy-paused"

    def source_stranded(self) -> bool:
        """It sends no more, has the machine for itself, and does not run it by itself (7.2, before a postcopy)."""
        source = self.source
        heard = bool(self.heard & SOURCE) and not self.outstanding
        return heard and source.status in IDLE and source.run == "postmigrate"

    def source_caught(self) -> bool:
        """Postcopy: it comes to no end any more."""
        return self.postcopy and self.source.status in ("device", "cancelling")

    def source_postcopy(self) -> bool:
        """It is in postcopy."""
        return bool(self.heard & SOURCE) and self.source.status.startswith("postcopy")

    def source_tame(self) -> bool:
        """It may be told to cancel: it is in no postcopy, which is known."""
        status = self.source.status
        return bool(self.heard & SOURCE) and not status.startswith("postcopy") and status != "cancelling"

    def source_joined(self) -> bool:
        """Postcopy: it has the other again, or all is sent."""
        return bool(self.heard & SOURCE) and self.source.status in ("postcopy-active", "completed")

    # -- the other node ------------------------------------------------------------------------------------------------

    def target_accepted(self) -> bool:
        """It waits for the machine."""
        target = self.target
        return bool(self.heard & TARGET) and not target.gone and not target.refused and bool(target.status)

    def target_waits(self) -> bool:
        """It was heard to have its end of the connection; or the way back stays open if it has not (no postcopy)."""
        return not self.postcopy or (bool(self.heard & TARGET) and self.target.status == "active")

    def target_gone(self) -> bool:
        """Its process is dead, or never was."""
        return self.target.gone

    def target_failed(self) -> bool:
        """It cannot take the machine any more."""
        return self.target.gone or bool(self.target.refused) or self.target.status == "failed"

    def target_runs(self) -> bool:
        """The machine runs there, or knows that it is the machine, and stands still as it is to."""
        # that it stands still says nothing by itself: it does before it is handed over, too
        stands = self.plan.paused and self.target.run == "paused" and self.target.ran is True
        return (self.target.run == "running" or stands) and not self.target.gone

    def target_done(self) -> bool:
        """It has all of the machine."""
        return self.target.status == "completed" and not self.target.gone

    def target_stuck(self) -> bool:
        """Postcopy: it lacks something of the machine, or is so stuck that it does not even say so."""
        return self.target.status.startswith("postcopy") or self.target_mute()

    def target_mute(self) -> bool:
        """Its node answers, and it does not."""
        target = self.target
        return bool(self.heard & TARGET) and not target.gone and not target.status

    def may_lack_pages(self) -> bool:
        """It was sent by postcopy, as far as is known, and has not said that it has all of the machine."""
        return self.postcopy and not self.target.gone and self.target.status != "completed"

    def target_never_ran(self) -> bool:
        """It is dead, and was never told to run."""
        return self.target.gone and self.target.ran is False

    def target_had_run(self) -> bool:
        """It is dead, and was told to run before, or has to be taken for one that was."""
        target = self.target
        return target.gone and (target.ran is True or (target.ran is None and self.given_up))

    def target_may_have_run(self) -> bool:
        """It lives, or was told to run, or nobody can tell."""
        return not self.target_never_ran()

    # -- both ----------------------------------------------------------------------------------------------------------

    def proven(self) -> bool:
        """The source never runs again by itself; the other has the machine and does not run: it may be handed over."""
        # That it is dead proves nothing of what it did before: it may have taken the machine back, and run.
        source, target = self.source, self.target
        if target.gone or target.refused or target.run != "paused" or not self.fenced():
            return False
        if target.status == "completed":
            return self.final or source.status.startswith("postcopy")
        return target.status == "postcopy-active" and source.status in ("postcopy-active", "completed")

    def sent_all(self) -> bool:
        """The source was seen to have sent all; it may have died since then."""
        return self.final

    def source_lost(self) -> bool:
        """It is dead, and was not seen to have sent all: nobody can tell whether it ran on."""
        return self.source.gone and not self.final

    def returns(self) -> bool:
        """The source has all of the machine and never runs by itself, and the other is dead or cannot load it."""
        source = self.source
        return source.run == "postmigrate" and source.status in ENDED and self.target_failed()

    def stuck(self) -> bool:
        """Postcopy began on a connection that was broken: the source comes to no end, and the other has nothing."""
        return self.source_caught() and self.target_failed() and self.tired()

    def both_gone(self) -> bool:
        """Both are dead."""
        return self.source.gone and self.target.gone

    def pages_lost(self) -> bool:
        """Postcopy: the source is dead, and the other does not have all of the machine."""
        return self.source_lost() and not self.target.gone and self.target.status.startswith("postcopy")

    def torn_apart(self) -> bool:
        """Postcopy: the other is dead, and the source, which has noticed, neither goes on nor back."""
        return self.target.gone and self.source.status == "postcopy-paused"

    def may_cancel(self) -> bool:
        """The way back is open (not in a postcopy that was told to go on), and is wanted, or it takes too long."""
        if self.postcopy or not self.heard & SOURCE or self.source.status not in FLOWING | BEFORE_END:
            return False
        return not self.wanted or self.tired()

    # -- us ------------------------------------------------------------------------------------------------------------

    def tired(self) -> bool:
        """It has not been heard for too long."""
        return self.silences >= self.patience

    def cancelled(self) -> bool:
        """Somebody wants the machine to stay."""
        return not self.wanted

    def refused(self) -> bool:
        """QEMU refuses what was asked."""
        return bool(self.refusal)

    def did_it(self) -> bool:
        """What was asked is done."""
        return self.done

    def with_storage(self) -> bool:
        """Disks go along."""
        return self.plan.storage

    def weary(self) -> bool:
        """It was tried too often."""
        return self.rounds > MAX_ROUNDS

    def all_heard(self) -> bool:
        """The record, and both sides as far as they live, have been heard."""
        return not self.silent()

    def silent(self) -> int:
        """Who of those that could say something has not."""
        return ALL & ~(self.heard | (SOURCE if self.source.gone else 0) | (TARGET if self.target.gone else 0))
