"""Where QEMUMonitorProtocol differs from the peer on purpose: one test for each line of the page."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover.compat.qmp import ExecInterruptedError, ExecuteError, QMPError, StateError
from drover.compat.qmp.error import QMPTimeoutError
from drover.compat.qmp.events import ListenerEndedError
from drover.compat.qmp.legacy import QEMUMonitorProtocol, QMPBadPortError
from drover.compat.qmp.protocol import ConnectError
from drover.testing.fake import Do, FakeQemu
from drover.testing.recorded import recorded_schema


@contextmanager
def connected(**options: Any) -> Iterator[tuple[QEMUMonitorProtocol, FakeQemu]]:
    with FakeQemu(**options) as fake:
        vm = QEMUMonitorProtocol(str(fake.path))
        vm.connect()
        try:
            yield vm, fake
        finally:
            try:
                vm.close()
            except EOFError:
                pass


def test_both_meanings_of_cmd() -> None:
    with connected() as (vm, _):
        value = vm.cmd("query-status")
        whole = {"return": value}
        assert value == vm.cmd(cmd="query-status") == vm.command("query-status")
        assert whole == vm.cmd("query-status", None) == vm.cmd("query-status", {}) == vm.cmd("query-status", args={})
        assert vm.cmd("query-status", None, 7) == vm.cmd(name="query-status", cmd_id=7) == {**whole, "id": 7}
        assert vm.cmd("query-status", {}, {"a": [1]}) == {**whole, "id": {"a": [1]}}


def test_refusals_in_both_meanings_of_cmd() -> None:
    with connected(script=lambda command, arguments: Do.REFUSE if command == "stop" else None) as (vm, _):
        refusal = {"error": {"class": "GenericError", "desc": "scripted refusal"}}
        assert vm.cmd("stop", {}) == vm.cmd_raw("stop") == vm.cmd_obj({"execute": "stop"}) == refusal
        for call in (vm.cmd, vm.command):
            with pytest.raises(ExecuteError, match="^scripted refusal$"):
                call("stop")


def test_an_argument_may_be_named_like_a_parameter() -> None:
    with connected(script=lambda command, arguments: Do.REFUSE) as (vm, _):
        with pytest.raises(ExecuteError) as error:
            vm.cmd("x", cmd="a", name="b")
        assert error.value.sent["arguments"] == {"cmd": "a", "name": "b"}


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_no_command_has_the_arguments_that_mean_the_old_cmd(version: str) -> None:
    entities = {entity["name"]: entity for entity in recorded_schema(version)}
    commands = [entity for entity in entities.values() if entity["meta-type"] == "command"]
    for command in commands:
        names = {member["name"] for member in entities[command["arg-type"]].get("members", ())}
        assert not names & {"args", "cmd_id"}


@pytest.mark.parametrize("wait", [1, 0.3])
def test_waits_are_seconds_whatever_kind_of_number(wait: float) -> None:
    with connected() as (vm, _):
        started = time.monotonic()
        with pytest.raises(QMPTimeoutError) as late:
            vm.pull_event(wait=wait)
        assert wait <= time.monotonic() - started < wait + 1
        assert isinstance(late.value, asyncio.TimeoutError)
        assert isinstance(late.value, QMPError)
        with pytest.raises(QMPTimeoutError):
            vm.get_events(wait=0.01)


def test_a_poll_takes_what_has_come_though_no_command_runs() -> None:
    with connected() as (vm, fake):
        for _ in range(3000):
            fake.event("STOP")
        first = vm.pull_event(wait=5)
        assert first is not None
        count = 1
        deadline = time.monotonic() + 5
        while count < 3000 and time.monotonic() < deadline:
            count += len(vm.get_events())
        assert count == 3000
        assert vm.lost_events == 0


def test_who_waits_for_an_event_learns_that_the_server_went() -> None:
    with connected() as (vm, fake):
        threading.Timer(0.05, fake.hang_up).start()
        with pytest.raises(ListenerEndedError):
            vm.pull_event(wait=True)
        assert vm.get_events() == []
        with pytest.raises(StateError):
            vm.cmd("query-status")
        with pytest.raises(EOFError):
            vm.close()
        vm.close()
        with pytest.raises(StateError):
            vm.pull_event(wait=True)


def test_close_after_quit_is_quiet() -> None:
    with connected() as (vm, _):
        vm.cmd("quit")
        assert [event["event"] for event in vm.get_events(wait=5)] == ["SHUTDOWN"]
        with pytest.raises(ListenerEndedError):
            vm.pull_event(wait=5)
        vm.close()


def test_a_command_without_answer_ends_in_time_and_its_late_answer_is_dropped() -> None:
    with connected(script=lambda command, arguments: Do.HOLD if command == "stop" else None) as (vm, fake):
        vm.settimeout(0.05)
        with pytest.raises(QMPTimeoutError):
            vm.cmd("stop")
        fake.release()
        vm.settimeout(5)
        assert vm.cmd("query-status")


def test_a_command_whose_server_goes() -> None:
    with connected(script=lambda command, arguments: Do.HANG_UP) as (vm, _):
        with pytest.raises(ExecInterruptedError) as error:
            vm.cmd("stop")
        assert error.value.__cause__ is not None


def test_connecting_ends_in_time_when_asked_to() -> None:
    with FakeQemu(silent=True) as fake:
        vm = QEMUMonitorProtocol(str(fake.path))
        vm.settimeout(0.05)
        with pytest.raises(ConnectError) as error:
            vm.connect()
        assert isinstance(error.value.exc, TimeoutError)


def test_a_greeting_that_nobody_waits_for_is_no_reply() -> None:
    with FakeQemu() as fake, QEMUMonitorProtocol(str(fake.path)) as vm:
        for _ in range(20):
            assert vm.connect(negotiate=False) is None
            assert vm.cmd_raw("qmp_capabilities") == {"return": {}}
            vm.close()


def test_inside_of_a_running_loop_and_without_touching_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with connected() as (vm, _):
            assert vm.cmd("query-status")
            assert asyncio.get_running_loop() is loop

    asyncio.run(main())


def test_many_threads_at_once() -> None:
    with connected() as (vm, fake), ThreadPoolExecutor(5) as pool:
        waiting = pool.submit(vm.pull_event, True)
        answers = [pool.submit(lambda: [vm.cmd("query-status") for _ in range(50)]) for _ in range(4)]
        assert all(len(answer.result(10)) == 50 for answer in answers)
        fake.event("STOP")
        event = waiting.result(10)
        assert event is not None
        assert event["event"] == "STOP"


def test_events_of_an_earlier_session_are_not_read_in_the_next() -> None:
    with connected() as (vm, fake):
        fake.event("STOP")
        while not vm.cmd("query-status") or not vm._inbox.total:
            pass
        vm.close()
        vm.connect()
        assert vm.get_events() == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:4444", ("::1", 4444)),
        ("localhost:4444", ("localhost", 4444)),
        ("dir/a:b.sock", "dir/a:b.sock"),
        ("/run/vm:1", "/run/vm:1"),
        ("::1", "::1"),
        ("plain", "plain"),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert QEMUMonitorProtocol.parse_address(text) == address


@pytest.mark.parametrize("text", ["host:", "host:http", "[::1]:x", "host:-1"])
def test_addresses_with_a_wrong_port(text: str) -> None:
    with pytest.raises(QMPBadPortError, match="Bad port"):
        QEMUMonitorProtocol.parse_address(text)


def test_a_path_with_a_colon_and_one_over_ipv6_connect(tmp_path: Path) -> None:
    for family, place in ((socket.AF_UNIX, str(tmp_path / "a:b")), (socket.AF_INET6, ("::1", 0))):
        with socket.socket(family) as listener:
            listener.bind(place)
            listener.listen()
            name = listener.getsockname()
            text = name if isinstance(name, str) else f"[{name[0]}]:{name[1]}"
            vm = QEMUMonitorProtocol(QEMUMonitorProtocol.parse_address(text))
            assert vm.connect(negotiate=False) is None
            vm.close()


def test_descriptors_come_with_their_commands() -> None:
    with connected() as (vm, fake):
        for name in ("a", "b"):
            null = os.open(os.devnull, os.O_RDONLY)
            vm.send_fd_scm(null)
            os.close(null)
            vm.cmd("getfd", fdname=name)
        assert fake.fds == [("getfd", 1), ("getfd", 1)]


def test_a_connected_socket_serves_and_cannot_listen() -> None:
    with FakeQemu() as fake:
        with socket.socket(socket.AF_UNIX) as sock:
            with pytest.raises(ValueError, match="socket"):
                QEMUMonitorProtocol(sock, server=True)
            sock.connect(str(fake.path))
            with QEMUMonitorProtocol(sock) as vm:
                assert vm.connect()
                assert vm.cmd("query-status")


def test_nobody_calls(tmp_path: Path) -> None:
    vm = QEMUMonitorProtocol(str(tmp_path / "qmp"), server=True)
    with pytest.raises(StateError):
        vm.connect()
    with pytest.raises(QMPTimeoutError):
        vm.accept(timeout=0.05)
    with pytest.raises(StateError):
        vm.accept()
    with pytest.raises(ConnectError):
        vm.connect()


def test_a_place_that_is_taken_stays_with_who_has_it() -> None:
    with FakeQemu() as fake:
        with pytest.raises(ConnectError):
            QEMUMonitorProtocol(str(fake.path), server=True)
        with QEMUMonitorProtocol(str(fake.path)) as vm:
            assert vm.connect()


def test_forgetting_it_makes_no_noise() -> None:
    vm = QEMUMonitorProtocol("/nowhere")
    del vm
    assert not hasattr(QEMUMonitorProtocol, "__del__")
