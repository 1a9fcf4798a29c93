"""What the tests of the shells share: a QEMU that has monitors and nothing else."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BARE = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-name", "a b"]
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

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def bare(binary: Path, folder: Path) -> Iterator[Bare]:
    """Such a QEMU, killed at the end."""
    found = Bare(binary, folder)
    try:
        found.start()
        yield found
    finally:
        found.kill()
