"""Connecting and listening at the addresses that these faces take: one try, no second one behind the caller's back."""

import asyncio
import errno
import os
import socket
import stat
import time
from pathlib import Path
from ssl import SSLContext
from typing import Final, Self

from ... import errors
from ...monitor.address import AbstractAddress, Address
from ...monitor.aio import suspend_until_ready
from ...monitor.drive import drive
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
    place: Address = address
    if isinstance(address, str):  # here, text is never anything but a path
        place = AbstractAddress(address[1:]) if address.startswith("\0") else Path(address)
    try:
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


def _no_tls(ssl: SSLContext | None) -> None:
    if ssl is not None:
        raise QMPError("TLS is not supported when listening")


def carries_descriptors(wire: Wire) -> bool:
    """Whether descriptors can be sent on `wire`."""
    try:
        wire.check_descriptors()
    except errors.ArgumentError:
        return False
    return True


class Listener:
    """A bound socket that takes one caller, and refuses all after that one.

    :param address: path of a unix socket, whose file only our user may use; or host and port
    :raises OSError: it cannot be bound, or somebody listens there already
    """

    def __init__(self, address: SocketAddrT) -> None:
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._socket = socket.create_server(address, family=family, backlog=1)
        else:
            self._socket = _bind(address)

    def accept(self, timeout: float | None) -> Wire:
        """Wait for a caller on the caller's thread, and close.

        :param timeout: seconds; None waits for ever
        :raises TimeoutError: nobody called in time
        """
        with self._socket:
            self._socket.settimeout(timeout)
            return Wire(self._socket.accept()[0])

    def close(self) -> None:
        """Take no caller any more."""
        self._socket.close()


class AsyncListener(Listener):
    """The same on the running event loop."""

    @classmethod
    async def open(cls, address: SocketAddrT, ssl: SSLContext | None = None) -> Self:
        """Bind and listen.

        :raises OSError: it cannot be bound, or somebody listens there already
        :raises QMPError: TLS was asked for, which there is not
        """
        _no_tls(ssl)
        if isinstance(address, tuple):
            await asyncio.get_running_loop().getaddrinfo(*address)  # what asks the network must not block the loop
        return cls(address)

    async def take(self) -> Wire:
        """Wait for a caller, and close."""
        with self._socket:
            self._socket.setblocking(False)
            sock, _ = await asyncio.get_running_loop().sock_accept(self._socket)
            return Wire(sock)


def _bind(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)  # the file gets this mode when it is made, not later
        sock.bind(path)
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    """Remove the socket's file if nobody listens there any more."""
    if path.startswith("\0") or not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    if _is_bound(path):  # asked first: to who listens there, a try to connect would be its one caller
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass  # somebody does, with a full queue: bind() will say that the address is in use


def _is_bound(path: str) -> bool:
    """Whether the kernel knows a socket by this very name; by another name of the same file it would not."""
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
            return any(line.rstrip("\n").endswith(f" {path}") for line in table)
    except OSError:
        return False
