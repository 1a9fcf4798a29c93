"""The asyncio face under cancellation: nothing is lost, nothing is taken for something else."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from drover import AsyncQmpConnection
from drover.errors import ConnectionClosed, MonitorTimeout
from drover.testing.fake import Do, FakeQemu
from faces import AsyncFace, uvloop_face


@pytest.fixture(params=[AsyncFace, uvloop_face])
def loop(request: pytest.FixtureRequest) -> Iterator[AsyncFace]:
    """The faces that can be cancelled."""
    face = request.param()
    yield face
    face.close()


def test_a_thousand_random_cancels(loop: AsyncFace) -> None:
    chance = random.Random(7)

    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            names: set[str] = set()

            async def work(number: int) -> None:
                await vm.execute("getfd", {"fdname": f"f{number}"}, fd=0)
                names.add(f"f{number}")

            cancelled = 0
            for number in range(1000):
                task = asyncio.ensure_future(work(number))
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                cancelled += await asyncio.gather(task, return_exceptions=True) != [None]
                if number % 50 == 0:
                    assert (await vm.execute("query-status"))["running"]
            assert cancelled > 100
            assert (await vm.execute("query-status"))["running"]
            session = vm._link.session  # type: ignore[union-attr]
            assert (session._in_band, session._pending, len(session._waiting)) == (0, {}, 0)
            assert names <= fake.model.fds

    with FakeQemu() as fake:
        loop.run(main(fake))


def test_a_cancelled_call_keeps_its_place_until_its_reply(loop: AsyncFace) -> None:
    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            tasks = [asyncio.ensure_future(vm.execute("stop")) for _ in range(8)]
            ninth = asyncio.ensure_future(vm.execute("query-status"))
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.05)
            assert fake.commands.count("stop") == 8
            assert "query-status" not in fake.commands
            fake.release()
            assert await ninth == {"running": False, "status": "paused"}

    with FakeQemu(script=lambda command, _: Do.HOLD if command == "stop" else None) as fake:
        loop.run(main(fake))


@pytest.mark.parametrize("command", ["getfd", "netdev_add", "device_add", "qom-get"])
def test_a_cancelled_hot_add_is_undone_even_if_cancelled_again(loop: AsyncFace, command: str) -> None:
    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            before = fake.model.left()
            task = asyncio.ensure_future(vm.hot_add_nic("n1", tap_fds=[0]))
            while command not in fake.commands:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.sleep(0.02)
            fake.release()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert fake.model.left() == before
            assert (await vm.hot_add_nic("n1", tap_fds=[0])).id == "n1"

    first: list[str] = []

    def script(name: str, _: Any) -> Do | None:
        if name == command and not first:
            first.append(name)
            return Do.HOLD
        return None

    with FakeQemu(script=script) as fake:
        loop.run(main(fake))


def test_waiters_and_iterators_of_many_tasks(loop: AsyncFace) -> None:
    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            waiters = [asyncio.ensure_future(vm.wait_event(f"E{n}", timeout=30)) for n in range(20)]
            events = vm.events()
            await asyncio.sleep(0)
            for number in reversed(range(20)):
                fake.event(f"E{number}")
            assert [event.name for event in await asyncio.gather(*waiters)] == [f"E{n}" for n in range(20)]
            seen = [(await anext(events)).name for _ in range(20)]
            assert seen == [f"E{n}" for n in reversed(range(20))]
            waiter = asyncio.ensure_future(vm.wait_event("NEVER", timeout=None))
            await asyncio.sleep(0)
            await vm.close()
            with pytest.raises(ConnectionClosed):
                await waiter

    with FakeQemu() as fake:
        loop.run(main(fake))


def test_a_cancelled_connect_leaves_nothing(loop: AsyncFace) -> None:
    async def main(fake: FakeQemu) -> None:
        vm = AsyncQmpConnection(fake.path)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(vm.connect(), 0.1)
        assert not vm.is_connected()
        fake.silent = False
        await vm.connect()
        assert (await vm.query_status()).running
        await vm.close()

    with FakeQemu(silent=True) as fake:
        loop.run(main(fake))


def test_unconnected_calls_of_many_tasks_share_one_connection(loop: AsyncFace) -> None:
    async def main(fake: FakeQemu) -> None:
        vm = AsyncQmpConnection(fake.path)
        found = await asyncio.gather(*(vm.query_status() for _ in range(50)))
        assert all(status.running for status in found)
        assert not vm.is_connected()
        assert fake.commands.count("qmp_capabilities") == 1

    with FakeQemu() as fake:
        loop.run(main(fake))


def test_a_timeout_of_asyncio_and_one_of_ours_can_race(loop: AsyncFace) -> None:
    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            for _ in range(20):
                with pytest.raises((asyncio.TimeoutError, MonitorTimeout)):
                    await asyncio.wait_for(vm.wait_event("NEVER", timeout=0.01), 0.01)
            assert (await vm.query_status()).running
            assert not vm.event_log._watches

    with FakeQemu() as fake:
        loop.run(main(fake))
