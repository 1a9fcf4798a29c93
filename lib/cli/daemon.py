"""The node daemon of this user: started by `drover run` where none runs, looked at and ended by `drover daemon`."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from drover.cli.output import answer, output_option
from drover.errors import CallFailed, WrongState
from drover.kvm import logs
from drover.kvm.paths import default_paths
from drover.node.client import SOCKET, Daemon

LOG: Final = "noded.log"  # in the folder of what lasts
_COMES_UP: Final = 20.0  # seconds; 1 on an idle machine, more with many instances to look at
_ENDS: Final = 30.0  # seconds, of which it gives calls that are under way ten
_AGAIN: Final = 0.05
_CREDENTIALS: Final = struct.Struct("3i")
_UNIT: Final = "drover-noded.service"
_CODE: Final = "import sys; sys.path += [each for each in {path!r} if each not in sys.path]\n" \
               "from drover.node.daemon import main; main([])"  # fmt: skip


def begun(here: Daemon) -> str:
    """Start a daemon for this user: in a session of its own, its log in the folder of what lasts.

    :returns: why none came up; empty if one did
    """
    paths = default_paths()
    paths.state.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = [os.path.abspath(each) for each in sys.path if each]
    with ExitStack() as lent:
        log = logs.opened(lent, paths.state / LOG)
        child = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
        )  # fmt: skip
    if _until(lambda: here.answers() or child.poll() is not None, _COMES_UP) and here.answers():
        child.returncode = 0  # it outlives us: nobody is to wait for it
        return ""
    if child.poll() is None:
        child.terminate()
        return f"it was not there within {_COMES_UP:g} s"
    words = (paths.state / LOG).read_text(errors="replace").splitlines()
    return words[-1] if words else f"it ended with {child.returncode}"


@click.command
@output_option
def start(output: str) -> None:
    """Start the node daemon for this user, if none runs. `drover run` does so by itself.

    Where systemd runs the host, its unit is the better way: systemctl enable --now drover-noded
    """
    here = _here()
    if here.answers():
        answer(output, f"It runs already, as process {_pid(here)}.", {"pid": _pid(here), "socket": here.where})
        return
    if why := begun(here):
        raise CallFailed("no-daemon-start", f"no node daemon came up: {why}")
    answer(output, f"It runs, as process {_pid(here)}.", {"pid": _pid(here), "socket": here.where})


@click.command
@output_option
def status(output: str) -> None:
    """Say whether the node daemon of this host runs. It exits with 1 if it does not."""
    here = _here()
    if not here.answers():
        raise CallFailed("no-daemon", f"no node daemon answers at {here.where}")
    told: dict[str, Any] = here.call("GET", "/v1/node")
    pid, by = _pid(here), "systemd" if _of_systemd(_pid(here)) else "itself"
    told |= {"pid": pid, "socket": here.where, "run_by": by, "log": str(default_paths().state / LOG)}
    states = ", ".join(f"{count} {state}" for state, count in sorted(told["states"].items())) or "none"
    text = f"drover-noded {told['version']} runs as process {pid}, by {by}, at {here.where}.\nInstances: {states}."
    answer(output, text, told)


@click.command
@output_option
def stop(output: str) -> None:
    """End the node daemon of this user. The machines run on; the next `drover run` starts it again."""
    here = _here()
    if not here.answers():
        answer(output, "No node daemon runs.", {"pid": None})
        return
    pid = _pid(here)
    if _of_systemd(pid):
        raise WrongState("drover-noded", "systemd's", "one that is not: systemctl stop drover-noded ends it")
    end = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(end, signal.SIGTERM)
        if not _until(lambda: not _runs(end), _ENDS):
            raise CallFailed("no-answer", f"the node daemon, process {pid}, has not ended within {_ENDS:g} s")
    finally:
        os.close(end)
    answer(output, f"The node daemon, process {pid}, has ended. The machines run on.", {"pid": pid})


def _here() -> Daemon:
    return Daemon(default_paths().run / SOCKET)


def _pid(here: Daemon) -> int:
    """Who listens there, by the kernel's word."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.fspath(here.path))
        pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


def _of_systemd(pid: int) -> bool:
    """Whether it is systemd that would start it again, or listens for it."""
    try:
        return pid == 1 or _UNIT in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _runs(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_AGAIN)
    return True
