"""The policy at the levers of 500 simulated migrations: it ends, keeps its promises, and tells the truth in time."""

from collections import Counter
from itertools import pairwise

import pytest

from convergence.cases import GUESTS, case, hard_case
from convergence.run import Run, migrate
from drover.migration.means import Means
from drover.migration.policy import Act

pytestmark = pytest.mark.once  # it is arithmetic
SEEDS = range(500)
NEAR = 0.2  # of the whole time
OFTEN = 0.9  # of the runs


def check(run: Run) -> None:
    """What holds for each single run."""
    terms = run.case.terms
    what = f"seed {run.seed}, {run.case.name}"
    assert run.ended <= terms.deadline, f"{what}: over after {run.ended:.1f} s, beyond {terms.deadline:.0f} s"
    if run.converged:
        assert run.blackout <= terms.wishes.blackout, f"{what}: stood still for {run.blackout:.3f} s"
    if run.postcopy:
        assert Means.POSTCOPY in terms.means, f"{what}: postcopy, unasked"
    told = [advice.percent for _, advice in run.told]
    assert all(one <= two for one, two in pairwise(told)), f"{what}: goes back"
    assert 0 <= told[0] <= told[-1] <= 100, f"{what}: beyond all"
    assert (told[-1] == 100) is not run.given_up, f"{what}: ends at {told[-1]:.1f} %"


@pytest.mark.timeout(300)
def test_every_run_ends_as_promised_and_when_told() -> None:
    """ETA: at every look from half-time on, the end told is off by at most a fifth of the whole time."""
    runs = [migrate(seed, case(seed)) for seed in SEEDS]
    for run in runs:
        check(run)
    off = [run for run in runs if run.worst > NEAR]
    by_name = Counter(run.case.name for run in off)
    print("off by more, by guest:", dict(by_name))
    print("seeds:", ", ".join(f"{run.seed} ({run.case.name}, {run.worst:.2f})" for run in off))
    assert len(off) <= (1 - OFTEN) * len(runs), f"{len(off)} of {len(runs)} are off by more than {NEAR:.0%}"
    # there is something of each kind, or the rest says little
    ways = Counter("given up" if run.given_up else "postcopy" if run.postcopy else "converged" for run in runs)
    pulled = {advice.means for run in runs for _, advice in run.told if advice.act is not Act.NONE}
    print("ways:", dict(ways), "means:", sorted(means.value for means in pulled if means))
    assert min(ways[way] for way in ("given up", "postcopy", "converged")) > 0
    assert pulled >= {Means.BLACKOUT, Means.BANDWIDTH, Means.AUTO_CONVERGE, Means.POSTCOPY}
    assert {run.case.name for run in runs} == set(GUESTS)


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 150, 50)], ids=str)
def test_hard_ones_end_too(seeds: range) -> None:
    runs = [migrate(seed, hard_case(seed)) for seed in seeds]
    for run in runs:
        check(run)
    ways = Counter("given up" if run.given_up else "postcopy" if run.postcopy else "converged" for run in runs)
    print("seeds:", seeds, "ways:", dict(ways))
    assert min(ways[way] for way in ("given up", "postcopy", "converged")) > 3


def test_a_seed_is_one_and_the_same_run() -> None:
    one, two = (migrate(16, case(16)) for _ in range(2))
    assert (one.ended, one.told) == (two.ended, two.told)
