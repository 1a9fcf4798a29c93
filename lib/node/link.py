"""A way to a daemon on the network: TLS 1.3, with the certificates of both sides."""

import http.client
import socket
import ssl
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import CallFailed, DroverError, NotJoined, Untrusted
from .client import Daemon
from .kept import Kept
from .pki.folder import Folder, split_address

# Seconds until the next address is tried.
_CONNECT: Final = 10.0


class TlsConnection(http.client.HTTPConnection):
    """HTTP over TLS, at the first address that answers.

    :param addresses: each a host and maybe a port
    :param context: whom to trust, and what to show them
    :param timeout: seconds for each wait
    """

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(*split_address(addresses[0]), timeout=timeout)
        self._addresses = addresses
        self._context = context
        self._timeout = timeout

    def connect(self) -> None:
        """Connect to it.

        :raises Untrusted: whoever answers there is somebody else
        :raises CallFailed: nobody does: nothing was asked
        """
        first: DroverError | None = None
        for address in self._addresses:
            try:
                self.sock = self._dial(*split_address(address))
                return
            except ssl.SSLCertVerificationError as error:
                first = first or Untrusted(address, f"it is not who it should be: {error.verify_message}")
            except OSError as error:
                text = f"{address} is not to be reached ({error}): nothing was done"
                first = first or CallFailed("unreachable", text)
        assert first is not None
        raise first

    def _dial(self, host: str, port: int) -> ssl.SSLSocket:
        plain = socket.create_connection((host, port), min(self._timeout, _CONNECT))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        secured.settimeout(self._timeout)
        return secured


class RemoteDaemon(Daemon):
    """A node daemon on the network.

    :param addresses: where it answers
    :param folder: of our certificate, and of the authority's
    :param context: made of them; None: they are still to be read
    """

    def __init__(self, addresses: Sequence[str], folder: Folder, context: ssl.SSLContext | None = None) -> None:
        self.addresses = addresses
        self.folder = folder
        self._context = context

    @property
    def where(self) -> str:
        """For people."""
        return ", ".join(self.addresses)

    def answers(self) -> bool:
        """Whether it is to be asked: who has named it means no other, also when it does not answer."""
        return True

    def lost(self, error: Exception) -> str:
        """What became of a call that this ended."""
        if turned_away(error):
            return f"closed the connection ({error}): {self._doubt()}"
        return super().lost(error)

    def _doubt(self) -> str:
        """Why it may not have taken us in."""
        from .pki.authority import card_of

        until = card_of(self.folder.own.read_bytes()).until
        if until < time.time():
            return f"our certificate has expired, on {time.strftime('%Y-%m-%d', time.localtime(until))}"
        return "it may not take our certificate; what it was asked to do may be done, or not"

    @property
    def context(self) -> ssl.SSLContext:
        """Whom to trust, and what to show them.

        :raises NotJoined: we have no certificate
        """
        if self._context is None:
            self._context = calling(self.folder)
        return self._context

    @property
    def identity(self) -> Hashable:
        """Who it is, and who we are to it."""
        return tuple(self.addresses), self.context

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """One, not connected yet."""
        return TlsConnection(self.addresses, self.context, timeout)


class Callers:
    """Ways to other daemons with one node's certificate, which is read again once it is another one.

    :ivar kept: connections to them
    :param folder: of it
    """

    def __init__(self, folder: Folder) -> None:
        self.kept = Kept()
        self._folder = folder
        self._read: tuple[object, ssl.SSLContext | None] = None, None

    def __call__(self, addresses: Sequence[str]) -> RemoteDaemon:
        """The daemon at these addresses."""
        seen = tuple(map(_stamp, (self._folder.own, self._folder.trusted)))
        read, context = self._read
        if read != seen or context is None:
            with suppress(NotJoined):  # whoever calls is told so
                context = calling(self._folder)
                self._read = seen, context
        return RemoteDaemon(addresses, self._folder, context if self._read[0] == seen else None)


def calling(folder: Folder) -> ssl.SSLContext:
    """What to call others with, who have a certificate of our authority's.

    :raises NotJoined: we have no certificate
    """
    try:
        context = trusting(folder.trusted.read_text())
        context.load_cert_chain(folder.own)
    except (OSError, ssl.SSLError) as error:
        raise NotJoined(f"no certificate that is of use in {folder.path} ({error})") from error
    return context


def trusting(pem: str) -> ssl.SSLContext:
    """What to call whoever has a certificate of this authority's with, while we have none."""
    context = _bare()
    context.load_verify_locations(cadata=pem)
    return context


def blind() -> ssl.SSLContext:
    """What to ask anybody with who they are. Nothing is to be said that others may not hear."""
    context = _bare()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def turned_away(error: BaseException) -> bool:
    """Whether the other side did not like our certificate, or that there was none.

    In TLS 1.3 it says so only after it has let us speak, and some close before the word of it is sent.
    """
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, ssl.SSLCertVerificationError)
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _stamp(path: Path) -> tuple[int, int] | None:
    """By which a file that was written anew is known."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _bare() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
