"""The fuzzers for a moment each, and all that they begin with; `make fuzz` and `make check-all` give them a minute."""

import pytest

from fuzz.run import fuzz
from fuzz.targets import TARGETS, inputs, one_input

# Seconds
MOMENT = 3
MINUTE = 60


@pytest.mark.parametrize("name", TARGETS)
def test_known_inputs(name: str) -> None:
    known = list(inputs(name))
    assert known, "no corpus: what fuzzing once found would not be tried again"
    for _, data in known:
        one_input(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment(name: str) -> None:
    pytest.importorskip("atheris")
    good, told = fuzz(name, MOMENT, seed=1)
    assert good, told


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute(name: str) -> None:
    pytest.importorskip("atheris")
    good, told = fuzz(name, MINUTE, seed=0)
    assert good, told
