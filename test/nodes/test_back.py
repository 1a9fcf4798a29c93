"""Each step at the other node, and each that a migration is led to; each actor killed, stopped or cut off there."""

import pytest

from nodes.cases import WAYS, every, some
from nodes.pool import Pool, dice_for, states_of

STATES = [each for each in states_of(WAYS) if each[0] not in ("plain", "seams", "seams there")]


@pytest.mark.parametrize(("way", "state"), STATES)
def test_once(pool: Pool, way: str, state: str) -> None:
    """Each actor once; at which moment, with which versions and for how long is left to the dice."""
    wrong = pool.run(some(WAYS[way], state, dice_for(way, state)))
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.slow
@pytest.mark.parametrize(("way", "state"), STATES)
def test_everything(pool: Pool, way: str, state: str) -> None:
    wrong = pool.run(every(WAYS[way], state))
    assert not wrong, "\n".join(["", *wrong])
