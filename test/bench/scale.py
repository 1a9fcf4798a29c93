"""The figures of a node with many machines: adoption, lists, figures of all, and the daemon's memory, as they grow.

Machines are real QEMUs without a machine in them, which run for an earlier daemon; the daemon that is measured finds
them.
"""

import contextlib
import http.client
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from frame import CPU_MS, WALL_MS, Bar, BenchError, Clock, Column, Result, Side, Within, measure
from procs import cpu_of, memory_of
from servers import fitting

sys.path.append(str(Path(__file__).resolve().parents[1]))

from events import place
from thousand import machines

from drover.kvm.node import Node
from noded import Noded

OURS: Final = "drover"
MEMORY: Final = Column("memory", "kB", 1 / 1024)
SETTLED: Final = 3.0  # s after which the daemon has looked at each machine


class Adopted(Side):
    """A daemon that starts, until its list says of each machine that it runs."""

    def __init__(self, node: Node, size: int) -> None:
        super().__init__(OURS)
        self._node, self._size = node, size

    def setup(self) -> None:
        """It does not run yet."""
        self._noded = Noded(self._node.host.paths, self._node.host.paths.state / "log")

    def run(self, clock: Clock, count: int) -> None:
        """Start it; then look what it takes of memory."""
        begun = time.perf_counter()
        self._noded.launch()
        while not self._knows_all():
            if not self._noded.runs:
                raise BenchError(f"drover-noded has ended: {self._noded.log_path.read_text()[-1000:]}")
            time.sleep(0.02)
        clock.add(cpu_of(self._noded.pid), time.perf_counter() - begun)
        time.sleep(SETTLED)
        clock.notes[MEMORY.name] = memory_of(self._noded.pid)

    def _knows_all(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return [row["state"] for row in self._noded.rows().values()].count("running") == self._size
        return False

    def teardown(self) -> None:
        """End it; the machines run on."""
        self._noded.end()


class Asked(Side):
    """Calls over a connection that is held.

    :param path: what is asked for
    :param field: of the answer, that has to have an entry for each machine
    """

    def __init__(self, noded: Noded, path: str, size: int) -> None:
        super().__init__(OURS)
        self._noded, self._path, self._size = noded, path, size

    def setup(self) -> None:
        """Connect."""
        self._connection = http.client.HTTPConnection("localhost")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(self._noded.socket))

    def run(self, clock: Clock, count: int) -> None:
        """Ask so often; the answer is read, and not looked at."""
        before, begun = cpu_of(self._noded.pid), time.perf_counter()
        for _ in range(count):
            self._connection.request("GET", self._path)
            text = self._connection.getresponse().read()
        clock.add(cpu_of(self._noded.pid) - before, time.perf_counter() - begun)
        if text.count(b'"name":"m') < self._size:
            raise BenchError(f"{self._path}: it does not tell of {self._size} machines")

    def teardown(self) -> None:
        """Disconnect."""
        self._connection.close()


@dataclass(frozen=True)
class Scale:
    """The figures, at several sizes."""

    name: str = "scale"
    sizes: Sequence[int] = (1, 10, 100, 1000)
    quick: Sequence[int] = (1, 10, 40)
    called: int = 50  # times in a round

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure them."""
        for size in self.quick if quick else self.sizes:
            if size > fitting():
                print(f"{self.name}: there is no memory for {size} QEMUs, only for {fitting()}")
                continue
            progress(f"{size} QEMUs are started")
            with place() as node, machines(node, size):
                yield self._adoption(node, size, 3 if quick else 5, progress)
                noded = Noded(node.host.paths, node.host.paths.state / "log")
                noded.start()
                try:
                    time.sleep(SETTLED)
                    yield self._asked(noded, "/v1/instances", "list", size, progress)
                    yield self._asked(noded, "/v1/stats", "stats", size, progress)
                finally:
                    noded.end()

    def _adoption(self, node: Node, size: int, rounds: int, progress: Callable[[str], None]) -> Result:
        bars: list[Bar] = [Within(OURS, 3000, WALL_MS)] if size == 1000 else []
        title = f"start of the node daemon until it knows {size} machines that run"
        columns = (CPU_MS, WALL_MS, MEMORY)
        result = Result(11, "adoption", title, "start", bars=bars, columns=columns, size=size)
        return measure(result, [Adopted(node, size)], rounds, 120.0, progress)

    def _asked(self, noded: Noded, path: str, name: str, size: int, progress: Callable[[str], None]) -> Result:
        title = f"GET {path} of {size} machines, over a connection that is held"
        result = Result(10, name, title, "call", self.called, columns=(CPU_MS, WALL_MS), size=size)
        return measure(result, [Asked(noded, path, size)], 7, 30.0, progress)


FIGURES: Final = (Scale(),)
