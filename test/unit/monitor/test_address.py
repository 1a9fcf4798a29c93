"""Every form of an address: how it is parsed, and that a connection works over it."""

import os
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drover import MonitorSocket, QmpConnection, parse_address
from drover.errors import ArgumentError, ConnectError, ConnectTimeout, MonitorTimeout
from drover.monitor import socket as monitor_socket
from drover.monitor.address import (
    AbstractAddress,
    Endpoint,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    describe,
    endpoint_of,
)
from drover.monitor.tls import TlsWire
from drover.testing.fake import FakeQemu
from faces import Face

PARSED: dict[str, Endpoint] = {
    "/run/vm.qmp": UnixAddress("/run/vm.qmp"),
    "/run/a:b.sock": UnixAddress("/run/a:b.sock"),
    "./a:b": UnixAddress("./a:b"),
    "vm.qmp": UnixAddress("vm.qmp"),
    "localhost": UnixAddress("localhost"),
    "4444": UnixAddress("4444"),
    "unix:a:b": UnixAddress("a:b"),
    "unix:@x": UnixAddress("@x"),
    "unix:unix:x": UnixAddress("unix:x"),
    "unix:4444": UnixAddress("4444"),
    "vsock:/x": UnixAddress("vsock:/x"),
    "tcp:/x:1": UnixAddress("tcp:/x:1"),
    "@vm": AbstractAddress("vm"),
    "@/tmp/vm:1": AbstractAddress("/tmp/vm:1"),
    "localhost:4444": TcpAddress("localhost", 4444),
    "127.0.0.1:0": TcpAddress("127.0.0.1", 0),
    "[::1]:4444": TcpAddress("::1", 4444),
    "[fe80::1%eth0]:4444": TcpAddress("fe80::1%eth0", 4444),
    "tcp:localhost:4444": TcpAddress("localhost", 4444),
    "tcp:[::1]:4444": TcpAddress("::1", 4444),
    "tcp:vsock:4444": TcpAddress("vsock", 4444),
    "vsock:3:4444": VsockAddress(3, 4444),
    "vsock:4294967295:4294967295": VsockAddress(0xFFFFFFFF, 0xFFFFFFFF),
}
WRONG = [
    "",
    "@",
    "unix:",
    ":4444",
    "a:b",
    "a:b.sock",
    "host:",
    "host:-1",
    "host:65536",
    "host:" + "9" * 5000,
    "host:٤٤٤٤",
    "::1:4444",
    "[::1]",
    "[::1]4444",
    "[host]:4444",
    "[::1]:",
    "ho st:1",
    "ho\nst:1",
    "a@b:1",
    "tcp:4444",
    "vsock:4444",
    "vsock:x:1",
    "vsock:1:4294967296",
    "/a\0b",
    "\0abstract",
    "/\ud800",
]


@pytest.mark.parametrize("text", PARSED)
def test_each_form(text: str) -> None:
    assert parse_address(text) == PARSED[text]
    assert parse_address(str(PARSED[text])) == PARSED[text]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_shows_what_is(text: str) -> None:
    with pytest.raises(ArgumentError, match="'HOST:PORT'") as caught:
        parse_address(text)
    assert caught.value.field == "address"
    assert "unix:PATH" in caught.value.allowed
    with pytest.raises(ArgumentError):
        QmpConnection(text)
    with pytest.raises(ArgumentError):
        MonitorSocket(text)


likely = st.text(alphabet="ab/:@[]%.09 \0\n", max_size=20)
forms = st.sampled_from(["", "unix:", "tcp:", "vsock:", "@", "[", "[::1]:", "./"])


@given(st.one_of(st.text(), likely, st.builds(str.__add__, forms, likely)))
def test_any_text_is_an_address_or_an_argument_error(text: str) -> None:
    try:
        parsed = parse_address(text)
    except ArgumentError:
        return
    assert parse_address(str(parsed)) == parsed


