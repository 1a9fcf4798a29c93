"""Clients that one would write by hand: the measure of what talking to QEMU has to cost in Python."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from frame import BenchError

READ_SIZE = 65536
BLOCK = 1 << 18  # bytes: more than QEMU's longest reply


class Plain:
    """A blocking socket and the standard library's json; nothing that can be left out is in."""

    def __init__(self, address: str, loads: Callable[[Any], Any] = json.loads) -> None:
        self.address = address
        self.loads = loads
        self.socket = socket.socket(socket.AF_UNIX)
        self.rest = b""

    def connect(self) -> None:
        """Connect, take the greeting and leave capabilities negotiation."""
        self.socket.connect(self.address)
        self.message()
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> Any:
        """Run one command."""
        self.socket.sendall(json.dumps({"execute": command}).encode())
        while True:
            message = self.message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise BenchError(message["error"]["desc"])

    def message(self) -> Any:
        """The next message."""
        while True:
            line, end, rest = self.rest.partition(b"\n")
            if end:
                self.rest = rest
                return self.loads(line)
            self.rest += self.read()

    def read(self) -> bytes:
        """What the socket has."""
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise BenchError("the other end closed the connection")
        return data

    def events(self, *names: str) -> Iterator[Any]:
        """All messages from here on, or the events of these names."""
        while True:
            *lines, self.rest = self.rest.split(b"\n")
            for line in lines:
                message = self.loads(line)
                if not names or message["event"] in names:
                    yield message
            self.rest += self.read()

    def close(self) -> None:
        """Disconnect."""
        self.socket.close()


class Same(Plain):
    """The same, which asks for all that ours asks for: QEMU takes 60 µs longer for that, as for any arguments."""

    def connect(self) -> None:
        """Connect, take the greeting and leave capabilities negotiation, with out-of-band execution."""
        self.socket.connect(self.address)
        self.message()
        self.socket.sendall(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}\n')
        self.message()


class Bare(Plain):
    """The same with msgspec, one buffer, and whole blocks of lines at once: the limit of what ours can reach."""

    def __init__(self, address: str) -> None:
        super().__init__(address, msgspec.json.decode)
        self.decode_lines = msgspec.json.Decoder().decode_lines
        self.block = bytearray(BLOCK)
        self.view = memoryview(self.block)

    def message(self) -> Any:
        """The next message, which nothing else has come before."""
        size, end = 0, -1
        while end < 0:
            got = self.socket.recv_into(self.view[size:])
            if not got:
                raise BenchError("the other end closed the connection, or said too much")
            end = self.block.find(b"\n", size, size + got)
            size += got
        self.rest = bytes(self.view[end + 1 : size])
        return self.loads(self.view[:end])

    def events(self, *names: str) -> Iterator[Any]:
        """All messages from here on, or the events of these names."""
        while True:
            block, _, self.rest = self.rest.rpartition(b"\n")
            for message in self.decode_lines(block):
                if not names or message["event"] in names:
                    yield message
            self.rest += self.read()


class PlainLoop:
    """A non-blocking socket by the event loop's own calls, and the standard library's json."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.rest = b""

    async def connect(self) -> None:
        """Connect, take the greeting and leave capabilities negotiation."""
        await self.loop.sock_connect(self.socket, self.address)
        await self.messages(1)
        await self.execute("qmp_capabilities")

    async def execute(self, command: str) -> Any:
        """Run one command."""
        return (await self.fly(command, 1))[0]

    async def fly(self, command: str, times: int) -> list[Any]:
        """Run a command so often, all of them in flight at once."""
        await self.loop.sock_sendall(self.socket, json.dumps({"execute": command}).encode() * times)
        return [message["return"] for message in await self.messages(times)]

    async def messages(self, count: int) -> list[Any]:
        """So many."""
        while self.rest.count(b"\n") < count:
            data = await self.loop.sock_recv(self.socket, READ_SIZE)
            if not data:
                raise BenchError("the other end closed the connection")
            self.rest += data
        *lines, self.rest = self.rest.split(b"\n", count)
        return [json.loads(line) for line in lines]

    async def close(self) -> None:
        """Disconnect."""
        self.socket.close()
