"""Clients that one would write by hand: the measure of what talking to QEMU has to cost in Python."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from frame import BenchError

READ_SIZE = 65536


class Plain:
    """A blocking socket and the standard library's json; nothing that can be left out is in."""

    def __init__(self, address: str, loads: Callable[[bytes], Any] = json.loads) -> None:
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

    def events(self) -> Iterator[Any]:
        """All messages from here on."""
        while True:
            *lines, self.rest = self.rest.split(b"\n")
            for line in lines:
                yield self.loads(line)
            self.rest += self.read()

    def close(self) -> None:
        """Disconnect."""
        self.socket.close()


class Bare(Plain):
    """The same with msgspec, and whole blocks of lines at once: the limit of what ours can reach."""

    def __init__(self, address: str) -> None:
        super().__init__(address, msgspec.json.decode)
        self.decode_lines = msgspec.json.Decoder().decode_lines

    def events(self) -> Iterator[Any]:
        """All messages from here on."""
        while True:
            block, _, self.rest = self.rest.rpartition(b"\n")
            yield from self.decode_lines(block)
            self.rest += self.read()
