"""An event daemon of a test's own: a real process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drover.events.segment import Entry, read
from drover.kvm.instance import Instance
from drover.kvm.paths import Paths
from drover.kvm.record import load

PROGRAM = str(Path(sys.executable).with_name("drover-kvmd"))


class Kvmd:
    """A daemon, what it tells systemd, and what it logs."""

    def __init__(self, paths: Paths, log: Path, *options: str) -> None:
        self.paths = paths
        self._log = log
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="drover-")
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(f"{self._folder.name}/notify")
        self.told.settimeout(20)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def start(self, **env: str) -> None:
        """Start it, and wait until it says that it is ready."""
        more = {"DROVER_STATE_DIR": str(self.paths.state), "DROVER_RUN_DIR": str(self.paths.run)}
        more["NOTIFY_SOCKET"] = f"{self._folder.name}/notify"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, *self._options], env=os.environ | more | env, stderr=log)
        self.wait_told("READY=1")

    def wait_told(self, wanted: str) -> None:
        """Wait until it tells systemd something."""
        while (told := self.told.recv(100).decode()) != wanted:
            assert self._process is not None
            assert self._process.poll() is None, f"{told}; {self._log.read_text()}"

    def wait_told_stopping(self) -> None:
        """It has told that it stops, and has ended."""
        while self.told.recv(100) != b"STOPPING=1":
            pass

    def sockets(self) -> int:
        """How many it has open."""
        count = 0
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += os.readlink(f"/proc/{self.pid}/fd/{fd}").startswith("socket:")
        return count

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    def close(self) -> None:
        """End it if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.end()
        self.told.close()
        self._folder.cleanup()


@contextlib.contextmanager
def running(paths: Paths, log: Path, *options: str) -> Iterator[Kvmd]:
    """One that runs; ended at the end if it has not."""
    daemon = Kvmd(paths, log, *options)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def journal_folder(vm: Instance) -> Path:
    """Where an instance's events are."""
    paths = vm.host.paths
    return paths.events(load(paths.instance(vm.name).document).spec.uuid)


def journal(vm: Instance) -> list[Entry]:
    """All events of an instance."""
    return read(journal_folder(vm), limit=1_000_000).events


def wait_event(vm: Instance, name: str, count: int = 1, timeout: float = 30) -> Entry:
    """Wait until its journal has an event `count` times."""
    deadline = time.monotonic() + timeout
    while len(found := [it for it in journal(vm) if it.name == name]) < count:
        assert time.monotonic() < deadline, f"no {name}, but {[it.name for it in journal(vm)][-20:]}"
        time.sleep(0.02)
    return found[count - 1]
