"""What goes wrong on a connection in Ganeti, and goes right here; against a server that misbehaves on demand."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.compat.ganeti import (
    HypervisorError,
    MonitorSocket,
    ProgrammerError,
    QemuMonitorSocket,
    QmpCommandNotSupported,
    QmpConnection,
    QmpMessage,
    QmpTimeoutError,
    UnixFileSocketConnection,
)
from drover.errors import CommandError
from drover.testing.fake import Do, FakeQemu


@pytest.fixture
def fake() -> Iterator[FakeQemu]:
    with FakeQemu() as fake:
        yield fake


@pytest.fixture
def vm(fake: FakeQemu) -> Iterator[QmpConnection]:
    with QmpConnection(str(fake.path)) as vm:
        yield vm


def hold(*commands: str) -> Any:
    return lambda command, _: Do.HOLD if command in commands else None


# -- connecting ----------------------------------------------------------


def test_connect_asks_two_things(fake: FakeQemu, vm: QmpConnection) -> None:
    assert fake.commands == ["qmp_capabilities", "query-commands"]
    assert (vm.version, vm.package, vm.GetVersion()) == ((7, 2, 22), "fake", (7, 2, 22))
    assert "query-status" in (vm.supported_commands or ())


@pytest.mark.parametrize("face", [QmpConnection, MonitorSocket])
def test_nobody_there_is_a_hypervisor_error_at_once(face: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(HypervisorError, match="No such file"):
        face(str(tmp_path / "none")).connect()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(HypervisorError, match="refused"):
        face(str(tmp_path / "s")).connect()
    assert time.monotonic() - started < 2


def test_a_full_backlog_is_waited_out(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)

        def accept() -> None:
            time.sleep(0.1)
            server.accept()[0].close()

        timer = threading.Thread(target=accept)
        timer.start()
        with MonitorSocket(path) as line:
            assert line.is_connected()
        timer.join()


def test_no_greeting_is_a_timeout_and_leaves_no_connection() -> None:
    with FakeQemu(silent=True) as fake:
        vm = QmpConnection(str(fake.path))
        vm.timeout = 0.2
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(QmpTimeoutError, match="another client"):
            vm.connect()
        assert not vm.is_connected()
        deadline = time.monotonic() + 5  # for the fake to close its end
        while len(os.listdir("/proc/self/fd")) != before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("answer", [b'{"return": {}}\r\n', b"hello\r\n"])
def test_a_wrong_greeting_leaves_no_connection(answer: bytes) -> None:
    with FakeQemu(silent=True, before=answer) as fake:
        vm = QmpConnection(str(fake.path))
        with pytest.raises(HypervisorError):
            vm.connect()
        assert not vm.is_connected()


def test_an_event_before_the_greeting_is_kept() -> None:
    with FakeQemu(before=b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n') as fake:
        with QmpConnection(str(fake.path)) as vm:
            event = vm.wait_for_qmp_event(["STOP"], 1)
            assert event is not None
            assert event.timestamp == (1, 2)


def test_a_method_connects_for_the_call(fake: FakeQemu) -> None:
    vm = QmpConnection(str(fake.path))
    vm.StopGuestEmulation()
    assert not vm.is_connected()
    vm.connect()
    vm.ContinueGuestEmulation()
    assert vm.is_connected()
    assert fake.model.status == "running"
    vm.close()
    assert fake.commands.count("qmp_capabilities") == 2


def test_unconnected_is_the_callers_error(fake: FakeQemu) -> None:
    for call in (lambda vm: vm.execute_qmp("stop"), lambda vm: vm.recv_qmp(), lambda vm: vm.send(b"x")):
        with pytest.raises(ProgrammerError, match="invoke connect"):
            call(QmpConnection(str(fake.path)))


# -- the end -------------------------------------------------------------


def test_the_end_in_a_command_is_a_hypervisor_error(fake: FakeQemu, vm: QmpConnection) -> None:
    fake.script = lambda command, _: Do.HANG_UP if command == "stop" else None
    with pytest.raises(HypervisorError, match="unanswered: stop"):
        vm.execute_qmp("stop")
    with pytest.raises(HypervisorError):  # Ganeti: BrokenPipeError
        vm.execute_qmp("cont")
    assert not vm.is_connected()


def test_the_end_of_a_wait_is_a_hypervisor_error(fake: FakeQemu, vm: QmpConnection) -> None:
    fake.hang_up()
    with pytest.raises(HypervisorError):
        vm.wait_for_qmp_event(["STOP"], 5)
    with pytest.raises(HypervisorError):  # Ganeti: None
        vm.recv_qmp()


def test_after_the_end_a_method_connects_anew(fake: FakeQemu, vm: QmpConnection) -> None:
    fake.hang_up()
    with pytest.raises(HypervisorError):
        vm.recv_qmp()
    vm.StopGuestEmulation()
    assert fake.model.status == "paused"


# -- commands ------------------------------------------------------------


def test_errors(fake: FakeQemu, vm: QmpConnection) -> None:
    with pytest.raises(QmpCommandNotSupported, match="does not support the 'nonsense' QMP"):
        vm.Execute("nonsense")
    assert "nonsense" not in fake.commands
    with pytest.raises(HypervisorError) as info:
        vm.execute_qmp("netdev_del", {"id": "n9"})
    assert str(info.value) == "kvm: error executing the netdev_del command: Device 'n9' not found (DeviceNotFound):"
    cause = info.value.__cause__
    assert isinstance(cause, CommandError)
    assert cause.error_class == "DeviceNotFound"
    with pytest.raises(ProgrammerError):
        vm.execute_qmp("stop", {"x": object()})


def test_a_late_reply_is_not_the_next_commands(fake: FakeQemu, vm: QmpConnection) -> None:
    fake.script = hold("query-status")
    vm.timeout = 0.2
    with pytest.raises(QmpTimeoutError):
        vm.execute_qmp("query-status")
    vm.timeout = 5
    fake.script = None
    threading.Timer(0.1, fake.release).start()
    assert vm.execute_qmp("query-version")["package"] == "model"
    vm.timeout = 0.1
    with pytest.raises(QmpTimeoutError):
        vm.recv_qmp()


def test_a_timeout_that_was_set_holds_for_slow_commands_too(fake: FakeQemu, vm: QmpConnection) -> None:
    fake.script = hold("stop")
    vm.timeout = 0.2
    started = time.monotonic()
    with pytest.raises(QmpTimeoutError):
        vm.StopGuestEmulation()
    assert time.monotonic() - started < 5


def test_passwords_are_not_logged(fake: FakeQemu, vm: QmpConnection, caplog: pytest.LogCaptureFixture) -> None:
    fake.script = lambda command, _: Do.REFUSE
    caplog.set_level(logging.DEBUG)
    for call in (vm.SetVNCPassword, vm.SetSpicePassword):
        with pytest.raises(HypervisorError):
            call("s3cret")
    assert "set_password" in caplog.text
    assert "s3cret" not in caplog.text


# -- events --------------------------------------------------------------


def test_events_are_kept_while_commands_run(vm: QmpConnection) -> None:
    for _ in range(2):
        vm.StopGuestEmulation()
        vm.ContinueGuestEmulation()
    for name in ("RESUME", "STOP", "STOP", "RESUME"):
        event = vm.wait_for_qmp_event([name], 0)
        assert event is not None
        assert event.event_type == name
        assert event["device"] is None
    assert vm.wait_for_qmp_event(["RESUME", "STOP"], 0) is None


def test_other_events_do_not_prolong_a_wait(fake: FakeQemu, vm: QmpConnection) -> None:
    enough = threading.Event()

    def traffic() -> None:
        for _ in range(250):  # five seconds
            fake.event("RTC_CHANGE")
            if enough.wait(0.02):
                return

    thread = threading.Thread(target=traffic)
    thread.start()
    started = time.monotonic()
    assert vm.wait_for_qmp_event(["STOP"], 0.2) is None
    assert time.monotonic() - started < 3
    enough.set()
    thread.join()


def test_raw_messages(fake: FakeQemu, vm: QmpConnection) -> None:
    vm.send_qmp(QmpMessage({"execute": "stop"}))
    stop, reply = vm.recv_qmp(), vm.recv_qmp()
    assert (stop["event"], reply.data) == ("STOP", {"return": {}})
    vm.send_qmp(QmpMessage({"execute": "query-status", "id": "mine"}))
    assert vm.get_qmp_response("query-status")["status"] == "paused"
    vm.send_qmp(QmpMessage({"execute": "netdev_del", "arguments": {"id": "n9"}}))
    with pytest.raises(HypervisorError, match="executing the netdev_del command: Device 'n9'"):
        vm.get_qmp_response("netdev_del")


def test_replies_in_pieces() -> None:
    with FakeQemu(cut=lambda data: (data[n : n + 1] for n in range(len(data)))) as fake:
        fake.model.execute = lambda command, *_: [] if command == "query-commands" else {}  # type: ignore[method-assign]
        with QmpConnection(str(fake.path)) as vm:
            assert vm.supported_commands == frozenset()


# -- the sockets below ---------------------------------------------------


def test_a_qmp_socket_sends_and_reads_nothing_of_its_own(fake: FakeQemu) -> None:
    with QemuMonitorSocket(str(fake.path), 5) as raw:
        assert raw.recv_qmp()["QMP"]["version"]["package"] == "fake"
        assert raw.execute_qmp("qmp_capabilities") == {}
        assert raw.execute_qmp("stop", {}) == {}
        event = raw.wait_for_qmp_event(["STOP"], 0)
        assert event is not None
        fake.script = hold("query-status")
        raw.timeout = 0.2
        with pytest.raises(QmpTimeoutError):
            raw.execute_qmp("query-status")
        raw.timeout = 5
        fake.release()
        assert raw.execute_qmp("query-version")["package"] == "model"
        with pytest.raises(HypervisorError, match="not found"):
            raw.execute_qmp("netdev_del", {"id": "n9"})
        assert raw.wait_for_qmp_event(["RESUME"], 0.05) is None
        fake.hang_up()
        with pytest.raises(HypervisorError, match="has closed"):
            raw.recv_qmp()
        assert not raw.is_connected()


def test_bytes(fake: FakeQemu) -> None:
    with UnixFileSocketConnection(str(fake.path), 5) as line:
        assert line.is_connected()
        assert line.recv(5) == b'{"QMP'
        assert line.recv(1) == b'"'
        line.recv(4096)
        line.send(b'{"execute": "qmp_capabilities"}\n')
        assert json.loads(line.recv(4096)) == {"return": {}}
        line.timeout = 0.1
        with pytest.raises(TimeoutError):
            line.recv(1)
        line.reset_timeout()
        assert line.sock is not None
        assert line.sock.gettimeout() == 0.1
        fake.hang_up()
        assert line.recv(1) == b""
    assert not line.is_connected()
    line.close()
