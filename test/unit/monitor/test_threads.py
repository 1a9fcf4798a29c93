"""The blocking face shared between threads: whoever reads, reads for all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from drover import QmpConnection
from drover.errors import ConnectionClosed, HotplugError, MonitorTimeout
from drover.monitor.connection import BlockingLink
from drover.testing.fake import Do, FakeQemu


def test_eight_execute_while_one_waits_for_an_event() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(9) as pool:
        waiter = pool.submit(vm.wait_event, "LAST", timeout=60)
        while not link_of(vm)._leading:
            time.sleep(0.001)
        started = time.monotonic()
        work = [pool.submit(lambda: [vm.query_status().running for _ in range(200)]) for _ in range(8)]
        assert all(all(job.result(timeout=30)) for job in work)
        assert time.monotonic() - started < 30
        assert not waiter.done()
        fake.event("LAST")
        assert waiter.result(timeout=5).name == "LAST"


def link_of(vm: QmpConnection) -> BlockingLink:
    link = vm._link
    assert isinstance(link, BlockingLink)
    return link


def test_the_lead_passes_on_when_the_leader_times_out() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(3) as pool:
        first = pool.submit(vm.wait_event, "A", timeout=0.2)
        time.sleep(0.05)
        rest = [pool.submit(vm.wait_event, name, timeout=30) for name in ("B", "C")]
        with pytest.raises(MonitorTimeout):
            first.result(timeout=5)
        fake.event("C")
        fake.event("B")
        assert [job.result(timeout=5).name for job in rest] == ["B", "C"]


def test_a_follower_times_out_by_its_own_clock() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(1) as pool:
        leader = pool.submit(vm.wait_event, "A", timeout=30)
        while not link_of(vm)._leading:
            time.sleep(0.001)
        started = time.monotonic()
        with pytest.raises(MonitorTimeout):
            vm.wait_event("B", timeout=0.1)
        assert time.monotonic() - started < 5
        assert not link_of(vm)._followers
        fake.event("A")
        assert leader.result(timeout=5).name == "A"


def test_close_wakes_all_threads() -> None:
    with FakeQemu() as fake, ThreadPoolExecutor(5) as pool:
        vm = QmpConnection(fake.path)
        vm.connect()
        jobs = [pool.submit(vm.wait_event, "NEVER", timeout=60) for _ in range(5)]
        while len(link_of(vm)._followers) < 4:
            time.sleep(0.001)
        vm.close()
        for job in jobs:
            with pytest.raises(ConnectionClosed):
                job.result(timeout=5)


def test_the_end_of_qemu_wakes_all_threads() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(vm.wait_event, "NEVER", timeout=60) for _ in range(5)]
        while len(link_of(vm)._followers) < 4:
            time.sleep(0.001)
        fake.hang_up()
        for job in jobs:
            with pytest.raises(ConnectionClosed):
                job.result(timeout=5)


def test_a_flood_does_not_carry_a_wait_past_its_deadline() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm:
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                fake.event("FLOOD")
                time.sleep(0.0001)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            started = time.monotonic()
            with pytest.raises(MonitorTimeout):
                vm.wait_event("NEVER", timeout=0.2)
            assert time.monotonic() - started < 5
        finally:
            stop.set()
            thread.join()


def test_unconnected_calls_of_many_threads_share_one_connection_and_close_it() -> None:
    with FakeQemu() as fake, ThreadPoolExecutor(8) as pool:
        vm = QmpConnection(fake.path)
        jobs = [pool.submit(lambda: vm.query_status().running) for _ in range(200)]
        assert all(job.result(timeout=30) for job in jobs)
        assert not vm.is_connected()


def test_big_sends_of_many_threads_do_not_block_each_others_reading() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(4) as pool:

        def work(number: int) -> Any:
            name = f"{number}" * 500_000
            vm.execute("getfd", {"fdname": name}, fd=0)
            return vm.execute("closefd", {"fdname": name})

        assert [job.result(timeout=60) for job in [pool.submit(work, n) for n in range(8)]] == [{}] * 8


def test_one_id_is_worked_on_by_one_call_at_a_time() -> None:
    def script(command: str, _: Any) -> Do | None:
        return Do.HOLD if command == "netdev_add" else None

    with FakeQemu(script=script) as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(1) as pool:
        first = pool.submit(vm.hot_add_nic, "n1", tap_fds=[0])
        while "netdev_add" not in fake.commands:
            time.sleep(0.001)
        with pytest.raises(HotplugError, match="another call"):
            vm.hot_add_nic("n1", tap_fds=[0])
        fake.release()
        assert first.result(timeout=5).id == "n1"


def test_two_threads_never_choose_one_slot() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm, ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            jobs = [pool.submit(vm.hot_add_nic, name, tap_fds=[0]) for name in ("a", "b")]
            assert {job.result(timeout=10).bus for job in jobs} == {"rp0", "rp1"}
            for name in ("a", "b"):
                vm.hot_remove_nic(name)
