"""Real QEMUs that have a monitor and nothing else."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from drover.testing.machine import qemu_binaries

BARE = ["-machine", "none", "-nodefaults", "-display", "none", "-S"]
Start = Callable[..., Path]


@contextmanager
def bare_qemu(binary: Path, monitor: str, path: Path) -> Iterator[Path]:
    """A QEMU whose monitor is at `path`, once it listens there; killed at the end."""
    with subprocess.Popen([str(binary), *BARE, "-qmp", monitor]) as process:
        try:
            deadline = time.monotonic() + 10
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield path
        finally:
            process.kill()


@pytest.fixture(params=["7.2", "10.0"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts such QEMUs, one for each call, and returns the path of the monitor."""
    binary = qemu_binaries().get(request.param)
    if binary is None:
        pytest.fail(f"no QEMU {request.param} here: run ./bootstrap")
    with ExitStack() as stack:
        count = 0

        def begin(path: Path | None = None) -> Path:
            nonlocal count
            count += 1
            if path is not None:  # we listen there: QEMU calls
                return stack.enter_context(bare_qemu(binary, f"unix:{path},server=off", path))
            path = tmp_path / f"qmp{count}"
            return stack.enter_context(bare_qemu(binary, f"unix:{path},server=on,wait=off", path))

        yield begin
