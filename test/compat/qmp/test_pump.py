"""`AsyncProtocol` under messages that are not QMP's: what a subclass of one's own stands on."""

import asyncio
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.compat.qmp import ConnectError, Runstate, StateError
from drover.compat.qmp.error import ProtocolError
from drover.compat.qmp.protocol import AsyncProtocol

SOON = 10.0


class Lines(AsyncProtocol[str]):
    """Each line is a message; one that comes before the session says who calls."""

    greets = False

    def __init__(self, name: str | None = None, readbuflen: int = 1000) -> None:
        super().__init__(name, readbuflen)
        self.came: asyncio.Queue[str] = asyncio.Queue()

    async def _establish_session(self) -> None:
        if self.greets:
            await self._send("hello")
            self.greeted = await self._recv()
        await super()._establish_session()

    async def _do_recv(self) -> str:
        return (await self._readline()).decode().rstrip("\n")

    def _do_send(self, msg: str) -> None:
        assert self._writer is not None
        self._writer.write(msg.encode() + b"\n")

    async def _on_message(self, msg: str) -> None:
        self.came.put_nowait(msg)

    async def say(self, msg: str) -> None:
        await self._outgoing.put(msg)


def both(path: Path, scenario: Any, client: Lines | None = None, greets: bool = False) -> None:
    """Run `scenario` with a client and a server that are connected."""

    async def main() -> None:
        server, ours = Lines("server"), client or Lines("client")
        server.greets = ours.greets = greets
        listening = asyncio.create_task(server.start_server_and_accept(str(path)))
        await until_it_listens(server)
        await ours.connect(str(path))
        await listening
        await scenario(ours, server)
        for side in (ours, server):
            try:
                await side.disconnect()
            except EOFError:
                pass
            assert side.runstate is Runstate.IDLE

    bounded(main())


async def until_it_listens(server: Lines) -> None:
    while server._accepted is None:
        await asyncio.sleep(0.005)


def bounded(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, SOON))


def test_messages_go_both_ways_and_what_comes_first_may_be_said_by_hand(tmp_path: Path) -> None:
    async def scenario(client: Lines, server: Lines) -> None:
        assert (client.greeted, server.greeted) == ("hello", "hello")
        for number in range(100):
            await client.say(str(number))
            await server.say(str(-number))
        assert [await server.came.get() for _ in range(100)] == [str(number) for number in range(100)]
        assert [await client.came.get() for _ in range(100)] == [str(-number) for number in range(100)]

    both(tmp_path / "s", scenario, greets=True)


def test_what_was_put_is_sent_before_the_session_ends(tmp_path: Path) -> None:
    async def scenario(client: Lines, server: Lines) -> None:
        for _ in range(900):
            await client.say("x" * 900)
        await client.disconnect()
        assert [await server.came.get() for _ in range(900)] == ["x" * 900] * 900

    both(tmp_path / "s", scenario)


def test_the_end_of_the_peer_is_told_once(tmp_path: Path) -> None:
    async def scenario(client: Lines, server: Lines) -> None:
        changed = asyncio.create_task(client.runstate_changed())
        await server.disconnect()
        assert await changed is Runstate.DISCONNECTING
        with pytest.raises(StateError):
            await client.connect("/nowhere")
        with pytest.raises(EOFError):
            await client.disconnect()
        await client.disconnect()

    both(tmp_path / "s", scenario)


def test_a_message_that_is_too_long_ends_the_session(tmp_path: Path) -> None:
    async def scenario(client: Lines, server: Lines) -> None:
        await server.say("x" * 5000)
        while client.runstate is Runstate.RUNNING:
            await asyncio.sleep(0.005)
        with pytest.raises(ProtocolError, match="limit of 1000"):
            await client.disconnect()

    both(tmp_path / "s", scenario, Lines(readbuflen=1000))


def test_what_comes_first_may_fail(tmp_path: Path) -> None:
    class Picky(Lines):
        async def _establish_session(self) -> None:
            await super()._establish_session()
            raise LookupError("not you")

    async def main() -> None:
        server, client = Lines(), Picky()
        listening = asyncio.create_task(server.start_server_and_accept(str(tmp_path / "s")))
        await until_it_listens(server)
        with pytest.raises(ConnectError, match="Failed to establish session: not you"):
            await client.connect(str(tmp_path / "s"))
        assert client.runstate is Runstate.IDLE
        await listening
        with pytest.raises(EOFError):
            await server.disconnect()

    bounded(main())


def test_there_is_no_tls_for_it() -> None:
    async def main() -> None:
        client = Lines()
        with pytest.raises(ConnectError):
            await client.start_server(("127.0.0.1", 0), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    bounded(main())
