"""The daemon on the network: TLS 1.3 alone, with a certificate from both sides, and a role in the caller's."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError
from .operations import Role

# What the caller's certificate may say as its organizational unit (OU).
_ROLES: Final[Mapping[str, Role]] = {"viewer": Role.VIEWER, "operator": Role.OPERATOR, "admin": Role.ADMIN}


class Certificates(Struct, frozen=True, kw_only=True):
    """The files that a daemon shows who it is with, and knows others by; all PEM.

    :ivar certificate: its own, with those between it and the authority
    :ivar key: to it; nobody else may read it
    :ivar authority: of those who may call
    """

    certificate: Path
    key: Path
    authority: Path

    def context(self) -> ssl.SSLContext:
        """What to listen with.

        :raises ArgumentError: a file is no such thing, or others may read the key
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        self.load(context)
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
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            allowed = f"a certificate in PEM, with its key in {self.key} ({error})"
            raise ArgumentError("--cert", str(self.certificate), allowed) from error


def role_in(certificate: Mapping[str, Any]) -> tuple[str, Role | None]:
    """Whom a certificate names (CN), and their role (OU); None: it says none that there is.

    :param certificate: as :meth:`ssl.SSLSocket.getpeercert` has it
    """
    said = [pair for part in certificate.get("subject", ()) for pair in part]
    name = next((value for key, value in said if key == "commonName"), "")
    units = [_ROLES[value] for key, value in said if key == "organizationalUnitName" and value in _ROLES]
    return name, max(units, default=None)
