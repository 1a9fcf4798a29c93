"""Somebody who reads the events of a node daemon: over its socket, as anybody does."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drover.node.client import UnixConnection

Heard = dict[str, Any]  # the JSON of one event


def get(path: Path, call: str) -> list[Heard]:
    """All events of an answer that ends."""
    connection = UnixConnection(path, 20)
    try:
        connection.request("GET", call)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        return [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
    finally:
        connection.close()


class Reader(threading.Thread):
    """Reads until the end, whatever that is.

    :ivar events: what came
    :ivar last: the number to come back with
    :ivar times: when each came, by the monotonic clock
    """

    def __init__(self, path: Path, call: str, last: int | None = None) -> None:
        super().__init__(daemon=True)
        self.events: list[Heard] = []
        self.times: list[float] = []
        self.last = last or 0
        self._connection = UnixConnection(path, 60)
        self._connection.request("GET", call, headers={} if last is None else {"Last-Event-ID": str(last)})
        self._socket = self._connection.sock
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self.start()

    def run(self) -> None:
        try:
            for line in self._response:
                if line.startswith(b"id: "):
                    self.last = int(line[4:])
                elif line.startswith(b"data: "):
                    self.times.append(time.monotonic())
                    self.events.append(json.loads(line[6:]))
        except OSError:
            pass
        finally:
            self._response.close()
            self._connection.close()

    @property
    def kinds(self) -> list[str]:
        """Of what came."""
        return [event["kind"] for event in self.events]

    @property
    def numbers(self) -> list[int]:
        """Of what came."""
        return [event["number"] for event in self.events if "number" in event]

    def wait(self, condition: Callable[["Reader"], bool], timeout: float = 30) -> None:
        """Wait until what came is what is waited for."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            assert time.monotonic() < deadline, f"it did not come, but {self.events[-5:]}"
            time.sleep(0.01)

    def close(self) -> None:
        """Go."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join(10)
