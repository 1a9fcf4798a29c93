"""TLS on a socket that is ours: with no transport around it, so that both faces wait on it as on any other.

The rules that keep either face from hanging:

- All that a read of the socket can be decrypted to is handed out at once. So nothing lies inside while
  the socket is silent, but for what came with the handshake's last bytes: `pending` says so.
- All that was encrypted leaves before more is. While some of it is still inside, the last byte of what it
  was made of is not yet called sent, so whoever sends comes back for that.
- A read may have something to answer (a new key, an alert); it goes with it, or else with the next send.
"""

import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import ArgumentError, ConnectError, ConnectTimeout
from .address import TcpAddress
from .wire import NOW, READ_SIZE, Ready, Wire, milliseconds

log = logging.getLogger("drover.monitor")

# Encrypted at once, so that a big command is not cut off its front thousands of times; it also bounds
# what lies inside while the peer does not read.
CHUNK: Final = 256 * 1024
# Seconds, where a send waits for the peer's part of a new handshake while another thread reads it:
# the sender is not told, and looks again.
_LOOK_AGAIN: Final = 0.05


class Tls(NamedTuple):
    """How a connection is to be secured.

    :ivar server_hostname: whose certificate the peer must show; None where the context does not check it
    :ivar server_side: we are the one that is dialled
    """

    context: ssl.SSLContext
    server_hostname: str | None = None
    server_side: bool = False


def tls_options(context: ssl.SSLContext | None, server_hostname: str | None, place: object) -> Tls | None:
    """Put together what a connection's caller said, with the host that it dials for its default.

    :raises ArgumentError: there is a name and no context, or a context that checks a name and none to check
    """
    if context is None:
        if server_hostname is not None:
            raise ArgumentError("server_hostname", server_hostname, "it goes with `tls`, an ssl.SSLContext")
        return None
    if server_hostname is None and isinstance(place, TcpAddress):
        server_hostname = place.host.partition("%")[0]
    if server_hostname is None and context.check_hostname:
        raise ArgumentError("server_hostname", None, "this address has no host name, and the context checks one")
    return Tls(context, server_hostname)


