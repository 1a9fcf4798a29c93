"""A short talk with somebody who is no monitor, under a deadline, for whichever face."""

import errno
import os
import select
from collections.abc import Callable
from typing import Any

from ..errors import ConnectError, ConnectTimeout, MonitorTimeout
from ..qmp.conversation import Conversation
from .address import AbstractAddress, Endpoint, TcpAddress, UnixAddress
from .socket import dial_any, resolve
from .wire import Ready, Wire


async def converse(
    place: Endpoint, conversation: Conversation, timeout: float, now: Callable[[], float], ready: Ready
) -> int | None:
    """Dial `place` once, and let `conversation` come to its end.

    Unlike a monitor, which is waited for, whoever does not listen now is not there.

    :param timeout: seconds for all of it
    :returns: the process that listens there, where that can be told
    :raises ConnectError: nobody listens there
    :raises ConnectTimeout: the call was not taken in time
    :raises MonitorTimeout: the call was taken, and the conversation is not through in time
    """
    deadline = now() + timeout

    def left() -> float:
        return max(0.0, deadline - now())

    candidates = await resolve(place, left, ready, timeout)
    try:
        wire = Wire(await dial_any(candidates, left, ready))
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise ConnectTimeout(str(place), f"no answer within {timeout:g} s", timeout) from error
        if error.errno == errno.EAGAIN:  # how a unix socket says it; to connect without O_NONBLOCK would hang
            raise ConnectTimeout(str(place), "its queue is full: nobody takes the calls", timeout) from error
        raise ConnectError(str(place), error.strerror or str(error)) from error
    try:
        await _talk(wire, conversation, left, ready, MonitorTimeout(str(place), timeout))
        return wire.peer_pid()
    finally:
        wire.close()


async def _talk(
    wire: Wire, conversation: Conversation, left: Callable[[], float], ready: Ready, late: MonitorTimeout
) -> None:
    unsent = conversation.begin()
    while not conversation.done:
        unsent = unsent[wire.send(unsent) :] if unsent else unsent
        if not await ready(wire.fileno(), select.POLLOUT if unsent else select.POLLIN, left()):
            raise late
        if not unsent and (data := wire.receive()) is not None:
            unsent = conversation.receive(data)
    if unsent:
        wire.send(unsent)  # a farewell: who does not take it now does without


def socket_address(place: Endpoint) -> dict[str, Any]:
    """`place` as QEMU's type ``SocketAddress``."""
    if isinstance(place, UnixAddress):
        return {"type": "unix", "path": os.path.abspath(place.path)}  # QEMU's working directory is not ours
    if isinstance(place, AbstractAddress):
        return {"type": "unix", "path": place.name, "abstract": True}
    if isinstance(place, TcpAddress):
        return {"type": "inet", "host": place.host, "port": str(place.port)}
    return {"type": "vsock", "cid": str(place.cid), "port": str(place.port)}
