"""A program: the smallest server that our clients take for QEMU, and that sends events as fast as they are taken.

It sends bytes that were made beforehand, so that the reader is what a figure measures, not the sender.
"""

import argparse
import json
import socket
from collections.abc import Iterator
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


def commands(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """What the client says; some clients end a command with a newline and some do not."""
    text = ""
    while data := connection.recv(65536):
        found, text = commands_in(text + data.decode())
        yield from found


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


def serve(connection: socket.socket, chunk: bytes, times: int) -> None:
    """Be the monitor of one client until it leaves."""
    connection.settimeout(IDLE_TIMEOUT)
    connection.sendall(line(GREETING))
    for command in commands(connection):
        name = str(command.get("execute"))
        reply = {"return": ANSWERS.get(name, {})} | ({"id": command["id"]} if "id" in command else {})
        connection.sendall(line(reply))
        if name == "flood":
            for _ in range(times):
                connection.sendall(chunk)


def main() -> None:
    """Serve one client after another until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="path of the unix socket to listen on")
    parser.add_argument("events", type=int, help=f"how many to send at a 'flood' command; a multiple of {CHUNK}")
    options = parser.parse_args()
    chunk = b"".join(line(event(number)) for number in range(CHUNK))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                serve(connection, chunk, options.events // CHUNK)
            except OSError:  # the client went, or stayed silent
                pass


if __name__ == "__main__":
    main()
