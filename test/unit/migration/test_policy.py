"""What is done to a migration, and that it comes to an end whatever QEMU says."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from drover.migration.course import Course, Look, Phase, begin
from drover.migration.forecast import Round
from drover.migration.means import LEVERS, MEANS, Means, Terms, Wishes, parameters
from drover.migration.outlook import RESERVE
from drover.migration.policy import HOPELESS, STALLED, Act, Advice, Why, look
from drover.ops.migration import MigrationInfo, RamProgress

MIB = float(1 << 20)
GIB = 1024 * MIB
LINK = 100 * MIB
TERMS = Terms(deadline=120, memory=GIB, means=MEANS, granted=LINK)


def sending(until: float, step: float = 0.1, rate: float = LINK, memory: float = GIB, start: float = 0) -> list[Look]:
    """Looks at a first round that goes on until some second."""
    count = round((until - start) / step)
    return [first_round(start + number * step, rate, memory) for number in range(1, count + 1)]


def first_round(at: float, rate: float = LINK, memory: float = GIB) -> Look:
    sent = min(rate * at, memory)
    return Look(at=at, transferred=sent, scanned=sent, remaining=memory - sent, rounds=1)


def rounds_without_end(count: int, left: float = 400 * MIB) -> list[Look]:
    """Looks at a first round, and at some of which each leaves as much as the one before."""
    looks, took = sending(GIB / LINK), left / LINK
    for number in range(count):
        at = GIB / LINK + number * took
        for part in range(40):
            sent = GIB + number * left + part / 40 * left
            remaining = left * (1 - part / 40)
            looks.append(
                Look(
                    at=at + part / 40 * took + 0.05,
                    transferred=sent,
                    scanned=sent,
                    remaining=remaining,
                    rounds=number + 2,
                )
            )
    return looks


def play(terms: Terms, looks: list[Look], course: Course | None = None) -> tuple[Course, list[Advice]]:
    """Take the looks one after another, whatever is advised."""
    course, told = course or begin(terms), []
    for seen in looks:
        course, advice = look(terms, course, seen)
        told.append(advice)
    return course, told


def acts(told: list[Advice]) -> list[Advice]:
    """What is to be done, without what is only said again."""
    done = [advice for advice in told if advice.act is not Act.NONE]
    before = [None, *[advice.act for advice in done]]
    return [one for one, last in zip(done, before, strict=False) if one.act is Act.SET or one.act != last]


def test_a_quiet_guest_is_left_alone() -> None:
    course, told = play(TERMS, sending(8))
    assert not acts(told)
    assert told[-1].converges
    assert told[-1].eta == pytest.approx(2.24, abs=0.1)
    assert told[-1].percent == pytest.approx(100 * 8 / 10.24, abs=1)
    assert told[-1].blackout < 0.3
    last = Look(at=10.3, phase=Phase.DONE, transferred=GIB, scanned=GIB, rounds=2)
    _, (done,) = play(TERMS, [last], course)
    assert (done.percent, done.eta, done.act) == (100, 0, Act.NONE)


def test_each_lever_is_pulled_in_the_wished_order_and_settles_first() -> None:
    wishes = Wishes(cap=LINK, ceiling=2 * LINK, throttle=90)
    terms = replace(TERMS, wishes=wishes, deadline=1000)
    looks = rounds_without_end(40)
    _, told = play(terms, looks)
    done = acts(told)
    assert [advice.means for advice in done] == [Means.AUTO_CONVERGE] * len(done)
    # what comes before would not have done, and costs the guest nothing
    throttles = [advice.parameters.pop("max-cpu-throttle") for advice in done]
    assert [advice.parameters for advice in done] == [
        {"downtime-limit": 210, "max-bandwidth": int(2 * LINK)},
        *[{}] * (len(done) - 1),
    ]
    assert throttles == sorted(set(throttles))
    assert throttles[-1] == wishes.throttle
    at = [seen.rounds for seen, advice in zip(looks, told, strict=True) if advice.act is Act.SET]
    assert all(later - earlier >= LEVERS[Means.AUTO_CONVERGE].rounds for earlier, later in pairwise(at))


def test_postcopy_skips_what_would_not_do_and_is_asked_for_until_it_begins() -> None:
    terms = replace(TERMS, means=(*MEANS, Means.POSTCOPY))
    looks = rounds_without_end(3)
    for seconds in (1, 2, 4):  # its working set is dirty within a second: no throttle helps
        looks[10 * seconds] = replace(looks[10 * seconds], measured=Round(seconds, 400 * MIB))
    course, told = play(terms, looks)
    asked = [advice for advice in told if advice.act is Act.POSTCOPY]
    assert len(asked) > 1
    assert not any(advice.parameters for advice in asked)
    assert course.setting.postcopy
    moving = replace(looks[-1], at=looks[-1].at + 0.1, phase=Phase.POSTCOPY, remaining=200 * MIB)
    _, (advice,) = play(terms, [moving], course)
    assert advice.act is Act.NONE
    assert advice.eta == pytest.approx(2, rel=0.2)


def test_postcopy_is_never_begun_unasked() -> None:
    _, told = play(TERMS, rounds_without_end(40))
    assert Act.POSTCOPY not in {advice.act for advice in told}
    assert told[-1].act is Act.GIVE_UP


def test_a_postcopy_begins_early_enough_for_the_deadline() -> None:
    terms = replace(TERMS, memory=3 * GIB, means=(Means.POSTCOPY,), deadline=48)
    looks = sending(30, memory=3 * GIB)
    looks[0] = replace(looks[0], measured=Round(1.0, GIB))  # precopy never comes to an end
    course, told = play(terms, looks)
    at = next(seen.at for seen, advice in zip(looks, told, strict=True) if advice.act is Act.POSTCOPY)
    assert at < 10  # the round is far from its end
    assert at + 1.1 * (3 * GIB - LINK * at + GIB) / LINK < 48
    # but a guest that is quiet is not put at risk for that
    assert not acts(play(terms, sending(30, memory=3 * GIB))[1])
    late = Look(at=49, phase=Phase.POSTCOPY, transferred=3 * GIB, remaining=GIB, rounds=1)
    _, (advice,) = play(terms, [late], course)
    assert advice.overdue  # and yet nothing is done: it cannot be ended
    assert advice.act is Act.NONE


def test_a_postcopy_that_would_not_be_done_is_not_begun() -> None:
    terms = replace(TERMS, memory=3 * GIB, means=(Means.POSTCOPY,), deadline=30)
    looks = sending(30, memory=3 * GIB)
    looks[0] = replace(looks[0], measured=Round(1.0, GIB))
    assert [advice.act for advice in acts(play(terms, looks)[1])] == [Act.GIVE_UP]


def test_it_gives_up_when_the_deadline_has_come() -> None:
    looks = rounds_without_end(40)
    _, told = play(replace(TERMS, means=()), looks)
    ends = [seen.at for seen, advice in zip(looks, told, strict=True) if advice.act is Act.GIVE_UP]
    assert ends[0] == pytest.approx(TERMS.deadline - RESERVE, abs=0.2)
    assert {advice.why for advice in told if advice.act is Act.GIVE_UP} == {Why.DEADLINE}
    # and says in good time that this is how it will end
    assert looks[400].at + told[400].eta == pytest.approx(TERMS.deadline - RESERVE, rel=0.1)
    assert not told[400].converges
    assert told[400].blackout == pytest.approx(4, rel=0.2)


def test_a_dead_link_is_given_up_before_the_deadline() -> None:
    looks = sending(5)
    still = [replace(looks[-1], at=5 + second) for second in range(1, 40)]
    _, told = play(TERMS, looks + still)
    first = next(number for number, advice in enumerate(told) if advice.act is Act.GIVE_UP)
    assert told[first].why is Why.STALLED
    assert (looks + still)[first].at == pytest.approx(5 + STALLED, abs=1)


def test_a_link_that_can_never_do_is_given_up_soon() -> None:
    terms = replace(TERMS, link=2 * MIB, granted=2 * MIB)
    looks = sending(30, rate=2 * MIB)
    _, told = play(terms, looks)
    first = next(number for number, advice in enumerate(told) if advice.act is Act.GIVE_UP)
    assert told[first].why is Why.HOPELESS
    assert looks[first].at == pytest.approx(HOPELESS, abs=0.2)
    # who does not know the link hopes for more, until the deadline
    _, told = play(replace(terms, link=GIB), looks)
    assert not acts(told)


def test_disks_come_first_and_count() -> None:
    terms = replace(TERMS, memory=GIB, resident=GIB)
    looks = [Look(at=at / 10, phase=Phase.STORAGE, copied=LINK * at / 10, to_copy=2 * GIB) for at in range(1, 200)]
    _, told = play(terms, looks)
    assert looks[-1].at + told[-1].eta == pytest.approx(3 * GIB / LINK, rel=0.05)
    assert told[-1].percent == pytest.approx(100 * 19.9 / 30.7, abs=3)


def test_it_goes_on_from_a_journal() -> None:
    looks = rounds_without_end(6)
    course, _ = play(TERMS, looks[:200])
    kept = msgspec.json.decode(msgspec.json.encode(course), type=Course)
    assert kept == course
    assert msgspec.json.decode(msgspec.json.encode(TERMS), type=Terms) == TERMS
    assert play(TERMS, looks[200:], kept) == play(TERMS, looks[200:], course)


def test_what_qemu_answers_is_understood() -> None:
    ram = RamProgress(transferred=10, remaining=20, normal_bytes=8192, duplicate=3, page_size=4096, dirty_sync_count=4)
    seen = Look.of(MigrationInfo(status="active", ram=ram, cpu_throttle_percentage=40), 5.0)
    assert seen == Look(at=5, phase=Phase.MEMORY, transferred=10, scanned=5 * 4096, remaining=20, rounds=4, throttle=40)
    statuses = {
        "setup": Phase.MEMORY,
        "pre-switchover": Phase.SWITCHOVER,
        "device": Phase.SWITCHOVER,
        "postcopy-paused": Phase.POSTCOPY,
        "completed": Phase.DONE,
    }
    assert {status: Look.of(MigrationInfo(status=status), 0).phase for status in statuses} == statuses


def test_while_the_guest_stands_still_only_the_deadline_counts() -> None:
    course, _ = play(replace(TERMS, means=tuple(Means)), sending(10))
    waits = Look(at=60, phase=Phase.SWITCHOVER, transferred=GIB, scanned=GIB, remaining=20 * MIB, rounds=2)
    course, (advice,) = play(TERMS, [waits], course)
    assert (advice.act, advice.converges) == (Act.NONE, True)
    assert advice.eta == pytest.approx(0.2, rel=0.1)
    assert advice.blackout == pytest.approx(0.23, rel=0.1)
    _, (advice,) = play(TERMS, [replace(waits, at=TERMS.deadline)], course)
    assert (advice.act, advice.why) == (Act.GIVE_UP, Why.DEADLINE)


NUMBERS = st.floats(0, 1e13) | st.just(0.0)
LOOKS = st.lists(
    st.builds(
        Look,
        at=st.floats(0, 20),
        phase=st.sampled_from([Phase.STORAGE, Phase.MEMORY, Phase.MEMORY, Phase.SWITCHOVER, Phase.POSTCOPY]),
        transferred=NUMBERS,
        scanned=NUMBERS,
        remaining=NUMBERS,
        rounds=st.integers(0, 1000),
        throttle=st.integers(0, 99),
        copied=NUMBERS,
        to_copy=NUMBERS,
    ),
    max_size=60,
)


@given(steps=LOOKS, means=st.lists(st.sampled_from(Means), unique=True))
def test_whatever_is_told_it_ends(steps: list[Look], means: list[Means]) -> None:
    terms = replace(TERMS, means=tuple(means))
    at, looks = 0.0, []
    for step in steps:  # here `at` is the time since the last look
        at += step.at
        looks.append(replace(step, at=at))
    looks.append(Look(at=max(at, terms.deadline), rounds=1, remaining=GIB))
    _, told = play(terms, looks)
    assert told[-1].act is Act.GIVE_UP
    for seen, advice in zip(looks, told, strict=True):
        assert advice.eta >= 0
        assert advice.blackout >= 0
        assert 0 <= advice.percent <= 100
        assert advice.act is not Act.POSTCOPY or Means.POSTCOPY in means
        if seen.phase is not Phase.POSTCOPY and seen.at >= terms.deadline - RESERVE:
            assert advice.act is Act.GIVE_UP
    assert all(one.percent <= two.percent for one, two in pairwise(told))


ONCE = replace(TERMS, means=(), once=True)


def test_where_there_is_one_round_it_ends_with_it() -> None:
    """Whatever the guest does: no lever is pulled, nothing is given up."""
    course, told = play(ONCE, sending(GIB / LINK))
    assert acts(told) == []
    assert told[-1].converges
    assert course.setting.once
    assert parameters(course.setting) == {"downtime-limit": 0}


def test_where_there_is_one_round_a_postcopy_that_is_wished_for_begins_in_it() -> None:
    _, told = play(replace(ONCE, means=(Means.POSTCOPY,)), sending(GIB / LINK / 2))
    assert [advice.act for advice in acts(told)] == [Act.POSTCOPY]
    late = replace(ONCE, means=(Means.POSTCOPY,), deadline=8)
    assert Act.POSTCOPY not in [advice.act for advice in play(late, sending(1))[1]]
