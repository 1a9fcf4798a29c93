"""What the clients talk to: real QEMUs that only have monitors, and a sender of events (``flood.py``)."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from frame import BenchError

START_TIMEOUT: Final = 20.0  # seconds; either is there within 0.2 s on an idle machine
STOP_TIMEOUT: Final = 10.0
LEAN: Final = ("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S")
# QEMUs that are started at once: each computes for 0.1 s, so more of them only wait for each other.
AT_ONCE: Final = 8
QEMU_BYTES: Final = 13 << 20  # of such a QEMU's own, with what the kernel needs for it
SPARE: Final = 2 << 30  # bytes that are left to the host


@contextmanager
def qemus(binary: Path, count: int, monitors: int = 1) -> Iterator[list[str]]:
    """Run so many of them, each with so many monitors; gives all addresses."""
    with tempfile.TemporaryDirectory(prefix="drover-bench-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        addresses = [f"{folder}/{number}" for number in range(count * monitors)]
        try:
            for number in range(count):
                own = addresses[number * monitors : (number + 1) * monitors]
                words = [word for address in own for word in ("-qmp", f"unix:{address},server=on,wait=off")]
                processes.append(_launched([str(binary), *LEAN, *words], own[-1]))
                if number >= AT_ONCE:
                    _wait_for(addresses[(number - AT_ONCE + 1) * monitors - 1], processes[number - AT_ONCE])
            for number, process in enumerate(processes):
                _wait_for(addresses[(number + 1) * monitors - 1], process)
            yield addresses
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


@contextmanager
def flood(events: int, monitors: int = 1) -> Iterator[list[str]]:
    """Run the sender of events; gives the addresses of its monitors."""
    program = Path(__file__).with_name("flood.py")
    with tempfile.TemporaryDirectory(prefix="drover-bench-") as folder:
        addresses = [f"{folder}/{number}" for number in range(monitors)]
        process = _launched([sys.executable, str(program), str(events), *addresses], addresses[-1])
        try:
            _wait_for(addresses[-1], process)
            yield addresses
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def fitting() -> int:
    """How many such QEMUs the memory of this host has room for."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return max(0, (free - SPARE) // QEMU_BYTES)


def _launched(argv: Sequence[str], address: str) -> "subprocess.Popen[bytes]":
    with open(f"{address}.log", "wb") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not Path(address).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = Path(f"{address}.log").read_text(errors="replace").strip()
            raise BenchError(f"{process.args!r} did not come up: {said}")
        time.sleep(0.002)
