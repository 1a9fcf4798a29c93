"""Journals are brought to disk in time, and at the daemon's end nothing is begun that cannot be."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from drover.events.flush import DELAY, Flusher
from drover.events.journal import Journal
from drover.events.segment import newest
from drover.qmp.messages import Event


def written(folder: Path) -> int:
    """The number of the newest that is on disk."""
    return newest(folder) or 0


def filled(folder: Path, count: int) -> Journal:
    journal = Journal(folder)
    add(journal, count)
    return journal


def add(journal: Journal, count: int) -> None:
    journal.extend([Event("STOP", {"at": place}, 1.5, place) for place in range(count)], 1, 2.5)


@pytest.fixture
def complaints() -> list[dict[str, Any]]:
    """What the loop was told of exceptions that nobody has caught."""
    return []


async def listened(complaints: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))


def test_in_time(tmp_path: Path, complaints: list[dict[str, Any]]) -> None:
    async def main() -> None:
        await listened(complaints)
        flusher, journal = Flusher(), filled(tmp_path, 3)
        flusher.dirty(journal)
        await asyncio.sleep(DELAY / 4)
        assert written(tmp_path) == 0
        async with asyncio.timeout(10):
            while written(tmp_path) < 3:
                await asyncio.sleep(DELAY / 4)
        await flusher.close(journal)
        flusher.stop()

    asyncio.run(main())
    assert complaints == []


def test_what_comes_after_the_end_begins_nothing(tmp_path: Path, complaints: list[dict[str, Any]]) -> None:
    """Said by whoever has not heard of it yet, by a timer, or at the end of a write that was under way."""

    async def main() -> None:
        await listened(complaints)
        flusher, journal = Flusher(), filled(tmp_path, 2)
        flusher.dirty(journal)
        await asyncio.sleep(1.5 * DELAY)  # it is being written
        add(journal, 1)
        flusher.dirty(journal)
        flusher.stop()
        add(journal, 1)
        flusher.dirty(journal)
        await asyncio.sleep(3 * DELAY)
        flusher.stop()
        await flusher.close(journal)
        assert written(tmp_path) == 4

    asyncio.run(main())
    assert complaints == []
