"""A connected stream socket, and how a flow waits for one without knowing whether it may block."""

import array
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ..errors import ArgumentError

# Waits until a descriptor is ready for an event (``select.POLLIN`` or ``select.POLLOUT``); False
# after so many seconds. What a flow is given for it blocks the thread, or suspends the coroutine.
Ready = Callable[[int, int, float | None], Awaitable[bool]]

# One read takes a big reply in a few pieces, and stays below the size from which malloc maps memory anew.
READ_SIZE: Final = 64 * 1024

NOW: Final = socket.MSG_DONTWAIT
# A read that blocks is one system call where poll and read are two. The kernel bounds it to this
# (seconds; two ticks of a slow one), for nearly all answers come sooner; what takes longer is polled for.
# It must be short: Python begins a read anew after each signal, and so its bound.
_QUICK: Final = 0.005
# As a number: the property of that name makes an enumeration's member each time.
_family_of: Final[Callable[[socket.socket], int]] = socket.SocketType.family.__get__
_INTERNET: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_QUICK_TIMEVAL: Final = struct.pack("@ll", 0, int(_QUICK * 1e6))


class Wire:
    """A connected stream socket that passes descriptors; only :meth:`read` and :meth:`wait_writable` block.

    :ivar pending: something may have been read from the socket already, so that :meth:`receive` is worth a call
    :ivar fault: what broke the stream, where it was neither side's closing it
    """

    pending = False
    fault: str | None = None

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout():
            sock.setblocking(True)  # with a timeout, Python would wait before each call of the system
        self._family: int = _family_of(sock)
        if self._family in _INTERNET:
            # commands are small and each is waited for: Nagle's algorithm would only hold them back
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._may_block = False
        self._poll: select.poll | None = None

    @property
    def _readable(self) -> "select.poll":
        """What is polled for something to read; made when it is first needed, which it mostly is not."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return self._poll

    def fileno(self) -> int:
        """The socket's descriptor; -1 when closed."""
        return self._socket.fileno()

    def check_descriptors(self) -> None:
        """Whether descriptors can go along.

        :raises ArgumentError: this is no unix socket, or it is one with TLS on it
        """
        if self._family != socket.AF_UNIX:
            raise ArgumentError("fd", socket.AddressFamily(self._family).name, "descriptors go only over a unix socket")

    def send(self, data: bytes, fd: int | None = None) -> int:
        """Send what the socket takes now, and `fd` with its first byte; return how many bytes that were.

        What was not taken must be what is offered next. A peer that has gone takes everything:
        what it said before it went can still be read.
        """
        try:
            if fd is None:
                return self._socket.send(data, NOW)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            return self._socket.sendmsg([data], rights, NOW)
        except BlockingIOError:
            return 0
        except OSError as error:
            if fd is not None and not isinstance(error, (BrokenPipeError, ConnectionResetError)):
                raise  # it is the descriptor that is wrong
            self._broken(error)
            return len(data)

    def receive(self) -> bytes | None:
        """Read what is there: None if nothing is, ``b""`` at the end of the stream."""
        try:
            return self._socket.recv(READ_SIZE, NOW)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._broken(error)

    def read(self, timeout: float | None) -> bytes | None:
        """Block until something is there, and read it: None after `timeout` seconds. For one thread at a time."""
        if timeout is None or timeout > _QUICK:
            if not self._may_block:
                self._let_block()
            started = time.monotonic()
            try:
                return self._socket.recv(READ_SIZE)
            except BlockingIOError:
                pass
            except OSError as error:
                return self._broken(error)
            if timeout is not None:
                timeout -= time.monotonic() - started
        return self.receive() if self._readable.poll(milliseconds(timeout)) else None

    def _let_block(self) -> None:
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _QUICK_TIMEVAL)
        self._may_block = True

    def wait_writable(self, timeout: float | None, or_readable: bool = False) -> bool:
        """Block until the socket takes more; False after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT | (select.POLLIN if or_readable else 0))
        return bool(poll.poll(milliseconds(timeout)))

    def is_hung_up(self) -> bool:
        """Whether the peer has closed; what it said before may not have been read yet."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def peer_pid(self) -> int | None:
        """The process that listens at the other end, where that is a process of this host."""
        if self._family != socket.AF_UNIX:
            return None
        told = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(told)[0]
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

    def _broken(self, error: OSError) -> bytes:
        """The end of the stream, by an error; a reset is how some peers close, anything else is worth telling."""
        if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
            self.fault = error.strerror or str(error)
        return b""


def milliseconds(timeout: float | None) -> int | None:
    """Seconds, for `poll`."""
    # rounded up: to wake before the deadline would only mean to sleep again
    return None if timeout is None else max(0, -int(-timeout * 1000 // 1))


async def block_until_ready(fd: int, event: int, timeout: float | None) -> bool:
    """Block the thread until `fd` is ready for `event`: a :data:`Ready` for blocking faces."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(milliseconds(timeout)))
