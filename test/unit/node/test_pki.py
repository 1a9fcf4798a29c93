"""What of certificates needs no daemon: tokens, the authority, the lists, the folder."""

import base64
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from drover.errors import ArgumentError, NotJoined, OtherAuthority, PkiError, RecordError, TokenRefused
from drover.monitor.certificates import new_key, pem_of
from drover.node.pki import ledger
from drover.node.pki.authority import (
    Authority,
    Card,
    Subject,
    card_of,
    fingerprint,
    request_for,
    requested,
)
from drover.node.pki.folder import Folder, hosts_of, split_address
from drover.node.pki.ledger import Issued, Ledger, revoked
from drover.node.pki.own import admit, begin, issue, own_card, renew_here, token_for
from drover.node.pki.token import Tokens, new_token, read_token


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """One that has an authority."""
    folder = Folder(tmp_path / "pki")
    begin(folder, "first", ["10.0.0.1:9443", "first.example.org", "fd00::1"])
    return folder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("node1", ("node1", 8443)),
        ("node1:99", ("node1", 99)),
        ("10.0.0.1", ("10.0.0.1", 8443)),
        ("fd00::1", ("fd00::1", 8443)),
        ("[fd00::1]", ("fd00::1", 8443)),
        ("[fd00::1]:99", ("fd00::1", 99)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert split_address(text) == found


@pytest.mark.parametrize("text", ["", ":99", "a b", "a:0", "a:65536", "a/b", "[]", "a\n"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ArgumentError):
        split_address(text)


def test_a_token_says_what_it_was_made_of() -> None:
    token = new_token(["node1:8443", "[fd00::1]:99"], "ab" * 32)
    text = token.text()
    assert read_token(f" {text[:50]}\n  {text[50:]}\n") == token  # as a mail program may have broken it
    assert token.secret not in repr(token) + str(token)
    assert len({new_token([], "").secret for _ in range(100)}) == 100


@pytest.mark.parametrize("number", range(8))
def test_what_is_no_token(number: int) -> None:
    token = new_token(["node1"], "ab" * 32)
    coded = base64.urlsafe_b64encode
    wrong = [
        "", token.text()[:-6], token.text().removeprefix("drover-"), "drover-token-", "drover-token-!",
        "drover-token-" + coded(b"[]").decode(), "drover-token-" + coded(b'{"a":[],"f":"","i":"","s":""}').decode(),
        token.text() + "A" * 5000,
    ]  # fmt: skip
    with pytest.raises(TokenRefused) as caught:
        read_token(wrong[number])
    assert token.secret not in str(caught.value)
    assert caught.value.__cause__ is None  # which would quote it


def made(folder: Folder, **more: Any) -> Any:
    token, _ = token_for(folder, "viewer", name="", days=1, seconds=more.pop("seconds", 60), **more)
    return token


def test_a_token_is_claimed_once(folder: Folder) -> None:
    tokens, token = Tokens(folder), made(folder)
    assert tokens.outstanding()
    assert tokens.look(token.id, token.secret).role == "viewer"
    tokens.claim(token.id)
    assert not tokens.outstanding()
    for _ in range(2):
        with pytest.raises(TokenRefused, match="used already"):
            tokens.claim(token.id)
    with pytest.raises(TokenRefused, match="used already"):
        tokens.look(token.id, token.secret)


def test_who_does_not_know_the_secret_does_not_hear_that_it_was_used(folder: Folder) -> None:
    tokens, token = Tokens(folder), made(folder)
    tokens.claim(token.id)
    with pytest.raises(TokenRefused, match="no such token"):
        tokens.look(token.id, "another")
    for name in ("", "../x", token.id[:-1], token.id + "0", "*"):
        with pytest.raises(TokenRefused, match="no such token"):
            tokens.look(name, token.secret)


def test_tokens_that_are_over_are_forgotten(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(folder)
    old, used = made(folder), made(folder)
    tokens.claim(used.id)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert not tokens.outstanding()
    with pytest.raises(TokenRefused, match="expired"):
        tokens.look(old.id, old.secret)
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    made(folder)
    assert len(list(folder.tokens.iterdir())) == 1


def test_a_token_that_is_dropped(folder: Folder) -> None:
    tokens, token = Tokens(folder), made(folder)
    tokens.drop(token.id)
    assert not tokens.all()
    with pytest.raises(TokenRefused):
        tokens.drop(token.id)


def test_init_is_idempotent(folder: Folder) -> None:
    files = {path: path.read_bytes() for path in folder.path.iterdir()}
    card = begin(folder)
    assert {path: path.read_bytes() for path in folder.path.iterdir() if path.name != "pki.lock"} == {
        path: data for path, data in files.items() if path.name != "pki.lock"
    }
    assert {"first", "10.0.0.1", "first.example.org", "fd00::1", "localhost"} <= set(card.hosts)
    more = begin(folder, addresses=["new.example.org"])
    assert more.serial != card.serial
    assert "new.example.org" in more.hosts
    assert folder.authority.read_bytes() == files[folder.authority]


def test_init_after_a_crash_at_each_step(folder: Folder, tmp_path: Path) -> None:
    """Whatever is missing, saying it again makes it whole."""
    authority = folder.authority.read_bytes()
    for missing in ((folder.own,), (folder.about,), (folder.own, folder.about), (folder.trusted, folder.own)):
        for path in missing:
            path.unlink()
        begin(folder, "first")
        assert fingerprint(folder.trusted.read_bytes()) == fingerprint(authority)
        assert own_card(folder).name == "first"
    folder.authority.unlink()
    with pytest.raises(OtherAuthority):
        begin(folder, "first")
    with pytest.raises(NotJoined):
        own_card(Folder(tmp_path / "nothing"))


def test_what_a_certificate_says(folder: Folder) -> None:
    key, pem, card = issue(folder, "operator", "alice", days=10)
    certificate, authority = (x509.load_pem_x509_certificate(each) for each in (pem, folder.trusted.read_bytes()))
    certificate.verify_directly_issued_by(authority)
    assert (card.name, card.role, card.hosts) == ("alice", "operator", [])
    assert 9.9 * 86400 < card.until - card.since < 10.1 * 86400
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [use._name for use in uses] == ["clientAuth"]
    own = x509.load_pem_x509_certificate(folder.own.read_bytes())
    assert {use._name for use in own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value} == {
        "clientAuth", "serverAuth",
    }  # fmt: skip
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    public = serialization.load_pem_private_key(key, None).public_key()
    assert public == certificate.public_key()


@pytest.mark.parametrize("role", ["node", "viewer"])
def test_strict_verifiers_take_it(folder: Folder, role: str) -> None:
    """Python 3.13 checks by all of RFC 5280 unless told otherwise."""
    key, pem, _ = issue(folder, role, "x", days=1, hosts=["x.example.org"] if role == "node" else [])
    (folder.path / "x.pem").write_bytes(key + pem)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, own in ((server, folder.own), (client, folder.path / "x.pem")):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(folder.trusted)
        context.load_cert_chain(own)
    server.verify_mode = ssl.CERT_REQUIRED
    ends = [ssl.MemoryBIO() for _ in range(4)]
    there = server.wrap_bio(ends[0], ends[1], server_side=True)
    here = client.wrap_bio(ends[2], ends[3], server_hostname="first")
    for _ in range(4):
        for end, out, peer in ((here, ends[3], ends[0]), (there, ends[1], ends[2])):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            peer.write(out.read())
    found = there.getpeercert()
    assert found
    assert (("organizationalUnitName", role),) in found["subject"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a" * 65, "a\nb", "ä", "a=b", "a,b"])
def test_names_that_nobody_bears(folder: Folder, name: str) -> None:
    with pytest.raises(ArgumentError):
        issue(folder, "viewer", name, days=1)


@pytest.mark.parametrize("host", ["", "a b", "*.example.org", "a..b", "x" * 300, "http://a", "a\0"])
def test_hosts_that_there_are_not(folder: Folder, host: str) -> None:
    with pytest.raises(ArgumentError):
        issue(folder, "node", "n", days=1, hosts=[host])


@pytest.mark.parametrize("days", [0, -1, 826, float("inf"), float("nan")])
def test_how_long_none_holds(folder: Folder, days: float) -> None:
    with pytest.raises(ArgumentError):
        issue(folder, "viewer", "v", days=days)


def test_whose_key_is_not_taken() -> None:
    def request(key: Any, algorithm: Any = None) -> str:
        from cryptography.hazmat.primitives import hashes

        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    requested(request_for(new_key()))
    requested(request(ec.generate_private_key(ec.SECP384R1())))
    requested(request(ed25519.Ed25519PrivateKey.generate()))
    requested(request(rsa.generate_private_key(65537, 2048)))
    for weak in (ec.generate_private_key(ec.SECP192R1()), rsa.generate_private_key(65537, 1024)):
        with pytest.raises(ArgumentError):
            requested(request(weak))
    for nonsense in ("", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(ArgumentError):
            requested(nonsense)


def test_a_third_of_its_life_is_when_it_is_due() -> None:
    card = Card(serial="1", name="n", role="node", hosts=[], since=1000.0, until=1900.0)
    assert not card.is_due(1599)
    assert card.is_due(1601)
    assert card.is_due(5000)


def test_nobody_takes_a_node_s_name(folder: Folder) -> None:
    issue(folder, "node", "second", days=1, hosts=["second", "10.0.0.2"])
    for name, hosts in (("second", []), ("third", ["10.0.0.2"]), ("third", ["first"]), ("first", [])):
        with pytest.raises(PkiError, match="already"):
            issue(folder, "node", name, days=1, hosts=hosts)
    with pytest.raises(PkiError, match="already"):
        issue(folder, "admin", "second", days=1)
    issue(folder, "node", "third", days=1, hosts=["localhost", "10.0.0.3"])
    assert renew_here(folder).name == "first"  # its own it may have again


def test_revoking(folder: Folder) -> None:
    book = Ledger(folder)
    cards = [issue(folder, "viewer", "v", days=1)[2] for _ in range(3)]
    assert {each.serial for each in book.revoke(cards[0].serial[:10])} == {cards[0].serial}
    assert {each.serial for each in book.revoke("v")} == {each.serial for each in cards[1:]}
    assert revoked(folder).numbers() == {int(each.serial, 16) for each in cards}
    for what in ("v", cards[0].serial, "nobody", ""):
        with pytest.raises(PkiError):
            book.revoke(what)
    with pytest.raises(PkiError, match="cannot be renewed"):
        book.renewed(cards[0].serial)


def test_the_lists_are_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_ISSUED", 4)
    monkeypatch.setattr(ledger, "MAX_REVOKED", 1)
    for _ in range(3):
        issue(folder, "viewer", "v", days=1)
    with pytest.raises(PkiError, match="4 certificates already"):
        issue(folder, "viewer", "v", days=1)
    before = folder.issued.read_bytes()
    with pytest.raises(PkiError, match="make a new authority"):
        Ledger(folder).revoke("v")
    assert folder.issued.read_bytes() == before
    assert not folder.revoked.exists()


def test_what_has_expired_is_forgotten(folder: Folder) -> None:
    book, now = Ledger(folder), time.time()
    old = Issued(serial="abcdef0123", name="old", role="viewer", since=now - 90 * 86400, until=now - 40 * 86400)
    book.add(old)
    book.add(Issued(serial="abcdef0124", name="new", role="viewer", since=now, until=now + 1000))
    assert [each.name for each in book.all()] == ["first", "new"]


def test_a_list_that_cannot_be_read(folder: Folder) -> None:
    folder.revoked.write_text("{")
    with pytest.raises(RecordError):
        revoked(folder)


def test_hosts_of_addresses() -> None:
    assert hosts_of(["a:1", "a:2", "[fd00::1]:3", "b"]) == ["a", "fd00::1", "b"]
    assert Subject(name="n", role="node", hosts=["a", "fd00::1"]).hosts == ["a", "fd00::1"]
    assert card_of(pem_of(Authority.new().certificate)).role == ""


def test_nobody_else_may_enter(folder: Folder) -> None:
    folder.path.chmod(0o755)
    made(folder)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {os.stat(path).st_mode & 0o077 for path in folder.path.rglob("*")} == {0}


class Crash(BaseException):
    """The process is no more."""


def test_a_crash_at_each_step_of_a_join(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call that makes something last: then the token is as it was, or used up; and nobody joins by it twice."""
    steps, left, outcomes = 0, 0, set()

    def dying(real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return real(*args, **more)

        return call

    while True:
        token = made(folder)
        name = f"v{steps}"
        asked = {"name": name, "addresses": ()}
        with monkeypatch.context() as patch:
            left = steps
            for call in ("rename", "fsync"):
                patch.setattr(os, call, dying(getattr(os, call)))
            try:
                admit(folder, token.id, token.secret, request_for(new_key()), **asked)
                crashed = False
            except Crash:
                crashed = True
        given = [each for each in Ledger(folder).all() if each.name == name]
        unused = [each for each in Tokens(folder).all() if each.id == token.id]
        assert len(given) <= 1
        assert not (given and unused)
        if unused:
            admit(folder, token.id, token.secret, request_for(new_key()), **asked)
        with pytest.raises(TokenRefused):
            admit(folder, token.id, token.secret, request_for(new_key()), name=name + "x", addresses=())
        outcomes.add("unused" if unused else "given" if given else "used")
        if not crashed:
            break
        steps += 1
    assert steps > 3
    assert outcomes == {"unused", "used", "given"}
