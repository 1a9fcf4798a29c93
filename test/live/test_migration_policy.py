"""The convergence policy at the levers of a real QEMU: what it arms and pulls is taken, and does what it is for."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from drover import QmpConnection
from drover.migration.course import Look, begin
from drover.migration.means import MEANS, Means, Wishes, agree, arming
from drover.migration.policy import Act, Advice, look
from drover.ops.migration import ENDED, MigrationInfo
from drover.testing.machine import Machine
from machines import qemu_of

pytestmark = [pytest.mark.live, pytest.mark.alone]

MIB = 1 << 20
VERSIONS = ["7.2", "10.0"]
RATE, SIZE = 60, 60  # MiB a second, and MiB, that the guest makes dirty


class Seen(NamedTuple):
    """What became of one migration."""

    info: MigrationInfo
    took: float
    advice: list[Advice]

    @property
    def means(self) -> set[Means]:
        """What was done."""
        return {one.means for one in self.advice if one.means}


@contextmanager
def pair(version: str) -> Iterator[tuple[QmpConnection, QmpConnection]]:
    """A guest that writes to its memory all the time, and the QEMU that it is to go to."""
    with ExitStack() as stack:
        here = stack.enter_context(Machine(qemu=qemu_of(version), name="source"))
        there = stack.enter_context(Machine(qemu=qemu_of(version), name="target", incoming=True))
        one = stack.enter_context(QmpConnection(here.qmp))
        two = stack.enter_context(QmpConnection(there.qmp))
        here.wait_ready()
        here.console.dirty(RATE, SIZE)
        yield one, two


def migrate(one: QmpConnection, two: QmpConnection, wishes: Wishes, path: Path) -> Seen:
    """Do as the policy says until it is over, or for a while longer than it may take."""
    terms = agree(wishes, one.get_migration_capabilities(), two.get_migration_capabilities(), memory=256 * MIB)
    source, target, parameters = arming(terms)
    for vm, more in ((one, source), (two, target)):
        vm.set_migration_capabilities({"events": True, "return-path": True, **more})
    one.set_migration_parameters(parameters)
    two.migrate_incoming(f"unix:{path}")
    one.migrate(f"unix:{path}")
    course, told, start = begin(terms), [], time.monotonic()
    while True:
        info, at = one.query_migrate(), time.monotonic() - start
        course, advice = look(terms, course, Look.of(info, at))
        told.append(advice)
        if info.status in ENDED or at > terms.deadline + 30:
            return Seen(info, at, told)
        if advice.act is Act.SET:
            one.set_migration_parameters(advice.parameters)
        elif advice.act is Act.POSTCOPY:
            one.migrate_start_postcopy()
        elif advice.act is Act.GIVE_UP:
            one.migrate_cancel()
        time.sleep(0.1)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_made_to_converge(version: str, tmp_path: Path) -> None:
    wishes = Wishes(means=MEANS, cap=20 * MIB, ceiling=256 * MIB, deadline=120)
    with pair(version) as (one, two):
        seen = migrate(one, two, wishes, tmp_path / "m")
    assert seen.info.status == "completed"
    assert seen.took < 120
    assert seen.means  # at 20 MiB/s it never would
    assert seen.info.downtime <= 300
    assert seen.advice[-1].percent == 100


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_throttled_and_given_up_in_time(version: str, tmp_path: Path) -> None:
    wishes = Wishes(means=(Means.AUTO_CONVERGE,), cap=12 * MIB, deadline=24)
    with pair(version) as (one, two):
        seen = migrate(one, two, wishes, tmp_path / "m")
        assert one.query_status().running
    assert seen.info.status == "cancelled"
    assert seen.took < 40
    assert seen.means == {Means.AUTO_CONVERGE}
    assert seen.advice[-2].act is Act.GIVE_UP


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_switched_to_postcopy_in_time(version: str, tmp_path: Path) -> None:
    wishes = Wishes(means=(Means.POSTCOPY,), cap=20 * MIB, deadline=60)
    with pair(version) as (one, two):
        one.set_migration_parameters({"max-postcopy-bandwidth": 0})
        seen = migrate(one, two, wishes, tmp_path / "m")
    assert seen.info.status == "completed"
    assert seen.took < 60
    assert seen.means == {Means.POSTCOPY}
