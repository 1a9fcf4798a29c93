"""Each means: what it needs, how it is held back, and its notches."""

import pytest
from msgspec.structs import replace

from drover.migration.forecast import Setting
from drover.migration.means import (
    DOWNTIMES,
    LEVERS,
    MEANS,
    Means,
    Terms,
    Wishes,
    agree,
    arming,
    deadline,
    first,
    parameters,
    pull,
    usable,
)
from drover.ops.migration_settings import CAPABILITIES, PARAMETERS, Side

MIB = 1 << 20
GIB = 1 << 30
ALL = ("auto-converge", "dirty-limit", "postcopy-ram")
TERMS = Terms(deadline=120, memory=GIB, means=tuple(Means))


def notches(terms: Terms, bandwidth: float = 100.0 * MIB) -> list[tuple[Means, Setting]]:
    """Pull until nothing is left to be pulled."""
    found, now = [], first(terms)
    while (pulled := pull(terms, now, bandwidth)) is not None:
        found.append(pulled)
        now = pulled[1]
    return found


def test_every_means_has_a_lever_that_qemu_knows() -> None:
    assert set(LEVERS) == set(Means)
    for lever in LEVERS.values():
        assert not lever.capability or CAPABILITIES[lever.capability].side == lever.side
        assert set(lever.armed) <= set(PARAMETERS)
    told = parameters(Setting(0.2, cap=5.0, throttle=20, dirty_limit=3.0 * MIB))
    assert set(told) <= set(PARAMETERS)
    assert told == {"downtime-limit": 200, "max-bandwidth": 5, "max-cpu-throttle": 20, "vcpu-dirty-limit": 3}


@pytest.mark.parametrize("means", list(Means))
def test_every_lever_comes_to_its_end(means: Means) -> None:
    wishes = Wishes(cap=10.0 * MIB, ceiling=100.0 * MIB, throttle=70)
    found = notches(replace(TERMS, wishes=wishes, means=(means,)))
    assert 0 < len(found) < 10
    assert {one for one, _ in found} == {means}
    settings = [first(replace(TERMS, wishes=wishes, means=(means,)))] + [setting for _, setting in found]
    assert len({(*parameters(one).items(), one.postcopy) for one in settings}) == len(settings)


def test_notches() -> None:
    assert [round(one.downtime, 4) for _, one in notches(replace(TERMS, means=(Means.BLACKOUT,)))] == [0.105, 0.21]
    wishes = Wishes(cap=10.0 * MIB, ceiling=20.0 * MIB)
    assert [one.cap / MIB for _, one in notches(replace(TERMS, wishes=wishes, means=(Means.BANDWIDTH,)))] == [15, 20]
    throttled = notches(replace(TERMS, wishes=Wishes(throttle=70), means=(Means.AUTO_CONVERGE,)))
    assert [one.throttle for _, one in throttled] == [20, 40, 60, 70]
    limited = notches(replace(TERMS, vcpus=4, means=(Means.DIRTY_LIMIT,)))
    assert [one.dirty_limit / MIB for _, one in limited] == [12.5, 6.25, 3.125, 1.5625]


def test_a_cap_that_nobody_wished_for_is_not_raised() -> None:
    assert notches(replace(TERMS, means=(Means.BANDWIDTH,))) == []
    assert "max-bandwidth" not in parameters(first(TERMS))


def test_the_wished_order_is_kept() -> None:
    order = (Means.AUTO_CONVERGE, Means.BLACKOUT, Means.POSTCOPY)
    found = [one for one, _ in notches(replace(TERMS, means=order))]
    assert found == sorted(found, key=order.index)
    assert set(found) == set(order)


def test_the_promised_blackout_holds_all_that_is_not_memory() -> None:
    assert first(TERMS).downtime == pytest.approx(DOWNTIMES[0] * (0.3 * 0.8 - 0.03))
    # without that means all of it is taken from the beginning
    assert first(replace(TERMS, means=())).downtime == pytest.approx(0.21)
    assert first(replace(TERMS, overhead=1.0)).downtime == 0


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        (ALL, ALL, (Means.AUTO_CONVERGE, Means.POSTCOPY)),
        (ALL, (), (Means.AUTO_CONVERGE,)),
        (("dirty-limit", "postcopy-ram"), ("postcopy-ram",), (Means.DIRTY_LIMIT, Means.POSTCOPY)),
        ((), ALL, ()),
    ],
)
def test_what_both_have_can_be_used(source: tuple[str, ...], target: tuple[str, ...], found: tuple[Means, ...]) -> None:
    always = (Means.BLACKOUT, Means.BANDWIDTH)
    assert usable(tuple(Means), source, target) == (*always, *found)


def test_of_two_that_exclude_each_other_the_first_wished_for_is_used() -> None:
    assert usable((Means.DIRTY_LIMIT, Means.AUTO_CONVERGE), ALL, ALL) == (Means.DIRTY_LIMIT,)


def test_what_may_be_needed_is_armed_and_held_back() -> None:
    source, target, held = arming(replace(TERMS, means=(Means.AUTO_CONVERGE, Means.POSTCOPY)))
    assert source == {"auto-converge": True, "postcopy-ram": True}
    assert target == {"postcopy-ram": True}
    assert held == {
        "cpu-throttle-initial": 1,
        "cpu-throttle-increment": 99,
        "max-cpu-throttle": 1,
        "downtime-limit": 210,
    }
    assert LEVERS[Means.POSTCOPY].side is Side.BOTH
    assert arming(replace(TERMS, means=())) == ({}, {}, {"downtime-limit": 210})


def test_terms_are_agreed_on() -> None:
    terms = agree(Wishes(), ALL, ALL, memory=4 * GIB, to_copy=2 * GIB)
    assert (terms.means, terms.deadline) == (MEANS, 420)
    assert Means.POSTCOPY not in terms.means  # nobody asked for it
    assert agree(Wishes(deadline=30), ALL, ALL, memory=4 * GIB).deadline == 30
    assert deadline(0) == 60


def test_where_there_is_one_round_levers_between_rounds_are_of_no_use() -> None:
    able = ("auto-converge", "postcopy-ram")
    terms = agree(Wishes(means=(*MEANS, Means.POSTCOPY)), able, able, memory=GIB, once=True)
    assert terms.means == (Means.BANDWIDTH, Means.POSTCOPY)
    source, _, told = arming(terms)
    assert (source, told["downtime-limit"]) == ({"postcopy-ram": True}, 0)
    assert [(means, setting.once) for means, setting in notches(terms)] == [(Means.POSTCOPY, True)]
