"""Who ended a run."""

import pytest

from drover.events.verdict import Who, is_user_shutdown, reason_told, who_ended
from drover.kvm.ends import Stop


@pytest.mark.parametrize(
    ("reason", "who"),
    [
        ("guest-shutdown", Who.GUEST),
        ("request", Who.ADMIN),
        ("host-signal", Who.HOST_SIGNAL),
        ("panic", Who.CRASH),
        ("crash", Who.CRASH),
        ("host-boot", Who.HOST_BOOT),
        ("start-failed", Who.UNKNOWN),
        ("unknown", Who.UNKNOWN),
    ],
)
def test_who(reason: str, who: Who) -> None:
    stop = Stop(reason=reason, at=1)
    assert who_ended(stop) is who
    assert is_user_shutdown(stop) is (reason == "guest-shutdown")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"guest": True, "reason": "guest-shutdown"}, "guest-shutdown"),
        ({"guest": False, "reason": "host-signal"}, "host-signal"),
        ({"guest": False, "reason": "host-qmp-quit"}, "request"),
        ({"guest": True, "reason": "guest-panic"}, "panic"),
        ({"guest": True, "reason": "guest-reset"}, ""),
        ({"guest": False, "reason": "one of tomorrow"}, ""),
        ({"guest": True}, "guest-shutdown"),
        ({"guest": False}, ""),
        ({}, ""),
    ],
)
def test_what_qemu_tells(data: dict[str, object], reason: str) -> None:
    """Of QEMU before 2.12, which tells less, too."""
    assert reason_told(data) == reason
