"""The node that a machine comes to, by itself: what it does to QEMU it does by the record alone."""

from typing import Any

import pytest
from msgspec.structs import replace

from drover.migration.arrival import Arrival, Arrived, Newcomer
from drover.migration.words import (
    ArrivalDid,
    ArrivalVerb,
    Asked,
    Begin,
    End,
    OnArrival,
    OwnerIs,
    QemuSaid,
    Raise,
    Read,
    Silence,
    Swap,
    TargetVerb,
    Tell,
)
from drover.store.owner import Owner, Phase

HERE = Owner(node="a", boot_id="boot-a", incarnation="vm.1")
THERE = Owner(node="b", boot_id="boot-b", incarnation="vm.2")
ON_THE_WAY = HERE.to(Phase.MIGRATING)
STANDING = ON_THE_WAY.to(Phase.SWITCHOVER)
NAMED = STANDING.to(Phase.COMMIT, owner=THERE)
RESET = ON_THE_WAY.to(Phase.RUNNING)
LOADED = QemuSaid("completed", "paused")


def held(epoch: int = ON_THE_WAY.epoch) -> Arrival:
    """One whose QEMU waits."""
    arrival = Arrival(Newcomer(machine="vm", process=THERE, epoch=epoch))
    arrival.hear(Begin())
    assert OnArrival(ArrivalVerb.LAUNCH) in arrival.hear(OwnerIs(ON_THE_WAY))
    arrival.hear(ArrivalDid(ArrivalVerb.LAUNCH))
    arrival.hear(QemuSaid("setup", "inmigrate"))
    assert arrival.state is Arrived.HOLD
    return arrival


def verbs(actions: list[Any]) -> list[ArrivalVerb]:
    """What is asked of QEMU."""
    return [action.verb for action in actions if isinstance(action, OnArrival)]


@pytest.mark.parametrize("record", [HERE, STANDING, RESET, NAMED, None])
def test_nothing_is_started_for_another_record(record: Owner | None) -> None:
    arrival = Arrival(Newcomer(machine="vm", process=THERE, epoch=ON_THE_WAY.epoch))
    assert Read() in arrival.hear(Begin())
    actions = arrival.hear(OwnerIs(record))
    assert arrival.state is Arrived.GONE
    assert verbs(actions) == []
    assert any(isinstance(action, End) for action in actions)


@pytest.mark.parametrize("unwanted", [False, True])
def test_the_record_is_asked_for_again_once_it_waits_only_if_somebody_wants_it_no_more(unwanted: bool) -> None:
    """It was read before the launch, and the memory comes at once. Who is silent meanwhile is asked about later."""
    arrival = Arrival(Newcomer(machine="vm", process=THERE, epoch=ON_THE_WAY.epoch))
    arrival.hear(Begin())
    arrival.hear(OwnerIs(ON_THE_WAY))
    if unwanted:
        assert arrival.hear(Asked(TargetVerb.DISCARD, RESET.epoch)) == []
    assert (Read() in arrival.hear(ArrivalDid(ArrivalVerb.LAUNCH))) == unwanted
    assert Read() in arrival.hear(Silence())
    assert ArrivalVerb.KILL in verbs(arrival.hear(OwnerIs(RESET)))


def test_it_does_not_run_before_it_is_named() -> None:
    arrival = held()
    for event in (LOADED, OwnerIs(STANDING), Asked(TargetVerb.RUN, STANDING.epoch), Silence()):
        assert ArrivalVerb.CONT not in verbs(arrival.hear(event))
    assert arrival.state is Arrived.HOLD


@pytest.mark.parametrize("word", [OwnerIs(NAMED), Asked(TargetVerb.RUN, NAMED.epoch)])
def test_it_runs_once_it_is_named_and_loaded(word: Any) -> None:
    arrival = held()
    assert ArrivalVerb.CONT not in verbs(arrival.hear(word))  # in inmigrate QEMU would take it for later
    assert ArrivalVerb.CONT in verbs(arrival.hear(LOADED))
    assert arrival.known.ran is True
    actions = [*arrival.hear(QemuSaid("completed", "running")), *arrival.hear(OwnerIs(NAMED))]
    assert Swap(NAMED, NAMED.to(Phase.RUNNING)) in actions
    arrival.hear(OwnerIs(NAMED.to(Phase.RUNNING)))
    assert arrival.state is Arrived.MOVED


def test_it_ends_once_it_was_overtaken_and_not_because_it_is_asked_to() -> None:
    arrival = held()
    actions = arrival.hear(Asked(TargetVerb.DISCARD, RESET.epoch))
    assert Read() in actions
    assert ArrivalVerb.KILL not in verbs(actions)
    assert ArrivalVerb.KILL in verbs(arrival.hear(OwnerIs(RESET)))
    actions = arrival.hear(QemuSaid(gone=True))
    assert arrival.state is Arrived.GONE
    assert arrival.known.ran is False


def test_after_a_restart_it_knows_nothing_of_the_past() -> None:
    arrival = Arrival(Newcomer(machine="vm", process=THERE, epoch=ON_THE_WAY.epoch))
    actions = arrival.hear(Begin(again=True))
    assert Read() in actions
    assert verbs(actions) == [ArrivalVerb.ASK]
    arrival.hear(QemuSaid(gone=True))
    assert arrival.known.ran is None


def test_people_are_told_that_nobody_asks_any_more() -> None:
    arrival = held()
    arrival.hear(LOADED)
    told = [action for _ in range(5) for action in arrival.hear(Silence()) if isinstance(action, Raise)]
    assert len(told) == 1
    assert "nobody asks" in told[0].text


def test_what_nobody_sends_anything_to_is_not_kept_for_ever() -> None:
    arrival = held()
    asked = [verb for _ in range(20) for verb in verbs(arrival.hear(Silence()))]
    assert ArrivalVerb.KILL in asked
    arrival = held()
    arrival.hear(LOADED)  # a machine that has come is
    assert not [verb for _ in range(50) for verb in verbs(arrival.hear(Silence())) if verb is ArrivalVerb.KILL]


def test_one_that_is_still_launched_is_not_told_of() -> None:
    """It may wait for its machine already, and not be ready for its disks."""
    arrival = Arrival(Newcomer(machine="vm", process=THERE, epoch=ON_THE_WAY.epoch))
    arrival.hear(Begin())
    arrival.hear(OwnerIs(ON_THE_WAY))
    assert arrival.state is Arrived.LAUNCH
    assert arrival.hear(QemuSaid("setup", "inmigrate")) == []
    told = arrival.hear(ArrivalDid(ArrivalVerb.LAUNCH))
    assert Tell() in told


def test_one_that_is_to_stand_still_does_so_as_soon_as_it_is_here() -> None:
    arrival = held()
    arrival.known.it = replace(arrival.known.it, paused=True)
    arrival.hear(LOADED)
    assert arrival.state is Arrived.HOLD
    actions = arrival.hear(OwnerIs(NAMED))
    assert (arrival.state, verbs(actions)) == (Arrived.SETTLE, [])
    assert arrival.known.ran is True
    assert Swap(NAMED, NAMED.to(Phase.RUNNING)) in actions