@given(st.one_of(st.text(), likely), st.integers(-1, 0x10000))
def test_any_parts_make_an_address_that_round_trips_or_an_argument_error(text: str, number: int) -> None:
    makes: list[Callable[[], Endpoint]] = [
        lambda: UnixAddress(text),
        lambda: AbstractAddress(text),
        lambda: TcpAddress(text, number),
        lambda: VsockAddress(number, number),
    ]
    for make in makes:
        try:
            address = make()
        except ArgumentError:
            continue
        assert parse_address(str(address)) == address


def test_what_is_not_text() -> None:
    assert endpoint_of(Path("localhost:4444")) == UnixAddress("localhost:4444")
    assert endpoint_of(("::1", 4444)) == TcpAddress("::1", 4444)
    assert endpoint_of(VsockAddress(3, 4)) == VsockAddress(3, 4)
    assert describe(7) == "descriptor 7"
    with socket.socket() as sock:
        assert endpoint_of(sock) is sock
        assert describe(sock) == f"socket {sock.fileno()}"
    wrong: list[Any] = [None, True, 1.5, b"/x", ("x", "1"), ("x", 1, 2), ("x", True), ("", 1), ["x", 1]]
    for value in wrong:
        with pytest.raises(ArgumentError):
            endpoint_of(value)


# -- over each of them -------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that signs itself, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", file]
    line = ["openssl", "req", "-x509", "-days", "2", "-subj", "/CN=localhost", "-addext", names, *key, "-out", "-"]
    text = subprocess.run(line, check=True, capture_output=True).stdout
    file.write_bytes(file.read_bytes() + text)
    return file


@pytest.fixture
def server(certificate: Path) -> ssl.SSLContext:
    """The server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def client(certificate: Path) -> ssl.SSLContext:
    """The client's side of TLS, which checks names."""
    return ssl.create_default_context(cafile=certificate)


class Relay:
    """Passes bytes between one client at a time and a FakeQemu, over any listening socket.

    :ivar clients: those that came
    """

    def __init__(self, listener: socket.socket, target: Path, context: ssl.SSLContext | None) -> None:
        self.listener, self.target, self.context = listener, target, context
        self.clients = 0
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients += 1
            try:
                if self.context is not None:
                    client = self.context.wrap_socket(client, server_side=True)
                with client, socket.socket(socket.AF_UNIX) as qemu:
                    qemu.connect(str(self.target))
                    self.pump(client, qemu)
            except OSError:
                client.close()

    def pump(self, client: socket.socket, qemu: socket.socket) -> None:
        while True:
            waiting = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if waiting else select.select([client, qemu], [], [])[0]
            for one, other in ((client, qemu), (qemu, client)):
                if one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    other.sendall(data)


@contextmanager
def relayed(fake: FakeQemu, family: int, place: Any, context: ssl.SSLContext | None = None) -> Iterator[Any]:
    """The address of a relay to `fake`, as a connection takes it."""
    with socket.socket(family) as listener:
        listener.bind(place)
        listener.listen()
        relay = Relay(listener, fake.path, context)
        relay.thread.start()
        name = listener.getsockname()
        yield f"@{name[1:].decode()}" if family == socket.AF_UNIX else (name[0], name[1])
        listener.shutdown(socket.SHUT_RD)
        relay.thread.join(10)


PLACES: dict[str, tuple[int, Any]] = {
    "abstract": (socket.AF_UNIX, b"\0drover-test-%d" % os.getpid()),
    "v4": (socket.AF_INET, ("127.0.0.1", 0)),
    "v6": (socket.AF_INET6, ("::1", 0)),
}


