"""Who may run a machine, in each store (see conftest.py)."""

import threading
from collections.abc import Callable
from itertools import product

import pytest
from msgspec.structs import replace

from drover.errors import ArgumentError, Fenced, NotOwned, OwnerMoveError, RecordError, StoreBusy, StoreError
from drover.store.owner import MOVES, OWNERS, Owner, Owners, Phase
from drover.store.records import Record, Store

Opener = Callable[[], Store]

HERE = Owner(node="a", boot_id="boot-a", incarnation="vm.1")
THERE = Owner(node="b", boot_id="boot-b", incarnation="vm.2")


@pytest.fixture
def owners(store: Store) -> Owners:
    return Owners(store)


def test_a_machine_without_a_record(owners: Owners) -> None:
    with pytest.raises(NotOwned, match="vm: no record"):
        owners.read("vm")
    with pytest.raises(NotOwned):
        owners.swap("vm", HERE, HERE.to(Phase.MIGRATING))
    owners.remove("vm", HERE)
    assert owners.all() == {}


def test_the_first_owner_is_made_once(owners: Owners) -> None:
    assert owners.create("vm", HERE) == owners.read("vm") == HERE
    assert owners.create("vm", HERE) == HERE  # the answer to an earlier call was lost
    with pytest.raises(Fenced) as caught:
        owners.create("vm", THERE)
    assert (caught.value.machine, caught.value.found) == ("vm", str(HERE))
    assert owners.all() == {"vm": HERE}


def test_the_way_of_a_migration(owners: Owners) -> None:
    record = owners.create("vm", HERE)
    way = [(Phase.MIGRATING, HERE), (Phase.SWITCHOVER, HERE), (Phase.COMMIT, THERE), (Phase.RUNNING, THERE)]
    for phase, owner in way:
        record = owners.swap("vm", record, record.to(phase, owner=owner))
    assert owners.read("vm") == replace(THERE, epoch=3, phase=Phase.RUNNING)


def test_and_back(owners: Owners) -> None:
    record = owners.create("vm", HERE)
    way = [(Phase.MIGRATING, HERE), (Phase.SWITCHOVER, HERE), (Phase.COMMIT, THERE), (Phase.BACK, HERE)]
    for phase, owner in [*way, (Phase.RUNNING, HERE)]:
        record = owners.swap("vm", record, record.to(phase, owner=owner))
    assert owners.read("vm") == replace(HERE, epoch=5, phase=Phase.RUNNING)


def test_whoever_was_overtaken_changes_nothing(owners: Owners) -> None:
    """The epoch alone tells: the record says the same of the same process as it did when it was read."""
    old = owners.create("vm", HERE)
    begun = owners.swap("vm", old, old.to(Phase.MIGRATING))
    ended = owners.swap("vm", begun, begun.to(Phase.RUNNING))
    assert (old.phase, old.incarnation) == (ended.phase, ended.incarnation)
    for stale in (old, begun):
        with pytest.raises(Fenced) as caught:
            owners.swap("vm", stale, stale.to(Phase.MIGRATING if stale is old else Phase.SWITCHOVER))
        assert (caught.value.expected, caught.value.found) == (str(stale), str(ended))
    assert owners.read("vm") == ended


@pytest.mark.parametrize("field", ["node", "boot_id", "incarnation", "phase"])
def test_all_of_it_is_compared(owners: Owners, field: str) -> None:
    begun = owners.create("vm", replace(HERE, phase=Phase.MIGRATING))
    other = replace(begun, **{field: Phase.SWITCHOVER if field == "phase" else "other"})
    with pytest.raises(Fenced):
        owners.swap("vm", other, other.to(Phase.RUNNING))
    assert owners.read("vm") == begun


def test_asked_twice_it_is_done_once(owners: Owners) -> None:
    old = owners.create("vm", HERE)
    new = old.to(Phase.MIGRATING)
    assert owners.swap("vm", old, new) == owners.swap("vm", old, new) == new
    assert owners.store.revision() == 2


