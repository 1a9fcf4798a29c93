"""Connecting and listening at the addresses that these faces take: one try, no second one behind the caller's back."""

import asyncio
import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Final, Self

from ... import errors
from ...monitor.address import AbstractAddress, Address
from ...monitor.aio import AsyncWaits, suspend_until_ready
from ...monitor.connection import BlockingWaits
from ...monitor.drive import drive
from ...monitor.listen import SocketListener
from ...monitor.socket import Wire, left, open_wire
from ...monitor.tls import tls_options
from ...monitor.wire import Ready, block_until_ready
from .error import QMPError

UnixAddrT = str
InternetAddrT = tuple[str, int]
SocketAddrT = UnixAddrT | InternetAddrT

# A monitor that serves another client keeps the next one in its queue, and has no place for a third.
_QUEUE_FULL_PAUSE: Final = 0.05


async def dial(address: SocketAddrT | socket.socket, ssl: SSLContext | None = None) -> Wire:
    """Connect on the running event loop; it takes as long as it takes.

    :param address: path of a unix socket, host and port, or a connected socket, which is taken over
    :param ssl: TLS, which checks the host's name if the context does
    :raises OSError: nobody answers there
    :raises DroverError: there is no such address, or the sides do not agree on TLS
    """

    async def ready(fd: int, event: int, timeout: float | None) -> bool:
        return await suspend_until_ready(fd, event, None)

    while (wire := await _try(address, ready, ssl)) is None:  # noqa: ASYNC110 - nothing tells that a place is free
        await asyncio.sleep(_QUEUE_FULL_PAUSE)
    return wire


def dial_blocking(address: SocketAddrT | socket.socket, timeout: float | None) -> Wire:
    """The same on the caller's thread.

    :param timeout: seconds; None waits for ever
    :raises OSError: nobody answers there, or not in time
    :raises DroverError: there is no such address
    """
    deadline = None if timeout is None else time.monotonic() + timeout

    async def ready(fd: int, event: int, timeout: float | None) -> bool:
        return await block_until_ready(fd, event, left(deadline))

    while (wire := drive(_try(address, ready))) is None:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "other clients hold the monitor, and its queue is full")
        time.sleep(_QUEUE_FULL_PAUSE)
    return wire


async def _try(address: SocketAddrT | socket.socket, ready: Ready, ssl: SSLContext | None = None) -> Wire | None:
    """Connect now or never, but for what `ready` waits for; None where the listener's queue had no place."""
    try:
        place: Address = address if isinstance(address, socket.socket) else _place(address)
        host = place if isinstance(place, tuple) else None
        tls = None if ssl is None else tls_options(ssl, host[0] if host and ssl.check_hostname else None, place)
        return await open_wire(place, 0, _never, lambda: 0.0, ready, tls)
    except errors.ConnectError as error:
        cause = error.__cause__
        if isinstance(cause, BlockingIOError):
            return None
        raise cause or error from None
    except errors.ArgumentError as error:
        raise OSError(errno.EADDRNOTAVAIL, str(error)) from error


async def _never(seconds: float) -> None:
    """Time is up before anybody would wait."""


def carries_descriptors(wire: Wire) -> bool:
    """Whether descriptors can be sent on `wire`."""
    try:
        wire.check_descriptors()
    except errors.ArgumentError:
        return False
    return True


class Listener(BlockingWaits, SocketListener):
    """A bound socket that takes one caller, and refuses all after that one.

    :param address: path of a unix socket, whose file only our user may use; or host and port
    :raises OSError: it cannot be bound, or somebody listens there already
    """

    def __init__(self, address: SocketAddrT) -> None:
        super().__init__(_place(address), None)
        with _as_oserror():
            drive(self._listen())

    def accept(self, timeout: float | None) -> Wire:
        """Wait for a caller, and close.

        :param timeout: seconds; None waits for ever
        :raises TimeoutError: nobody called in time
        """
        return drive(_take(self, timeout))

    def close(self) -> None:
        """Take no caller any more."""
        self._close()


class AsyncListener(AsyncWaits, SocketListener):
    """The same on the running event loop."""

    @classmethod
    async def open(cls, address: SocketAddrT, ssl: SSLContext | None = None) -> Self:
        """Bind and listen.

        :raises OSError: it cannot be bound, or somebody listens there already
        :raises QMPError: TLS was asked for, which there is not
        """
        if ssl is not None:
            raise QMPError("TLS is not supported when listening")
        listener = cls(_place(address), None)
        with _as_oserror():
            await listener._listen()
        return listener

    async def take(self) -> Wire:
        """Wait for a caller, and close."""
        return await _take(self, None)

    def close(self) -> None:
        """Take no caller any more."""
        self._close()


async def _take(listener: SocketListener, timeout: float | None) -> Wire:
    assert listener._socket is not None, "a listener is closed by its owner alone"
    try:
        return Wire(await listener._dialled(listener._socket, listener._deadline(timeout), timeout))
    except errors.ConnectTimeout as error:
        raise TimeoutError(errno.ETIMEDOUT, error.reason) from None
    finally:
        listener._close()


def _place(address: SocketAddrT) -> Address:
    if isinstance(address, str):  # here, text is never anything but a path
        return AbstractAddress(address[1:]) if address.startswith("\0") else Path(address)
    return address


@contextmanager
def _as_oserror() -> Iterator[None]:
    """What keeps us from an address is told as the system told it."""
    try:
        yield
    except errors.ConnectError as error:
        raise error.__cause__ or error from None
    except errors.ArgumentError as error:
        raise OSError(errno.EADDRNOTAVAIL, str(error)) from error
