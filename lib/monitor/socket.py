"""A monitor socket's life: dialled with a deadline, non-blocking underneath, descriptors along with bytes."""

import array
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final, Self

from ..errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from ..qmp.timeouts import DEFAULT_TIMEOUT
from .drive import drive

Address = str | os.PathLike[str] | int | socket.socket

# One read takes a big reply in a few pieces, and stays below the size from which malloc maps memory anew.
READ_SIZE: Final = 64 * 1024
# A QEMU that is about to listen does so within milliseconds; one that is being started may need longer.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.1


_NOW: Final = socket.MSG_DONTWAIT
# A read that blocks is one system call where poll and read are two. The kernel bounds it to this
# (seconds; two ticks of a slow one), for nearly all answers come sooner; what takes longer is polled for.
# It must be short: Python begins a read anew after each signal, and so its bound.
_QUICK: Final = 0.005
_QUICK_TIMEVAL: Final = struct.pack("@ll", 0, int(_QUICK * 1e6))


class Wire:
    """A connected stream socket that passes descriptors; only :meth:`read` and :meth:`wait_writable` block."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _QUICK_TIMEVAL)
        self._socket = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket's descriptor; -1 when closed."""
        return self._socket.fileno()

    def send(self, data: bytes, fd: int | None = None) -> int:
        """Send what the socket takes now, and `fd` with its first byte; return how many bytes that were.

        A peer that has gone takes everything: what it said before it went can still be read.
        """
        try:
            if fd is None:
                return self._socket.send(data, _NOW)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            return self._socket.sendmsg([data], rights, _NOW)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            return len(data)

    def receive(self) -> bytes | None:
        """Read what is there: None if nothing is, ``b""`` at the end of the stream."""
        try:
            return self._socket.recv(READ_SIZE, _NOW)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def read(self, timeout: float | None) -> bytes | None:
        """Block until something is there, and read it: None after `timeout` seconds. For one thread at a time."""
        if timeout is None or timeout > _QUICK:
            started = time.monotonic()
            try:
                return self._socket.recv(READ_SIZE)
            except BlockingIOError:
                pass
            except ConnectionResetError:
                return b""
            if timeout is not None:
                timeout -= time.monotonic() - started
        return self.receive() if self._readable.poll(_milliseconds(timeout)) else None

    def wait_writable(self, timeout: float | None, or_readable: bool = False) -> bool:
        """Block until the socket takes more; False after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT | (select.POLLIN if or_readable else 0))
        return bool(poll.poll(_milliseconds(timeout)))

    def peer_pid(self) -> int | None:
        """The process that listens at the other end, where that is a process of this host."""
        if self._socket.family != socket.AF_UNIX:
            return None
        size = struct.calcsize("3i")
        pid: int = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        return pid or None

    def hang_up(self) -> None:
        """End the stream both ways, which wakes whoever waits on it. Close it afterwards."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _milliseconds(timeout: float | None) -> int | None:
    # rounded up: to wake before the deadline would only mean to sleep again
    return None if timeout is None else max(0, -int(-timeout * 1000 // 1))


def describe(address: Address) -> str:
    """`address` as text, for messages."""
    if isinstance(address, int):
        return f"descriptor {address}"
    if isinstance(address, socket.socket):
        return f"socket {address.fileno()}"
    return os.fspath(address)


async def open_wire(
    address: Address, timeout: float | None, pause: Callable[[float], Awaitable[None]], now: Callable[[], float]
) -> Wire:
    """Connect to `address`; retry while a starting QEMU has not bound, or does not listen yet.

    :param address: path of a unix socket, or a connected socket or descriptor, which is taken over
    :param timeout: seconds; None retries for ever
    :param pause: how to let time pass; `now`, the clock it runs on
    :raises ConnectError: it can never work
    :raises ConnectTimeout: nobody listened in time
    """
    if isinstance(address, int):
        return Wire(_adopt(address))
    if isinstance(address, socket.socket):
        return Wire(address)
    deadline = None if timeout is None else now() + timeout
    delay = _FIRST_PAUSE
    while True:
        try:
            return Wire(_dial(os.fspath(address)))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
            if deadline is not None and now() + delay > deadline:
                reason = f"{error.strerror}, for {timeout:g} s"
                raise ConnectTimeout(describe(address), reason, timeout) from error
        except OSError as error:
            raise ConnectError(describe(address), error.strerror or str(error)) from error
        await pause(delay)
        delay = min(delay * 2, _LONGEST_PAUSE)


def _adopt(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        raise ArgumentError("address", fd, f"a connected socket's descriptor ({error.strerror})") from error


def _dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


class MonitorSocket:
    """A monitor's socket: connect, send, receive, close, each with a deadline.

    It knows no protocol; :class:`drover.QmpConnection` adds that. Use it as a context
    manager, or call :meth:`connect` and :meth:`close`.

    :param address: path of a unix socket; or a connected socket or its descriptor, which is
        taken over and closed with this object
    :param timeout: seconds for each call that names none; None waits for ever
    """

    def __init__(self, address: Address, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._wire: Wire | None = None

    def connect(self, timeout: float | None = None) -> None:
        """Connect; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there
        """
        if self._wire is None:
            limit = self.timeout if timeout is None else timeout
            self._wire = drive(open_wire(self.address, limit, sleep, time.monotonic))

    def is_connected(self) -> bool:
        """Whether there is a connection that nobody has ended, as far as is known."""
        return self._wire is not None

    def close(self) -> None:
        """Close the connection; nothing happens when there is none."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.hang_up()
            wire.close()

    def fileno(self) -> int:
        """The socket's descriptor.

        :raises ConnectionClosed: there is no connection
        """
        return self._connected().fileno()

    def send(self, data: bytes, fd: int | None = None, timeout: float | None = None) -> None:
        """Send all of `data`, and a descriptor with its first byte.

        :param fd: one descriptor: QEMU keeps only the first of a message; it stays yours to close
        :param timeout: seconds; None takes the object's
        :raises MonitorTimeout: only a part was taken in time
        """
        wire, deadline = self._connected(), self._deadline(timeout)
        while True:
            count = wire.send(data, fd)
            if count:
                data, fd = data[count:], None
            if not data:
                return
            if not wire.wait_writable(left(deadline)):
                raise MonitorTimeout(f"send to {describe(self.address)}", timeout or self.timeout)

    def recv(self, timeout: float | None = None) -> bytes:
        """Receive what comes next.

        :param timeout: seconds; None takes the object's
        :returns: at least one byte; ``b""`` only when the peer has closed
        :raises MonitorTimeout: nothing came in time
        """
        wire, deadline = self._connected(), self._deadline(timeout)
        while (data := wire.read(left(deadline))) is None:
            raise MonitorTimeout(f"read from {describe(self.address)}", timeout or self.timeout)
        return data

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Wire:
        if self._wire is None:
            raise ConnectionClosed(f"not connected to {describe(self.address)}")
        return self._wire

    def _deadline(self, timeout: float | None) -> float | None:
        limit = self.timeout if timeout is None else timeout
        return None if limit is None else time.monotonic() + limit


def left(deadline: float | None) -> float | None:
    """Seconds until `deadline`, on the monotonic clock; 0 when it has passed, None when there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def sleep(seconds: float) -> None:
    """Block the thread, in the shape in which flows wait."""
    time.sleep(seconds)
