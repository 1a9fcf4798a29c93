"""Certificates and keys as all of ours are made: X.509, keys on the curve P-256, which all that speaks TLS 1.3 knows.

It takes 50 ms to load: import it where one is made, and not before.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH


class Life(NamedTuple):
    """How long a certificate holds.

    :ivar since: from then on
    :ivar until: to then
    """

    since: datetime
    until: datetime


class Signer(NamedTuple):
    """Who makes certificates.

    :ivar certificate: of an authority
    :ivar key: to it
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: x509.Name, life: Life) -> "Signer":
        """An authority that nobody knows yet, and that is no other one's."""
        key = new_key()
        draft = _draft(name, name, key.public_key(), life)
        draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        draft = draft.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(draft.sign(key, hashes.SHA256()), key)

    def sign(
        self,
        name: x509.Name,
        key: PublicKey,
        life: Life,
        uses: Sequence[x509.ObjectIdentifier],
        hosts: Sequence[x509.GeneralName] = (),
        *,
        usage_critical: bool = True,
    ) -> x509.Certificate:
        """A certificate for whoever has the key to this public one. It does not hold longer than the authority's own.

        :param name: whose it is
        :param uses: what for: :data:`SERVER`, :data:`CLIENT`
        :param hosts: where they answer
        :param usage_critical: whether one who does not understand what the key may be used for has to refuse it
        """
        life = Life(life.since, min(life.until, self.certificate.not_valid_after_utc))
        draft = _draft(self.certificate.subject, name, key, life)
        draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        draft = draft.add_extension(_usage(signs_certificates=False), critical=usage_critical)
        draft = draft.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        draft = draft.add_extension(signed_by, critical=False)
        if hosts:
            draft = draft.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return draft.sign(self.key, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key of one's own."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as it is kept."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as it is kept."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _draft(issuer: x509.Name, subject: x509.Name, key: PublicKey, life: Life) -> x509.CertificateBuilder:
    draft = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject).public_key(key)
    draft = draft.serial_number(x509.random_serial_number())
    draft = draft.not_valid_before(life.since).not_valid_after(life.until)
    return draft.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
