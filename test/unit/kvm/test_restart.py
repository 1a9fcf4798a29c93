"""The restart policy, as a table."""

import time

import pytest

from drover.kvm.ends import Restart, Stop
from drover.kvm.record import Document
from drover.kvm.restart import HEALTHY, LONGEST_DELAY, is_due, restart_after, seconds_left
from drover.kvm.spec import parse

BOOT = "this boot"


def document(policy: str, last: Restart | None = None) -> Document:
    return Document(spec=parse({"name": "vm", "memory": {"size": "64MiB"}, "restart": policy}), restart=last)


@pytest.mark.parametrize(
    ("reason", "followed_by"),
    [
        ("crash", ["on-failure", "always"]),
        ("panic", ["on-failure", "always"]),
        ("unknown", ["on-failure", "always"]),
        ("guest-shutdown", ["always"]),
        ("request", []),
        ("host-signal", []),
        ("host-boot", []),
        ("start-failed", []),
    ],
)
def test_which(reason: str, followed_by: list[str]) -> None:
    stop = Stop(reason=reason, at=1000.0)
    found = [it for it in ("never", "on-failure", "always") if restart_after(document(it), stop, BOOT)]
    assert found == followed_by


def test_each_later_than_the_last() -> None:
    """One second, then twice as long each time, five minutes at most."""
    now, last, delays = 1000.0, None, list[float]()
    for _ in range(40):
        last = restart_after(document("always", last), Stop(reason="crash", at=now), BOOT)
        assert last is not None
        assert last.due
        delays.append(last.at - now)
        now = last.at
        last.due = False
    assert delays[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(delays[10:]) == {LONGEST_DELAY}
    assert last is not None
    assert last.count == 40


@pytest.mark.parametrize(("ran", "count"), [(HEALTHY - 1, 6), (HEALTHY, 1)])
def test_health_forgets(ran: float, count: int) -> None:
    last = Restart(count=5, at=1000.0, boot_id=BOOT)
    found = restart_after(document("on-failure", last), Stop(reason="panic", at=1000.0 + ran), BOOT)
    assert found is not None
    assert found.count == count


def test_restart_that_fails_is_tried_again() -> None:
    """However long ago the one before was."""
    last = Restart(count=2, at=1000.0, boot_id=BOOT)
    found = restart_after(document("always", last), Stop(reason="start-failed", at=9000.0), BOOT)
    assert found == Restart(count=3, at=9004.0, due=True, boot_id=BOOT)


def test_due() -> None:
    assert not is_due(document("always"), BOOT)
    assert not is_due(document("always", Restart(at=5.0, boot_id=BOOT)), BOOT)
    due = Restart(at=5.0, due=True, boot_id=BOOT)
    assert is_due(document("always", due), BOOT)
    assert not is_due(document("always", due), "another boot")
    assert seconds_left(due) == 0
    # as where the clock was set back: no longer than was meant
    waits = [seconds_left(Restart(count=count, at=time.time() + 1e9, due=True)) for count in (0, 1, 2, 3, 99)]
    assert waits == [1, 1, 2, 4, LONGEST_DELAY]
