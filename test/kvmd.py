"""An event daemon of a test's own: a real process."""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from daemons import Daemon
from drover.events.segment import Entry, read
from drover.kvm.instance import Instance
from drover.kvm.paths import Paths
from drover.kvm.record import load


class Kvmd(Daemon):
    """A daemon, what it tells systemd, and what it logs."""

    name = "drover-kvmd"

    def __init__(self, paths: Paths, log: Path, *options: str) -> None:
        super().__init__(paths, log, options)
        self._folder = tempfile.TemporaryDirectory(prefix="drover-")
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(f"{self._folder.name}/notify")
        self.told.settimeout(20)

    def start(self, **env: str) -> None:
        """Start it, and wait until it says that it is ready."""
        self.launch(NOTIFY_SOCKET=f"{self._folder.name}/notify", **env)
        self.wait_told("READY=1")

    def wait_told(self, wanted: str) -> None:
        """Wait until it tells systemd something."""
        while (told := self.told.recv(100).decode()) != wanted:
            assert self.runs, f"{told}; {self.log_path.read_text()}"

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

    def close(self) -> None:
        """End it if it runs."""
        if self.runs:
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
