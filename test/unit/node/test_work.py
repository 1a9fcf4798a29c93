"""Blocking work: one thing at a time on each instance, none for another one, and only so many that wait."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from drover.errors import InstanceBusy
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.node import work as works
from drover.node.work import Worker


def worker(tmp_path: Path) -> Worker:
    return Worker(Node(Paths(tmp_path / "state", tmp_path / "run")))


def test_one_at_a_time_on_each_and_all_beside_each_other(tmp_path: Path) -> None:
    at, most = dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)

    def act(name: str) -> None:
        at[name] += 1
        most[name] = max(most[name], at[name])
        time.sleep(0.05)
        at[name] -= 1

    async def run() -> None:
        work = worker(tmp_path)
        begun = time.monotonic()
        await asyncio.gather(*(work.do(name, lambda name=name: act(name)) for name in "ab" * 4))
        assert 0.2 <= time.monotonic() - begun < 0.4
        assert not work._waiting
        assert not work._turns
        work.close()

    asyncio.run(run())
    assert most == {"a": 1, "b": 1}


def test_only_so_many_wait(tmp_path: Path) -> None:
    go_on = threading.Event()

    async def run() -> None:
        work = worker(tmp_path)
        waiting = [asyncio.create_task(work.do("stuck", go_on.wait)) for _ in range(works._TURNS)]
        await asyncio.sleep(0)
        with pytest.raises(InstanceBusy, match="stuck: busy with 32 calls"):
            await work.do("stuck", go_on.wait)
        assert await work.do("well", lambda: 7) == 7
        go_on.set()
        await asyncio.gather(*waiting)
        assert await work.do("stuck", lambda: 8) == 8
        work.close()

    asyncio.run(run())
