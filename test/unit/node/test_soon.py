"""What is done a little later, once for all who want it meanwhile."""

import asyncio

from drover.node.soon import Soon


def test_once_for_all_and_after_what_has_its_turn() -> None:
    async def tried() -> list[str]:
        done: list[str] = []
        soon = Soon(lambda: done.append("shown"))
        soon(3600)
        soon(0)
        soon(3600)  # it is to be done sooner
        asyncio.get_running_loop().call_soon(done.append, "first")
        async with asyncio.timeout(10):
            while "shown" not in done:
                await asyncio.sleep(0)
        soon(0)
        soon.cancel()
        soon.cancel()
        await asyncio.sleep(0.01)
        return done

    assert asyncio.run(tried()) == ["first", "shown"]


def test_a_little_later() -> None:
    async def tried() -> bool:
        done = asyncio.Event()
        soon = Soon(done.set)
        soon()
        await asyncio.sleep(0)
        assert not done.is_set()
        async with asyncio.timeout(10):
            return await done.wait()

    assert asyncio.run(tried())
