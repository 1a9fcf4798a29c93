"""What the tests of the shells share: a QEMU that has monitors and nothing else."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from drover import QmpConnection
from machines import qemu_of

BARE = ["-machine", "pc,accel=tcg", "-m", "16", "-smp", "2", "-nodefaults", "-display", "none", "-S", "-name", "a b"]
START = 30.0  # seconds; 0.1 on an idle machine


class Bare:
    """A QEMU under way.

    :ivar folder: holds its sockets `qmp`, `qmp2` and `hmp`
    """

    def __init__(self, binary: Path, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until all of its monitors listen."""
        words = [str(self.binary), *BARE]
        for name, kind in (("qmp", "qmp"), ("qmp2", "qmp"), ("hmp", "monitor")):
            (self.folder / name).unlink(missing_ok=True)
            words += [f"-{kind}", f"unix:{self.folder / name},server=on,wait=off"]
        self.process = subprocess.Popen(words)
        deadline = time.monotonic() + START
        while not all((self.folder / name).exists() for name in ("qmp", "qmp2", "hmp")):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def qmp(self) -> QmpConnection:
        """A connection by which a test does things behind the shell's back."""
        return QmpConnection(self.folder / "qmp2", timeout=START)

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def bare(version: str) -> Iterator[Bare]:
    """Such a QEMU of this version, killed at the end."""
    with TemporaryDirectory(prefix="shell-") as folder:  # a short path: it holds sockets
        found = Bare(qemu_of(version), Path(folder))
        try:
            found.start()
            yield found
        finally:
            found.kill()


class Agent:
    """A qemu-ga on this host, of which nothing may be asked that acts on it.

    :ivar path: of its socket
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qga"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.path.unlink(missing_ok=True)
        (self._folder / "pid").unlink(missing_ok=True)
        words = ["qemu-ga", "-m", "unix-listen", "-p", self.path, "-t", self._folder, "-f", self._folder / "pid"]
        self._process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START
        while not self.path.exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def agent() -> Iterator[Agent]:
    """Such an agent, killed at the end."""
    with TemporaryDirectory(prefix="shell-") as folder:
        found = Agent(Path(folder))
        try:
            found.start()
            yield found
        finally:
            found.kill()
