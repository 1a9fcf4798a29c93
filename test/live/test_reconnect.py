"""Reconnecting to real QEMUs: killed and started again, cut off, held by another client, over each kind of socket."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection, Reconnect
from drover.errors import ConnectionClosed, ConnectTimeout
from drover.monitor.human import HumanMonitor
from drover.qmp.events import RECONNECTED
from faces import FACES, Face
from machines import qemu_of

pytestmark = pytest.mark.live

QUICK = Reconnect(longest=0.1, give_up=30)
BARE = ["-machine", "none", "-nodefaults", "-display", "none", "-S"]


class Qemu:
    """A QEMU without a machine that can be killed and started again at the same monitor."""

    def __init__(self, version: str, monitor: str, kind: str = "-qmp") -> None:
        self.command = [str(qemu_of(version)), *BARE, kind, f"{monitor},server=on,wait=off"]
        self.process = subprocess.Popen(self.command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)


@pytest.fixture(params=["7.2", "10.0"])
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Qemu]:
    qemu = Qemu(request.param, f"unix:{tmp_path / 'qmp'}")
    yield qemu
    qemu.kill()


@pytest.fixture(params=["blocking", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = FACES[request.param]()
    yield face
    face.close()


def marks(vm: Any) -> list[dict[str, Any]]:
    return [event.data for event in vm.event_log if event.name == RECONNECTED]


def cut(vm: QmpConnection) -> None:
    """End the connection as a network would: neither QEMU nor this object was asked."""
    vm._connected().hang_up()


def test_qemu_is_killed_and_started_again(qemu: Qemu, face: Face, tmp_path: Path) -> None:
    with face.open(tmp_path / "qmp", reconnect=QUICK) as vm:
        assert vm.query_status().status == "prelaunch"
        qemu.kill()
        starter = threading.Timer(0.5, qemu.start)
        starter.start()
        assert vm.query_status().status == "prelaunch"
        starter.join()
        assert [mark["same-process"] for mark in marks(vm)] == [False]


def test_the_connection_is_cut(qemu: Qemu, tmp_path: Path) -> None:
    with QmpConnection(tmp_path / "qmp", reconnect=QUICK) as vm:
        cut(vm)
        assert vm.query_status().status == "prelaunch"
        assert [mark["same-process"] for mark in marks(vm)] == [True]


def test_qemu_dies_while_a_command_waits(qemu: Qemu, face: Face, tmp_path: Path) -> None:
    with face.open(tmp_path / "qmp", reconnect=QUICK) as vm:
        os.kill(qemu.process.pid, signal.SIGSTOP)
        killer = threading.Timer(0.3, qemu.kill)
        killer.start()
        with pytest.raises(ConnectionClosed) as caught:
            vm.execute("stop", timeout=30)
        assert caught.value.in_flight == ("stop",)
        killer.join()
        qemu.start()
        assert vm.query_status().status == "prelaunch"  # a stop that was sent again would have made it another
        assert [mark["in-flight"] for mark in marks(vm)] == [["stop"]]


def test_another_client_took_the_monitor(qemu: Qemu, tmp_path: Path) -> None:
    """QEMU serves one at a time: while the other one is there we wait, and are served when he leaves."""
    path = tmp_path / "qmp"
    with QmpConnection(path, reconnect=Reconnect(longest=0.1, give_up=0.5)) as vm:
        vm.query_status()
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(path))  # waits in QEMU's queue, and is next
        cut(vm)
        with pytest.raises(ConnectTimeout, match="another client may hold"):
            vm.query_status()
        other.close()
        assert vm.query_status().status == "prelaunch"


def test_over_tcp(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    qemu = Qemu("10.0", f"tcp:127.0.0.1:{port}")
    try:
        with QmpConnection(("127.0.0.1", port), reconnect=QUICK) as vm:
            assert vm.query_status().status == "prelaunch"
            qemu.kill()
            qemu.start()
            assert vm.query_status().status == "prelaunch"
            assert [mark["same-process"] for mark in marks(vm)] == [None]
    finally:
        qemu.kill()


def test_the_text_monitor(tmp_path: Path) -> None:
    qemu = Qemu("7.2", f"unix:{tmp_path / 'hmp'}", "-monitor")
    try:
        with HumanMonitor(tmp_path / "hmp", reconnect=QUICK) as hmp:
            assert hmp.status().status == "prelaunch"
            qemu.kill()
            qemu.start()
            assert hmp.status().status == "prelaunch"
            assert hmp.version[:2] == (7, 2)
    finally:
        qemu.kill()


def test_a_reader_of_events_hears_of_the_next_qemu(qemu: Qemu, tmp_path: Path) -> None:
    with QmpConnection(tmp_path / "qmp", reconnect=QUICK) as vm:
        seen: list[tuple[int, str]] = []

        def read() -> None:
            for event in vm.events(timeout=60):
                seen.append((event.number, event.name))
                if event.name == "SHUTDOWN" and len(seen) > 2:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        vm.quit()
        qemu.process.wait()
        qemu.start()
        deadline = time.monotonic() + 30
        while RECONNECTED not in [name for _, name in seen] and time.monotonic() < deadline:
            time.sleep(0.01)
        vm.quit()
        reader.join(30)
        assert seen == [(1, "SHUTDOWN"), (2, RECONNECTED), (3, "SHUTDOWN")]
