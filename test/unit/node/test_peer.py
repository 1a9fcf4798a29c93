"""The link to the other node: made anew whatever becomes of it."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from drover.migration.letters import Answer, Said, encode
from drover.migration.words import TargetSaid, TargetVerb
from drover.node import peer as links
from drover.node.client import Daemon
from drover.node.peer import Link, LinkPeer


def test_a_node_that_says_nothing_any_more_is_dialled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the network is cut: the connection stands, and nothing comes over it."""
    monkeypatch.setattr(links, "_SIGN", 0.1)
    dialled = asyncio.Event(), asyncio.Event()
    heard: list[Answer] = []

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        first = not dialled[0].is_set()
        dialled[0 if first else 1].set()
        async for message in socket:  # its pings are not answered
            if not first and message.type is web.WSMsgType.BINARY:
                await socket.send_bytes(encode(Said(said=TargetSaid("vm/2/2", 1))))
        return socket

    async def tried() -> None:
        application = web.Application()
        application.router.add_get("/v1/instances/vm/arrival", serve)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "sock")).start()
        link = Link(Daemon(tmp_path / "sock"), "vm")
        peer = LinkPeer(link, "vm/2/2", lambda epoch: None, bytes, heard.append, lambda: None)
        async with asyncio.timeout(10):
            for event in dialled:
                await event.wait()
            while not heard:
                await peer.ask(TargetVerb.RUN, 3)
                await asyncio.sleep(0.02)
        peer.close()
        await runner.cleanup()

    asyncio.run(tried())
    assert isinstance(heard[0], Said)


def test_a_link_that_stood_is_made_anew_as_soon_as_at_first(tmp_path: Path) -> None:
    """However long it was not to be had before."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async def tried() -> None:
        link = Link(Daemon(tmp_path / "sock"), "vm")
        link.start()
        async with asyncio.timeout(10):
            while link._pause < 4 * links._AGAIN:
                await asyncio.sleep(0.01)
            application = web.Application()
            application.router.add_get("/v1/instances/vm/arrival", serve)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.UnixSite(runner, str(tmp_path / "sock")).start()
            await link.wait()
        assert link._pause == links._AGAIN
        link.stop()
        await runner.cleanup()

    asyncio.run(tried())