def test_what_may_follow_what() -> None:
    """Each pair of phases, with the owner staying and moving, is what the table says and nothing else."""
    for (old, new), owner in product(product(Phase, Phase), (HERE, THERE)):
        record = replace(HERE, epoch=5, phase=old)
        step = MOVES[old].get(new)
        if step is None or step.moves not in (None, owner is THERE):
            with pytest.raises(OwnerMoveError):
                record.to(new, owner=owner)
        else:
            moved = record.to(new, owner=owner)
            assert moved == replace(owner, epoch=5 + step.epoch, phase=new)
            assert moved.age > record.age


def test_a_wrong_move_is_not_asked(owners: Owners) -> None:
    old = owners.create("vm", HERE)
    early = replace(old, phase=Phase.COMMIT, epoch=2)
    for new in (replace(old, phase=Phase.MIGRATING), replace(THERE, epoch=1), early):
        with pytest.raises(OwnerMoveError):
            owners.swap("vm", old, new)
    assert owners.store.revision() == 1


def test_one_of_many_wins(opener: Opener) -> None:
    """Each by its own connection, at once: one takes the machine, all others hear that they were overtaken."""
    start = Owners(opener()).create("vm", HERE)
    won: list[Owner] = []
    fenced: list[Fenced] = []
    gate = threading.Barrier(8)

    def claim(number: int, owners: Owners) -> None:
        mine = start.to(Phase.RUNNING, owner=replace(THERE, incarnation=f"vm.{number}"))
        gate.wait(10)
        try:
            won.append(owners.swap("vm", start, mine))
        except Fenced as error:
            fenced.append(error)

    threads = [threading.Thread(target=claim, args=(number, Owners(opener()))) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(won), len(fenced)) == (1, 7)
    assert Owners(opener()).read("vm") == won[0]


def test_a_copy_is_only_overwritten_by_what_is_later(owners: Owners) -> None:
    assert owners.follow("vm", replace(HERE, epoch=3, phase=Phase.COMMIT)).epoch == 3
    assert owners.follow("vm", replace(HERE, epoch=2)).phase is Phase.COMMIT
    settled = replace(HERE, epoch=3)
    assert owners.follow("vm", settled) == settled
    assert owners.follow("vm", replace(HERE, epoch=3, phase=Phase.COMMIT)) == owners.read("vm") == settled


def test_it_is_removed_as_it_was_seen(owners: Owners) -> None:
    record = owners.create("vm", HERE)
    with pytest.raises(Fenced):
        owners.remove("vm", record.to(Phase.MIGRATING))
    owners.remove("vm", record)
    assert owners.all() == {}


def test_it_is_watched(owners: Owners) -> None:
    with owners.watch(owners.store.revision()) as watch:
        record = owners.create("vm", HERE)
        owners.store.put("other", b"")
        owners.swap("vm", record, record.to(Phase.MIGRATING))
        assert [change.key for change in watch.poll(0)] == [OWNERS + "vm"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 257])
def test_names(owners: Owners, name: str) -> None:
    with pytest.raises(ArgumentError):
        owners.read(name)


def test_a_broken_record(owners: Owners) -> None:
    owners.store.put(OWNERS + "vm", b'{"node": "a"}')
    with pytest.raises(RecordError, match="owners/vm"):
        owners.read("vm")


class Forgetful(Owners):
    """Its store does what it is told, and then cannot say so: the answer is lost."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        real, self.lost = store.put, 1

        def put(key: str, value: bytes, *, expect: int | None = None) -> int:
            revision = real(key, value, expect=expect)
            if self.lost:
                self.lost -= 1
                raise StoreError(store.name, "the answer was lost")
            return revision

        store.put = put  # type: ignore[method-assign]


def test_a_lost_answer_is_no_failure(owners: Owners) -> None:
    old = owners.create("vm", HERE)
    new = old.to(Phase.MIGRATING)
    forgetful = Forgetful(owners.store)
    with pytest.raises(StoreError) as caught:
        forgetful.swap("vm", old, new)
    assert type(caught.value) is StoreError
    assert forgetful.swap("vm", old, new) == owners.read("vm") == new


def test_who_never_gets_through_says_so(owners: Owners) -> None:
    old = owners.create("vm", HERE)
    real = owners.store.get

    def get(key: str) -> Record | None:
        record = real(key)
        return record and Record(record.value, record.revision + 1)  # as if it were changed right after each look

    owners.store.get = get  # type: ignore[method-assign]
    with pytest.raises(StoreBusy):
        owners.swap("vm", old, old.to(Phase.MIGRATING))
