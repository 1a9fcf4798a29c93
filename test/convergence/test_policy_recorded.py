"""The policy before what real QEMUs told, 7.2 and 10.0, of guests that are known: does it see what was, and in time?"""

from itertools import pairwise

import pytest

from convergence.recorded import NAMES, Recording
from drover.migration.means import Means
from drover.migration.policy import Act

pytestmark = pytest.mark.once  # it is arithmetic
MIB = 1 << 20
ALONE = [name for name in NAMES if not Recording(name).told["pulls"]]
# name: from when on the end is known: there, levers were pulled by a clock
PULLED = ["faster-10", "throttled-7", "throttled-10"]


def worst(name: str, since: float) -> float:
    """By how much of the whole the end told is off, at the worst, from some second on."""
    recording = Recording(name)
    assert recording.ended is not None
    _, told = recording.play(recording.terms())
    return max(abs(at + advice.eta - recording.ended) / recording.ended for at, advice in told if at >= since)


def test_there_are_recordings_of_both() -> None:
    assert {Recording(name).told["qemu"] for name in NAMES} == {"7.2", "10.0"}
    assert len(ALONE) >= 8


def test_from_half_time_on_it_tells_the_end_of_nine_in_ten() -> None:
    off = {name: worst(name, (Recording(name).ended or 0) / 2) for name in ALONE}
    print(off)
    far = [name for name, by in off.items() if by > 0.2]
    assert len(far) <= 0.1 * len(ALONE), far
    assert max(off.values()) < 0.4


@pytest.mark.parametrize("name", PULLED)
def test_it_tells_the_end_once_a_lever_shows(name: str) -> None:
    recording = Recording(name)
    assert recording.ended is not None
    last = recording.told["pulls"][-1][0]
    assert worst(name, (last + recording.ended) / 2) <= 0.2


@pytest.mark.parametrize("name", NAMES)
def test_it_only_goes_forward(name: str) -> None:
    recording = Recording(name)
    _, told = recording.play(recording.terms())
    percent = [advice.percent for _, advice in told]
    assert all(one <= two for one, two in pairwise(percent))
    assert percent[-1] < 100


@pytest.mark.parametrize(("name", "working", "rate"), [("uniform-7", 256, 20), ("uniform-10", 256, 20)])
def test_it_finds_out_the_guest(name: str, working: float, rate: float) -> None:
    recording = Recording(name)
    course, _ = recording.play(recording.terms())
    for seconds in (0.5, 2, 8):
        true = working * MIB * (1 - 2.718281828 ** (-rate * seconds / working))
        assert course.dirtying.within(seconds) == pytest.approx(true, rel=0.15)


def first_act(name: str, *means: Means) -> tuple[float, dict[str, int]]:
    """When the policy would have done something first, and what."""
    recording = Recording(name)
    _, told = recording.play(recording.terms(*means))
    return next((at, advice.parameters) for at, advice in told if advice.act is Act.SET)


def test_it_sees_that_what_is_hot_keeps_the_rounds_going() -> None:
    """Rounds of 0.15 s went on for 7 s; 80 ms after the limit was raised it was over."""
    at, parameters = first_act("longer-10", Means.BLACKOUT)
    assert 8 < at < 13
    assert parameters.keys() == {"downtime-limit"}
    assert 75 < parameters["downtime-limit"] <= 210


def test_it_sees_that_rounds_do_not_shrink() -> None:
    at, parameters = first_act("throttled-10", Means.AUTO_CONVERGE)
    assert 8 < at < 14
    assert parameters["max-cpu-throttle"] >= 20


def test_it_sees_that_a_throttle_is_not_felt() -> None:
    """This guest keeps to a clock and mostly waits: at 80 % it still does all that it has to do."""
    recording = Recording("paced-10")
    course, told = recording.play(recording.terms())
    assert course.dirtying.within(4, 80) > 0.8 * course.dirtying.within(4)
    assert not told[-1][1].converges
