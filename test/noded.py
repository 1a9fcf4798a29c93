"""A node daemon of a test's own: a real process, called over its socket."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
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
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float = 60,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One call: the status, and what was answered."""
        connection = UnixConnection(self.socket, timeout)
        try:
            data = json.dumps(body).encode() if data is None and body is not None else data
            connection.request(method, path, data, headers or {})
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
def running(paths: Paths, log: Path, *options: str) -> Iterator[Noded]:
    """One that runs; ended at the end if it has not."""
    daemon = Noded(paths, log, options)
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.runs:
            daemon.end()


def ask(noded: Noded, path: str, body: Any = None, **headers: str) -> tuple[int, http.client.HTTPMessage, Any]:
    """A change: the status, what the head says, and what was answered."""
    connection = UnixConnection(noded.socket, 60)
    try:
        connection.request("POST", path, json.dumps(body or {}), {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


def later(noded: Noded, verb: str, name: str, **params: Any) -> int:
    """Ask for a change and do not wait; the number of its job."""
    status, headers, job = ask(noded, f"/v1/instances/{name}/{verb}", params, Prefer="respond-async, wait=1")
    assert (status, headers["Location"]) == (202, f"/v1/jobs/{job['id']}")
    return int(job["id"])


def job(noded: Noded, number: int, wait: float = 0) -> dict[str, Any]:
    status, told = noded.call("GET", f"/v1/jobs/{number}?wait={wait}")
    assert status == 200
    assert isinstance(told, dict)
    return told
