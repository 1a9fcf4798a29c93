"""A node daemon of a test's own: a real process, called over its socket."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from daemons import Daemon
from drover.kvm.paths import Paths
from drover.node.client import UnixConnection


class Noded(Daemon):
    """A daemon, and calls to it.

    :ivar socket: where it listens
    """

    name = "drover-noded"

    def __init__(self, paths: Paths, log: Path, options: Sequence[str] = ()) -> None:
        super().__init__(paths, log, options)
        self.socket = paths.run / "noded.sock"

    def start(self, timeout: float = 20) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/v1/node")[0] == 200:
                    return
            assert self.runs, self.log_path.read_text()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.02)

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60, data: bytes | None = None
    ) -> tuple[int, Any]:
        """One call: the status, and what was answered."""
        connection = UnixConnection(self.socket, timeout)
        try:
            connection.request(method, path, json.dumps(body).encode() if data is None and body is not None else data)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def do(self, verb: str, name: str, **params: Any) -> Any:
        """An operation on an instance, which has to succeed."""
        status, answer = self.call("POST", f"/v1/instances/{name}/{verb}", params)
        assert status == 200, answer
        return answer

    def rows(self) -> dict[str, dict[str, Any]]:
        """The list, by name."""
        status, answer = self.call("GET", "/v1/instances")
        assert status == 200
        return {row["name"]: row for row in answer["instances"]}

    def create(self, document: dict[str, Any]) -> None:
        status, answer = self.call("POST", "/v1/instances", document)
        assert status == 201, answer


@contextlib.contextmanager
def running(paths: Paths, log: Path) -> Iterator[Noded]:
    """One that runs; ended at the end if it has not."""
    daemon = Noded(paths, log)
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.runs:
            daemon.end()
