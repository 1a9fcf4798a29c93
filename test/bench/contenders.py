"""Who takes part, by name: ours, others' from PyPI and Debian, and what one would write by hand."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import peers
from byhand import Bare, Plain, PlainLoop, Same
from limits import IN_C, compiler

from drover import AsyncQmpConnection, QmpConnection

SYNC: Final = "drover sync"
ASYNC: Final = "drover async"
UVLOOP: Final = "drover on uvloop"
PLAIN: Final = "plain"
SAME: Final = "plain, same words"
BARE: Final = "plain + msgspec"
PLAIN_LOOP: Final = "plain asyncio"
QEMU_QMP: Final = "qemu.qmp"
LEGACY: Final = "qemu.qmp.legacy"
GANETI: Final = "Ganeti, held"
AVOCADO: Final = "avocado-vt"
OURS: Final = (SYNC, ASYNC, UVLOOP)


@dataclass(frozen=True)
class Contender:
    """One client: made from a monitor's address; `new_loop` makes the event loop that it runs on, if it needs one.

    :ivar tells: it hands events on
    """

    name: str
    make: Callable[[str], Any]
    new_loop: Callable[[], Any] | None = None
    tells: bool = True


@cache
def contenders() -> tuple[Contender, ...]:
    """All that are installed here."""
    return tuple(
        contender
        for contender in (
            Contender(SYNC, QmpConnection),
            Contender(ASYNC, AsyncQmpConnection, asyncio.new_event_loop),
            _on_uvloop(),
            Contender(PLAIN, Plain),
            Contender(SAME, Same),
            Contender(BARE, Bare),
            Contender(PLAIN_LOOP, PlainLoop, asyncio.new_event_loop, tells=False),
            _of_qemu(QEMU_QMP, peers.QemuQmp, asyncio.new_event_loop),
            _of_qemu(LEGACY, peers.Legacy, None),
            _if_loads(peers.ganeti_monitor, Contender(GANETI, peers.Ganeti, tells=False)),
            _if_loads(peers.avocado_monitor, Contender(AVOCADO, peers.Avocado, tells=False)),
        )
        if contender is not None
    )


def _on_uvloop() -> Contender | None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return Contender(UVLOOP, AsyncQmpConnection, new_event_loop)


def _of_qemu(name: str, make: Callable[[str], Any], new_loop: Callable[[], Any] | None) -> Contender | None:
    def load() -> None:
        import qemu.qmp.legacy  # noqa: F401

    return _if_loads(load, Contender(name, make, new_loop))


def _if_loads(load: Callable[[], Any], contender: Contender) -> Contender | None:
    try:
        load()
    except ImportError:
        return None
    return contender


def missing() -> list[str]:
    """Names of those that are not."""
    present = {contender.name for contender in contenders()}
    absent = [name for name in (UVLOOP, QEMU_QMP, LEGACY, GANETI, AVOCADO) if name not in present]
    return absent if compiler() else [*absent, IN_C]
