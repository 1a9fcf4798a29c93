"""What the clients talk to: a real QEMU that only has a monitor, and a sender of events (``flood.py``)."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frame import BenchError

START_TIMEOUT = 20.0  # seconds; either is there within 0.2 s on an idle machine
STOP_TIMEOUT = 10.0


@contextmanager
def qemu(binary: Path) -> Iterator[str]:
    """Run a QEMU without any machine in it; gives its monitor's address."""
    options = ["-machine", "none", "-nodefaults", "-display", "none", "-S"]
    with tempfile.TemporaryDirectory(prefix="drover-bench-") as folder:
        address = f"{folder}/qmp"
        with _running([str(binary), *options, "-qmp", f"unix:{address},server=on,wait=off"], address):
            yield address


@contextmanager
def flood(events: int) -> Iterator[str]:
    """Run the sender of events; gives its address."""
    program = Path(__file__).with_name("flood.py")
    with tempfile.TemporaryDirectory(prefix="drover-bench-") as folder:
        address = f"{folder}/qmp"
        with _running([sys.executable, str(program), address, str(events)], address):
            yield address


@contextmanager
def _running(argv: Sequence[str], address: str) -> Iterator[None]:
    said = Path(address).with_name("stderr")
    with said.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not Path(address).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{argv[0]} did not come up: {said.read_text(errors='replace').strip()}")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
