"""The document of a machine as the register of who may run it, where both sides are on one host."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from drover.kvm import ledger as ledgers
from drover.kvm.host import Host
from drover.kvm.ledger import Ledger, opened
from drover.kvm.mend import mend
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.kvm.record import SWITCHED, UPGRADE, Document, Runtime, load
from drover.kvm.spec import Spec
from drover.migration.knowledge import Knowledge, Plan
from drover.migration.local import _Record
from drover.migration.words import QemuSaid, SourceDid, SourceVerb, TargetSaid
from drover.store.owner import Owner, Phase


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Of a machine that is to go over; of neither run there is a process."""
    paths = Paths(tmp_path / "state", tmp_path / "run")
    Node(paths).create(Spec(name="vm"))
    with ExitStack() as stack:
        ledger = stack.enter_context(opened(paths, "vm", "test"))
        spec, boot_id = ledger.document.spec, Host(paths).boot_id
        ledger.document.generation, ledger.document.epoch = 3, 5
        ledger.document.runtime = Runtime(generation=3, boot_id=boot_id, spec=spec)
        ledger.begin(UPGRADE, paused=False, emulator="", phase="running")
        ledger.document.other = Runtime(generation=4, boot_id=boot_id, spec=spec)
        ledger.step("run")
        yield ledger


@pytest.fixture
def record(ledger: Ledger, tmp_path: Path) -> _Record:
    return _Record(Host(Paths(tmp_path / "state", tmp_path / "run")), ledger, threading.Lock())


def swapped(record: _Record, phase: Phase, owner: Owner | None = None) -> Owner:
    """To that phase, as it is then."""
    now = record.now()
    new = now.to(phase, owner=owner)
    assert asyncio.run(record.swap(now, new)) == new
    assert record.now() == new
    return new


def written(ledger: Ledger) -> Document:
    return load(ledger.paths.document)


def generations(document: Document) -> tuple[int, int]:
    assert document.runtime is not None
    assert document.other is not None
    assert document.runtime.generation == document.generation
    return document.runtime.generation, document.other.generation


def step(document: Document) -> str:
    assert document.pending is not None
    return document.pending.step


def test_it_names_the_second_one_by_one_write(ledger: Ledger, record: _Record) -> None:
    target = record.run(4)
    assert (record.now().phase, record.now().epoch) == (Phase.RUNNING, 5)
    for phase in (Phase.MIGRATING, Phase.SWITCHOVER):
        swapped(record, phase)
        assert generations(written(ledger)) == (3, 4)
        assert step(written(ledger)) != SWITCHED
    swapped(record, Phase.COMMIT, target)
    for _ in range(2):
        document = written(ledger)
        assert (generations(document), step(document), document.epoch) == ((4, 3), SWITCHED, 7)
        if record.now().phase is Phase.COMMIT:
            swapped(record, Phase.RUNNING)  # it stays so until the first one has ended
    assert record.now().same_process(target)


def test_it_is_taken_back(ledger: Ledger, record: _Record) -> None:
    source = record.now()
    swapped(record, Phase.MIGRATING)
    swapped(record, Phase.SWITCHOVER)
    swapped(record, Phase.COMMIT, record.run(4))
    swapped(record, Phase.BACK, source)
    assert (generations(written(ledger)), step(written(ledger)) == SWITCHED) == ((3, 4), False)
    swapped(record, Phase.RUNNING)
    assert record.now().same_process(source)
    assert record.now().epoch > 8


def test_who_was_overtaken_changes_nothing(ledger: Ledger, record: _Record) -> None:
    stale = record.now()
    now = swapped(record, Phase.MIGRATING)
    assert asyncio.run(record.swap(stale, stale.to(Phase.RUNNING))) == now
    assert written(ledger).epoch == now.epoch


def test_on_a_full_disk_it_is_as_it_was(ledger: Ledger, record: _Record, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(record, Phase.MIGRATING)
    before = swapped(record, Phase.SWITCHOVER)

    def full(*_: object) -> None:
        raise OSError(28, "no space")

    new = before.to(Phase.COMMIT, owner=record.run(4))
    monkeypatch.setattr(ledgers, "save", full)
    with pytest.raises(OSError, match="no space"):
        asyncio.run(record.swap(before, new))
    assert record.now() == before
    assert (generations(ledger.document), step(ledger.document)) == ((3, 4), "stand")


def test_with_neither_process_it_is_settled_by_the_document(ledger: Ledger, tmp_path: Path) -> None:
    mend(Host(Paths(tmp_path / "state", tmp_path / "run")), ledger, 1)
    document = written(ledger)
    assert (document.runtime, document.other, document.pending) == (None, None, None)


def test_one_that_is_to_stand_still_is_told_to_run_on_neither_side() -> None:
    source = Owner(node="a", boot_id="b", incarnation="1")
    target = Owner(node="a", boot_id="b", incarnation="2")
    for paused in (True, False):
        known = Knowledge(Plan(machine="vm", source=source, target=target, paused=paused))
        known.target_said(TargetSaid("2", 1, "completed", "paused"))
        assert known.target_runs() is False  # it may not have heard yet that it is the machine
        known.target_said(TargetSaid("2", 2, "completed", "paused", ran=True))
        assert known.target_runs() is paused
        known.target_said(TargetSaid("2", 3, "completed", "running", ran=True))
        assert known.target_runs()  # somebody has had it run since
        known.source_said(QemuSaid("completed", "postmigrate"))
        known.outstanding.add(SourceVerb.CONT)
        assert known.source_runs() is False
        known.did(SourceDid(SourceVerb.CONT))
        assert known.source_runs() is False  # it was not heard since
        known.source_said(QemuSaid("completed", "postmigrate"))
        assert known.source_runs() is paused
