"""The first words of a TLS 1.3 handshake, against a server that knows the rest: Python's own."""

import ssl
from pathlib import Path

import pytest

from drover.migration.credentials import issue
from drover.qmp.tls import RANDOM, TlsProbe


@pytest.fixture
def server(tmp_path: Path) -> ssl.SSLContext:
    for name, text in issue("3f0b1c9e-52d7-4c1e-9a55-0d6c1f1e8a01", 1, 60).target.files.items():
        (tmp_path / name).write_text(text.secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
    return context


def answered(context: ssl.SSLContext, hello: bytes) -> bytes:
    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
    come.write(hello)
    try:
        context.wrap_bio(come, go, server_side=True).do_handshake()
    except ssl.SSLError:  # it wants more, or has refused
        pass
    return go.read()



def test_a_server_answers_byte_by_byte(server: ssl.SSLContext) -> None:
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    probe = TlsProbe(bytes(range(RANDOM)))
    said = answered(server, probe.begin())
    assert said
    for byte in said:
        assert not probe.done or probe.error == ""
        assert probe.receive(bytes([byte])) == b""
        if probe.done:
            break
    assert (probe.done, probe.error) == (True, "")


def test_a_server_of_tls_1_2_refuses(server: ssl.SSLContext) -> None:
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    probe = TlsProbe(bytes(range(RANDOM)))
    probe.receive(answered(server, probe.begin()))
    assert probe.error == "it refuses TLS 1.3: alert 70"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", "it hung up"),
        (b"NBDMAGIC", "it does not speak TLS: b'NBDMAGIC'"),
        (b"\x16\x03\x03\x00\x04\x01\x00\x00\x00", "it does not answer a hello, but says 1"),
    ],
)
def test_who_is_no_server(said: bytes, error: str) -> None:
    probe = TlsProbe(bytes(RANDOM))
    assert not probe.done
    probe.receive(said)
    assert (probe.done, probe.error) == (True, error)
