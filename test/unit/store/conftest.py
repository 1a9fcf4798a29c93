"""Stores of each kind. A second one joins the conformance suite by a line in `KINDS`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from drover.store.records import Store
from drover.store.sqlite import SqliteStore

Opener = Callable[[], Store]

KINDS: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: SqliteStore(folder / "store")}


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same store again and again, as each process would."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(KINDS[request.param](tmp_path))


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()
