"""Drover drives QEMU/KVM virtual machines.

The public names, most important first:

- :class:`QmpConnection`       a QMP monitor, blocking, safe to share between threads
- :class:`AsyncQmpConnection`  the same verbs on asyncio
- :class:`Reconnect`           that a lost connection is to be made anew
- :class:`GuestAgent`          the agent in a guest (qemu-ga); :class:`AsyncGuestAgent` on asyncio
- :class:`MonitorSocket`       a monitor socket's life, which both stand on
- :class:`MonitorListener`     for a QEMU that dials us; :class:`AsyncMonitorListener` on asyncio
- :func:`parse_address`        every form of an address, as text
- :mod:`drover.errors`         everything that can go wrong, as one tree

The rooms of the house, lowest first; each imports only downwards (``doc/design.md``):
``errors`` < ``qmp`` (the protocol, pure) < ``ops`` (what to do) < ``monitor``
(where bytes move) < ... < ``cli``.
"""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .monitor.address import parse_address as parse_address
    from .monitor.agent import AsyncGuestAgent as AsyncGuestAgent
    from .monitor.agent import GuestAgent as GuestAgent
    from .monitor.aio import AsyncMonitorListener as AsyncMonitorListener
    from .monitor.aio import AsyncQmpConnection as AsyncQmpConnection
    from .monitor.connection import QmpConnection as QmpConnection
    from .monitor.life import Reconnect as Reconnect
    from .monitor.listener import MonitorListener as MonitorListener
    from .monitor.socket import MonitorSocket as MonitorSocket

__all__ = [
    "AsyncGuestAgent",
    "AsyncMonitorListener",
    "AsyncQmpConnection",
    "GuestAgent",
    "MonitorListener",
    "MonitorSocket",
    "QmpConnection",
    "Reconnect",
    "__version__",
    "parse_address",
]

# Loaded when first used: a command line that never opens a monitor must not pay for asyncio.
_LAZY = {
    "AsyncGuestAgent": ".monitor.agent",
    "GuestAgent": ".monitor.agent",
    "AsyncMonitorListener": ".monitor.aio",
    "AsyncQmpConnection": ".monitor.aio",
    "MonitorListener": ".monitor.listener",
    "MonitorSocket": ".monitor.socket",
    "QmpConnection": ".monitor.connection",
    "Reconnect": ".monitor.life",
    "parse_address": ".monitor.address",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
