"""What is written down of a machine that leaves."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drover.kvm.host import Host
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.kvm.record import Document, load
from drover.kvm.spec import Spec
from drover.migration.source import Departure
from drover.migration.words import End, Result


@pytest.fixture
def departure(tmp_path: Path) -> Iterator[Departure]:
    """Of a machine that does not run; it is on its way all the same."""
    paths = Paths(tmp_path / "state", tmp_path / "run")
    Node(paths).create(Spec(name="vm"))
    departure = Departure(Host(paths), "vm")
    departure.begin(again=True)
    with closing(departure):
        departure.set_out(2, "b")
        yield departure


def document(departure: Departure) -> Document:
    return load(departure.ledger.paths.document)


def test_it_has_gone(departure: Departure) -> None:
    departure.gone()
    written = document(departure)
    assert written.passage is not None
    assert (written.passage.way, written.pending is not None) == ("gone", True)
    departure.end(End(Result.DONE), dead=True, elsewhere=True)
    written = document(departure)
    assert written.passage is not None
    assert (written.passage.way, written.pending) == ("gone", None)


@pytest.mark.parametrize(("result", "elsewhere", "way"), [(Result.DONE, True, "gone"), (Result.FAILED, False, "")])
def test_after_the_end_nothing_is_written(departure: Departure, result: Result, elsewhere: bool, way: str) -> None:
    """Whoever told its QEMU to end may be at it still when that has ended by itself."""
    departure.end(End(result), dead=True, elsewhere=elsewhere)
    before = document(departure)
    assert (before.passage.way if before.passage else "") == way
    departure.gone()
    assert document(departure) == before
