"""A journal has one writer at a time, and is closed by the last who had it or waited for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from drover.events import work
from drover.events.work import Work
from drover.kvm.host import Host
from drover.kvm.paths import Paths

UUID = "4a3e4275-ef43-468c-b58f-1d12a78c5ecd"


def tried(folder: Path, what: Callable[[Work], Awaitable[None]]) -> None:
    async def run() -> None:
        works = Work(Host(Paths(folder / "state", folder / "run")), lambda *_: None)
        try:
            await what(works)
            assert works._leases == {}
        finally:
            works.close()

    asyncio.run(run())


def ends_well(folder: Path) -> bool:
    """Whether its writer has said that this was the end."""
    (segment,) = (folder / "state" / "events" / UUID).iterdir()
    return segment.read_bytes().endswith(b"\n\n")


def test_who_comes_waits_and_goes_on_with_it(tmp_path: Path) -> None:
    async def what(works: Work) -> None:
        journal = await works.journal(UUID)
        other = asyncio.create_task(works.journal(UUID))
        await asyncio.sleep(0.01)
        assert not other.done()
        journal.note("ended", {}, 1)
        await works.let_go(journal)
        assert await other is journal
        await works.let_go(journal)

    tried(tmp_path, what)
    assert ends_well(tmp_path)


def test_who_waited_and_goes_leaves_nothing_open(tmp_path: Path) -> None:
    """Also where it was left to them in that moment."""

    async def what(works: Work) -> None:
        journal = await works.journal(UUID)
        other = asyncio.create_task(works.journal(UUID))
        await asyncio.sleep(0.01)
        journal.note("ended", {}, 1)
        await works.let_go(journal)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    tried(tmp_path, what)
    assert ends_well(tmp_path)


def test_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_OTHER", 0.01)

    async def what(works: Work) -> None:
        journal = await works.journal(UUID)
        with pytest.raises(TimeoutError, match="under another name"):
            await works.journal(UUID)
        journal.note("ended", {}, 1)
        await works.let_go(journal)

    tried(tmp_path, what)
    assert ends_well(tmp_path)
