"""Certificates from nothing: an authority, tokens, nodes and people that join; by the programs, as they are typed."""

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drover.kvm.node import Node
from drover.monitor.certificates import new_key, pem_of, private_pem
from drover.node.link import TlsConnection, blind, trusting
from drover.node.pki.authority import Authority, Subject, request_for
from drover.node.pki.token import Token, read_token
from instances import bare
from people import REFUSED, Line, Member, Person, call, joined


@pytest.fixture
def first(node: Node, tmp_path: Path) -> Iterator[Member]:
    """The node that has the authority; its daemon runs."""
    first = Member(node.host.paths, tmp_path / "first")
    first.root.config.parent.mkdir()
    first.root("node", "init", "--name", "first", "--address", first.address)
    first.daemon.start()
    yield first
    if first.daemon.runs:
        first.daemon.end()


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_from_nothing_to_a_list(first: Member, tmp_path: Path) -> None:
    first.daemon.create(bare("7.2", "a"))
    person = joined(first, tmp_path / "me", "operator", "alice")
    assert [row["name"] for row in json.loads(person("list", "-o", "json"))] == ["a"]
    assert json.loads(person("--context", "local", "list", "-o", "json")) == []
    shown = json.loads(person("context", "show", "-o", "json"))
    assert (shown["who"], shown["role"], shown["addresses"]) == ("alice", "operator", first.address)
    assert "works on this host" in person.refused("run", "demo")
    said = [(line["operation"], line["outcome"]) for line in first.log if line["logger"] == "drover.audit"]
    assert said == [("create", "done"), ("join", "done")]


def test_nobody_else_may_read_a_key(first: Member, tmp_path: Path) -> None:
    first.token()
    person = joined(first, tmp_path / "me", "viewer", "alice")
    for folder in (first.pki, person.config):
        for path, mode in modes(folder).items():
            assert mode & 0o077 == 0, path
    token = first.token("--role", "admin")
    secret = json.loads(_unfolded(token))["s"]
    kept = "".join(path.read_text() for path in first.pki.rglob("*") if path.is_file())
    assert secret not in kept + first.daemon.log_path.read_text()


def _unfolded(token: str) -> bytes:
    text = token.removeprefix("drover-token-")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_token_is_used_once(first: Member, tmp_path: Path) -> None:
    token, other = first.token("--role", "admin"), first.token("--role", "viewer")
    Person(tmp_path / "a")("context", "add", "x", "--token", token)
    late = Person(tmp_path / "b")
    assert "used already" in late.refused("context", "add", "x", "--token", token)
    assert json.loads(late("context", "list", "-o", "json"))[1:] == []
    assert "is admin" in late.refused("context", "add", "x", "--token", other)  # the name is somebody's
    late("context", "add", "x", "--token", other, "--as", "bob")
    # now that nobody is expected, nobody without a certificate gets as far as to ask
    assert "takes nobody in without a certificate" in late.refused("context", "add", "y", "--token", token)
    said = [(line["operation"], line["outcome"]) for line in first.log if line["logger"] == "drover.audit"]
    assert said == [("join", "done"), ("join", "token-refused"), ("join", "pki-error"), ("join", "done")]


def test_a_token_expires(first: Member, tmp_path: Path) -> None:
    first.token()  # so that the daemon hears those who have no certificate
    token = first.token("--role", "admin", "--expires", "1s")
    time.sleep(1.1)
    assert "has expired" in Person(tmp_path / "a").refused("context", "add", "x", "--token", token)


def test_nobody_without_a_certificate_but_to_join(first: Member) -> None:
    """While somebody is expected the door is ajar, for one call alone."""
    with pytest.raises(REFUSED):
        call(first.address, blind(), "GET", "/v1/join")
    first.token()
    assert call(first.address, blind(), "GET", "/v1/join")[0] == 200
    for method, path in (("GET", "/v1/instances"), ("GET", "/metrics"), ("POST", "/v1/renew"), ("GET", "/v1/revoked"),
                         ("POST", "/v1/instances"), ("GET", "/v1/events"), ("GET", "/nosuch")):  # fmt: skip
        status, told = call(first.address, blind(), method, path, {} if method == "POST" else None)
        assert (status, told["code"]) == (403, "no-certificate"), (method, path)
    for line in json.loads(first.root("node", "tokens", "-o", "json")):
        first.root("node", "tokens", "--drop", line["id"])
    with pytest.raises(REFUSED):
        call(first.address, blind(), "GET", "/v1/join")


def _asking(by: Token, /, **other: Any) -> dict[str, Any]:
    return {"token": by.id, "secret": by.secret, "csr": request_for(new_key()), "name": "x"} | other


