"""What the simulator is worth: faults that were put into the tables, each of which it has to find."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from drover.migration import arrival, asking, machine
from drover.migration.arrival import Arrived
from drover.migration.knowledge import HELD
from drover.migration.knowledge import Knowledge as K
from drover.migration.machine import MOVES, Moves
from drover.migration.states import State as S
from drover.migration.words import OnTarget, QemuSaid, Silence, TargetSaid, TargetVerb
from drover.store.owner import Owner
from sim import steps
from sim.faults import run, world_of
from sim.world import World, Wrong

pytestmark = pytest.mark.once  # tables and pure functions
TRIES = 3_000  # what is rarer is found step by step


TWO: Final = "two copies"
NOT_OWNER: Final = "the owner is"
STALE: Final = "without what was written"


def assert_found(*what: str, tries: int = TRIES, ways: tuple[steps.Way, ...] = steps.WAYS) -> None:
    """The simulator comes to one of these faults; others, which the mutation may have as well, do not count."""
    for seed in range(tries):
        world, faults = world_of(seed)
        try:
            run(world, faults)
        except Wrong as wrong:
            if any(each in str(wrong) for each in what):
                return
    for case in steps.cases(ways):
        try:
            run(steps.world(case.way), case.faults)
        except Wrong as wrong:
            if any(each in str(wrong) for each in what):
                return
    pytest.fail(f"not found: {' or '.join(what)}")


def replaced(rows: Moves, fact: Callable[..., bool], *by: tuple[Callable[..., bool], S]) -> Moves:
    """A table with one of its rows replaced."""
    assert any(each is fact for each, _ in rows)
    return tuple(new for row in rows for new in (by if row[0] is fact else (row,)))


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Callable[[S, Callable[..., bool], tuple[Callable[..., bool], S]], None]:
    """Replaces one row of the driver's table."""

    def replace(state: S, fact: Callable[..., bool], by: tuple[Callable[..., bool], S]) -> None:
        monkeypatch.setitem(MOVES, state, replaced(MOVES[state], fact, by))  # type: ignore[arg-type]

    return replace


def test_commit_on_a_source_that_stands_still(patch: Callable[..., None]) -> None:
    def paused(known: K) -> bool:
        loaded = known.target.status == "completed" and known.target.run == "paused"
        return loaded and known.fenced() and known.source.run in HELD

    patch(S.SWITCH, K.proven, (paused, S.HAND_OVER))
    assert_found(TWO)


def test_commit_on_a_source_that_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have run on before it died."""

    def said(known: K, event: QemuSaid) -> None:
        known.source_said(event)
        known.final = known.final or known.source.gone

    monkeypatch.setitem(machine._TAKE, QemuSaid, said)  # type: ignore[arg-type]
    # too rare for some thousand random ones: it has to die between two things that happen
    assert_found(STALE, tries=0, ways=tuple(way for way in steps.WAYS if way.name == "the answer is cut"))


def test_run_on_the_other_node_without_a_swap(patch: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    patch(S.SWITCH, K.proven, (K.proven, S.RUN))
    monkeypatch.setitem(asking.ASKS, S.RUN, lambda known: [OnTarget(TargetVerb.RUN, known.epoch + 1)])  # type: ignore[arg-type]
    assert_found("the target runs, and the owner is")


def test_run_what_has_come_without_a_look_at_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(known: Any) -> bool:
        return known.qemu.status in arrival.LOADED and known.qemu.run == "paused"

    rows = tuple((loaded, to) if to is Arrived.START else (fact, to) for fact, to in arrival.MOVES[Arrived.HOLD])
    monkeypatch.setitem(arrival.MOVES, Arrived.HOLD, rows)  # type: ignore[arg-type]
    assert_found("the target runs, and the owner is")


def test_run_it_here_again_without_a_swap(patch: Callable[..., None]) -> None:
    patch(S.RUN, K.tired, (K.tired, S.RESUME))
    assert_found("the source runs, and the owner is")


def test_run_it_here_again_while_the_other_may_live(patch: Callable[..., None]) -> None:
    patch(S.REAP, K.tired, (K.tired, S.RESUME))
    patch(S.RUN, K.tired, (K.tired, S.REAP))
    assert_found(TWO)


@pytest.mark.parametrize("compared", ["all but the epoch", "nothing"])
def test_a_swap_that_does_not_compare_epochs(compared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(now: Owner, expected: Owner) -> bool:
        return compared == "nothing" or (now.same_process(expected) and now.phase is expected.phase)

    monkeypatch.setattr(World, "same", staticmethod(same))
    assert_found("failed, and the owner is")


def test_a_time_out_taken_for_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(known: K, _: object) -> None:
        known.silences += 1
        if known.tired():
            known.target = TargetSaid(known.plan.target.incarnation, known.target.order, gone=True)

    monkeypatch.setitem(machine._TAKE, Silence, dead)  # type: ignore[arg-type]
    assert_found(TWO)


def test_a_time_out_of_the_store_taken_for_a_refusal(patch: Callable[..., None]) -> None:
    patch(S.HAND_OVER, K.tired, (K.tired, S.RESUME))
    assert_found(NOT_OWNER, TWO)  # the record names the other one, which runs by then or not


def test_a_postcopy_that_is_cancelled(patch: Callable[..., None]) -> None:
    patch(S.SWITCH, K.may_cancel, (K.cancelled, S.CANCEL))
    assert_found("a postcopy was cancelled")
