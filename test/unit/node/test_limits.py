"""Who may have how much: connections and requests are counted by caller, and the idle one that is oldest goes."""

import resource
from collections.abc import Callable

import pytest
from msgspec import structs

from drover.errors import ArgumentError
from drover.node.limits import Bucket, Crowd, Held, Limits, limits_here

FEW = structs.replace(Limits(), connections=4, connections_per_caller=3, streams_per_caller=2)


class Doors:
    """Connections, and which of them were dropped."""

    def __init__(self) -> None:
        self.crowd = Crowd(FEW)
        self.dropped: list[str] = []

    def open(self, name: str, caller: str = "a") -> Held | None:
        return self.crowd.enter(caller, self.drop(name))

    def drop(self, name: str) -> Callable[[], None]:
        return lambda: self.dropped.append(name)


def test_the_oldest_idle_one_of_a_caller_goes() -> None:
    doors = Doors()
    first, *_ = (doors.open(name) for name in "123")
    assert first is not None
    doors.crowd.begin(first)
    doors.crowd.end(first)  # it is the one that was used last now
    assert doors.open("4")
    assert doors.open("5")
    assert doors.dropped == ["2", "3"]
    assert doors.crowd.told() == {"open": 3, "streams": 0, "dropped": 2, "refused": 0}


def test_where_all_are_in_use_the_next_is_over() -> None:
    doors = Doors()
    for name in "123":
        held = doors.open(name)
        assert held is not None
        doors.crowd.begin(held)
    late, other = doors.open("4"), doors.open("5", "b")
    assert late is not None
    assert late.over
    assert other is not None
    assert not other.over
    assert doors.dropped == ["4"]  # all are full, and it is the only one that is idle


def test_in_all_the_one_with_most_gives() -> None:
    doors = Doors()
    for name, caller in ("1", "b"), ("2", "a"), ("3", "a"), ("4", "a"):
        doors.open(name, caller)
    assert doors.open("5", "c")
    assert doors.dropped == ["2"]
    held = [doors.open(name, name) for name in "678"]
    assert all(held)


def test_no_room_at_all() -> None:
    doors = Doors()
    for name in "1234":
        held = doors.open(name, name)
        assert held is not None
        doors.crowd.begin(held)
    assert doors.open("5", "5") is None
    assert doors.crowd.told()["refused"] == 1


def test_known_later_and_gone_twice() -> None:
    doors = Doors()
    held = doors.open("1", "address")
    assert held is not None
    doors.crowd.known(held, "certificate", doors.drop("its transport"))
    doors.crowd.leave(held)
    doors.crowd.leave(held)
    doors.crowd.known(held, "other", doors.drop("x"))
    doors.crowd.end(held)
    assert doors.crowd.told()["open"] == 0
    assert not doors.crowd.make_room()


def test_streams_are_counted() -> None:
    crowd = Crowd(FEW)
    assert [crowd.may_stream("a") for _ in range(3)] == [True, True, False]
    assert crowd.may_stream("b")
    crowd.streamed("a")
    assert crowd.may_stream("a")


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(10, 3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.15) for _ in range(2)] == [True, False]
    assert not bucket.is_full(100.2)
    assert bucket.is_full(101.0)
    assert bucket.take(50.0)  # a clock that goes back takes nothing away


def test_changes() -> None:
    limits = limits_here(["body_bytes=2000", "idle_seconds=0.5"])
    assert (limits.body_bytes, limits.idle_seconds, limits.headers) == (2000, 0.5, Limits().headers)
    for wrong in ("body=1", "body_bytes", "body_bytes=", "body_bytes=0", "body_bytes=1.5", "idle_seconds=nan",
                  "idle_seconds=inf", "headers=-1"):  # fmt: skip
        with pytest.raises(ArgumentError, match="connections_per_caller"):
            limits_here([wrong])


def test_few_files() -> None:
    """Half of them are for connections, and one caller does not get all of those."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        limits = limits_here()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (limits.connections, limits.connections_per_caller) == (50, 37)
