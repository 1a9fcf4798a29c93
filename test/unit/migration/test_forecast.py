"""A guest is found out by what it has made dirty; and where the rounds lead to then."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drover.migration.forecast import ENDLESS, Dirtying, Round, Setting, learn, walk

MIB = float(1 << 20)
MEMORY = 4096 * MIB
LINK = 100 * MIB
SETTING = Setting(downtime=0.2)


def rounds(guest: Dirtying, seconds: Sequence[float], throttles: Sequence[float] = ()) -> list[Round]:
    """What such a guest makes dirty in rounds of these lengths."""
    throttles = throttles or [0.0] * len(seconds)
    return [Round(one, guest.within(one, throttle), throttle) for one, throttle in zip(seconds, throttles, strict=True)]


@pytest.mark.parametrize(
    ("guest", "seconds"),
    [
        (Dirtying(0, 256 * MIB, 20 * MIB), [1, 8.2, 2.3, 0.8]),
        (Dirtying(0, 2000 * MIB, 130 * MIB), [1, 2, 4, 8, 40, 15]),
        (Dirtying(0, 300 * MIB, 400 * MIB), [1, 2, 3, 2.9]),
        (Dirtying(8 * MIB, 200 * MIB, 12 * MIB), [1, 8, 2, 0.6, 0.3]),
    ],
)
def test_a_guest_is_found_out(guest: Dirtying, seconds: list[float]) -> None:
    found = learn(rounds(guest, seconds), MEMORY)
    for asked in [*seconds, 0.5, 5.0]:
        assert found.within(asked) == pytest.approx(guest.within(asked), rel=0.2)


@pytest.mark.parametrize("feels", [1.0, 0.5, 0.0])
def test_how_much_of_a_throttle_it_feels(feels: float) -> None:
    guest = Dirtying(0, 500 * MIB, 60 * MIB, feels)
    found = learn(rounds(guest, [1, 10, 4, 4, 3.5, 3], [0, 0, 0, 0, 60, 60]), MEMORY)
    assert found.feels == feels
    assert found.within(3, 80) == pytest.approx(guest.within(3, 80), rel=0.15)


def test_nothing_seen_or_nothing_dirty_is_a_quiet_guest() -> None:
    assert learn([], MEMORY).within(100) == 0
    assert learn([Round(1, 0), Round(8, 0)], MEMORY).within(100) == 0
    assert Dirtying(5, 10, 1).within(0) == 0


@given(
    seen=st.lists(st.builds(Round, st.floats(0, 1e5), st.floats(0, 1e13), st.floats(0, 99)), max_size=8),
    memory=st.floats(1 << 20, 1e13),
)
def test_any_rounds_make_a_guest(seen: list[Round], memory: float) -> None:
    found = learn(seen, memory)
    amounts = [found.within(seconds, 50) for seconds in (0, 0.05, 1, 10, 1e4)]
    assert amounts == sorted(amounts)
    assert amounts[-1] <= found.hot + found.working


def test_a_quiet_guest_takes_as_long_as_its_memory() -> None:
    walked = walk(MEMORY, 0, LINK, SETTING, Dirtying())
    assert walked.ends
    assert walked.seconds == pytest.approx(MEMORY / LINK)
    assert walked.left == pytest.approx(0.2 * LINK)


def test_rounds_shrink_until_the_rest_is_small_enough() -> None:
    guest = Dirtying(0, 2000 * MIB, 30 * MIB)
    walked = walk(MEMORY, 0, LINK, SETTING, guest)
    assert walked.ends
    assert 1.2 * MEMORY / LINK < walked.seconds < 1.5 * MEMORY / LINK
    assert walked.left <= 0.2 * LINK
    # half of the first round has gone by: it ends as much earlier, and has dirtied as much
    later = walk(MEMORY / 2, MEMORY / LINK / 2, LINK, SETTING, guest)
    assert later.seconds == pytest.approx(walked.seconds - MEMORY / LINK / 2, rel=0.01)


def test_rounds_that_dirty_what_they_send_never_end() -> None:
    guest = Dirtying(0, 3000 * MIB, 200 * MIB)
    walked = walk(MEMORY, 0, LINK, SETTING, guest)
    assert not walked.ends
    assert walked.left > 10 * LINK
    # to stand still for longer does not help; a faster link does, and so does a throttle that is felt
    assert not walk(MEMORY, 0, LINK, Setting(downtime=0.8), guest).ends
    assert walk(MEMORY, 0, 4 * LINK, SETTING, guest).ends
    assert walk(MEMORY, 0, LINK, Setting(0.2, throttle=80), guest).ends
    assert not walk(MEMORY, 0, LINK, Setting(0.2, throttle=80), Dirtying(0, 3000 * MIB, 200 * MIB, 0.0)).ends
    assert walk(MEMORY, 0, LINK, Setting(0.2, dirty_limit=20 * MIB), guest, vcpus=2).ends
    assert walk(MEMORY, 0, LINK, Setting(0.2, postcopy=True), guest).seconds == pytest.approx(MEMORY / LINK)


def test_what_is_hot_is_kept_above_the_threshold_until_that_is_raised() -> None:
    guest = Dirtying(0, 8 * MIB, 168 * MIB)
    stuck = walk(15 * MIB, 0, LINK / 2, Setting(downtime=0.075), guest)
    assert not stuck.ends
    assert stuck.left > 0.075 * LINK / 2
    assert walk(stuck.left, 0, LINK / 2, Setting(downtime=0.3), guest).ends


def test_a_throttle_that_is_still_to_come_takes_its_rounds() -> None:
    guest = Dirtying(0, 3000 * MIB, 200 * MIB)
    at_once = walk(2000 * MIB, 0, LINK, Setting(0.2, throttle=80), guest)
    later = walk(2000 * MIB, 0, LINK, Setting(0.2, throttle=80), guest, throttle=0)
    assert later.ends
    assert later.seconds > at_once.seconds + 10


def test_what_has_no_end_is_written_as_a_number() -> None:
    assert Setting(0.2).cap == ENDLESS < float("inf")


def test_one_round_and_what_it_makes_dirty() -> None:
    guest = Dirtying(working=400 * MIB, rate=50 * MIB)
    walked = walk(1000 * MIB, 0, 100 * MIB, Setting(0.3, once=True), guest)
    assert walked.ends
    assert walked.round == 10
    assert walked.left == guest.within(10)
    assert walked.seconds == pytest.approx(10 + walked.left / (100 * MIB))
