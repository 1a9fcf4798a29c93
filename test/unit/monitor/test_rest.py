"""A connection that is made and not used wakes up nobody."""

import asyncio
from typing import Any

import pytest

from drover import AsyncQmpConnection
from drover.monitor.aio import AsyncLink
from drover.testing.fake import FakeQemu
from faces import AsyncFace, uvloop_face


@pytest.mark.parametrize("make", [AsyncFace, uvloop_face])
def test_what_connecting_waited_by_rings_no_more(make: type[AsyncFace], monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[AsyncLink[Any]] = []

    def ring(link: AsyncLink[Any]) -> None:
        rung.append(link)

    monkeypatch.setattr(AsyncLink, "_ring", ring)

    async def main(fake: FakeQemu) -> None:
        async with AsyncQmpConnection(fake.path, timeout=0.2) as vm:
            await asyncio.sleep(0.4)
            assert rung == []
            await vm.execute("query-status")
            await asyncio.sleep(0.4)
            assert rung == [vm._link]  # once, whatever was waited for: see there

    face = make()
    with FakeQemu() as fake:
        face.run(main(fake))
    face.close()
