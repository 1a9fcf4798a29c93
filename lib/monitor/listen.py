"""A listening socket that takes one caller at a time, whoever that is.

Nobody is refused by a thread that waits for him: while a caller is connected, the kernel
refuses the others, for the socket does not listen then; its name or port stays ours. Who
waits for the next one listens again.

The file of a unix socket is ours alone (mode 0600) from its first moment. One that is in
the way is replaced only if nobody can be behind it, and only the file that was looked at:
it is renamed away first, and put back if it turns out to be another one.
"""

import errno
import logging
import os
import secrets
import select
import socket
import stat
from collections.abc import Callable
from typing import Final

from ..errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout
from .address import Address, Endpoint, TcpAddress, endpoint_of
from .life import Waits
from .socket import Candidate, resolve

log = logging.getLogger("drover.monitor")

Left = Callable[[], float | None]

# The one that we want, and one that came by mistake.
BACKLOG: Final = 2
_INET: Final = (socket.AF_INET, socket.AF_INET6)
_UNIX_TABLE: Final = "/proc/net/unix"
_UNCONNECTED: Final = b"01"  # its column "St": bound, and perhaps listened on


class SocketListener(Waits):
    """A listening socket, before it is said how to wait and what is spoken with a caller.

    :param address: see :mod:`drover.monitor.address`; of a host with several addresses, the first that can be
        listened on; port 0 lets the system choose one, which :attr:`address` tells from then on
    :param timeout: seconds for finding out a host's addresses
    :ivar address: where it can be dialled; its ``str()`` is what to write behind ``unix:`` or ``tcp:``
    :raises ArgumentError: it is no address to listen on
    """

    def __init__(self, address: Address, timeout: float | None) -> None:
        place = endpoint_of(address)
        if isinstance(place, int | socket.socket):
            raise ArgumentError("address", address, "a listener makes its socket itself")
        self.address: Endpoint = place
        self.timeout = timeout
        self._candidate: Candidate | None = None
        self._socket: socket.socket | None = None
        self._file: tuple[str, tuple[int, int]] | None = None  # the socket's, and which it is
        self._listening = False  # False also while a caller is connected
        self._accepting = False
        self._closing = False

    # -- listening -------------------------------------------------------

    async def _listen(self) -> None:
        if self._socket is not None:
            self._check_free()
            try:
                self._listen_again(self._socket)
            except OSError as error:
                raise self._cannot_listen(error) from error
            return
        left = self._deadline(self.timeout)
        candidates = await resolve(self.address, left, self.ready, self.timeout, passive=True)
        failure: OSError | None = None
        for candidate in candidates:
            try:
                self._open(candidate)
            except OSError as error:
                failure = failure or error
                continue
            return
        failure = failure or OSError("this name has no address")
        raise self._cannot_listen(failure) from failure

    def _cannot_listen(self, error: OSError) -> ConnectError:
        return ConnectError(str(self.address), f"we cannot listen there: {error.strerror or error}")

    def _open(self, candidate: Candidate) -> None:
        family, address = candidate
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if isinstance(address, str):
                os.fchmod(sock.fileno(), 0o600)  # bind gives the file the socket's own mode
                _bind_file(sock, address)
                self._file = (address, _identity(os.lstat(address)))
            else:
                if family in _INET:  # a port that had a client is else kept back for a minute
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                if family in _INET:
                    sock = _rebound(sock)
            sock.listen(BACKLOG)
        except BaseException:
            self._unlink()
            sock.close()
            raise
        if isinstance(self.address, TcpAddress):
            address = sock.getsockname()
            self.address = TcpAddress(self.address.host, address[1])
        self._candidate, self._socket, self._listening = (family, address), sock, True

    def _stop_listening(self, sock: socket.socket) -> None:
        """Refuse whoever comes, and has come, and keep the name or port."""
        self._listening = False
        try:
            sock.shutdown(socket.SHUT_RD)
            while True:
                late, _ = sock.accept()
                late.close()
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # vsock cannot do this
                sock.close()

    def _listen_again(self, sock: socket.socket) -> socket.socket:
        if self._listening or self._candidate is None:
            return sock
        if sock.family in _INET:
            sock.listen(BACKLOG)
            self._listening = True
            return sock
        self._unlink()
        sock.close()
        self._open(self._candidate)
        assert self._socket is not None
        return self._socket

    def _unlink(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            _remove(*file)

    def _check_free(self) -> None:
        """Whether a caller may be waited for now.

        :raises ConnectError: one is connected, or waited for
        """
        if self._accepting or self._is_taken():
            raise ConnectError(str(self.address), "a client is connected or waited for: there is one at a time")

    def _is_taken(self) -> bool:
        """Whether a caller is connected."""
        return False

    # -- accepting -------------------------------------------------------

    def _is_closing(self) -> bool:
        # asked by a call, since it can change at each await
        return self._closing

    async def _dialled(
        self, sock: socket.socket, left: Left, timeout: float | None, wrong: Exception | None = None
    ) -> socket.socket:
        """The next caller's socket; `wrong` is what was the matter with the one before."""
        while True:
            try:
                client = sock.accept()[0]
                if not self._closing:
                    return client
                client.close()
                raise ConnectionClosed(f"the listener on {self.address} was closed")
            except (BlockingIOError, ConnectionAbortedError):
                pass
            except OSError as error:
                if self._closing:
                    raise ConnectionClosed(f"the listener on {self.address} was closed") from error
                raise
            if not await self.ready(sock.fileno(), select.POLLIN, left()):
                reason = f"nobody dialled within {timeout or 0:g} s"
                raise ConnectTimeout(
                    str(self.address), reason + (f" but: {wrong}" if wrong else ""), timeout
                ) from wrong

    def _close(self) -> None:
        sock = self._socket
        if sock is None:
            return
        self._closing = True
        if self._accepting:  # whoever waits is woken by this, and closes it
            _wake(sock)
            self._unlink()
            return
        self._unlink()
        sock.close()
        self._socket, self._listening, self._closing = None, False, False

    def _deadline(self, timeout: float | None) -> Left:
        deadline = None if timeout is None else self.now() + timeout
        return lambda: None if deadline is None else max(0.0, deadline - self.now())


def _wake(sock: socket.socket) -> None:
    """Wake whoever waits for a client on `sock`: a unix socket that is shut down does not, but one that is dialled."""
    try:
        with socket.socket(sock.family, socket.SOCK_STREAM) as nobody:
            nobody.setblocking(False)
            if sock.family == socket.AF_UNIX:
                nobody.connect_ex(sock.getsockname())
        sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # who waited was faster, and has closed it


def _rebound(sock: socket.socket) -> socket.socket:
    """A socket that was bound to the same port by its number: only such a one keeps it when it stops to listen."""
    second = socket.socket(sock.family, socket.SOCK_STREAM)
    try:
        second.setblocking(False)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.bind(sock.getsockname())
    except BaseException:
        second.close()
        raise
    sock.close()
    return second


# -- the file of a unix socket -----------------------------------------------


def _bind_file(sock: socket.socket, path: str) -> None:
    """Bind, in the place of a dead socket's file if there is one.

    :raises OSError: something else is there, or somebody is behind it
    """
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _clear(path)
        sock.bind(path)


def _clear(path: str) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # while we hold it, no other file can get its number
    except FileNotFoundError:
        return
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
        if _is_live(path, fd):
            raise OSError(errno.EADDRINUSE, "another process has that socket")
        _remove(path, _identity(found))
    finally:
        os.close(fd)


def _is_live(path: str, fd: int) -> bool:
    """Whether anybody may be behind a socket's file; what cannot be told counts as yes."""
    # The table first: who listens there would take a try to connect for the caller that he waits for.
    if _is_in_table(path):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(f"/proc/self/fd/{fd}") != errno.ECONNREFUSED  # else it was moved here, and is alive


def _is_in_table(path: str) -> bool:
    """Whether the kernel knows a socket of this name: listened on, or not yet, or not while it has a caller."""
    name, folder = os.path.basename(path), os.path.realpath(os.path.dirname(path) or ".")
    with open(_UNIX_TABLE, "rb") as table:
        for line in table:
            columns = line.rstrip(b"\n").split(maxsplit=7)
            if len(columns) == 8 and columns[5] == _UNCONNECTED:
                head, tail = os.path.split(os.fsdecode(columns[7]))
                # a relative path is one in the working directory of we do not know whom
                if tail == name and (not os.path.isabs(head) or os.path.realpath(head) == folder):
                    return True
    return False


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _remove(path: str, ours: tuple[int, int]) -> None:
    """Remove the file at `path` if it is that one."""
    aside = f"{path}.{secrets.token_hex(4)}"
    try:
        if _identity(os.lstat(path)) != ours:
            return
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _identity(os.lstat(aside)) != ours:  # somebody came in between: put his back
        try:
            os.link(aside, path, follow_symlinks=False)
        except OSError as error:
            log.warning("%s was moved to %s, and cannot go back: %s", path, aside, error)
            return
    os.unlink(aside)
