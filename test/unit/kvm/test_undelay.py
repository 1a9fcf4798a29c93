"""Whoever is accepted where a process listens is answered without delay."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drover.kvm.process import Process, current_boot
from drover.kvm.undelay import undelay

LISTENS = """
import socket
others = [socket.socketpair(), socket.create_server(("127.0.0.1", 0)), open("/dev/null")]
listener = socket.create_server((HOST, 0), family=socket.AF_INET6 if ":" in HOST else socket.AF_INET)
early = socket.create_connection(listener.getsockname()[:2])
before = listener.accept()[0]
print(listener.getsockname()[1], flush=True)
accepted = listener.accept()[0]
print(*(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in (before, accepted, others[1])), flush=True)
"""


def process_of(pid: int, folder: Path) -> Process:
    start_time = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return Process.attach(pid, start_time, current_boot(), folder / "status")


@contextmanager
def listening(host: str) -> Iterator["subprocess.Popen[str]"]:
    code = LISTENS.replace("HOST", repr(host))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        yield child
        child.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_is_accepted_from_then_on(host: str, tmp_path: Path) -> None:
    """And nobody else; nothing of the process stays open with us."""
    with listening(host) as listener:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        before = len(os.listdir("/proc/self/fd"))
        with process_of(listener.pid, tmp_path) as process:
            assert not undelay(process, 1)
            assert undelay(process, port)
        assert len(os.listdir("/proc/self/fd")) == before
        with socket.create_connection((host, port)):
            assert listener.stdout.readline().split() == ["0", "1", "0"]


def test_of_one_that_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with process_of(child.pid, tmp_path) as process:
            child.kill()
            child.wait()
            with pytest.raises(OSError, match=str(child.pid)):
                undelay(process, 1)
