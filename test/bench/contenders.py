"""Who takes part, by name: ours, others' from PyPI, and what one would write by hand."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from byhand import Bare, Plain

from drover import AsyncQmpConnection, QmpConnection

SYNC: Final = "drover sync"
ASYNC: Final = "drover async"
UVLOOP: Final = "drover on uvloop"
PLAIN: Final = "plain"
BARE: Final = "plain + msgspec"
QEMU_QMP: Final = "qemu.qmp"
LEGACY: Final = "qemu.qmp.legacy"
OURS: Final = (SYNC, ASYNC, UVLOOP)


@dataclass(frozen=True)
class Contender:
    """One client: made from a monitor's address; `new_loop` makes the event loop that it runs on, if it needs one."""

    name: str
    make: Callable[[str], Any]
    new_loop: Callable[[], Any] | None = None


def contenders() -> list[Contender]:
    """All that are installed here."""
    found = [
        Contender(SYNC, QmpConnection),
        Contender(ASYNC, AsyncQmpConnection, asyncio.new_event_loop),
        Contender(PLAIN, Plain),
        Contender(BARE, Bare),
    ]
    try:
        from uvloop import new_event_loop
    except ImportError:
        pass
    else:
        found.insert(2, Contender(UVLOOP, AsyncQmpConnection, new_event_loop))
    try:
        from peers import Legacy, QemuQmp
    except ImportError:
        pass
    else:
        found += [Contender(QEMU_QMP, QemuQmp, asyncio.new_event_loop), Contender(LEGACY, Legacy)]
    return found


def missing() -> list[str]:
    """Names of those that are not."""
    present = {contender.name for contender in contenders()}
    return [name for name in (UVLOOP, QEMU_QMP, LEGACY) if name not in present]
