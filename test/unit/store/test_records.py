"""What every store does, whatever it is kept in: the conformance suite (see conftest.py for the stores)."""

import threading
import time
from collections.abc import Callable, Mapping

import pytest

from drover.errors import ArgumentError, RevisionConflict
from drover.store.records import MAX_CHANGES, MAX_KEY, MAX_VALUE, Change, Record, Store

Opener = Callable[[], Store]  # opens the same store again and again


def test_a_record_is_there_until_it_is_removed(store: Store) -> None:
    assert store.get("a") is None
    first = store.put("a", b"1")
    assert store.get("a") == Record(b"1", first)
    second = store.put("a", b"")
    assert second > first
    assert store.get("a") == Record(b"", second)
    assert store.delete("a") > second
    assert store.get("a") is None


def test_revisions_count_all_changes_of_the_store(store: Store) -> None:
    assert store.revision() == 0
    seen = [store.put("a", b""), store.put("b", b""), store.delete("a"), store.txn({"c": b"", "d": b""})]
    assert seen == [1, 2, 3, 4]
    assert store.revision() == 4
    assert [record.revision for _, record in store.range("")] == [2, 4, 4]


def test_what_changes_nothing_has_no_revision(store: Store) -> None:
    revision = store.put("a", b"")
    assert store.delete("b") == store.txn({}) == store.txn({}, expect={"a": revision}) == store.revision() == revision


@pytest.mark.parametrize("changes", [{"a": b"new"}, {"a": None}, {"b": b"new"}, {}])
def test_nothing_is_changed_where_a_revision_is_another(store: Store, changes: Mapping[str, bytes | None]) -> None:
    old = store.put("a", b"1")
    now = store.put("a", b"2")
    with pytest.raises(RevisionConflict) as caught:
        store.txn(changes, expect={"a": old})
    assert (caught.value.key, caught.value.expected, caught.value.found) == ("a", old, now)
    assert store.range("") == [("a", Record(b"2", now))]
    assert store.revision() == now


def test_to_expect_none_and_to_find_one(store: Store) -> None:
    revision = store.put("a", b"1", expect=0)
    with pytest.raises(RevisionConflict) as caught:
        store.put("a", b"2", expect=0)
    assert (caught.value.expected, caught.value.found) == (0, revision)


def test_to_expect_one_and_to_find_none(store: Store) -> None:
    """One that was removed is none, and its revision is never that of a later one."""
    revision = store.put("a", b"1")
    store.delete("a", expect=revision)
    for expected in (revision, revision + 1):
        with pytest.raises(RevisionConflict) as caught:
            store.put("a", b"2", expect=expected)
        assert caught.value.found == 0
    assert store.put("a", b"2", expect=0) > revision + 1


def test_changed_and_changed_back_is_another_record(store: Store) -> None:
    revision = store.put("a", b"1")
    store.put("a", b"2")
    store.put("a", b"1")
    with pytest.raises(RevisionConflict):
        store.delete("a", expect=revision)


def test_several_changes_are_all_made_or_none(store: Store) -> None:
    a, b = store.put("a", b"1"), store.put("b", b"1")
    revision = store.txn({"a": b"2", "b": None, "c": b"2"}, expect={"a": a, "b": b, "c": 0})
    assert store.range("") == [("a", Record(b"2", revision)), ("c", Record(b"2", revision))]
    with pytest.raises(RevisionConflict):
        store.txn({"a": b"3", "b": b"3", "c": None}, expect={"a": revision, "b": 0, "c": revision - 1})
    assert store.range("") == [("a", Record(b"2", revision)), ("c", Record(b"2", revision))]


def test_a_range_is_what_begins_with_the_prefix(store: Store) -> None:
    for key in ("b/10", "b/1", "b/~", "b", "b0", "a/1", "c/1", "B/1", "b/%", "b/_"):
        store.put(key, key.encode())
    below = ["b/%", "b/1", "b/10", "b/_", "b/~"]
    assert [key for key, _ in store.range("b/")] == below
    assert [record.value.decode() for _, record in store.range("b/")] == below
    assert [key for key, _ in store.range("b/", last_first=True)] == below[::-1]
    assert [key for key, _ in store.range("b/", limit=2)] == below[:2]
    assert [key for key, _ in store.range("b/", before="b/_", limit=2, last_first=True)] == ["b/10", "b/1"]
    assert store.range("b/", before="b/%") == []
    assert store.range("nothing") == []
    assert (store.count("b/"), store.count(""), store.count("nothing")) == (5, 10, 0)


