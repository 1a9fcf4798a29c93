"""Locks as the live picture sees them, and what it says of an instance that is first seen while somebody has its."""

import asyncio
import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drover.kvm.lock import is_locked, locked
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.kvm.record import Document, Intent, Runtime, save
from drover.kvm.spec import parse
from drover.node import model as models
from drover.node.model import Model


def test_the_kernel_knows_who_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not is_locked(path)
    with locked(tmp_path, "a", "test"):
        assert is_locked(path)
    assert not is_locked(path)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert is_locked(path)
        other = tmp_path / "b.lock"
        other.touch()
        assert not is_locked(other)


SPEC = parse({"name": "a", "uuid": "8a3c1f00-0000-4000-8000-000000000001", "memory": {"size": "64MiB"}})
RUN = Runtime(generation=1, boot_id="b", spec=SPEC, pid=7)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (Document(spec=SPEC), ["stopped"]),  # one that is being made: nothing but that it is there
        (Document(spec=SPEC, runtime=RUN), ["busy", "ended"]),
        (Document(spec=SPEC, pending=Intent(operation="start")), ["busy", "stopped"]),
    ],
)
def test_one_that_is_first_seen_while_somebody_works_on_it(tmp_path: Path, document: Document, told: list[str]) -> None:
    node = Node(Paths(tmp_path / "state", tmp_path / "run"))
    paths, found = node.host.paths, []
    ended: list[str] = []

    async def see() -> None:
        model = Model(node, lambda name, due: ended.append(name))
        model.on_change(lambda row, name: found.append((name, row and row.state)))
        await model.start()
        with locked(paths.locks, "a", "create"):
            paths.instance("a").state.mkdir(parents=True)
            save(paths.instance("a").document, document)
            refreshed = asyncio.create_task(model.refreshed("a"))
            await until(lambda: found != [])
            assert not refreshed.done()
        await refreshed
        await until(lambda: len(found) == len(told))
        await model.stop()

    asyncio.run(asyncio.wait_for(see(), 20))
    assert found == [("a", state) for state in told]
    assert ended == (["a"] if "ended" in told else [])


def test_the_kernel_is_asked_only_where_a_holder_has_not_said_that_it_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is heard for as long as it takes to answer."""
    node, asked = Node(Paths(tmp_path / "state", tmp_path / "run")), list[Path]()
    monkeypatch.setattr(models, "is_locked", lambda path: asked.append(path) or is_locked(path))
    paths = node.host.paths

    async def see() -> None:
        model = Model(node, lambda name, due: None)
        paths.instance("a").state.mkdir(parents=True)
        save(paths.instance("a").document, Document(spec=SPEC))
        with locked(paths.locks, "a", "create"):
            pass
        await model.start()
        for number in range(3):
            with locked(paths.locks, "a", "change"):
                save(paths.instance("a").document, Document(spec=SPEC, epoch=number))
            await model.refreshed("a")
        assert asked == []
        (paths.locks / "a.lock").write_text("change (process 1)")  # who was killed
        await model.refreshed("a")
        await until(lambda: asked == [paths.locks / "a.lock"])
        await model.stop()

    asyncio.run(see())


def test_what_the_kernel_says_late_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has taken the lock since: who follows the instance would hold its socket against them."""
    node, asked = Node(Paths(tmp_path / "state", tmp_path / "run")), threading.Event()
    paths = node.host.paths

    def slowly(path: Path) -> bool:
        found = is_locked(path)
        asked.set()
        time.sleep(0.2)
        return found

    monkeypatch.setattr(models, "is_locked", slowly)

    async def see() -> None:
        paths.instance("a").state.mkdir(parents=True)
        save(paths.instance("a").document, Document(spec=SPEC))
        with locked(paths.locks, "a", "create"):
            pass
        model = Model(node, lambda name, due: None)
        await model.start()
        (paths.locks / "a.lock").write_text("change (process 1)")  # who was killed
        await until(asked.is_set)
        with locked(paths.locks, "a", "change"):
            await asyncio.sleep(0.4)
            member = model.member("a")
            assert member is not None
            assert not member._free
        await until(lambda: member._free)
        await model.stop()

    asyncio.run(see())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
