"""An Open vSwitch of our own, in the network that we are in: a real one, whose datapath is in user space."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "build" / "open-vswitch"
_SCHEMA = FOLDER / "root/usr/share/openvswitch/vswitch.ovsschema"
_START = 10.0  # s; it takes 10 ms
_END = 5.0  # s, to end when told to


class Switch:
    """The two processes of a switch: the one with its database, and the one that switches."""

    def __init__(self, run: Path, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
        self.run = run
        self.database, self.switch = processes

    def vsctl(self, *words: str) -> str:
        """Run its `ovs-vsctl`."""
        command = [FOLDER / "ovs-vsctl", f"--db=unix:{self.run}/db.sock", "--timeout=10", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def add_bridge(self, name: str) -> None:
        """Make a bridge, with an interface of the same name."""
        self.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")

    @contextlib.contextmanager
    def stopped(self, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        """One of its processes does nothing for a while."""
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def open_vswitch(run: Path) -> Iterator[Switch]:
    """Start a switch, which ours find by the environment; end it, and all that it made.

    :param run: a folder for its sockets and files, which is made
    """
    if not (FOLDER / "ovs-vsctl").exists():
        pytest.fail("no Open vSwitch here: run ./bootstrap, which unpacks it, or tools/open-vswitch build/open-vswitch")
    run.mkdir()
    database, db = run / "conf.db", run / "db.sock"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("PATH", f"{FOLDER}:{os.environ['PATH']}")
        for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"):
            patch.setenv(name, os.fspath(run))
        subprocess.run([FOLDER / "ovsdb-tool", "create", database, _SCHEMA], check=True)
        server = stack.enter_context(_running(["ovsdb-server", os.fspath(database), f"--remote=punix:{db}"], run))
        deadline = time.monotonic() + _START
        while not db.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        switch = Switch(run, [server, stack.enter_context(_running(["ovs-vswitchd", f"unix:{db}"], run))])
        yield switch
        for bridge in switch.vsctl("list-br").split():  # its interfaces stay when it ends
            switch.vsctl("del-br", bridge)


@contextlib.contextmanager
def _running(words: list[str], run: Path) -> "Iterator[subprocess.Popen[bytes]]":
    log = ["--verbose=console:off", f"--log-file={run}/{words[0]}.log"]
    process = subprocess.Popen([FOLDER / words[0], *words[1:], *log], stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
