"""One link shared by many: fair, never more than there is, and quiet."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drover.errors import ArgumentError
from drover.migration.budget import FLOOR, HYSTERESIS, Claim, Grants, allocate, demand_of, settle, split

MIB = 1 << 20
AMOUNTS = st.floats(0, 1e12)
CLAIMS = st.dictionaries(
    st.integers(), st.builds(Claim, demand=AMOUNTS | st.just(inf), floor=st.floats(0, 1e9)), min_size=1, max_size=30
)


def whole(grants: Grants) -> dict[str, float]:
    return {name: sum(streams.values()) for name, streams in grants.items()}


@pytest.mark.parametrize(
    ("demands", "parts"),
    [
        ([inf], [120]),
        ([inf, inf, inf], [40, 40, 40]),
        ([10, inf, inf], [10, 55, 55]),
        ([10, 50, inf], [10, 50, 60]),
        ([10, 20, 30], [10, 20, 30]),
        ([0, inf], [0, 120]),
        ([100, 100], [60, 60]),
    ],
)
def test_what_one_cannot_use_goes_to_the_others(demands: list[float], parts: list[float]) -> None:
    claims = {number: Claim(demand, 0) for number, demand in enumerate(demands)}
    assert list(split(120, claims).values()) == pytest.approx(parts)


def test_a_floor_is_kept_at_the_others_cost_while_there_is_enough() -> None:
    assert split(100, {"a": Claim(floor=60), "b": Claim(floor=0), "c": Claim(floor=0)}) == pytest.approx(
        {"a": 60, "b": 20, "c": 20}
    )
    assert split(30, {"a": Claim(floor=60), "b": Claim(floor=30)}) == pytest.approx({"a": 20, "b": 10})
    assert split(0, {"a": Claim(0), "b": Claim(inf, 0)}) == {"a": 0, "b": 0}
    assert split(100, {}) == {}


@given(capacity=AMOUNTS, claims=CLAIMS)
def test_it_is_max_min_fair(capacity: float, claims: dict[int, Claim]) -> None:
    parts = split(capacity, claims)
    near = 1e-6 * capacity + 1e-6
    lows = {key: min(claim.floor, claim.demand) for key, claim in claims.items()}
    assert sum(parts.values()) <= capacity + near
    assert all(part <= claims[key].demand + near for key, part in parts.items())
    if sum(lows.values()) > capacity:
        return
    assert all(part >= lows[key] - near for key, part in parts.items())
    hungry = [key for key, part in parts.items() if part < claims[key].demand - near]
    if not hungry:
        return
    assert sum(parts.values()) == pytest.approx(capacity, rel=1e-6, abs=1e-6)
    # nobody has more than one who is hungry, but for a floor
    least = min(parts[key] for key in hungry)
    assert all(part <= max(least, lows[key]) + near for key, part in parts.items())


@given(capacity=st.floats(1, 1e12), claims=CLAIMS)
def test_it_is_the_same_to_all_that_are_alike(capacity: float, claims: dict[int, Claim]) -> None:
    first = next(iter(claims))
    parts = split(capacity, {**claims, -(10**9): claims[first]})
    assert parts[-(10**9)] == parts[first]


@pytest.mark.parametrize("capacity", [-1.0, nan, inf])
def test_a_link_has_a_capacity(capacity: float) -> None:
    with pytest.raises(ArgumentError, match="capacity"):
        split(capacity, {"a": Claim()})


def test_a_claim_is_not_negative() -> None:
    with pytest.raises(ArgumentError, match="claim"):
        split(1, {"a": Claim(-1)})
    with pytest.raises(ArgumentError, match="claim"):
        split(1, {"a": Claim(floor=nan)})


def test_streams_share_the_part_of_their_migration() -> None:
    wishes = {"disks": {f"disk{n}": Claim() for n in range(5)} | {"memory": Claim()}, "plain": {"memory": Claim()}}
    grants = allocate(120 * MIB, wishes)
    assert whole(grants) == pytest.approx({"disks": 60 * MIB, "plain": 60 * MIB})
    assert list(grants["disks"].values()) == pytest.approx([10 * MIB] * 6)
    # a mirror that only follows what the guest writes leaves the rest to the memory
    grants = allocate(120 * MIB, {"vm": {"storage": Claim(5 * MIB), "memory": Claim()}, "other": {"memory": Claim()}})
    assert grants == {
        "vm": pytest.approx({"storage": 5 * MIB, "memory": 55 * MIB}),
        "other": pytest.approx({"memory": 60 * MIB}),
    }


def test_twenty_machines_fill_a_link() -> None:
    wishes = {f"vm{number}": {"memory": Claim()} for number in range(20)}
    assert list(whole(allocate(1000 * MIB, wishes)).values()) == pytest.approx([50 * MIB] * 20)
    wishes["vm0"] = {"memory": Claim(12 * MIB)}
    grants = whole(allocate(1000 * MIB, wishes))
    assert sum(grants.values()) == pytest.approx(1000 * MIB)
    assert grants["vm1"] == pytest.approx(52 * MIB)


def test_small_shifts_change_nothing() -> None:
    claims = {"a": {"memory": Claim()}, "b": {"memory": Claim(40 * MIB)}}
    before = allocate(100 * MIB, claims)
    less = {"a": {"memory": Claim()}, "b": {"memory": Claim(40 * MIB * (1 - 0.9 * HYSTERESIS))}}
    assert settle(before, 100 * MIB, less) is before
    much_less = {"a": {"memory": Claim()}, "b": {"memory": Claim(30 * MIB)}}
    assert settle(before, 100 * MIB, much_less) == allocate(100 * MIB, much_less)


def test_a_smaller_link_who_comes_and_who_goes_count_at_once() -> None:
    claims = {"a": {"memory": Claim()}, "b": {"memory": Claim()}}
    before = allocate(100 * MIB, claims)
    assert whole(settle(before, 99 * MIB, claims)) == pytest.approx({"a": 49.5 * MIB, "b": 49.5 * MIB})
    alone = {"a": claims["a"]}
    assert settle(before, 100 * MIB, alone) == {"a": {"memory": 100 * MIB}}
    assert settle({}, 100 * MIB, claims) == before


@given(st.lists(st.floats(0, 2e8), min_size=1, max_size=40))
def test_whatever_they_use_the_parts_fit_into_the_link(used: list[float]) -> None:
    grants: Grants = {}
    for number, amount in enumerate(used):
        names = [f"vm{index}" for index in range(1 + number % 7)]
        wishes = {name: {"memory": Claim(demand_of(grants.get(name, {}).get("memory", 0.0), amount))} for name in names}
        grants = settle(grants, 1e8, wishes)
        assert sum(part for streams in grants.values() for part in streams.values()) <= 1e8 * (1 + 1e-9)


def test_demand_is_what_is_used_and_some_more() -> None:
    assert demand_of(100 * MIB, 95 * MIB) == inf
    assert demand_of(100 * MIB, 95 * MIB, limit=120 * MIB) == 120 * MIB
    assert demand_of(100 * MIB, 40 * MIB) == 50 * MIB
    assert demand_of(100 * MIB, 0) == FLOOR
    # and is at rest there: what it is given so is not used up
    assert demand_of(50 * MIB, 40 * MIB) == 50 * MIB
