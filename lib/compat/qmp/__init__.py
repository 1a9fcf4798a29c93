"""The names of ``qemu.qmp``, over Drover (``doc/switch-from-qemu-qmp.md``).

The modules have the names under which users import from them:

- :mod:`.error`       the root of the errors
- :mod:`.message`     :class:`~.message.Message`
- :mod:`.models`      the greeting and the error reply, checked
- :mod:`.events`      :class:`~.events.EventListener`, and what a client does with them
- :mod:`.protocol`    :class:`~.protocol.Runstate`, and the states of a connection
- :mod:`.qmp_client`  :class:`~.qmp_client.QMPClient`, on asyncio
- :mod:`.legacy`      :class:`~.legacy.QEMUMonitorProtocol`, blocking
- :mod:`.util`        helpers that programs on top of it import

and three are ours alone: :mod:`._link`, which joins these to Drover's session and wire, :mod:`._dial`, which
connects and listens, and :mod:`._pump`, for subclasses of ``AsyncProtocol`` with messages of their own.
"""

import logging

from . import legacy as legacy
from .error import QMPError
from .events import EventListener
from .message import Message
from .protocol import ConnectError, Runstate, SocketAddrT, StateError
from .qmp_client import ExecInterruptedError, ExecuteError, QMPClient

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = (
    "QMPClient",
    "Message",
    "EventListener",
    "Runstate",
    "QMPError",
    "StateError",
    "ConnectError",
    "ExecuteError",
    "ExecInterruptedError",
    "SocketAddrT",
)
