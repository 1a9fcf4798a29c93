"""The certificates of one migration: an authority that makes one for either side, and is forgotten at once.

So a certificate is good for this migration alone: nobody who has one of another migration, or of the nodes', can load a
machine, or be taken for where it goes.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from ..kvm.keys import Keys
from ..kvm.spec import Secret

if TYPE_CHECKING:
    from cryptography import x509

    from ..monitor.certificates import Life, Signer

EARLIER: Final = timedelta(days=1)
"""They hold from so long before they are made: clocks of two hosts differ, and the key that could misuse it is gone."""

# Made by nobody: the group ffdhe2048 of RFC 7919. TLS 1.3 asks for none, but QEMU does, and where it finds none it
# makes one, which takes up to a second.
_DH_PARAMETERS: Final = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


class Halves(NamedTuple):
    """What either side gets.

    :ivar source: its keys
    :ivar target: its keys
    """

    source: Keys
    target: Keys


def issue(uuid: str, epoch: int, seconds: float) -> Halves:
    """Make the certificates of one migration. Takes some ms, and 50 more the first time.

    :param uuid: of the machine
    :param epoch: of the passage: with the uuid it names the migration for ever
    :param seconds: that they hold from now on: QEMU looks at them whenever a connection is made
    """
    from cryptography import x509

    from ..monitor.certificates import CLIENT, SERVER, Life, Signer

    now = datetime.now(UTC)
    life = Life(now - EARLIER, now + timedelta(seconds=seconds))
    authority = Signer.new(_name(f"{uuid}/{epoch}"), life)
    host = f"{epoch}.{uuid}.drover"
    source, target = f"{uuid}/{epoch}/source", f"{uuid}/{epoch}/target"
    server = _half(authority, "server", target, life, SERVER, [x509.DNSName(host)])
    server["dh-params.pem"] = Secret(_DH_PARAMETERS)
    return Halves(
        source=Keys(files=_half(authority, "client", source, life, CLIENT, []), peer=host),
        target=Keys(files=server, peer=f"CN={source}"),
    )


def _half(
    authority: "Signer", endpoint: str, name: str, life: "Life", use: "x509.ObjectIdentifier",
    hosts: "list[x509.GeneralName]",
) -> dict[str, Secret]:  # fmt: skip
    from ..monitor.certificates import new_key, pem_of, private_pem

    key = new_key()
    # QEMU 10.0 refuses a key that is not for encipherment, which one on P-256 cannot be, if that is critical
    certificate = authority.sign(_name(name), key.public_key(), life, [use], hosts, usage_critical=False)
    files = {
        "ca-cert.pem": pem_of(authority.certificate),
        f"{endpoint}-cert.pem": pem_of(certificate),
        f"{endpoint}-key.pem": private_pem(key),
    }
    return {file: Secret(data.decode("ascii")) for file, data in files.items()}


def _name(text: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
