"""What a build of QEMU can do is asked once for the build, by whatever name and socket it is reached."""

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def asks(caplog: pytest.LogCaptureFixture, path: Path | socket.socket, **options: Any) -> bool:
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


def test_at_a_socket_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel says that whoever listened when it connected is there: who knows better says so."""
    path = tmp_path / "q"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        early = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in early:
            each.connect(str(path))
        fd = listener.fileno()
        words = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-mon", "m,mode=control"]
        command = ["qemu-system-x86_64", *words, "-chardev", f"socket,id=m,fd={fd},server=on,wait=off"]
        process = subprocess.Popen(command, pass_fds=[fd])
    try:
        discovery._known.clear()
        assert asks(caplog, early[0])
        assert asks(caplog, early[1], pid=process.pid)
        assert not asks(caplog, early[2], pid=process.pid)
    finally:
        process.kill()
        process.wait()
