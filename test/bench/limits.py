"""The limit of what any client can reach: a C program (`limit.c`) that does no more than it must."""

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from frame import BenchError, Clock, Side

IN_C: Final = "C"
SOURCE: Final = Path(__file__).with_name("limit.c")
PROGRAM: Final = Path(__file__).resolve().parents[2] / "build" / "bench" / "limit"


@cache
def compiler() -> str | None:
    """Where one is; None: there is none, and no limit to tell."""
    return shutil.which("gcc") or shutil.which("cc")


def compiled() -> Path:
    """The program, made anew where its source is newer.

    :raises BenchError: the compiler refuses it
    """
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return PROGRAM
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    words = [str(compiler()), "-O2", "-std=gnu11", "-o", str(PROGRAM), str(SOURCE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{SOURCE.name}: {done.stderr}")
    return PROGRAM


class InC(Side):
    """One command after the other, or one to many monitors at once.

    :param way: ``calls`` or ``fan``
    :param warm_up: operations before the clock starts
    """

    def __init__(self, way: str, command: str, paths: Sequence[str], warm_up: int = 10) -> None:
        super().__init__(IN_C)
        self._words = [str(compiled()), way, command, *paths]
        self._warm_up = warm_up

    def setup(self) -> None:
        """Connect."""
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready\n":
            raise BenchError(f"{' '.join(self._words[:4])}: did not connect")
        self._do(self._warm_up)

    def run(self, clock: Clock, count: int) -> None:
        """Have it measure itself."""
        clock.add(*self._do(count))

    def teardown(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _do(self, count: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        cpu, wall = self._line().split()
        return int(cpu) / 1e9, int(wall) / 1e9

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{' '.join(self._words[:4])}: has ended")
        return line
