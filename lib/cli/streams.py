"""The console and the VNC of an instance on another node, over WebSockets to its daemon; VNC also of one here."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiohttp

from drover.cli.raw import ESCAPE, raw_terminal, write_out
from drover.errors import CallFailed, DroverError, Untrusted
from drover.node.link import RemoteDaemon
from drover.node.pki.folder import split_address

_CHUNK: Final = 1 << 15  # bytes: of one message the daemon takes twice as many
_SIGN: Final = 20.0  # s between two signs of life, by which a daemon that is gone is noticed
_CONNECT: Final = 20.0  # s
_CLOSE: Final = 2.0  # s for the other side to say that it closes, too


class Stream(Protocol):
    """Bytes both ways."""

    async def receive(self) -> bytes:
        """What came; empty at the end."""

    async def send(self, data: bytes) -> None:
        """Send it; waits while the other side is slow."""


Opening = Callable[[], contextlib.AbstractAsyncContextManager[Stream]]


class _Socket:
    """A WebSocket as a stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                return bytes(message.data)
            if message.type is not aiohttp.WSMsgType.TEXT:
                return b""

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # its end is heard where it is received
            await self._socket.send_bytes(data)


class Pair:
    """A socket of this host as a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """What came; empty at the end."""
        with contextlib.suppress(ConnectionError):
            return await self._reader.read(_CHUNK)
        return b""

    async def send(self, data: bytes) -> None:
        """Send it."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()


@contextlib.asynccontextmanager
async def remote_stream(daemon: RemoteDaemon, name: str, what: str) -> AsyncIterator[Stream]:
    """An instance's ``console`` or ``vnc``, through its node's daemon.

    :raises CallFailed: the daemon says no, or is not to be reached
    """
    path = f"/v1/instances/{quote(name, safe='')}/{what}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        socket = await _dialled(session, daemon, path)
        try:
            yield _Socket(socket)
        finally:
            await socket.close()


async def _dialled(session: aiohttp.ClientSession, daemon: RemoteDaemon, path: str) -> aiohttp.ClientWebSocketResponse:
    first: Exception | None = None
    for address in daemon.addresses:
        host, port = split_address(address)
        url = f"wss://{f'[{host}]' if ':' in host else host}:{port}{path}"
        waits = aiohttp.ClientWSTimeout(ws_close=_CLOSE)
        try:
            return await session.ws_connect(
                url, ssl=daemon.context, protocols=("binary",), heartbeat=_SIGN, timeout=waits, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            # why not stands in a body that this client does not read: without a WebSocket the daemon says it again
            await asyncio.to_thread(daemon.call, "GET", path)
            raise CallFailed("no-answer", f"{address}: {error.message}") from error
        except aiohttp.ClientConnectorCertificateError as error:
            first = first or Untrusted(address, f"it is not who it should be ({error.certificate_error})")
        except aiohttp.ClientConnectorError as error:
            text = f"{address} is not to be reached ({error.os_error}): nothing was done"
            first = first or CallFailed("unreachable", text)
        except (aiohttp.ClientError, OSError) as error:
            first = first or CallFailed("no-answer", f"drover-noded at {address} {daemon.lost(error)}")
    assert first is not None
    raise first


@contextlib.asynccontextmanager
async def local_stream(path: Path) -> AsyncIterator[Stream]:
    """A socket of an instance that is here."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield Pair(reader, writer)
    finally:
        writer.close()


async def at_console(opening: Opening, begun: Callable[[], None]) -> bool:
    """Connect this terminal with a console. True: the user has left; False: the machine has ended.

    :param begun: called when it is connected
    """
    async with opening() as stream:
        begun()
        with raw_terminal():
            typing = asyncio.create_task(_typed(stream))
            showing = asyncio.create_task(_shown(stream))
            try:
                await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
                if typing.done() and not typing.result():
                    await showing  # a script has said all it had to; what comes is still shown
                return typing.done() and typing.result()
            finally:
                await _ended(typing, showing)


async def _typed(stream: Stream) -> bool:
    """Send what is typed. True: the user has left; False: there is nothing more to come."""
    while typed := await _keys():
        before, escape, _ = typed.partition(ESCAPE)
        if before:
            await stream.send(before)
        if escape:
            return True
    return False


async def _shown(stream: Stream) -> None:
    while data := await stream.receive():
        write_out(data)


async def _keys() -> bytes:
    """What standard input has, when it has something; empty at its end."""
    loop, fd, ready = asyncio.get_running_loop(), sys.stdin.fileno(), asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:  # a file, which is always ready
        return os.read(fd, _CHUNK)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, _CHUNK)


async def pass_on(
    opening: Opening, port: int, serving: Callable[[int], None], failed: Callable[[DroverError], None]
) -> None:
    """Pass on whoever connects to a port of this host alone, until cancelled.

    :param port: 0: one that is free
    :param serving: called with the port
    :param failed: called where one could not be passed on
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with opening() as stream:
                ways = [asyncio.create_task(_copied(*way)) for way in _both(Pair(reader, writer), stream)]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _ended(*ways)
        except DroverError as error:
            failed(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        serving(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def _both(one: Stream, other: Stream) -> tuple[tuple[Stream, Stream], tuple[Stream, Stream]]:
    return (one, other), (other, one)


async def _copied(source: Stream, target: Stream) -> None:
    while data := await source.receive():
        await target.send(data)


async def _ended(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