def test_what_does_not_join(first: Member) -> None:
    token = read_token(first.token("--role", "viewer"))
    safe = trusting((first.pki / "ca.pem").read_text())

    def told(body: Any) -> tuple[int, str]:
        status, answer = call(first.address, safe, "POST", "/v1/join", body)
        return status, answer["code"]

    request = request_for(new_key())
    forged = request.replace(request.splitlines()[3], request_for(new_key()).splitlines()[3])
    assert told(_asking(token, secret="wrong")) == (403, "token-refused")
    assert told(_asking(token, token="../../ca.pem")) == (403, "token-refused")
    assert told(_asking(token, token="0" * 16)) == (403, "token-refused")
    assert told(_asking(token, csr="nonsense")) == (422, "argument-error")
    assert told(_asking(token, csr=forged)) == (422, "argument-error")
    assert told(_asking(token, name="a/b")) == (422, "argument-error")
    assert told(_asking(token, name="first")) == (409, "pki-error")  # a node's
    assert told({}) == (422, "spec-error")
    assert told([]) == (422, "spec-error")
    # nothing of that has used it up, and its role is not to be talked about
    assert told(_asking(token, role="admin")) == (422, "spec-error")
    status, answer = call(first.address, safe, "POST", "/v1/join", _asking(token))
    assert (status, answer["role"]) == (200, "viewer")
    audited = [line["outcome"] for line in first.log if line.get("operation") == "join"]
    assert audited == ["token-refused"] * 3 + ["argument-error"] * 3 + ["pki-error", "done"]
    assert token.secret not in first.daemon.log_path.read_text()


def test_who_joins_too_often_is_bounded(first: Member) -> None:
    first.token()
    line = Line(first.address, blind())
    statuses = [line.call("POST", "/v1/join", {})[0] for _ in range(70)]
    line.close()
    assert statuses[0] == 422
    assert 429 in statuses


class Stranger:
    """Somebody in between, who has an authority of their own, answers as the daemon does, and keeps what is said."""

    def __init__(self, folder: Path, port: int, shown: bytes | None = None) -> None:
        authority, key = Authority.new(), new_key()
        subject = Subject(name="first", role="node", hosts=["127.0.0.1"])
        folder.mkdir()
        own = folder / "own.pem"
        own.write_bytes(private_pem(key) + pem_of(authority.sign(key.public_key(), subject, 1)))
        self._shown = shown or pem_of(authority.certificate)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(own)
        self._server = socket.create_server(("127.0.0.1", port))
        self.heard = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            plain, _ = self._server.accept()
            plain.settimeout(5)
            with plain, suppress(OSError):
                with self._context.wrap_socket(plain, server_side=True) as sock:
                    asked = sock.recv(65536)
                    self.heard += asked
                    body = json.dumps({"ca": self._shown.decode()}).encode()
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    while more := sock.recv(65536):
                        self.heard += more
            if self._ended:
                return

    _ended = False

    def end(self) -> None:
        self._ended = True
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self._server.getsockname()[1])).close()
        self._thread.join()
        self._server.close()


def test_the_secret_is_not_said_to_a_stranger(first: Member, tmp_path: Path) -> None:
    """Neither to one who shows an authority of their own, nor to one who shows the right one and does not have it."""
    token = first.token("--role", "admin")
    secret = read_token(token).secret
    shown = (first.pki / "ca.pem").read_bytes()
    first.daemon.end()
    port = int(first.address.rpartition(":")[2])
    for number, ca in enumerate((None, shown)):
        stranger = Stranger(tmp_path / f"stranger{number}", port, ca)
        person = Person(tmp_path / f"p{number}")
        said = person.refused("context", "add", "x", "--token", token)
        stranger.end()
        assert ("not the one that the token names" if ca is None else "not who it should be") in said
        assert b"GET /v1/join" in stranger.heard
        assert secret.encode() not in stranger.heard
        assert b"POST" not in stranger.heard
        assert not any(person.config.rglob("*.pem"))


@pytest.mark.parametrize("role", ["viewer", "node", "operator", "admin"])
def test_what_each_role_may(first: Member, tmp_path: Path, role: str) -> None:
    first.daemon.create(bare("7.2", "a"))
    first.daemon.do("start", "a")
    out = tmp_path / "made"
    first.root("cert", "issue", "someone", "--role", role, "--out", str(out))
    context = trusting((out / "ca.pem").read_text())
    context.load_cert_chain(out / "cert.pem", out / "key.pem")
    may = {
        "read": call(first.address, context, "GET", "/v1/instances")[0] == 200,
        "events": call_text(first.address, context, "/v1/events?follow=0") == 200,
        "a machine's": call_text(first.address, context, "/v1/instances/a/events?follow=0") == 200,
        "metrics": call_text(first.address, context, "/metrics") == 200,
        "change": call(first.address, context, "POST", "/v1/instances/a/pause", {})[0] == 200,
        "console": call(first.address, context, "GET", "/v1/instances/a/console")[1]["code"] != "not-allowed",
        "qmp": call(first.address, context, "POST", "/v1/instances/a/qmp", {"execute": "query-status"})[0] == 200,
    }
    changes = role in ("operator", "admin")
    reads = dict.fromkeys(("read", "events", "a machine's", "metrics"), True)
    assert may == reads | {"change": changes, "console": changes, "qmp": role == "admin"}


def call_text(address: str, context: ssl.SSLContext, path: str) -> int:
    connection = TlsConnection([address], context, 20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_a_person_does_not_pass_for_a_node(first: Member, tmp_path: Path) -> None:
    """Whoever calls sees that who answers is a node: an admin's certificate serves nobody."""
    out = tmp_path / "made"
    first.root("cert", "issue", "mallory", "--role", "admin", "--out", str(out))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(out / "cert.pem", out / "key.pem")
    client = trusting((out / "ca.pem").read_text())
    client.check_hostname = False  # so that this is not what keeps it out
    here, there = socket.socketpair()

    def serve() -> None:
        with there, suppress(OSError):
            server.wrap_socket(there, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    with here, pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        client.wrap_socket(here)
    thread.join()
