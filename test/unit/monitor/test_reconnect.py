"""A lost connection that is made anew: asked for, seen among the events, and never a command sent twice."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncQmpConnection, QmpConnection
from drover.errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout, MonitorTimeout
from drover.monitor.human import HumanMonitor
from drover.monitor.life import Reconnect
from drover.qmp.events import RECONNECTED
from drover.testing.fake import Do, FakeQemu
from faces import Face

QUICK = Reconnect(longest=0.05, give_up=20)


def hang_up_on(*names: str) -> Any:
    left = set(names)

    def script(command: str, arguments: dict[str, Any]) -> Do | None:
        if command in left:
            left.discard(command)
            return Do.HANG_UP
        return None

    return script


def test_the_next_use_finds_it_again(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path, reconnect=QUICK) as vm:
        fake.event("STOP")
        vm.wait_event("STOP", since=0, timeout=10)
        fake.hang_up()
        assert vm.query_status().running
        found = [event for event in vm.event_log if event.name == RECONNECTED]
        assert len(found) == 1
        assert found[0].number == 2
        assert found[0].data["last-event"] == 1
        assert found[0].data["in-flight"] == []
        assert "closed the connection" in found[0].data["reason"]
        assert abs(found[0].timestamp - time.time()) < 60
        assert vm.is_connected()


def test_what_was_in_flight_fails_and_is_not_sent_again(face: Face) -> None:
    with FakeQemu(script=hang_up_on("stop")) as fake, face.open(fake.path, reconnect=QUICK) as vm:
        with pytest.raises(ConnectionClosed) as caught:
            vm.stop()
        assert caught.value.in_flight == ("stop",)
        assert vm.query_status().running
        assert fake.commands.count("stop") == 1
        assert [event.data["in-flight"] for event in vm.event_log] == [["stop"]]


def test_a_wait_over_the_gap_fails(face: Face) -> None:
    """What it waits for may have come while nobody listened: only its caller can ask whether it did."""
    with FakeQemu() as fake, face.open(fake.path, reconnect=QUICK) as vm:
        timer = threading.Timer(0.1, fake.hang_up)
        timer.start()
        with pytest.raises(ConnectionClosed):
            vm.wait_event("STOP", timeout=10)
        timer.join()
        assert vm.query_status().running


def test_a_reader_of_events_reads_on_behind_the_mark(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path, reconnect=QUICK) as vm:
        events = vm.events("STOP", "RESUME", RECONNECTED, timeout=10)
        fake.event("STOP")
        fake.hang_up()
        first, second = next(events), next(events)
        fake.event("RESUME")
        third = next(events)
        assert [event.name for event in (first, second, third)] == ["STOP", RECONNECTED, "RESUME"]
        assert [event.number for event in (first, second, third)] == [1, 2, 3]


def test_a_filter_holds_over_the_gap_and_counts_it() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path, reconnect=QUICK) as vm:
        with vm.events("STOP", timeout=0.3) as events:
            fake.event("STOP")
            fake.event("RESUME")
            fake.hang_up()
            assert next(events).number == 1
            with pytest.raises(MonitorTimeout):
                next(events)
            fake.event("STOP")
            assert next(events).number == 4
            assert (events.gaps, events.lost) == (1, 0)


def test_nobody_there_is_told_and_tried_again(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with FakeQemu() as fake:
        path.symlink_to(fake.path)
        vm = face.make(path, reconnect=Reconnect(longest=0.05, give_up=0.3))
        vm.connect()
        assert vm.query_status().running
    with pytest.raises(ConnectTimeout):
        vm.query_status()
    path.unlink()
    with FakeQemu() as other:
        path.symlink_to(other.path)
        assert vm.query_status().running
        assert [event.name for event in vm.event_log] == [RECONNECTED]
        vm.close()


def test_one_that_greets_and_goes_is_tried_again(face: Face) -> None:
    """As a QEMU that is ending does, or a proxy in front of one that starts."""
    with FakeQemu(script=hang_up_on("query-commands", "stop")) as fake:
        vm = face.make(fake.path, reconnect=QUICK)
        with pytest.raises(ConnectError):
            vm.connect()
        vm.connect()
        with pytest.raises(ConnectionClosed):
            vm.stop()
        fake.script = hang_up_on("query-commands")
        assert vm.query_status().running
        vm.close()


def test_closing_ends_the_search() -> None:
    vm = QmpConnection("/nowhere", reconnect=Reconnect(longest=5, give_up=None))
    with FakeQemu() as fake:
        vm.address = fake.path
        vm.connect()
    failures: list[BaseException] = []

    def use() -> None:
        try:
            vm.query_status()
        except ConnectionClosed as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    time.sleep(0.3)
    vm.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed by this side" in str(failures[0])


def test_closing_ends_the_search_of_a_task() -> None:
    async def main() -> None:
        with FakeQemu() as fake:
            vm = AsyncQmpConnection(fake.path, reconnect=Reconnect(longest=5, give_up=None))
            await vm.connect()
        await asyncio.sleep(0.2)
        task = asyncio.ensure_future(vm.query_status())
        await asyncio.sleep(0.3)
        await vm.close()
        with pytest.raises(ConnectionClosed, match="closed by this side"):
            await asyncio.wait_for(task, 10)

    asyncio.run(main())


def test_many_threads_find_one_connection_again() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path, reconnect=QUICK) as vm:
        fake.hang_up()
        done: list[bool] = []
        threads = [threading.Thread(target=lambda: done.append(vm.query_status().running)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert done == [True] * 8
        assert fake.commands.count("qmp_capabilities") == 2


def test_connect_takes_the_place_of_a_search(face: Face) -> None:
    with FakeQemu() as fake, face.open(fake.path, reconnect=QUICK) as vm:
        fake.hang_up()
        vm.connect()
        assert [event.name for event in vm.event_log] == [RECONNECTED]


@pytest.mark.parametrize("bad", [{"longest": 0}, {"give_up": -1}])
def test_a_policy_of_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        Reconnect(**bad)


def test_a_socket_cannot_be_dialled_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ArgumentError, match="dialled again"):
            QmpConnection(ours, reconnect=QUICK)
        with pytest.raises(ArgumentError, match="dialled again"):
            HumanMonitor(ours.fileno(), reconnect=QUICK)
