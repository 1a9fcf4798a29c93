"""The daemon on the network: TLS 1.3 alone, with a certificate from both sides, and a role in the caller's.

What lies in the files is looked at whenever somebody connects, so a new certificate, a revocation and a token hold from
the next connection on, without a restart.
"""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from msgspec import Struct

from ..errors import ArgumentError, RecordError
from .operations import Role
from .pki.folder import Folder
from .pki.ledger import revoked
from .pki.token import Tokens

# What the caller's certificate may say as its organizational unit (OU).
_ROLES: Final[Mapping[str, Role]] = {
    "viewer": Role.VIEWER, "node": Role.NODE, "operator": Role.OPERATOR, "admin": Role.ADMIN,
}  # fmt: skip
log = logging.getLogger("drover.node")
_Look = tuple[tuple[int, int, int], ...]  # by which a file that was replaced is told from what it was


class Certificates(Struct, frozen=True, kw_only=True):
    """The files that a daemon shows who it is with, and knows others by; all PEM.

    :ivar certificate: its own, with those between it and the authority
    :ivar key: to it; nobody else may read it
    :ivar authority: of those who may call
    :ivar folder: where tokens and revocations lie, if there are any
    """

    certificate: Path
    key: Path
    authority: Path
    folder: Folder | None = None

    @classmethod
    def of(cls, folder: Folder) -> "Certificates":
        """Those that ``drover node init`` and ``join`` make."""
        return cls(certificate=folder.own, key=folder.own, authority=folder.trusted, folder=folder)

    def context(self) -> "Listening":
        """What to listen with.

        :raises ArgumentError: a file is no such thing, or others may read the key
        """
        context = Listening(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # a caller who comes back by a ticket would not be asked for a certificate that holds still
        context.num_tickets = 0
        context.follow(self)
        try:
            context.load_verify_locations(self.authority)
        except (OSError, ssl.SSLError) as error:
            raise ArgumentError("--ca", str(self.authority), f"certificates in PEM ({error})") from error
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Show the certificate that is in the files now to all who connect from now on.

        :raises ArgumentError: a file is no such thing, or others may read the key
        """
        try:
            if self.key.stat().st_mode & 0o077:
                raise ArgumentError("--key", str(self.key), "a file that its owner alone may read (chmod 600)")
            # a certificate without its key would be taken all the same, in the place of what is of use
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            allowed = f"a certificate in PEM, with its key in {self.key} ({error})"
            raise ArgumentError("--cert", str(self.certificate), allowed) from error


class Listening(ssl.SSLContext):
    """What a daemon listens with: as the files are when somebody connects."""

    _files: Certificates
    _own: _Look = ()
    _list: _Look = ()
    _revoked: frozenset[int] = frozenset()
    _open: WeakKeyDictionary[asyncio.BaseTransport, tuple[int, float]]

    def follow(self, files: Certificates) -> None:
        """Take what is in these files, now and whenever it has changed.

        :raises ArgumentError: a file is of no use now
        """
        self._files = files
        self._open = WeakKeyDictionary()
        self.read_own()
        self.has_revoked(0)

    def read_own(self) -> None:
        """Take our certificate as it is now.

        :raises ArgumentError: it is of no use; the old one stays
        """
        self._own = _look(self._files.certificate, self._files.key)
        self._files.load(self)

    def has_revoked(self, serial: int) -> bool:
        """Whether the certificate of this number holds no longer. What cannot be read leaves it as it was known."""
        folder = self._files.folder
        if folder is not None and (look := _look(folder.revoked)) != self._list:
            self._list = look
            try:
                known, self._revoked = self._revoked, revoked(folder).numbers()
                for each in sorted(self._revoked - known):
                    log.info("certificate %x is revoked", each)
            except (RecordError, OSError, ValueError) as error:
                log.error("revoked certificates are those that were: %s", error)
        return serial in self._revoked

    def note(self, transport: asyncio.BaseTransport, serial: int, until: float) -> None:
        """A caller is there, by the certificate of this number, which ends at that Unix time."""
        self._open[transport] = serial, until

    def cut_off(self) -> int:
        """End the connections of those whose certificate has ended since, whatever they are at; how many."""
        now = time.time()
        over = [each for each, (serial, until) in self._open.items() if until < now or self.has_revoked(serial)]
        for transport in over:
            self._open.pop(transport, None)
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        return len(over)

    def wrap_bio(self, *args: Any, **more: Any) -> ssl.SSLObject:
        """Somebody connects."""
        files = self._files
        if _look(files.certificate, files.key) != self._own:
            try:
                self.read_own()
                log.info("the certificate was read again")
            except ArgumentError as error:
                log.error("the certificate stays as it was: %s", error)
        # who has no certificate yet may come only while somebody is expected to
        expected = files.folder is not None and Tokens(files.folder).outstanding()
        self.verify_mode = ssl.CERT_OPTIONAL if expected else ssl.CERT_REQUIRED
        return super().wrap_bio(*args, **more)


def _look(*paths: Path) -> _Look:
    found = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def role_in(certificate: Mapping[str, Any]) -> tuple[str, Role | None]:
    """Whom a certificate names (CN), and their role (OU); None: it says none that there is.

    :param certificate: as :meth:`ssl.SSLSocket.getpeercert` has it
    """
    said = [pair for part in certificate.get("subject", ()) for pair in part]
    name = next((value for key, value in said if key == "commonName"), "")
    units = [_ROLES[value] for key, value in said if key == "organizationalUnitName" and value in _ROLES]
    return name, max(units, default=None)
