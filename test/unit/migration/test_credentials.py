"""The certificates of one migration: what they say, for how long, and that they are of no other."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from drover.kvm.keys import Keys
from drover.migration.credentials import EARLIER, Halves, issue

UUID = "3f0b1c9e-52d7-4c1e-9a55-0d6c1f1e8a01"


def certificate(keys: Keys, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(keys.files[name].secret.encode())


@pytest.fixture(scope="module")
def halves() -> Halves:
    return issue(UUID, 12, 600)


def test_what_they_say(halves: Halves) -> None:
    source, target = certificate(halves.source, "client-cert.pem"), certificate(halves.target, "server-cert.pem")
    assert source.subject.rfc4514_string() == f"CN={UUID}/12/source" == halves.target.peer
    assert target.subject.rfc4514_string() == f"CN={UUID}/12/target"
    hosts = target.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == [halves.source.peer]
    for each in (source, target):
        assert each.not_valid_before_utc < datetime.now(UTC) - EARLIER / 2
        assert timedelta(seconds=590) < each.not_valid_after_utc - datetime.now(UTC) <= timedelta(seconds=600)
    for keys, end in ((halves.source, "client"), (halves.target, "server")):
        key = load_pem_private_key(keys.files[f"{end}-key.pem"].secret.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"
        assert key.public_key() == certificate(keys, f"{end}-cert.pem").public_key()


def test_each_migration_has_an_authority_of_its_own(halves: Halves) -> None:
    both = {keys.files["ca-cert.pem"] for keys in halves}
    assert len(both) == 1
    certificate(halves.source, "client-cert.pem").verify_directly_issued_by(certificate(halves.target, "ca-cert.pem"))
    other = certificate(issue(UUID, 12, 600).source, "ca-cert.pem")
    with pytest.raises(InvalidSignature):
        certificate(halves.source, "client-cert.pem").verify_directly_issued_by(other)


def test_the_highest_epoch_has_a_name() -> None:
    assert issue(UUID, 2**63 - 1, 600).target.peer == f"CN={UUID}/{2**63 - 1}/source"


def test_they_go_as_json_and_do_not_print(halves: Halves) -> None:
    assert msgspec.json.decode(msgspec.json.encode(halves.target), type=Keys) == halves.target
    assert "PRIVATE" not in repr(halves)
    assert "***" in repr(halves)


def test_what_makes_them_is_loaded_when_it_does() -> None:
    code = "import sys, drover.migration.credentials; sys.exit('cryptography' in sys.modules)"
    top = Path(__file__).parents[3] / "build" / "py"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(top)})
