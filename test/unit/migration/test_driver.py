"""The driver over ports: what is asked of the other node, and when it is asked again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from drover.errors import MigrationError
from drover.migration.driver import Driver
from drover.migration.knowledge import Plan
from drover.migration.machine import Machine
from drover.migration.ports import Peer, Register, Side
from drover.migration.states import State
from drover.migration.words import QemuSaid, TargetSaid, TargetVerb
from drover.store.owner import Owner

HERE = Owner(node="a", boot_id="a", incarnation="vm/1")
THERE = Owner(node="b", boot_id="b", incarnation="vm/2/2")
STANDS = QemuSaid("pre-switchover", "finish-migrate")


class OneRecord(Register):
    """A record in memory."""

    def __init__(self) -> None:
        self.owner = HERE

    async def read(self) -> Owner:
        return self.owner

    async def swap(self, expect: Owner, new: Owner) -> Owner:
        if self.owner == expect:
            self.owner = new
        return self.owner


class Questions(Peer):
    """A node that says nothing."""

    def __init__(self) -> None:
        self.asked: list[TargetVerb] = []

    async def ask(self, verb: TargetVerb, epoch: int) -> None:
        self.asked.append(verb)


class Idle(Side):
    """A QEMU that runs, and takes whatever it is told."""

    async def ask(self) -> QemuSaid:
        return QemuSaid("none", "running")

    async def prepare(self) -> None:
        await asyncio.sleep(3600)

    async def _well(self) -> None: ...

    mirror = send = postcopy = sync = go_on = cancel = cont = rejoin = quit = _well


def test_a_question_that_may_be_lost_is_asked_again_once_the_other_can_be_reached() -> None:
    async def tried() -> None:
        peer = Questions()
        driver = Driver(Machine(Plan(machine="vm", source=HERE, target=THERE)), OneRecord(), Idle(), peer)
        driving = asyncio.create_task(driver.run(again=False))
        while not peer.asked:
            await asyncio.sleep(0)
        assert driver.machine.state is State.ACCEPT
        driver.linked()
        await asyncio.sleep(0.01)
        assert peer.asked == [TargetVerb.ACCEPT] * 2
        driver.hear(TargetSaid(THERE.incarnation, 1, "setup", "inmigrate"))
        assert driver.machine.state is State.SET
        driver.linked()  # it asks for nothing now, and what it did is answered
        await asyncio.sleep(0.01)
        assert peer.asked == [TargetVerb.ACCEPT] * 2
        driver.stop()
        driving.cancel()
        driver.linked()
        await asyncio.sleep(0)
        assert len(peer.asked) == 2

    asyncio.run(tried())


class Noting(Side):
    """A QEMU that notes what it is told and asked."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def ask(self) -> QemuSaid:
        self.heard.append("ask")
        return QemuSaid("none", "running")

    async def prepare(self) -> None:
        self.heard.append("prepare")
        await asyncio.sleep(0.01)

    async def send(self) -> None:
        self.heard.append("send")

    async def _well(self) -> None: ...

    mirror = postcopy = sync = go_on = cancel = cont = rejoin = quit = _well


@asynccontextmanager
async def driven(side: Noting) -> AsyncIterator[tuple[Driver, Questions]]:
    """A migration that is driven, and has come to where the memory goes."""
    peer = Questions()
    driver = Driver(Machine(Plan(machine="vm", source=HERE, target=THERE)), OneRecord(), side, peer)
    driving = asyncio.create_task(driver.run(again=False))
    async with asyncio.timeout(10):
        while not peer.asked:
            await asyncio.sleep(0)
        driver.hear(TargetSaid(THERE.incarnation, 1, "setup", "inmigrate"))
        while "ask" not in side.heard:
            await asyncio.sleep(0.001)
    yield driver, peer
    driver.stop()
    driving.cancel()


def test_what_is_to_be_done_goes_before_questions_and_of_these_one_is_enough() -> None:
    async def tried() -> list[str]:
        side = Noting()
        async with driven(side):
            return side.heard[:3]

    assert asyncio.run(tried()) == ["prepare", "send", "ask"]


@pytest.mark.parametrize("refuses", [False, True])
def test_one_that_goes_on_is_left_alone(refuses: bool) -> None:
    """It says by itself when all is sent, and a question would hold up what the guest waits for."""

    class Going(Noting):
        async def ask(self) -> QemuSaid:
            self.heard.append("ask")
            return QemuSaid("active", "running") if "continue" not in self.heard else STANDS

        async def go_on(self) -> None:
            self.heard.append("continue")
            if refuses:
                raise MigrationError("not now")

    async def tried() -> list[str]:
        side = Going()
        async with driven(side) as (driver, peer):
            driver.hear(STANDS)
            async with asyncio.timeout(10):
                while "continue" not in side.heard:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert peer.asked == [TargetVerb.ACCEPT]
            driver.linked()  # what the other node said meanwhile may be lost
            await asyncio.sleep(0.01)
            assert peer.asked == [TargetVerb.ACCEPT, TargetVerb.ASK]
        return side.heard[side.heard.index("continue") + 1 :]

    assert asyncio.run(tried()) == (["ask"] if refuses else [])
