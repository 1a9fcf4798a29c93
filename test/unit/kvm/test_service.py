"""What systemd and a daemon say to each other, over real sockets."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from drover.kvm.service import notify, watchdog_seconds


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify("READY=1")
    assert watchdog_seconds() is None


@pytest.mark.parametrize("abstract", [False, True])
def test_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    name = f"drover-{os.getpid()}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_the_watchdog_is_ours_or_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_seconds() == 3
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 3
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None


def test_sockets_that_are_passed() -> None:
    """As systemd does it: descriptor 3, and its own pid in the environment."""
    script = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from drover.kvm.service import passed_sockets\n"
        "found = passed_sockets(); print([s.getsockname()[1] for s in found], passed_sockets())"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = ["bash", "-c", f'exec 3<&{listener.fileno()} && exec "$@"', "as-systemd", sys.executable, "-c", script]
        env = os.environ | {"LISTEN_FDS": "1"}
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, check=False, pass_fds=[listener.fileno()]
        )
        assert done.stdout == f"[{listener.getsockname()[1]}] []\n", done.stderr
