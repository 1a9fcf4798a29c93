"""A monitor socket's life: dialled with a deadline, whatever the address, and secured where that is asked for."""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Self

from ..errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from ..qmp.timeouts import DEFAULT_TIMEOUT
from .address import (
    AbstractAddress,
    Address,
    Endpoint,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    describe,
    endpoint_of,
)
from .drive import drive
from .wire import Ready, Wire, block_until_ready

if TYPE_CHECKING:
    import ssl

    from .tls import Tls

__all__ = [
    "MonitorSocket",
    "Wire",
    "Address",
    "describe",
    "open_wire",
    "dial_any",
    "resolve",
    "tls_of",
    "left",
    "sleep",
]

# A family, and an address as the socket module has it in that family.
Candidate = tuple[int, str | bytes | tuple[object, ...]]
Clock = Callable[[], float]

# A QEMU that is about to listen does so within milliseconds; one that is being started may need longer.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.1
# Nobody listens there, yet; ECONNRESET is how vsock says so, ETIMEDOUT how we do when an address had its share of time.
_NOT_YET: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ECONNRESET, errno.ETIMEDOUT})
_NO_VSOCK: Final = frozenset({errno.ENODEV, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


async def open_wire(
    address: Address,
    timeout: float | None,
    pause: Callable[[float], Awaitable[None]],
    now: Clock,
    ready: Ready = block_until_ready,
    tls: "Tls | None" = None,
    *,
    longest: float | None = None,
) -> Wire:
    """Connect to `address`; retry while a starting QEMU has not bound, or does not listen yet.

    :param address: see :mod:`drover.monitor.address`; a socket or descriptor is taken over
    :param timeout: seconds for all of it, TLS's handshake included; None retries for ever
    :param pause: how to let time pass; `now`, the clock it runs on; `ready`, how to wait for a descriptor
    :param longest: seconds between two tries at most; None for one that is just being started
    :raises ArgumentError: it is no address
    :raises ConnectError: it can never work
    :raises ConnectTimeout: nobody listened in time
    """
    place = endpoint_of(address)
    if tls is None and isinstance(place, UnixAddress) and (found := _knock(place.path)) is not None:
        return Wire(found)
    deadline = None if timeout is None else now() + timeout

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - now())

    sock = await _connected(address, timeout, left, pause, ready, longest or _LONGEST_PAUSE)
    try:
        sock.setblocking(False)  # which tells, too, where somebody has closed it
        if tls is None:
            return Wire(sock)
        from .tls import secure  # the rest of us does without OpenSSL

        return await secure(sock, tls, describe(address), left, ready, timeout)
    except BaseException as error:
        where = describe(address)
        sock.close()
        if isinstance(error, OSError) and not isinstance(error, MonitorTimeout):
            raise ConnectError(where, error.strerror or str(error)) from error  # such as a socket that is closed
        raise


def _knock(path: str) -> socket.socket | None:
    """Connect to a unix socket, if that is done at once, as it nearly always is: the long way has its price."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if not sock.connect_ex(path):
            return sock
    except OSError:
        pass  # such as for a path that is too long: the long way says so
    except BaseException:
        sock.close()
        raise
    sock.close()
    return None


async def _connected(
    address: Address,
    timeout: float | None,
    left: Callable[[], float | None],
    pause: Callable[[float], Awaitable[None]],
    ready: Ready,
    longest: float,
) -> socket.socket:
    place = endpoint_of(address)
    if isinstance(place, int):
        return _adopt(place)
    if isinstance(place, socket.socket):
        return place
    delay = _FIRST_PAUSE
    candidates = await resolve(place, left, ready, timeout)
    while True:
        try:
            return await dial_any(candidates, left, ready)
        except OSError as error:
            if error.errno not in _NOT_YET:
                raise ConnectError(str(place), _reason(place, error)) from error
            remaining = left()
            if remaining is not None and delay > remaining:
                reason = f"{error.strerror}, for {timeout:g} s"
                raise ConnectTimeout(str(place), reason, timeout) from error
        await pause(delay)
        delay = min(delay * 2, longest)


def _adopt(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ArgumentError("address", fd, f"a connected socket's descriptor ({why})") from error


def _reason(place: Endpoint, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(place, VsockAddress) and error.errno in _NO_VSOCK:
        return f"{reason}: this host has no vsock that leads there"
    return reason


async def dial_any(candidates: list[Candidate], left: Callable[[], float | None], ready: Ready) -> socket.socket:
    """Try one address after another, each with its share of the time: a silent one must not take it all.

    :raises OSError: none worked; one that may work later, if there is one
    """
    failure: OSError | None = None
    for number, candidate in enumerate(candidates):
        remaining = left()
        share = None if remaining is None else remaining / (len(candidates) - number)
        try:
            return await _dial(candidate, share, ready)
        except OSError as error:
            if failure is None or (error.errno in _NOT_YET and failure.errno not in _NOT_YET):
                failure = error
    raise failure or OSError(errno.ENOENT, "this name has no address")


async def _dial(candidate: Candidate, timeout: float | None, ready: Ready) -> socket.socket:
    family, address = candidate
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        failure = sock.connect_ex(address)
        if failure == errno.EINPROGRESS:
            done = await ready(sock.fileno(), select.POLLOUT, timeout)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if done else errno.ETIMEDOUT
        if not failure and family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
            failure = errno.ECONNREFUSED  # TCP met itself: this port was free, and chosen for our own end
        if failure:
            raise OSError(failure, os.strerror(failure))
    except BaseException:
        sock.close()
        raise
    return sock


async def resolve(
    place: Endpoint, left: Callable[[], float | None], ready: Ready, timeout: float | None, *, passive: bool = False
) -> list[Candidate]:
    """Find what the socket module calls `place`: one address, or for a host's name all that it has.

    :param left: seconds until the deadline
    :param timeout: seconds that there were, for messages
    :param passive: it is to listen on
    :raises ConnectError: nobody knows the host
    :raises ConnectTimeout: nobody could say in time
    """
    if isinstance(place, UnixAddress):
        return [(socket.AF_UNIX, place.path)]
    if isinstance(place, AbstractAddress):
        return [(socket.AF_UNIX, b"\0" + os.fsencode(place.name))]
    if isinstance(place, VsockAddress):
        return [(socket.AF_VSOCK, (place.cid, place.port))]
    if not (place.port or passive):
        raise ArgumentError("address", str(place), "port 0 is only to listen on")
    try:
        return _look_up(place, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass  # a name, then
    found = await _ask_resolver(place, left(), ready)
    if found is None:
        raise ConnectTimeout(str(place), f"the name was not resolved within {timeout or 0:g} s", timeout)
    if isinstance(found, Exception) and place.host == "localhost":
        # which means this host also where no resolver was told so (RFC 6761, 6.3)
        return [(socket.AF_INET, ("127.0.0.1", place.port)), (socket.AF_INET6, ("::1", place.port, 0, 0))]
    if isinstance(found, Exception):
        raise ConnectError(str(place), f"{getattr(found, 'strerror', None) or found}") from found
    return found


def _look_up(place: TcpAddress, flags: int = 0) -> list[Candidate]:
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


async def _ask_resolver(
    place: TcpAddress, timeout: float | None, ready: Ready
) -> list[Candidate] | OSError | UnicodeError | None:
    """Resolve a name; None if that takes longer than `timeout` seconds.

    libc can only block, for as long as its own settings say. So a thread asks, which outlives the
    deadline where it must; each side has its own end of a pair of sockets, and closing one tells the other.
    """
    answers: list[list[Candidate] | OSError | UnicodeError] = []
    ours, theirs = socket.socketpair()

    def ask() -> None:
        with theirs:
            try:
                answers.append(_look_up(place))
            except (OSError, UnicodeError) as error:
                answers.append(error)

    with ours:
        threading.Thread(target=ask, name="drover-resolve", daemon=True).start()
        await ready(ours.fileno(), select.POLLIN, timeout)
    return answers[0] if answers else None


class MonitorSocket:
    """A monitor's socket: connect, send, receive, close, each with a deadline.

    It knows no protocol; :class:`drover.QmpConnection` adds that. Use it as a context
    manager, or call :meth:`connect` and :meth:`close`.

    :param address: see :mod:`drover.monitor.address`; a connected socket or its descriptor is
        taken over and closed with this object
    :param timeout: seconds for each call that names none; None waits for ever
    :param tls: secures the connection; its protocol is that of a client
    :param server_hostname: whose certificate the peer must show; None takes the address's host
    :raises ArgumentError: it is no address, or no way to secure it
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        tls: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._tls = tls_of(address, tls, server_hostname)
        self._wire: Wire | None = None

    def connect(self, timeout: float | None = None) -> None:
        """Connect; retries while a starting QEMU does not listen yet.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: nobody answers there
        """
        if self._wire is None:
            limit = self.timeout if timeout is None else timeout
            self._wire = drive(open_wire(self.address, limit, sleep, time.monotonic, block_until_ready, self._tls))

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
        :raises ArgumentError: this connection passes no descriptors
        :raises MonitorTimeout: only a part was taken in time, and nothing else can be sent before the rest
        """
        wire, deadline = self._connected(), self._deadline(timeout)
        if fd is not None:
            wire.check_descriptors()
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


def tls_of(address: Address, context: "ssl.SSLContext | None", server_hostname: str | None) -> "Tls | None":
    """Check a connection's address and how it is to be secured, before anything is touched.

    :raises ArgumentError: it is no address, or they do not go together
    """
    place = endpoint_of(address)
    if context is None and server_hostname is None:
        return None
    from .tls import tls_options

    return tls_options(context, server_hostname, place)


def left(deadline: float | None) -> float | None:
    """Seconds until `deadline`, on the monotonic clock; 0 when it has passed, None when there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def sleep(seconds: float) -> None:
    """Block the thread, in the shape in which flows wait."""
    time.sleep(seconds)
