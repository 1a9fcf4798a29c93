"""The simulated QEMUs behave as real ones do: they pass the scenarios of test/live/test_migration_facts.py."""

import pytest

from sim.qemu import Refused
from sim.scenarios import REFUSED, SCENARIOS, Scenario, Setting
from sim.simulated import SimulatedPair

CASES = [(scenario, setting, pair) for scenario, setting, pairs in SCENARIOS for pair in pairs]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("scenario", "setting", "versions"), CASES, ids=[f"{each[0].__name__}-{each[2][0]}-{each[2][1]}" for each in CASES]
)
def test_simulated(scenario: Scenario, setting: Setting, versions: tuple[int, int], seed: int) -> None:
    scenario(SimulatedPair(setting, versions, seed))


@pytest.mark.parametrize(("setting", "versions"), REFUSED)
def test_settings_that_are_refused(setting: Setting, versions: tuple[int, int]) -> None:
    with pytest.raises(Refused):
        SimulatedPair(setting, versions, 0)
