"""The asyncio face under cancellation: nothing is lost, nothing is taken for something else."""

import asyncio
import random
from collections.abc import Iterator
from contextvars import ContextVar
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


def test_calls_of_one_turn_go_together(loop: AsyncFace) -> None:
    """The first at once, those that come with it in one piece."""

    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            wire = vm._link.wire  # type: ignore[union-attr]
            sent: list[bytes] = []
            plain = wire.send
            wire.send = lambda data, fd=None: sent.append(data) or plain(data, fd)  # type: ignore[func-returns-value,method-assign]
            tasks = [asyncio.ensure_future(vm.execute("query-status")) for _ in range(4)]
            assert [answer["running"] for answer in await asyncio.gather(*tasks)] == [True] * 4
            assert [data.count(b"query-status") for data in sent] == [1, 3]
            await vm.execute("query-status")
            assert len(sent) == 3
            port = vm._port
            held = [port.submit("query-status"), port.submit("query-status"), port.submit("query-name")]
            port.abandon(held[2])
            assert [await port.result(call) for call in held[:2]] == [{"running": True, "status": "running"}] * 2
            assert "query-name" not in fake.commands

    with FakeQemu() as fake:
        loop.run(main(fake))


def test_who_waits_goes_on_in_its_own_context(loop: AsyncFace) -> None:
    """A task that an answer wakes runs as any other does, though the loop's reader resumes it."""
    name: ContextVar[str] = ContextVar("name", default="nobody")

    async def ask(vm: AsyncQmpConnection, who: str) -> tuple[str, bool]:
        name.set(who)
        me = asyncio.current_task()
        await vm.execute("query-status")
        return name.get(), asyncio.current_task() is me

    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path) as vm:
            answers = await asyncio.gather(*(ask(vm, who) for who in "abc"))
            assert answers == [("a", True), ("b", True), ("c", True)]
            assert name.get() == "nobody"

    with FakeQemu() as fake:
        loop.run(main(fake))


def test_who_ends_the_program_leaves_the_others_their_answers(loop: AsyncFace) -> None:
    """Ctrl-C in one of those that one read wakes: what the others waited for is not lost."""

    async def end(vm: AsyncQmpConnection) -> None:
        await vm.execute("stop")
        raise KeyboardInterrupt

    async def main(fake: FakeQemu) -> None:
        vm = AsyncQmpConnection(fake.path)
        await vm.connect()
        tasks.append(asyncio.ensure_future(end(vm)))
        tasks.extend(asyncio.ensure_future(vm.execute("stop")) for _ in range(3))
        await asyncio.sleep(0.05)
        fake.release()
        await asyncio.sleep(60)

    async def others() -> Any:
        return await asyncio.gather(*tasks[1:])

    tasks: list[asyncio.Task[Any]] = []
    with FakeQemu(script=lambda command, _: Do.HOLD if command == "stop" else None) as fake:
        with pytest.raises(KeyboardInterrupt):
            loop.run(main(fake))
        assert isinstance(tasks[0].exception(), KeyboardInterrupt)
        assert loop.run(others()) == [{}] * 3
