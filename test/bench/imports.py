"""The figure of starts of Python: what importing the package costs, and the program's help."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemons_of import LIBVIRT, has_libvirt
from frame import CPU_MS, WALL_MS, Added, BenchError, Clock, Result, Side, measure

NOTHING: Final = "python -c pass"
PACKAGE: Final = "import drover"
CLIENT: Final = "from drover import QmpConnection"
HELP: Final = "drover --help"
VIRSH: Final = "virsh --help"


class Program(Side):
    """A program that is run to its end, again and again.

    :param root: the directory that it takes for the root; as root
    """

    def __init__(self, name: str, words: list[str], root: Path | None = None) -> None:
        super().__init__(name)
        self._words = words if root is None else ["/usr/sbin/chroot", str(root), *words]

    def setup(self) -> None:
        """Once, so that all its files are read."""
        self.run(Clock(), 1)

    def run(self, clock: Clock, count: int) -> None:
        """So often."""
        opened = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_WRONLY, 0) for fd in (1, 2)]
        # as an installed one starts: its modules are compiled once, and not in each start
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for _ in range(count):
            begun = time.perf_counter()
            pid = os.posix_spawn(self._words[0], self._words, environment, file_actions=opened)
            _, status, usage = os.wait4(pid, 0)
            clock.add(usage.ru_utime + usage.ru_stime, time.perf_counter() - begun)
            if status:
                raise BenchError(f"{' '.join(self._words)}: ended with {os.waitstatus_to_exitcode(status)}")

    def teardown(self) -> None:
        """Nothing is left."""


@dataclass(frozen=True)
class Imports:
    """The figure."""

    name: str = "import"
    row: int = 13

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        program = str(Path(sys.executable).with_name("drover"))
        sides: list[Side] = [
            Program(PACKAGE, [sys.executable, "-c", PACKAGE]),
            Program(CLIENT, [sys.executable, "-c", CLIENT]),
            Program(HELP, [program, "--help"]),
            Program(NOTHING, [sys.executable, "-c", "pass"]),
        ]
        if has_libvirt(VIRSH):
            sides.append(Program(VIRSH, ["/usr/bin/virsh", "--help"], LIBVIRT))
        bars = (
            Added(PACKAGE, 60, WALL_MS, NOTHING),
            Added(CLIENT, 60, WALL_MS, NOTHING),
            Added(CLIENT, 60, CPU_MS, NOTHING),
            Added(HELP, 150, WALL_MS, NOTHING),
        )
        title = "start of a program to its end"
        result = Result(self.row, self.name, title, "start", 3, False, bars, (CPU_MS, WALL_MS))
        yield measure(result, sides, 5 if quick else 21, 60.0, progress)


FIGURES: Final = (Imports(),)
