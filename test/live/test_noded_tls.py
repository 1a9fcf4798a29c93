"""The node daemon on the network: who gets in, and as whom; with real certificates, made by openssl."""

import http.client
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.kvm.node import Node
from instances import bare
from noded import Noded
from remote import Authority, Remote


@pytest.fixture
def remote(node: Node, tmp_path: Path) -> Iterator[Remote]:
    """One that runs, with an instance `a`."""
    remote = Remote(node, tmp_path)
    remote.local.start()
    remote.local.create(bare("7.2", "a"))
    yield remote
    remote.local.end()


def test_a_role_is_in_the_certificate(remote: Remote) -> None:
    viewer, operator, admin = (remote.ours.sign(f"n{number}", f"/OU={role}/CN={role}-1")
                               for number, role in enumerate(("viewer", "operator", "admin")))  # fmt: skip
    assert remote.call(viewer, "GET", "/v1/instances")[1]["instances"][0]["name"] == "a"
    status, told = remote.call(viewer, "POST", "/v1/instances/a/start", {})
    assert (status, told["code"]) == (403, "not-allowed")
    assert remote.call(operator, "POST", "/v1/instances/a/start", {})[0] == 200
    assert remote.call(operator, "POST", "/v1/instances/a/qmp", {"execute": "stop"})[0] == 403
    assert remote.call(admin, "POST", "/v1/instances/a/qmp", {"execute": "stop"})[0] == 200
    said = [(line["caller"], line["outcome"]) for line in remote.local.log if line.get("operation") in ("start", "qmp")]
    assert said == [
        ("viewer-1", "not-allowed"), ("operator-1", "done"), ("operator-1", "not-allowed"), ("admin-1", "done"),
    ]  # fmt: skip


def test_who_does_not_get_in(remote: Remote, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "theirs").sign("x", "/OU=admin/CN=mallory")
    late = remote.ours.sign("late", "/OU=admin/CN=late", days="-1")
    for signed in (None, stranger, late):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            remote.call(signed, "GET", "/v1/instances")
    for subject in ("/CN=someone", "/OU=boss/CN=someone", "/OU=admin"):
        status, told = remote.call(remote.ours.sign("y", subject), "GET", "/v1/instances")
        assert (status, told["code"]) == (403, "no-role")
    plain = http.client.HTTPConnection("localhost", remote.port, timeout=10)
    plain.connect()
    plain.sock.sendall(b"GET /v1/instances HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        http.client.HTTPResponse(plain.sock).begin()
    plain.close()
    assert remote.local.call("GET", "/v1/instances")[0] == 200


def test_older_tls_is_refused(remote: Remote) -> None:
    context = ssl.create_default_context(cafile=str(remote.ours.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", remote.port)) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname="localhost")


def test_a_new_certificate_without_a_restart(remote: Remote) -> None:
    before = remote.serial()
    remote.ours.sign("daemon", "/CN=localhost")  # in the place of the old one
    remote.local.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while (now := remote.serial()) == before:
        assert time.monotonic() < deadline, remote.local.log
        time.sleep(0.05)
    (remote.ours.folder / "daemon.pem").write_text("nonsense")
    remote.local.send_signal(signal.SIGHUP)
    while not [line for line in remote.local.log if "stays as it was" in line["text"]]:
        assert time.monotonic() < deadline, remote.local.log
        time.sleep(0.05)
    assert remote.serial() == now


def test_what_is_missing_is_named(node: Node, tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    certificate, key = ours.sign("daemon", "/CN=localhost")
    files = ["--cert", str(certificate), "--key", str(key), "--ca", str(ours.certificate)]
    daemon = Noded(node.host.paths, tmp_path / "log")

    def said(*words: str) -> str:
        done = subprocess.run(
            [daemon.program, *words], env=daemon.env, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 1, done
        return done.stderr

    assert "with --cert, --key and --ca" in said("--listen", "127.0.0.1:8443")
    assert "a host, which may be empty, ':' and a port" in said("--listen", "8443x", *files)
    assert "--ca" in said("--listen", ":8443", *files[:4], "--ca", str(key))
    assert "--cert" in said("--listen", ":8443", "--cert", str(key), *files[2:])
    key.chmod(0o644)
    assert "chmod 600" in said("--listen", ":8443", *files)
