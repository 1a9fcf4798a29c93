"""A program: the smallest server that our clients take for QEMU, and that sends events as fast as they are taken.

It sends bytes that were made beforehand, so that the reader is what a figure measures, not the sender.
"""

import argparse
import json
import selectors
import socket
from typing import Any

CHUNK = 1_000  # events made beforehand, about 230 kB: more than a socket's buffer takes at once
# After so long without a command a reader that lost events, and waits for them for ever, is cut off.
IDLE_TIMEOUT = 30.0

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "bench"}
GREETING = {"QMP": {"version": VERSION, "capabilities": ["oob"]}}
ANSWERS = {"query-commands": [{"name": "query-commands"}, {"name": "flood"}]}


def event(number: int) -> dict[str, Any]:
    """One event, of the length and kind that a mirror job sends."""
    size = 10 << 30
    return {
        "timestamp": {"seconds": 1_760_000_000 + number // 100, "microseconds": number * 7919 % 1_000_000},
        "event": ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")[number % 3],
        "data": {
            "device": f"mirror-drive-virtio-{number % 16}",
            "len": size,
            "offset": size - number * 65536,
            "speed": 0,
            "type": "mirror",
        },
    }


def line(message: object) -> bytes:
    """A message as QEMU writes it."""
    return json.dumps(message).encode() + b"\r\n"


def commands_in(text: str) -> tuple[list[dict[str, Any]], str]:
    """The whole commands at the begin of a text, and the rest of it."""
    found = []
    while text := text.lstrip():
        try:
            command, end = json.JSONDecoder().raw_decode(text)
        except ValueError:  # not all of it is there yet
            break
        text = text[end:]
        found.append(command)
    return found, text


class Server:
    """The monitors of as many clients as there are addresses.

    :param events: how many to send at a ``flood`` command, to all of them together; then all have to have said it
    """

    def __init__(self, addresses: list[str], events: int) -> None:
        self._listeners = [socket.socket(socket.AF_UNIX) for _ in addresses]
        self._selector = selectors.DefaultSelector()
        for listener, address in zip(self._listeners, addresses, strict=True):
            listener.bind(address)
            listener.listen()
            self._selector.register(listener, selectors.EVENT_READ)
        each = CHUNK // len(addresses) or 1
        self._slice = b"".join(line(event(number)) for number in range(each))
        self._times = events // len(addresses) // each
        self._texts: dict[socket.socket, str] = {}
        self._waiting: list[socket.socket] = []

    def run(self) -> None:
        """Serve until killed."""
        while True:
            ready = self._selector.select(IDLE_TIMEOUT)
            for key, _ in ready:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    self._greet(sock) if sock in self._listeners else self._read(sock)
                except OSError:  # the client went
                    self._drop(sock)
            if not ready:  # one that waits for events which it has lost waits for ever
                for sock in list(self._texts):
                    self._drop(sock)

    def _greet(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(IDLE_TIMEOUT)
        self._selector.register(connection, selectors.EVENT_READ)
        self._texts[connection] = ""
        connection.sendall(line(GREETING))

    def _read(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        if not data:
            self._drop(sock)
            return
        found, self._texts[sock] = commands_in(self._texts[sock] + data.decode())
        for command in found:
            name = str(command.get("execute"))
            reply = {"return": ANSWERS.get(name, {})} | ({"id": command["id"]} if "id" in command else {})
            sock.sendall(line(reply))
            if name == "flood":
                self._waiting.append(sock)
        if len(self._waiting) == len(self._listeners):
            self._flood()

    def _flood(self) -> None:
        for _ in range(self._times):
            for sock in self._waiting:
                sock.sendall(self._slice)
        self._waiting.clear()

    def _drop(self, sock: socket.socket) -> None:
        if self._texts.pop(sock, None) is not None:
            self._selector.unregister(sock)
            sock.close()
        self._waiting = [each for each in self._waiting if each is not sock]


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int, help=f"how many to send at a 'flood' command; a multiple of {CHUNK}")
    parser.add_argument("addresses", nargs="+", help="paths of the unix sockets to listen on")
    options = parser.parse_args()
    Server(options.addresses, options.events).run()


if __name__ == "__main__":
    main()
