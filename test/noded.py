"""A node daemon of a test's own: a real process, called over its socket."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drover.kvm.paths import Paths

PROGRAM = str(Path(sys.executable).with_name("drover-noded"))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Noded:
    """A daemon, and calls to it.

    :ivar socket: where it listens
    """

    def __init__(self, paths: Paths, log: Path, options: Sequence[str] = ()) -> None:
        self._options = options
        self.socket = paths.run / "noded.sock"
        self._env = os.environ | {"DROVER_STATE_DIR": str(paths.state), "DROVER_RUN_DIR": str(paths.run)}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def start(self, timeout: float = 20) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, *self._options], env=self._env, stderr=log)
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/v1/node")[0] == 200:
                    return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

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
        if daemon._process is not None and daemon._process.poll() is None:
            daemon.end()
