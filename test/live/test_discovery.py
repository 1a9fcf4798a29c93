"""What a build of QEMU can do is asked once for the build, by whatever name and socket it is reached."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.monitor import discovery

pytestmark = pytest.mark.live

Start = Callable[[str], Path]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts QEMUs without a machine, and returns the path of each one's monitor."""
    processes = []

    def run(binary: str) -> Path:
        path = tmp_path / f"q{len(processes)}"
        monitor = f"unix:{path},server=on,wait=off"
        command = [binary, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", monitor]
        # a copy of the binary does not find its modules by itself
        modules = {"QEMU_MODULE_DIR": "/usr/lib/x86_64-linux-gnu/qemu"}
        processes.append(subprocess.Popen(command, env=os.environ | modules))
        return path

    yield run
    for process in processes:
        process.kill()
        process.wait()


def asks(caplog: pytest.LogCaptureFixture, path: Path, **options: bool) -> bool:
    """Whether a connection asks QEMU for its commands."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "drover.qmp"), QmpConnection(path, **options) as vm:
        assert "query-status" in vm.supported_commands
    return "query-commands" in caplog.text


def test_once_for_a_build(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    discovery._known.clear()
    one, two = start("qemu-system-x86_64"), start("qemu-system-x86_64")
    assert asks(caplog, one)
    assert not asks(caplog, one)
    assert not asks(caplog, two)
    assert asks(caplog, two, share_discovery=False)
    copy = tmp_path / "qemu"
    binary = shutil.which("qemu-system-x86_64")
    assert binary
    shutil.copy(binary, copy)
    assert asks(caplog, start(str(copy))), "another file may be another build, though it says the same version"
    with QmpConnection(one) as first, QmpConnection(two) as second:
        assert first.query_schema() is second.query_schema()
