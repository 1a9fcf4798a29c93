"""The authority of a group of nodes: it makes certificates that say who somebody is and what they may."""

import ipaddress
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from msgspec import Struct

from ...errors import ArgumentError
from ...monitor.certificates import CLIENT, SERVER, Life, PublicKey, Signer, pem_of, private_pem

ROLES: Final = ("viewer", "node", "operator", "admin")
_AUTHORITY_LIFE: Final = timedelta(days=3650)
# Clocks of two hosts differ; a short life is not made much longer by that.
_EARLIER: Final = timedelta(minutes=5)
_MAX_DAYS: Final = 825
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_HOST: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
_MAX_HOSTS: Final = 32
_RSA_BITS: Final = 2048


class Card(Struct, frozen=True, kw_only=True):
    """What a certificate says.

    :ivar serial: in hexadecimal digits
    :ivar name: whose it is
    :ivar role: what they may
    :ivar hosts: where they answer: names and addresses
    :ivar since: Unix time from which on it holds
    :ivar until: Unix time of its end
    """

    serial: str
    name: str
    role: str
    hosts: list[str]
    since: float
    until: float

    @property
    def due(self) -> float:
        """Unix time when a third of its life is left: then it is time for the next one."""
        return self.until - (self.until - self.since) / 3

    def is_due(self, now: float) -> bool:
        """Whether it is time for the next one."""
        return now > self.due


class Subject(Struct, frozen=True, kw_only=True):
    """Whom a certificate is made for; see :class:`Card`.

    :raises ArgumentError: nobody can be called so, or be reached there
    """

    name: str
    role: str
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ArgumentError("name", self.name, "a letter or digit, then at most 63 letters, digits or . _ @ + -")
        if self.role not in ROLES:
            raise ArgumentError("role", self.role, ", ".join(ROLES))
        if len(self.hosts) > _MAX_HOSTS:
            raise ArgumentError("addresses", len(self.hosts), f"at most {_MAX_HOSTS}")
        for host in self.hosts:
            if _address(host) is None and not _HOST.fullmatch(host):
                raise ArgumentError("address", host, "a host name or an IP address")


class Authority:
    """Makes certificates.

    :param pem: its key and certificate
    """

    def __init__(self, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ArgumentError("authority", "…", "a key on the curve P-256")
        self._signer = Signer(x509.load_pem_x509_certificate(pem), key)

    @classmethod
    def new(cls) -> "Authority":
        """One that nobody knows yet."""
        # no two are called alike, so that nobody takes one for the other
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Drover authority {secrets.token_hex(4)}")])
        now = datetime.now(UTC)
        signer = Signer.new(name, Life(now - _EARLIER, now + _AUTHORITY_LIFE))
        return cls(private_pem(signer.key) + pem_of(signer.certificate))

    @property
    def certificate(self) -> x509.Certificate:
        """Its own, which everybody may see."""
        return self._signer.certificate

    @property
    def pem(self) -> bytes:
        """Key and certificate."""
        return private_pem(self._signer.key) + pem_of(self.certificate)

    def sign(self, key: PublicKey, subject: Subject, days: float) -> x509.Certificate:
        """A certificate for whoever has the key to this public one.

        :param days: that it holds
        :raises ArgumentError: it may not hold so long
        """
        if not 0 < days <= _MAX_DAYS:
            raise ArgumentError("days", days, f"more than 0, and at most {_MAX_DAYS}")
        life, now = timedelta(days=days), datetime.now(UTC)
        # an empty OU would be none: so whoever reads the certificate finds one role, or refuses it
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, subject.role),
                          x509.NameAttribute(NameOID.COMMON_NAME, subject.name)])  # fmt: skip
        # only a node answers calls: nobody else's certificate passes for one's
        uses = [SERVER, CLIENT] if subject.role == "node" else [CLIENT]
        hosts = [_general(host) for host in subject.hosts]
        return self._signer.sign(name, key, Life(now - min(_EARLIER, life / 10), now + life), uses, hosts)


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """A request for a certificate, which shows that we have the key. Whose it is to be the authority decides."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def requested(pem: str) -> PublicKey:
    """The public key in a request.

    :raises ArgumentError: it is no request, not signed by that key, or of a kind that is not taken
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key, right = request.public_key(), request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ArgumentError("csr", "…", f"a request for a certificate in PEM ({error})") from error
    strong = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1")
    strong = strong or isinstance(key, ed25519.Ed25519PublicKey)
    strong = strong or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS)
    if not right or not strong or not isinstance(key, PublicKey):
        raise ArgumentError("csr", "…", "signed by its own key: P-256, P-384, Ed25519, or RSA of 2048 bits at least")
    return key


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal digits.

    :raises ArgumentError: it is none
    """
    try:
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise ArgumentError("certificate", "…", f"a certificate in PEM ({error})") from error


def card_of(pem: bytes) -> Card:
    """What the first certificate in a file says.

    :raises ArgumentError: there is none
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ArgumentError("certificate", "…", f"a certificate in PEM ({error})") from error
    names, units = (certificate.subject.get_attributes_for_oid(oid)
                    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME))  # fmt: skip
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(each.value) for each in said if isinstance(each, x509.DNSName | x509.IPAddress)]
    except x509.ExtensionNotFound:
        hosts = []
    return Card(
        serial=serial_text(certificate.serial_number),
        name=str(names[0].value) if names else "",
        role=str(units[0].value) if units else "",
        hosts=hosts,
        since=certificate.not_valid_before_utc.timestamp(),
        until=certificate.not_valid_after_utc.timestamp(),
    )


def serial_text(serial: int) -> str:
    """A certificate's number, as it is told and kept."""
    return f"{serial:x}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _general(host: str) -> x509.GeneralName:
    address = _address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)
