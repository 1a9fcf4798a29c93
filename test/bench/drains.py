"""The figure of a drain: all machines of a node go to another one by one command, over a link of so many bits a second.

Beside it is what the link itself takes for the bytes that went over it, by the counters of the cable: memory by TLS,
and the daemons' own words. Each node has a network of its own, and the cable between them is limited by the kernel (tc
tbf), of which nobody is told.
"""

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from frame import CPU_MS, WALL, BenchError, Column, Result, Series, Versus
from procs import cpu_of

sys.path.append(str(Path(__file__).resolve().parents[1]))

from instances import bare
from netns import Network
from pairs import Pair, two_nodes
from people import Member

VERSION: Final = "10.0"
MACHINES: Final = 20
MEMORY: Final = 48  # MiB, of each
FILLED: Final = (2, 46)  # MiB, from where to where
LINK: Final = 160  # Mbit/s: it takes some 50 s for them, so that the link is what there is not enough of
BOOTING: Final = 4  # at a time
OURS: Final = "drover"
LIMIT: Final = "the link"
TIMEOUT: Final = 600.0
SECONDS: Final = Column(WALL.name, "s")
BLACKOUT: Final = Column("blackout, median", "ms", 1e3)
_LOADED: Final = 1 << 20  # where it is in memory


def filler() -> bytes:
    """A guest for multiboot, which fills its memory with what no zero page and no compression makes less, and halts.

    A booted Linux would do as well, but twenty of them take minutes of a processor without KVM.
    """
    first, last = (at << 20 for at in FILLED)
    fill = (
        b"\x69\xc0" + struct.pack("<I", 1664525)  # imul eax, eax, ..., as in Numerical Recipes
        + b"\x05" + struct.pack("<I", 1013904223)  # add eax, ...
        + b"\xab\x49"  # stosd; dec ecx
    )  # fmt: skip
    code = (
        b"\xbf" + struct.pack("<I", first)  # mov edi, first
        + b"\xb9" + struct.pack("<I", (last - first) // 4)  # mov ecx, how many words
        + fill + b"\x75" + struct.pack("b", -len(fill) - 2)  # jnz to fill
        + b"\xfa\xf4\xeb\xfd"  # cli; hlt, and again if something wakes it
    )  # fmt: skip
    magic, flags, header = 0x1BADB002, 1 << 16, 32  # the flag: where it is loaded follows
    end = _LOADED + header + len(code)
    checksum = -(magic + flags) & 0xFFFFFFFF
    words = magic, flags, checksum, _LOADED, _LOADED, end, end, _LOADED + header
    return struct.pack("<8I", *words) + code


class Drain:
    """Two nodes, the machines, and the cable between them."""

    def __init__(self, stack: ExitStack, progress: Callable[[str], None]) -> None:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drover-bench-")))
        self.pair: Pair = stack.enter_context(two_nodes(top, apart=True))
        assert self.pair.cable is not None
        self.ends: tuple[Network, Network] = self.pair.cable.ends
        self._kernel = top / "filler"
        self._kernel.write_bytes(filler())
        progress(f"a drain: {MACHINES} machines start")
        names = [f"m{number}" for number in range(MACHINES)]
        with ThreadPoolExecutor(BOOTING) as pool:
            list(pool.map(self._start, names))
        self.pair.cable.limit(LINK)
        self._back = False

    def _start(self, name: str) -> None:
        daemon = self.pair.here.daemon
        daemon.create(bare(VERSION, name) | {"memory": {"size": f"{MEMORY}MiB"}, "boot": {"kernel": str(self._kernel)}})
        daemon.do("start", name)
        last = {"command-line": f"xp /1wx {(FILLED[1] << 20) - 4:#x}"}
        while "0x00000000" in daemon.do("qmp", name, execute="human-monitor-command", arguments=last):
            time.sleep(0.1)

    def run(self, *words: str) -> tuple[float, float, float, float]:
        """There, or back: what it took, what the link takes for as much, the daemons' CPU time, and for how long half
        of the guests stood still at most; seconds."""
        source, target = self._sides()
        sent, cpu, begun = self._sent(), self._cpu(), time.perf_counter()
        command, root = [source.root.program, "migrate-all", target.address, "-o", "json", *words], source.root
        assert root.network is not None
        with root.network.entered():
            done = subprocess.run(command, env=root.env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        took = time.perf_counter() - begun
        if done.returncode:
            raise BenchError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        self._back = not self._back
        wire = max(after - before for after, before in zip(self._sent(), sent, strict=True))
        stood = median(row["blackout_ms"] / 1e3 for row in json.loads(done.stdout))
        return took, wire * 8e-6 / LINK, self._cpu() - cpu, stood

    def _sides(self) -> tuple[Member, Member]:
        here, there = self.pair.both
        return (there, here) if self._back else (here, there)

    def _sent(self) -> list[int]:
        """Bytes that each end has sent."""
        return [int(end.ip("-s link show dev wire").split("TX:")[1].split("\n")[1].split()[0]) for end in self.ends]

    def _cpu(self) -> float:
        return sum(cpu_of(member.daemon.pid) for member in self.pair.both)


@dataclass(frozen=True)
class Drains:
    """The figure: so many at a time as the command takes by itself, and all at once."""

    name: str = "drain"
    row: int = 12

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, there and back."""
        # All at once, each has so little of the link that its own deadline would pass.
        ways = {"": (), ", all at once": ("--at-once", str(MACHINES), "--deadline", "600")}
        title = f"{MACHINES} machines to another node, by TLS, over {LINK} Mbit/s"
        bars = [Versus(OURS + way, 1.15, SECONDS, LIMIT + way) for way in ways]
        result = Result(self.row, self.name, title, "drain", bars=bars, columns=(SECONDS, CPU_MS, BLACKOUT))
        for way in ways:
            result.series |= {OURS + way: Series(), LIMIT + way: Series()}
        with ExitStack() as stack:
            drain = Drain(stack, progress)
            for number in range(1 if quick else 3):
                for way, words in ways.items():
                    progress(f"{title}{way}: round {number + 1}")
                    took, limit, cpu, stood = drain.run(*words)
                    _note(result.series[OURS + way], {SECONDS: took, CPU_MS: cpu, BLACKOUT: stood})
                    _note(result.series[LIMIT + way], {SECONDS: limit})
        yield result


def _note(series: Series, found: dict[Column, float]) -> None:
    for column, value in found.items():
        series.columns.setdefault(column.name, []).append(value)


FIGURES: Final = (Drains(),)
