"""Both faces over a real socket, against a server that misbehaves on demand."""

import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from drover.errors import (
    ArgumentError,
    CommandError,
    CommandNotSupported,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    MonitorTimeout,
    NoFreeSlot,
    ProtocolError,
)
from drover.testing.fake import Do, FakeQemu
from drover.testing.model import QemuModel
from faces import Face


def hold(*names: str) -> Any:
    return lambda command, arguments: Do.HOLD if command in names else None


def test_connect_tells_version_and_commands(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        assert vm.is_connected()
        assert vm.version == (7, 2, 22)
        assert vm.package == "fake"
        assert {"query-status", "device_add"} <= vm.supported_commands
        assert vm.execute("query-status") == {"running": True, "status": "running"}
        vm.close()
        assert not vm.is_connected()
        assert vm.version == (7, 2, 22)


@pytest.mark.parametrize("options", [{"pretty": True}, {"echo_ids": False}, {"capabilities": []}])
def test_servers_of_all_kinds(face: Face, options: dict[str, Any]) -> None:
    with FakeQemu(**options) as fake, face.open(fake.path) as vm:
        assert vm.query_status().status == "running"
        assert vm.query_schema().has_command("migrate")
        with pytest.raises(CommandError) as caught:
            vm.execute("closefd", {"fdname": "x"})
        assert caught.value.error_class == "GenericError"


def test_bytes_cut_anywhere(face: Face) -> None:
    chance = random.Random(1)

    def cut(data: bytes) -> list[bytes]:
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(5))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    with FakeQemu(cut=cut) as fake, face.open(fake.path) as vm:
        mark = vm.event_mark()
        for _ in range(50):
            vm.stop()
            vm.cont()
        assert vm.wait_event("RESUME", since=mark + 99, timeout=5).number == 100


def test_a_socket_that_appears_later(face: Face, tmp_path: Path) -> None:
    with FakeQemu() as fake:
        link = tmp_path / "s"
        timer = threading.Timer(0.2, lambda: link.symlink_to(fake.path))
        timer.start()
        with face.open(link, timeout=10) as vm:
            assert vm.is_connected()
        timer.join()


def test_a_socket_that_is_bound_and_not_listened_on(face: Face, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        started = time.monotonic()
        with pytest.raises(ConnectTimeout, match="refused"):
            face.make(tmp_path / "s", timeout=0.3).connect()
        assert time.monotonic() - started < 5


def test_nobody_there(face: Face, tmp_path: Path) -> None:
    vm = face.make(tmp_path / "none", timeout=0.1)
    with pytest.raises(ConnectError, match="none: No such file") as caught:
        vm.connect()
    assert isinstance(caught.value, MonitorTimeout)
    with pytest.raises(ConnectError, match="too long"):
        face.make("/" + "x" * 200, timeout=5).connect()


def test_no_greeting_says_that_another_client_may_be_there(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path):
        second = face.make(fake.path, timeout=0.2)
        with pytest.raises(ConnectTimeout, match="another client"):
            second.connect()
        assert not second.is_connected()


def test_the_end_while_greeting(face: Face) -> None:
    with FakeQemu(silent=True) as fake:
        timer = threading.Timer(0.1, fake.hang_up)
        timer.start()
        with pytest.raises(ConnectError, match="closed"):
            face.make(fake.path, timeout=5).connect()
        timer.join()


def test_no_qmp_monitor_at_all(face: Face) -> None:
    with FakeQemu(silent=True, before=b"SSH-2.0-OpenSSH_9.2\r\n") as fake:
        with pytest.raises(ProtocolError, match=r"SSH-2\.0"):
            face.make(fake.path, timeout=5).connect()


def test_a_connected_socket_and_a_descriptor(face: Face) -> None:
    with FakeQemu() as fake:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(fake.path))
        with face.open(connected) as vm:
            assert vm.query_status().running
        assert connected.fileno() == -1
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(fake.path))
        with face.open(connected.detach()) as vm:
            assert vm.query_status().running
    with pytest.raises(ArgumentError, match="descriptor"):
        face.make(10**6).connect()


def test_unconnected_verbs_connect_for_the_call(face: Face) -> None:
    with FakeQemu() as fake:
        vm = face.make(fake.path)
        assert vm.query_status().running
        assert not vm.is_connected()
        assert vm.query_status().running
        assert fake.commands.count("qmp_capabilities") == 2
        vm.connect()
        assert vm.query_status().running
        assert vm.is_connected()
        vm.close()


def test_a_lost_connection_is_told_and_not_quietly_made_again(face: Face) -> None:
    with FakeQemu(script=lambda command, _: Do.HANG_UP if command == "stop" else None) as fake:
        with face.open(fake.path) as vm:
            with pytest.raises(ConnectionClosed) as caught:
                vm.stop()
            assert caught.value.in_flight == ("stop",)
            assert not vm.is_connected()
            with pytest.raises(ConnectionClosed):
                vm.query_status()
            with pytest.raises(ConnectionClosed):
                vm.wait_event("STOP", timeout=5)
            vm.connect()
            assert vm.query_status().running


def test_timeout_leaves_the_connection_and_the_late_reply_is_dropped(face: Face) -> None:
    with FakeQemu(script=hold("stop")) as fake, face.open(fake.path) as vm:
        with pytest.raises(MonitorTimeout, match=r"stop: no answer within 0\.1 s"):
            vm.execute("stop", timeout=0.1)
        fake.release()
        assert vm.execute("query-status") == {"running": False, "status": "paused"}


def test_the_connections_timeout_is_the_default(face: Face) -> None:
    with FakeQemu(script=hold("query-status")) as fake, face.open(fake.path, timeout=0.2) as vm:
        with pytest.raises(MonitorTimeout, match=r"0\.2 s"):
            vm.query_status()