def exercise(vm: Any, fake: FakeQemu) -> None:
    """Small and big messages both ways, an event, and the end."""
    assert vm.query_status().running
    assert len(vm.execute("query-qmp-schema")) > 1000
    mark = vm.event_mark()
    vm.execute_many([("stop", None), ("cont", None)] * 50)
    assert vm.wait_event("RESUME", since=mark + 99, timeout=5).number == mark + 100
    name = "n" * 3_000_000
    vm.execute("getfd", {"fdname": name})
    assert name in fake.model.fds
    fake.event("LATER")
    assert vm.wait_event("LATER", since=mark, timeout=5)
    vm.quit(timeout=5)
    assert not vm.is_connected()


class AnyFd(FakeQemu):
    """Lets `getfd` do without a descriptor: not every connection passes one, and its name can be big."""

    def __enter__(self) -> Any:
        answer = self.model.execute
        self.model.execute = lambda command, arguments, fd: answer(command, arguments, fd or command == "getfd")  # type: ignore[method-assign]
        return super().__enter__()


@pytest.mark.parametrize("place", PLACES)
def test_each_kind_of_socket(face: Face, place: str) -> None:
    with AnyFd() as fake, relayed(fake, *PLACES[place]) as address:
        with face.open(address, timeout=10) as vm:
            if place != "abstract":
                assert vm.address == address
            exercise(vm, fake)


