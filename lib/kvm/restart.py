"""Whether, and when, a run that has ended is followed by another one: the restart policy of a specification.

It is decided when the end of a run is written down, in the same write. So whoever finds the end, and whoever dies
then, the restart is due, until it is done or somebody wants the instance to stay as it is.
"""

import time
from typing import Final

from .ends import Restart, Stop
from .record import Document

# Seconds. The first one lets a host that is short of something recover; the last one still looks alive to its owner.
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
# Seconds of a run after which what went wrong before is over.
HEALTHY: Final = 600.0
# What is neither the guest's will nor that of who runs the host. A signal that asks QEMU to end, such as that of a
# host that shuts down, is the latter's; a host's boot has its own rule, `autostart`.
_FAILURES: Final = ("crash", "panic", "unknown")
_FOLLOWED: Final = {"never": (), "on-failure": _FAILURES, "always": (*_FAILURES, "guest-shutdown")}


def restart_after(document: Document, stop: Stop, boot_id: str) -> Restart | None:
    """The restart that is due after a run; None: it stays as it is.

    :param document: as it was in that run
    :param stop: how it ended
    """
    last = document.restart
    if document.passage is not None:
        return None  # it may run elsewhere
    if stop.reason == "start-failed":
        return None if last is None else later(last, stop.at)  # only what was a restart is tried again
    if stop.reason not in _FOLLOWED[document.spec.restart]:
        return None
    if last is None or stop.at - last.at >= HEALTHY:
        last = Restart(boot_id=boot_id)
    return later(last, stop.at)


def later(last: Restart, now: float) -> Restart:
    """The next one after one that was of no use, and twice as much later.

    :param now: Unix time
    """
    count = last.count + 1
    return Restart(count=count, at=now + _delay(count), due=True, boot_id=last.boot_id)


def is_due(document: Document, boot_id: str) -> bool:
    """Whether it is to be started again, now or in a while."""
    restart = document.restart
    return document.runtime is None and restart is not None and restart.due and restart.boot_id == boot_id


def seconds_left(restart: Restart) -> float:
    """How long until it is due. A clock that was set back makes nobody wait for longer than was meant."""
    return min(max(restart.at - time.time(), 0.0), _delay(restart.count))


def _delay(count: int) -> float:
    """Before the restart that is one of so many in a row."""
    doublings = min(max(count - 1, 0), 20)
    return min(FIRST_DELAY * 2.0**doublings, LONGEST_DELAY)
