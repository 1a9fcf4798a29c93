"""A node's owner records."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from drover.kvm.handover import Settings
from drover.migration import storage
from drover.migration.forecast import Setting
from drover.migration.knowledge import Plan
from drover.migration.means import Terms, Wishes
from drover.node.books import Books, Journey
from drover.store.owner import Owner


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    with closing(Books(tmp_path)) as books:
        yield books


def owner(uuid: str, epoch: int, node: str = "b") -> Owner:
    return Owner(node=node, boot_id="boot", incarnation=f"{uuid}/1", epoch=epoch)


def test_what_came_is_learnt(books: Books) -> None:
    books.learn("vm", owner("u1", 3))
    assert books.owners.read("vm") == owner("u1", 3)
    books.learn("vm", owner("u1", 5))
    assert books.owners.read("vm") == owner("u1", 5)
    books.learn("vm", owner("u1", 3))
    assert books.owners.read("vm") == owner("u1", 5)


def test_what_was_done_for_a_journey_lasts_as_long_as_it(books: Books) -> None:
    terms = Terms(wishes=Wishes(), deadline=60.0, means=(), memory=1 << 30)
    plan = Plan(machine="vm", source=owner("u1", 3, node="a"), target=owner("u1", 0))
    journey = Journey(
        plan=plan, to=["b:1"], source=Settings(), target=Settings(), disks=storage.Plan(), emulator="", terms=terms,
        began=0.0,
    )  # fmt: skip
    books.keep_setting("vm", 3, Setting(0.1))
    assert books.journey("vm") is None
    books.keep("vm", journey)
    books.keep_setting("vm", 2, Setting(0.2))
    assert books.journey("vm") == journey
    books.keep_setting("vm", 3, Setting(0.3, throttle=40))
    assert books.journey("vm") == replace(journey, setting=Setting(0.3, throttle=40))
    books.forget("vm")
    books.keep_setting("vm", 3, Setting(0.4))
    assert books.journey("vm") is None


def test_one_of_the_same_name_that_was_here_before_is_forgotten(books: Books) -> None:
    books.learn("vm", owner("u1", 9, node="c"))
    books.learn("vm", owner("u2", 3))
    assert books.owners.read("vm") == owner("u2", 3)