class TlsWire(Wire):
    """A wire with TLS on it. It passes no descriptors.

    :param sock: connected; :meth:`shake` until it is done comes before all else
    :raises ArgumentError: the context is not for this side, or cannot check such a name
    """

    def __init__(self, sock: socket.socket, tls: Tls) -> None:
        super().__init__(sock)
        self.pending = True  # what came with the end of the handshake may be a greeting
        self._lock = threading.Lock()  # of all below: one thread may read while another one sends
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._cipher = b""  # taken out of `_outgoing`, and not by the socket
        self._owed = False  # the last byte of what was offered is in there
        self._wants_read = False
        self._ended = False
        try:
            self._tls = tls.context.wrap_bio(self._incoming, self._outgoing, tls.server_side, tls.server_hostname)
        except (ssl.SSLError, ValueError) as error:
            raise ArgumentError("tls", tls, str(error)) from error

    def shake(self) -> int:
        """Go on with the handshake; return what to wait for before the next turn, 0 when it is done.

        :raises OSError: there can be no connection, by either side's judgement (`ssl.SSLError`), or it broke
        """
        while True:
            done = False
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._flush()  # the alert tells the peer why
                raise
            if not self._flush():
                return select.POLLOUT
            if done:
                return 0
            try:
                self._feed(self._socket.recv(READ_SIZE, NOW))
            except BlockingIOError:
                return select.POLLIN

    def check_descriptors(self) -> None:
        raise ArgumentError("fd", "TLS", "descriptors go only over a unix socket without TLS")

    def send(self, data: bytes, fd: int | None = None) -> int:
        """Encrypt and send; how many bytes were taken, 0 when the socket takes none now."""
        if fd is not None:
            self.check_descriptors()
        with self._lock:
            if not self._flush():
                return 0
            if self._owed:
                self._owed = False
                return 1
            count = self._encrypt(memoryview(data)[:CHUNK])
            if self._flush() or count < len(data) or not count:
                return count
            self._owed = True
            return count - 1

    def receive(self) -> bytes | None:
        """Read what is there, decrypted: None if nothing is, ``b""`` at the end of the stream."""
        with self._lock:
            if self._ended:
                return b""
            try:
                self._feed(self._socket.recv(READ_SIZE, NOW))
            except BlockingIOError:
                if not self.pending:
                    return None
            except OSError as error:
                self._feed(self._broken(error))
            self.pending = self._wants_read = False
            data = self._decrypt()
            self._flush()
            return data

    def read(self, timeout: float | None) -> bytes | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            ready = self.pending or self._readable.poll(milliseconds(timeout))
            if not ready:
                return None
            if (data := self.receive()) is not None:
                return data
            if deadline is not None:
                timeout = max(0.0, deadline - time.monotonic())

    def wait_writable(self, timeout: float | None, or_readable: bool = False) -> bool:
        if self.pending and or_readable:
            return True
        if self._wants_read:
            brief = timeout is None or timeout > _LOOK_AGAIN
            return bool(self._readable.poll(milliseconds(_LOOK_AGAIN if brief else timeout))) or brief
        return super().wait_writable(timeout, or_readable)

    def hang_up(self) -> None:
        with self._lock:
            try:
                if not self._owed:  # else the peer could take half a message for a whole one
                    self._tls.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # it waits for the peer's goodbye, and we do not
            self._flush()
        super().hang_up()

    # -- with the lock held ----------------------------------------------

    def _encrypt(self, data: memoryview) -> int:
        count = 0
        try:
            while count < (size := len(data)):
                # The last byte goes as a record of its own: QEMU (7.2 does, 10.0 does not) reads a monitor byte by
                # byte whenever its *socket* is readable, and so forgets what it has decrypted and not read. While
                # this record waits in the socket, it reads on, and the last thing it finds is not kept inside.
                count += self._tls.write(data[count : max(size - 1, count + 1)])
        except ssl.SSLWantReadError:
            self._wants_read = True
        except ssl.SSLError as error:
            self._fail(error)
            return len(data)
        return count

    def _decrypt(self) -> bytes | None:
        pieces = []
        try:
            while piece := self._tls.read(READ_SIZE):
                pieces.append(piece)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        except ssl.SSLError as error:
            self._fail(error)
        data = b"".join(pieces)
        if self._ended and data:
            try:
                self._socket.shutdown(socket.SHUT_RD)  # makes it readable, so that the end is asked for
            except OSError:
                pass  # it has ended, which is as good
        return data if data or self._ended else None

    def _fail(self, error: ssl.SSLError) -> None:
        self.fault, self._ended = problem(error), True
        log.warning("%s; the connection is given up", self.fault)

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> bool:
        """Let the socket take what was encrypted; whether that is all. A peer that has gone takes everything."""
        while self._cipher or self._outgoing.pending:
            if not self._cipher:
                self._cipher = self._outgoing.read()
            try:
                count = self._socket.send(self._cipher, NOW)
            except BlockingIOError:
                return False
            except OSError as error:
                self._broken(error)
                count = len(self._cipher)
            self._cipher = self._cipher[count:]
        return True


def problem(error: ssl.SSLError) -> str:
    """What went wrong, without the library's line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate was not accepted: {error.verify_message}"
    return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"


async def secure(
    sock: socket.socket, tls: Tls, where: str, left: Callable[[], float | None], ready: Ready, timeout: float | None
) -> TlsWire:
    """Do the handshake on a connected socket.

    :param left: seconds until the deadline
    :param timeout: seconds that there were, for messages
    :raises ConnectError: the sides do not agree, or one left
    :raises ConnectTimeout: it was not done in time
    """
    wire = TlsWire(sock, tls)
    try:
        while event := wire.shake():
            if not await ready(wire.fileno(), event, left()):
                reason = f"no TLS handshake within {timeout or 0:g} s: another client may hold this monitor"
                raise ConnectTimeout(where, reason, timeout)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError) as error:
        raise ConnectError(where, "the peer left during the TLS handshake") from error
    except ssl.SSLError as error:
        raise ConnectError(where, problem(error)) from error
    except ConnectError:  # a ConnectTimeout is an OSError, too
        raise
    except OSError as error:
        raise ConnectError(where, error.strerror or str(error)) from error
    return wire
