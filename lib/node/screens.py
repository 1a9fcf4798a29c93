"""What people look at through the daemon: serial console and VNC over WebSocket, and a picture of the screen."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import WSMsgType, web

from ..errors import WrongState
from ..kvm.deadlines import ANSWER_TIMEOUT
from ..kvm.node import Node
from ..kvm.paths import InstancePaths
from ..kvm.sockets import dial
from ..kvm.state import State
from .access import require
from .operations import Role
from .streams import endless
from .work import Worker

_CHUNK: Final = 1 << 16  # bytes of one message
_SIGN: Final = 20.0  # s between two signs of life, by which a peer that is gone is noticed


class Screens:
    """Serves them.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/instances/{name}/console", endless(self._console))
        router.add_get("/v1/instances/{name}/vnc", endless(self._vnc))
        router.add_get("/v1/instances/{name}/screenshot", self._screenshot)

    async def _console(self, request: web.Request) -> web.StreamResponse:
        """Its serial port, bytes in binary messages; it serves one at a time, and who comes second waits."""
        return await self._join(request, self._paths(request).socket("serial"))

    async def _vnc(self, request: web.Request) -> web.StreamResponse:
        """VNC as it is on the wire, for a client such as noVNC."""
        return await self._join(request, self._paths(request).private / "vnc")

    async def _screenshot(self, request: web.Request) -> web.Response:
        """The screen as PNG."""
        require(request, Role.VIEWER)
        path = self._paths(request).socket("people")
        name = request.match_info["name"]

        def picture() -> bytes:
            if not path.exists():
                raise WrongState(name, State.STOPPED, State.RUNNING)
            with dial(path, ANSWER_TIMEOUT) as vm:
                return vm.screenshot()

        return web.Response(body=await self._worker.do(f"{name}'s screen", picture), content_type="image/png")

    def _paths(self, request: web.Request) -> InstancePaths:
        node: Node = self._worker.node
        instance = node.instance(request.match_info["name"])
        return instance.host.paths.instance(instance.name)

    async def _join(self, request: web.Request, path: Path) -> web.StreamResponse:
        """Pass bytes on both ways, until either end goes."""
        require(request, Role.OPERATOR)
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise WrongState(request.match_info["name"], f"without one ({error.strerror})", State.RUNNING) from error
        browser = web.WebSocketResponse(compress=False, max_msg_size=_CHUNK, heartbeat=_SIGN, protocols=("binary",))
        try:
            await browser.prepare(request)
            ways = {asyncio.create_task(_out(reader, browser)), asyncio.create_task(_in(browser, writer))}
            _, others = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            await asyncio.wait(ways)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await browser.close()
        return browser


async def _out(reader: asyncio.StreamReader, browser: web.WebSocketResponse) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            await browser.send_bytes(data)  # waits for a browser that is slow, and so does the guest


async def _in(browser: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        async for message in browser:
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                writer.write(message.data.encode() if isinstance(message.data, str) else message.data)
                await writer.drain()
