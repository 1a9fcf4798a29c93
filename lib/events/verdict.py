"""Who ended a run. Pure: from how it ended, as the instance's document has it, and from what QEMU said of it.

How a run ended is decided where it is written down (:mod:`drover.kvm.mend`): from QEMU's state, the document's intent
and request, and the end of the process. What QEMU said last is asked only where that finds nothing.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from ..kvm.ends import Stop


class Who(StrEnum):
    """Who ended a run."""

    GUEST = "guest"
    ADMIN = "admin"
    HOST_SIGNAL = "host-signal"
    CRASH = "crash"
    HOST_BOOT = "host-boot"
    UNKNOWN = "unknown"


# By the reason of :class:`Stop`. A guest that panics has not decided to.
_WHO: Final[Mapping[str, Who]] = {
    "guest-shutdown": Who.GUEST,
    "request": Who.ADMIN,
    "migrated": Who.ADMIN,
    "saved": Who.ADMIN,
    "host-signal": Who.HOST_SIGNAL,
    "panic": Who.CRASH,
    "crash": Who.CRASH,
    "host-boot": Who.HOST_BOOT,
}
# By the reason of QEMU's event SHUTDOWN (``ShutdownCause`` of qapi/run-state.json): that of :class:`Stop`.
_REASONS: Final[Mapping[str, str]] = {
    "host-qmp-quit": "request",
    "host-signal": "host-signal",
    "host-ui": "request",
    "guest-shutdown": "guest-shutdown",
    "guest-panic": "panic",
    "host-error": "crash",
}


def who_ended(stop: Stop) -> Who:
    """Who ended a run that ended so."""
    return _WHO.get(stop.reason, Who.UNKNOWN)


def reason_told(data: Mapping[str, Any]) -> str:
    """The reason of :class:`Stop` that QEMU's event SHUTDOWN tells; empty where it tells none.

    :param data: the event's
    """
    if "reason" not in data:
        return "guest-shutdown" if data.get("guest") else ""
    return _REASONS.get(str(data["reason"]), "")


def is_user_shutdown(stop: Stop) -> bool:
    """Whether Ganeti would call it a shutdown by the instance's user: the guest's own will, asked by nobody."""
    return who_ended(stop) is Who.GUEST
