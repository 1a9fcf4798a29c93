"""What each migration may use of a link, as it is told when that changes."""

import pytest

from drover.migration.forecast import ENDLESS
from drover.node.shares import Shares

MIB = 1 << 20


class Mover:
    """A migration that hears what it may use."""

    def __init__(self) -> None:
        self.told: list[float] = []

    @property
    def now(self) -> float:
        return self.told[-1]


def test_alone_it_has_all() -> None:
    shares, one = Shares(100 * MIB), Mover()
    shares.join("one", one.told.append)
    assert one.told == [100 * MIB]
    assert shares.granted("one") == 100 * MIB


def test_each_that_comes_and_goes_changes_it_for_all() -> None:
    shares, one, two = Shares(100 * MIB), Mover(), Mover()
    shares.join("one", one.told.append)
    shares.join("two", two.told.append)
    assert (one.now, two.now) == (50 * MIB, 50 * MIB)
    shares.leave("one")
    assert two.now == 100 * MIB
    assert one.told == [100 * MIB, 50 * MIB]


def test_what_one_cannot_use_goes_to_the_others() -> None:
    shares, one, two = Shares(100 * MIB), Mover(), Mover()
    shares.join("one", one.told.append)
    shares.join("two", two.told.append)
    shares.uses("one", 8 * MIB)
    assert one.now == pytest.approx(10 * MIB)
    assert two.now == pytest.approx(90 * MIB)
    shares.uses("one", 10 * MIB)  # it uses all that it has: it may want more
    assert (one.now, two.now) == (pytest.approx(50 * MIB), pytest.approx(50 * MIB))
    shares.uses("one", 50 * MIB, limit=20 * MIB)
    assert two.now == pytest.approx(80 * MIB)


def test_without_a_limit_nothing_is_shared_out() -> None:
    shares, one = Shares(None), Mover()
    shares.join("one", one.told.append)
    shares.uses("one", MIB)
    assert one.told == [ENDLESS]
    assert shares.granted("one") == ENDLESS
    shares.leave("one")
    shares.leave("one")
