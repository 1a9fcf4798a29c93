"""One looks for all."""

import threading
import time

import pytest

from drover.store.lookout import POLL, Lookout


class Store:
    """A revision that changes elsewhere; counts the looks at it."""

    def __init__(self) -> None:
        self.revision = 0
        self.looks = 0

    def look(self) -> int:
        self.looks += 1
        return self.revision


def waiting(
    lookout: Lookout, after: int, timeouts: list[float]
) -> tuple[list[threading.Thread], list[tuple[int, bool]]]:
    ended: list[tuple[int, bool]] = []
    threads = [
        threading.Thread(
            target=lambda number=number, timeout=timeout: ended.append((number, lookout.wait(after, timeout)))
        )
        for number, timeout in enumerate(timeouts)
    ]
    for thread in threads:
        thread.start()
    return threads, ended


def test_many_wait_and_one_looks() -> None:
    """Those who leave, the one that looks among them, leave the others a lookout."""
    store = Store()
    lookout = Lookout(store.look)
    threads, ended = waiting(lookout, 0, [0.2 + 0.02 * number for number in range(20)] + [30.0] * 20)
    began = time.monotonic()
    time.sleep(1)
    assert sorted(ended) == [(number, False) for number in range(20)]
    assert 10 < store.looks < (time.monotonic() - began) / POLL + 40
    store.revision = 1
    for thread in threads:
        thread.join(5)
    assert sorted(ended)[20:] == [(number, True) for number in range(20, 40)]


def test_who_is_told_need_not_look() -> None:
    lookout = Lookout(Store().look)
    threads, ended = waiting(lookout, 7, [30.0] * 5)
    lookout.tell(7)
    time.sleep(0.1)
    assert ended == []
    lookout.tell(8)
    for thread in threads:
        thread.join(5)
    assert sorted(ended) == [(number, True) for number in range(5)]
    assert lookout.wait(7, 0)
    assert not lookout.wait(8, 0)


def test_a_look_that_fails_fails_one_and_the_next_looks() -> None:
    store = Store()
    fails = [OSError("once")]

    def look() -> int:
        if fails:
            raise fails.pop()
        return store.look()

    lookout = Lookout(look)
    with pytest.raises(OSError, match="once"):
        lookout.wait(0, 5)
    assert not lookout.wait(0, 0.1)
    assert store.looks > 0