def test_an_event_before_the_reply_is_not_missed(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        mark = vm.event_mark()
        vm.execute("stop")
        event = vm.wait_event("STOP", since=mark, timeout=5)
        assert (event.name, event.data, event.number) == ("STOP", {}, mark + 1)
        with pytest.raises(MonitorTimeout):
            vm.wait_event("STOP", since=event.number, timeout=0.05)
        with pytest.raises(MonitorTimeout):
            vm.wait_event("STOP", timeout=0.05)


def test_waiters_are_woken_by_the_end(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        timer = threading.Timer(0.1, fake.hang_up)
        timer.start()
        with pytest.raises(ConnectionClosed):
            vm.wait_event("NEVER", timeout=30)
        timer.join()


def test_events_end_with_the_connection(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        events = vm.events("STOP", "RESUME")
        vm.stop()
        fake.event("OTHER")
        vm.cont()
        fake.hang_up()
        assert [next(events).name, next(events).name] == ["STOP", "RESUME"]
        with pytest.raises(ConnectionClosed):
            next(events)


def test_numbers_of_events_go_on_over_connections(face: Face) -> None:
    with FakeQemu(before=b'{"event": "EARLY"}\n') as fake:
        vm = face.make(fake.path)
        for number in (1, 2):
            vm.connect()
            assert vm.event_mark() == number
            vm.close()


def test_an_oversized_reply_fails_this_connection_only(face: Face) -> None:
    with FakeQemu() as fake:
        with face.open(fake.path, limit=50_000) as vm:
            with pytest.raises(ProtocolError, match="limit of 50000 bytes"):
                vm.execute("query-qmp-schema")
            assert not vm.is_connected()
        with face.open(fake.path) as vm:
            assert len(vm.execute("query-qmp-schema")) > 1000


def test_a_descriptor_goes_with_its_commands_own_bytes(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        fd = os.open("/dev/null", os.O_RDONLY)
        vm.execute("getfd", {"fdname": "a"}, fd=fd)
        vm.execute("query-status")
        os.close(fd)
        assert fake.fds == [("getfd", 1)]
        assert fake.model.fds == {"a"}


def test_a_closed_descriptor_fails_its_own_call_only(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        with pytest.raises(ArgumentError, match="an open descriptor"):
            vm.execute("getfd", {"fdname": "a"}, fd=10**6)
        assert vm.query_status().running
        vm.execute("getfd", {"fdname": "b"}, fd=0)
        assert fake.model.fds == {"b"}


def test_many_commands_at_once_keep_their_order(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        results = vm.execute_many([("stop", None), ("query-status", None), ("cont", None), ("query-status", None)] * 10)
        assert [result["running"] for result in results[1::2]] == [False, True] * 10
        with pytest.raises(CommandError):
            vm.execute_many([("closefd", {"fdname": "x"}), ("stop", None)])
        assert fake.model.status == "paused"


def test_unknown_commands(face: Face) -> None:
    def script(command: str, _: Any) -> Do | None:
        return Do.REFUSE if command == "nope" else None

    with FakeQemu(script=script) as fake, face.open(fake.path) as vm:
        with pytest.raises(CommandError, match="scripted refusal"):
            vm.execute("nope")
    error = CommandNotSupported("x", "CommandNotFound", "no")
    assert isinstance(error, CommandError)


def test_big_arguments_go_through_a_small_socket_buffer(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        name = "n" * 4_000_000
        vm.execute("getfd", {"fdname": name}, fd=0)
        assert fake.model.fds == {name}


def test_quit_waits_for_the_end(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path) as vm:
        vm.quit(timeout=5)
        assert not vm.is_connected()
        assert fake.model.status == "shutdown"


def test_quit_that_does_not_end_is_told(face: Face) -> None:
    with FakeQemu(script=lambda c, _: Do.IGNORE if c == "quit" else None) as fake, face.open(fake.path) as vm:
        with pytest.raises(MonitorTimeout):
            vm.quit(timeout=0.1)


def test_full_buses_are_named(face: Face, tmp_path: Path) -> None:
    image = tmp_path / "i"
    image.write_bytes(bytes(4096))
    with FakeQemu() as fake, face.open(fake.path) as vm:
        for number in range(2):
            vm.hot_add_disk(image, id=f"d{number}", cache="writeback")
        before = fake.model.left()
        with pytest.raises(NoFreeSlot, match=r"rp0 \(1 of 1 used\), rp1 \(1 of 1 used\)") as caught:
            vm.hot_add_disk(image, id="d2", cache="writeback")
        assert caught.value.full == {"rp0": 1, "rp1": 1}
        assert fake.model.left() == before


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_the_schema_is_asked_once_for_a_connection(face: Face, version: str) -> None:
    with FakeQemu(QemuModel(version=version)) as fake, face.open(fake.path) as vm:
        first = vm.query_schema()
        assert vm.query_schema() is first
        assert first.has_argument("migrate", "channels") == (version == "10.0")
        assert fake.commands.count("query-qmp-schema") == 1


def test_an_event_that_came_before_the_end_is_found_after_it(face: Face) -> None:
    """Such as the SHUTDOWN of a machine that has gone meanwhile."""
    with FakeQemu() as fake, face.open(fake.path) as vm:
        mark = vm.event_mark()
        fake.event("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        fake.hang_up()
        with pytest.raises(ConnectionClosed):
            vm.wait_event("NEVER", timeout=10)
        assert vm.wait_event("SHUTDOWN", since=mark, timeout=10).number == 1
        with pytest.raises(ConnectionClosed):
            vm.wait_event("SHUTDOWN", since=1, timeout=10)
        with pytest.raises(ConnectionClosed):
            vm.wait_event("SHUTDOWN", timeout=10)
