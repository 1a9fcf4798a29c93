"""The connection that a process waits on is cut, and nothing else."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from drover.kvm.process import Process, current_boot
from drover.kvm.sever import sever

WAITS = {
    "tcp": "s = socket.create_connection(('127.0.0.1', PORT)); s.recv(1)",
    "unix": "one, two = socket.socketpair(); one.recv(1)",
    "file": "r, w = os.pipe(); os.read(r, 1)",
    "time": "t = socket.create_connection(('127.0.0.1', PORT)); time.sleep(60)",
    "thread": "import threading; s = socket.create_connection(('127.0.0.1', PORT)); "
    "t = threading.Thread(target=s.recv, args=(1,)); t.start(); t.join()",
}


@contextmanager
def waiting(how: str, port: int, folder: Path) -> Iterator[Process]:
    code = f"import os, socket, time; {WAITS[how].replace('PORT', str(port))}"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        try:
            start_time = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
            with Process.attach(child.pid, start_time, current_boot(), folder / "status") as process:
                deadline = time.monotonic() + 20
                while "socket" not in str(links(child.pid)) and how != "file" and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.2 if how != "file" else 1)
                yield process
        finally:
            child.kill()


def links(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


@pytest.mark.parametrize("how", ["tcp", "unix", "file", "time"])
def test_what_it_waits_on(how: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with waiting(how, port, tmp_path) as process:
            assert sever(process) == ([f"127.0.0.1:{port}"] if how == "tcp" else [])
            assert process.wait(5 if how == "tcp" else 0.2) == (how == "tcp")
        assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_has_ended(tmp_path: Path) -> None:
    with waiting("file", 0, tmp_path) as process:
        process.kill()
        assert sever(process) == []


def test_what_another_thread_waits_on(tmp_path: Path) -> None:
    """It is cut where that is wanted alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with waiting("thread", port, tmp_path) as process:
            assert sever(process) == []
            assert sever(process, others=True) == [f"127.0.0.1:{port}"]
            assert process.wait(5)