@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("place", PLACES)
def test_tls(face: Face, place: str, minimum: ssl.TLSVersion, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    client.minimum_version = client.maximum_version = minimum
    host = "localhost" if place == "abstract" else None
    with AnyFd() as fake, relayed(fake, *PLACES[place], server) as address:
        with face.open(address, timeout=10, tls=client, server_hostname=host) as vm:
            exercise(vm, fake)


def test_a_name_is_resolved_and_each_address_tried(face: Face) -> None:
    # localhost may be ::1 first, where nobody listens
    with AnyFd() as fake, relayed(fake, *PLACES["v4"]) as (_, port):
        with face.open(f"localhost:{port}", timeout=10) as vm:
            assert vm.query_status().running


def test_a_socket_with_data_inside_tls_does_not_hang(
    face: Face, server: ssl.SSLContext, client: ssl.SSLContext
) -> None:
    # greeting, reply and events come in one record each, many in one read
    with AnyFd(before=b'{"event": "EARLY"}\n' * 5000) as fake, relayed(fake, *PLACES["v4"], server) as address:
        with face.open(address, timeout=10, tls=client) as vm:
            assert vm.event_mark() == 5000
            for _ in range(50):
                vm.execute("query-status", timeout=5)


def test_descriptors_go_over_unix_sockets_only(face: Face, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    for place, context in (("v4", None), ("v4", server), ("abstract", server)):
        tls: dict[str, Any] = {"tls": client, "server_hostname": "localhost"} if context else {}
        with AnyFd() as fake, relayed(fake, *PLACES[place], context) as address:
            with face.open(address, timeout=10, **tls) as vm:
                with pytest.raises(ArgumentError, match="unix socket") as caught:
                    vm.execute("getfd", {"fdname": "a"}, fd=0)
                assert caught.value.field == "fd"
                assert vm.query_status().running
            with MonitorSocket(address, timeout=10, **tls) as raw:
                with pytest.raises(ArgumentError, match="unix socket"):
                    raw.send(b"x", fd=0)


def test_tls_that_cannot_be(face: Face, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    with FakeQemu() as fake, relayed(fake, *PLACES["v4"], server) as address:
        with pytest.raises(ConnectError, match="certificate was not accepted"):
            face.make(address, timeout=5, tls=ssl.create_default_context()).connect()
        with pytest.raises(ConnectError, match=r"certificate was not accepted.*example"):
            face.make(address, timeout=5, tls=client, server_hostname="example.org").connect()
        with pytest.raises(ArgumentError, match="tls"):
            face.make(address, timeout=5, tls=server).connect()
    with pytest.raises(ArgumentError, match="server_hostname"):
        face.make("/x", tls=client)
    with pytest.raises(ArgumentError, match="server_hostname"):
        face.make("localhost:1", server_hostname="x")


def test_a_peer_that_does_not_speak_tls(face: Face, client: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        started = time.monotonic()
        with pytest.raises(ConnectTimeout, match="no TLS handshake within"):
            face.make(plain.getsockname(), timeout=0.3, tls=client).connect()
        assert time.monotonic() - started < 3
        plain.accept()[0].close()
        for answer, problem in (
            (b'{"QMP": {}}\r\n', "TLS: wrong version number"),
            (b"", "left during the TLS handshake"),
        ):

            def serve(answer: bytes = answer) -> None:
                with plain.accept()[0] as peer:
                    peer.recv(65536)
                    peer.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(ConnectError, match=problem):
                face.make(plain.getsockname(), timeout=5, tls=client).connect()
            thread.join(10)


def test_a_certificate_that_the_server_wants(face: Face, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    server.verify_mode = ssl.CERT_REQUIRED  # with TLS 1.3 the client learns of it only after its handshake
    with FakeQemu() as fake, relayed(fake, *PLACES["v4"], server) as address:
        with pytest.raises(ConnectError, match=r"TLS: .*certificate required"):
            face.make(address, timeout=5, tls=client).connect()


def test_nobody_listens(face: Face) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectTimeout, match=rf"127\.0\.0\.1:{port}: Connection refused, for 0\.2 s"):
            face.make(("127.0.0.1", port), timeout=0.2).connect()
    with pytest.raises(ArgumentError, match="port 0"):
        face.make("localhost:0").connect()


def test_a_host_that_is_silent_takes_no_longer_than_the_deadline(face: Face) -> None:
    with socket.socket() as full:  # a backlog that is full drops what comes, as a firewall does
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for sock in (first, second):
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            started = time.monotonic()
            with pytest.raises(ConnectTimeout):
                face.make(full.getsockname(), timeout=0.3).connect()
            assert time.monotonic() - started < 3


def test_a_name_that_takes_too_long_or_is_none(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def slow(host: str, port: int, **options: Any) -> Any:
        if options["flags"]:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        answered.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(monitor_socket.socket, "getaddrinfo", slow)
    with pytest.raises(ConnectTimeout, match=r"was not resolved within 0\.2 s"):
        face.make("vm.example:1", timeout=0.2).connect()
    answered.set()
    with pytest.raises(ConnectError, match="Name or service not known"):
        face.make("vm.example:1", timeout=5).connect()


def test_vsock_that_leads_nowhere(face: Face) -> None:
    with pytest.raises(ConnectError, match="vsock:4000000:1"):
        face.make("vsock:4000000:1", timeout=0.3).connect()


def test_a_socket_that_was_taken_over_once(face: Face) -> None:
    with FakeQemu() as fake:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(fake.path))
        vm = face.make(sock)
        vm.connect()
        vm.close()
        with pytest.raises(ConnectError, match="Bad file descriptor"):
            vm.connect()


# -- the wire of TLS by itself -----------------------------------------------


def test_tls_wire_owes_the_last_byte_until_all_has_left(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    message = bytes(range(256)) * 4096
    got = bytearray()

    def peer() -> None:
        with server.wrap_socket(theirs, server_side=True) as end:
            start.wait(10)
            while len(got) < len(message):
                got.extend(end.recv(65536))
            end.sendall(b"bye")
            end.unwrap()

    start = threading.Event()
    thread = threading.Thread(target=peer)
    thread.start()
    with MonitorSocket(ours, timeout=10, tls=client, server_hostname="localhost") as monitor:
        wire = monitor._connected()
        assert isinstance(wire, TlsWire)
        count = wire.send(message)
        assert 0 < count < len(message)
        assert wire.send(message[count:]) == 0
        with pytest.raises(MonitorTimeout):
            monitor.send(message[count:], timeout=0.05)
        start.set()
        monitor.send(message[count:])
        assert monitor.recv() == b"bye"
        assert monitor.recv() == b"", "the peer's goodbye is the end, though its socket is open"
    thread.join(10)  # it waits for ours
    assert got == message