@pytest.mark.parametrize("key", ["", "a b", "é", "a\n", "a\0", "a" * (MAX_KEY + 1)])
def test_keys_that_are_none(store: Store, key: str) -> None:
    for attempt in (
        lambda: store.get(key),
        lambda: store.put(key, b""),
        lambda: store.delete(key),
        lambda: store.txn({"a": b""}, expect={key: 0}),
    ):
        with pytest.raises(ArgumentError):
            attempt()
    assert store.range("") == []


def test_bounds_of_a_transaction(store: Store) -> None:
    store.put("a" * MAX_KEY, bytes(MAX_VALUE))
    found = store.get("a" * MAX_KEY)
    assert found is not None
    assert found.value == bytes(MAX_VALUE)
    store.txn({f"k{number}": b"" for number in range(MAX_CHANGES)})
    for changes in ({"a": bytes(MAX_VALUE), "b": b"1"}, {f"k{number}": b"" for number in range(MAX_CHANGES + 1)}):
        with pytest.raises(ArgumentError):
            store.txn(changes)


def test_others_see_it_at_once_and_it_stays(opener: Opener) -> None:
    with opener() as one, opener() as other:
        for number in range(0, 20, 2):
            revision = one.put("a", b"%d" % number)
            assert other.get("a") == Record(b"%d" % number, revision)
            revision = other.put("a", b"%d" % (number + 1))
            assert one.get("a") == Record(b"%d" % (number + 1), revision)
    with opener() as later:
        assert later.get("a") == Record(b"19", 20)


def test_a_watch_tells_what_changes_below_its_prefix(opener: Opener) -> None:
    with opener() as store, opener() as other:
        store.put("w/before", b"")
        with store.watch("w/", store.revision()) as watch:
            assert watch.poll(0) == []
            other.put("elsewhere", b"")
            first = other.put("w/a", b"1")
            other.put("w/b", b"1")
            assert watch.poll(5) == [Change("w/a", first, b"1"), Change("w/b", first + 1, b"1")]
            gone = other.delete("w/a")
            assert watch.poll(5) == [Change("w/a", gone, None)]
            assert watch.revision == gone
            again = other.put("w/a", b"2")
            assert watch.poll(5) == [Change("w/a", again, b"2")]


def test_a_watch_begins_in_the_past(store: Store) -> None:
    for number in range(5):
        store.put(f"w/{number}", b"")
    store.delete("w/3")
    with store.watch("w/", 2) as watch:
        assert [(it.key, it.value) for it in watch.poll(0)] == [("w/2", b""), ("w/4", b""), ("w/3", None)]


def test_the_last_change_of_each_key_is_told_in_their_order(store: Store) -> None:
    with store.watch("w/", 0) as watch:
        for number in range(700):
            store.txn({f"w/{number % 300}": b"%d" % number, f"w/x{number}": b"", f"w/y{number}": b""})
        told: dict[str, Change] = {}
        last = 0
        while changes := watch.poll(0):
            assert [it.revision for it in changes] == sorted(it.revision for it in changes)
            assert changes[0].revision > last, "those of one revision are told together"
            last = changes[-1].revision
            told |= {it.key: it for it in changes}
    assert {key: it.value for key, it in told.items()} == {key: it.value for key, it in store.range("w/")}
    assert len(told) == 1700


def test_a_watch_waits(opener: Opener) -> None:
    with opener() as store, opener() as other:
        with store.watch("w/", 0) as watch:
            began = time.monotonic()
            assert watch.poll(0.2) == []
            assert 0.2 <= time.monotonic() - began < 2
            for writer in (store, other):
                later = threading.Timer(0.2, writer.put, ("w/a", b""))
                later.start()
                began = time.monotonic()
                assert len(watch.poll(30)) == 1
                assert 0.1 < time.monotonic() - began < 5
                later.join()


def test_many_threads_share_a_store(store: Store) -> None:
    """Each adds 25 to one number by compare-and-swap; not one is lost."""

    def add() -> None:
        for _ in range(25):
            while True:
                record = store.get("sum")
                value = int(record.value) if record else 0
                try:
                    store.put("sum", b"%d" % (value + 1), expect=record.revision if record else 0)
                    break
                except RevisionConflict:
                    pass

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.get("sum")
    assert found is not None
    assert int(found.value) == 200
    assert found.revision == 200
