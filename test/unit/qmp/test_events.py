"""The event log: nothing that somebody waits for is missed, and what is dropped is counted."""

import pytest

from drover.errors import ConnectionClosed
from drover.qmp.events import EventLog


def filled(count: int, size: int = 1000) -> EventLog:
    log = EventLog(size)
    for number in range(count):
        log.add("E", {"n": number}, 0.0)
    return log


def test_numbers_go_on_and_drops_are_counted() -> None:
    log = filled(25, size=10)
    assert (log.mark(), len(log), log.dropped) == (25, 10, 15)
    assert [event.number for event in log] == list(range(16, 26))


def test_a_flood_that_empties_the_log_does_not_hide_an_event_from_who_waits() -> None:
    log = EventLog(10)
    watch = log.watch(["WANTED"], log.mark())
    log.add("WANTED", {}, 0.0)
    for _ in range(1000):
        log.add("FLOOD", {}, 0.0)
    assert watch.event is not None
    assert watch.event.number == 1


def test_a_match_that_raises_fails_its_own_wait_only() -> None:
    log = EventLog()
    bad = log.watch([], None, lambda event: event.data["missing"])
    good = log.watch([], None)
    log.add("E", {}, 0.0)
    assert isinstance(bad.error, KeyError)
    assert good.event is not None
    with pytest.raises(KeyError):
        bad.outcome()


def test_a_stream_drops_the_oldest_and_counts_them() -> None:
    log = EventLog()
    stream = log.stream([], None, size=3)
    for number in range(5):
        log.add("E", {"n": number}, 0.0)
    assert stream.lost == 2
    assert [event.number for event in iter(stream.take, None)] == [3, 4, 5]


def test_a_stream_from_before_the_log_says_what_it_missed() -> None:
    stream = filled(30, size=10).stream([], 5)
    assert stream.lost == 15
    assert len(list(iter(stream.take, None))) == 10


def test_closing_wakes_everybody_after_what_came_before() -> None:
    log = EventLog()
    woken: list[str] = []
    watch, stream = log.watch(["X"], None), log.stream([], None)
    watch.notify = lambda: woken.append("watch")
    stream.notify = lambda: woken.append("stream")
    log.add("E", {}, 0.0)
    log.close(ConnectionClosed("end"))
    assert woken == ["stream", "watch", "stream"]
    assert stream.take() is not None
    assert stream.done
    assert isinstance(stream.closed, ConnectionClosed)


def test_forgotten_waiters_get_nothing() -> None:
    log = EventLog()
    watch, stream = log.watch([], None), log.stream([], None)
    log.forget(watch)
    log.forget(stream)
    log.add("E", {}, 0.0)
    assert not watch.done
    assert stream.take() is None
