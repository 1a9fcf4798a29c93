"""The figure of connections that nobody uses: what each takes of memory, and how often it wakes its process."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contenders import ASYNC, QEMU_QMP, SYNC, contenders
from figures import binaries
from frame import BenchError, Clock, Column, Result, Side, Within, measure
from procs import cpu_of, memory_of, sleeps_of
from servers import qemus

MEMORY: Final = Column("memory", "kB", 1 / 1024)
WAKES: Final = Column("wakes/h", "", 1.0)
SECONDS: Final = Column("CPU/h", "s", 1.0)
CLIENT: Final = Path(__file__).with_name("idle_client.py")
FEW: Final = 100  # what is there only once is there by then
MONITORS: Final = 100  # of each QEMU: with more of them in one process QEMU itself becomes slow


class Idle(Side):
    """A process of its own, which connects and then waits for its end.

    :param seconds: that it is watched for
    """

    def __init__(self, name: str, paths: list[str], seconds: float) -> None:
        super().__init__(name)
        self._paths, self._seconds = paths, seconds

    def setup(self) -> None:
        """Start it."""
        words = [sys.executable, str(CLIENT), self.name]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, clock: Clock, count: int) -> None:
        """Let it connect to a few, then to all, and watch it."""
        few = self._connected(self._paths[:FEW])
        many = self._connected(self._paths[FEW:])
        clock.notes[MEMORY.name] = (many - few) / (len(self._paths) - FEW)
        time.sleep(0.5)  # what connecting left to do is done
        pid = self._process.pid
        cpu, sleeps = cpu_of(pid), sleeps_of(pid)
        time.sleep(self._seconds)
        clock.notes[WAKES.name] = (sleeps_of(pid) - sleeps) * 3600 / self._seconds
        clock.notes[SECONDS.name] = (cpu_of(pid) - cpu) * 3600 / self._seconds

    def teardown(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _connected(self, paths: list[str]) -> int:
        """Bytes that the process has once it is connected to these too."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(paths) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "ready\n":
            raise BenchError(f"{self.name}: did not connect")
        return memory_of(self._process.pid, "RssAnon")


@dataclass(frozen=True)
class Idling:
    """The figure."""

    name: str = "idle"
    row: int = 7
    count: int = 1000
    quick: int = 200

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        size = self.quick if quick else self.count
        binary = list(binaries().values())[-1]
        progress("QEMUs are started")
        with qemus(binary, size // MONITORS, MONITORS) as paths:
            names = [it.name for it in contenders() if it.name in (SYNC, ASYNC, QEMU_QMP)]
            sides = [Idle(name, paths, 5 if quick else 30) for name in names]
            bars = [Within(name, 20, MEMORY) for name in (SYNC, ASYNC)]
            bars += [Within(name, 0, WAKES) for name in (SYNC, ASYNC)]
            title = f"{size} connections that nobody uses"
            columns = (MEMORY, WAKES, SECONDS)
            result = Result(self.row, self.name, title, "process", 1, False, bars, columns, size)
            yield measure(result, sides, 3, 120.0, progress)


FIGURES: Final = (Idling(),)
