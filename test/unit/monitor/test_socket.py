"""The socket below the protocol: deadlines, descriptors, and whose it is."""

import array
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover import MonitorSocket, QmpConnection
from drover.errors import ConnectionClosed, MonitorTimeout
from drover.testing.fake import FakeQemu
from faces import Face


@pytest.fixture
def ends() -> Iterator[tuple[MonitorSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with MonitorSocket(ours, timeout=5) as monitor, theirs:
        yield monitor, theirs


def test_bytes_both_ways_and_the_end(ends: tuple[MonitorSocket, socket.socket]) -> None:
    monitor, peer = ends
    monitor.send(b"ping")
    assert peer.recv(10) == b"ping"
    peer.sendall(b"pong")
    assert monitor.recv() == b"pong"
    peer.close()
    assert monitor.recv() == b""


def test_one_descriptor_goes_with_the_first_byte(ends: tuple[MonitorSocket, socket.socket]) -> None:
    monitor, peer = ends
    fd = os.open("/dev/null", os.O_RDONLY)
    monitor.send(b"abc", fd)
    os.close(fd)
    data, ancillary, _, _ = peer.recvmsg(10, socket.CMSG_SPACE(16))
    assert data == b"abc"
    received = array.array("i")
    for level, kind, rights in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        received.frombytes(rights)
    assert len(received) == 1
    assert os.path.sameopenfile(received[0], received[0])
    os.close(received[0])


def test_deadlines(ends: tuple[MonitorSocket, socket.socket]) -> None:
    monitor, _ = ends
    with pytest.raises(MonitorTimeout, match="read"):
        monitor.recv(timeout=0.05)
    with pytest.raises(MonitorTimeout, match="send"):
        monitor.send(bytes(100_000_000), timeout=0.05)


def test_a_big_send_to_a_slow_reader(ends: tuple[MonitorSocket, socket.socket]) -> None:
    monitor, peer = ends
    got = bytearray()

    def read() -> None:
        while len(got) < 10_000_000:
            got.extend(peer.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    monitor.send(bytes(range(250)) * 40_000)
    reader.join(30)
    assert got == bytes(range(250)) * 40_000


def test_life(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        monitor = MonitorSocket(tmp_path / "s")
        assert not monitor.is_connected()
        for call in (monitor.fileno, monitor.recv, lambda: monitor.send(b"x")):
            with pytest.raises(ConnectionClosed, match="not connected"):
                call()
        with monitor:
            assert monitor.is_connected()
            assert monitor.fileno() > 2
        assert not monitor.is_connected()
        monitor.close()


def test_a_qmp_connection_is_a_monitor_socket() -> None:
    with FakeQemu() as fake:
        vm = QmpConnection(fake.path)
        assert isinstance(vm, MonitorSocket)
        with pytest.raises(ConnectionClosed):
            vm.fileno()
        with vm:
            assert vm.fileno() > 2


def test_what_broke_the_stream_is_why_it_closed(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        link = getattr(vm, "vm", vm)._link
        link.wire.fault = "the peer's certificate has run out"
        fake.hang_up()
        with pytest.raises(ConnectionClosed, match="certificate has run out"):
            vm.wait_event("NEVER", timeout=10)
