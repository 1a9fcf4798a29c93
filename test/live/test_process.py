"""Real QEMUs, sandboxed and without rights, under a keeper."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import ProcessRuns
from drover.kvm import process as process_module
from drover.kvm.cgroup import Cgroup
from drover.kvm.identity import Identity, UidPool
from drover.kvm.keeper import ExitStatus
from drover.kvm.process import Process, current_boot, spawn
from groups import own_tree
from machines import qemu_of

pytestmark = pytest.mark.live

VERSIONS = ["7.2", "10.0"]
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
F_OFD_GETLK = 36
MIB = 1 << 20


class Place:
    """Where one QEMU runs, and what it runs with: what `spawn` needs."""

    def __init__(self, directory: Path, qemu: Path) -> None:
        self.directory = directory
        self.qmp = directory / "qmp"
        self.disk = directory / "disk.raw"
        self.status = directory / "status"
        self.log = directory / "log"
        self.qemu = qemu
        self.identity: Identity = UidPool(directory / "uids").lend("web1")
        self.passed: set[str] = set()
        directory.chmod(0o700)  # nobody else gets in: all goes by descriptor
        with self.disk.open("wb") as disk:
            disk.truncate(MIB)
        self.disk.chmod(0o600)

    def start(self, *, cgroup: Cgroup | None = None) -> Process:
        """As an instance is started: a listening monitor and a disk, both opened by us and closed by us."""
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self.qmp.unlink(missing_ok=True)
            listener.bind(os.fspath(self.qmp))
            listener.listen()
            disk = os.open(self.disk, os.O_RDWR)
            stack.callback(os.close, disk)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            stack.callback(os.close, log)
            self.passed = {os.readlink(f"/proc/self/fd/{fd}") for fd in (listener.fileno(), disk, log)}
            return spawn(
                self.words(listener.fileno(), disk),
                status_path=self.status,
                log_fd=log,
                fds=[listener.fileno(), disk],
                identity=self.identity,
                cgroup=cgroup,
            )

    def words(self, listener: int, disk: int) -> list[str]:
        """The command line."""
        return [
            os.fspath(self.qemu), "-machine", "q35", "-m", "16M", "-accel", "tcg",
            "-nodefaults", "-no-user-config", "-S",
            "-display", "none", "-sandbox", SANDBOX,
            "-add-fd", f"fd={disk},set=1,opaque=drover:disk0",
            "-blockdev", '{"driver":"file","node-name":"disk0-file","filename":"/dev/fdset/1","locking":"on"}',
            "-blockdev", '{"driver":"raw","node-name":"disk0","file":"disk0-file"}',
            "-device", "virtio-blk-pci,drive=disk0",
            "-chardev", f"socket,id=control,fd={listener},server=on,wait=off",
            "-mon", "chardev=control,mode=control",
        ]  # fmt: skip

    def greet(self) -> QmpConnection:
        """Connect to its monitor, which proves that it is up."""
        connection = QmpConnection(os.fspath(self.qmp))
        connection.connect()
        return connection

    def locked(self) -> bool:
        """Whether some QEMU has locks on the disk."""
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        with self.disk.open("rb+") as disk:
            answer = fcntl.fcntl(disk, F_OFD_GETLK, asked)
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


@pytest.fixture(params=VERSIONS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place for a QEMU of each version."""
    if os.getuid():
        pytest.fail("only root can start something as somebody else: run the tests as root")
    return Place(tmp_path, qemu_of(request.param))


@pytest.fixture
def running(place: Place) -> Iterator[Process]:
    """A QEMU that is up."""
    with place.start() as process:
        try:
            place.greet().close()
            yield process
        finally:
            process.kill()


def field(pid: int, name: str) -> list[str]:
    """A line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(name + ":"))


def targets(pid: int) -> set[str]:
    """Where the descriptors of a process lead."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.add(os.readlink(fd))
    return found


def test_has_no_rights(place: Place, running: Process) -> None:
    uid = str(place.identity.uid)
    assert place.disk.stat().st_uid == 0
    for thread in Path(f"/proc/{running.pid}/task").iterdir():
        tid = int(thread.name)
        assert field(tid, "Uid") == [uid] * 4
        assert field(tid, "Gid") == [uid] * 4
        assert field(tid, "Groups") == []
        assert field(tid, "NoNewPrivs") == ["1"]
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(field(tid, kind)[0], 16) == 0, kind
    assert field(running.pid, "Seccomp") == ["2"]


def test_has_what_was_passed_and_its_keeper_nothing_of_it(place: Place, running: Process) -> None:
    expected = place.passed | {"/dev/null"}
    deadline = time.monotonic() + 5  # for it to see that our connection to its monitor is closed
    while (files := {name for name in targets(running.pid) if not name.startswith("anon_inode:")}) != expected:
        assert time.monotonic() < deadline, files ^ expected
    keeper = int(field(running.pid, "PPid")[0])
    assert targets(keeper) == {"/dev/null", os.fspath(place.status)}
    rollup = Path(f"/proc/{keeper}/smaps_rollup").read_text(encoding="ascii")
    assert int(rollup.partition("\nPss:")[2].split()[0]) < 4096  # KiB


def test_its_locks_go_with_it(place: Place, running: Process) -> None:
    assert place.locked()
    running.kill()
    assert not place.locked()
    with place.start() as second:
        place.greet().close()
        second.kill()
        assert not place.locked()


def test_second_one_is_refused(place: Place, running: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STATUS_TIMEOUT", 0.01)
    with pytest.raises(ProcessRuns):
        place.start()
    assert running.alive


def test_status_of_an_orderly_end(place: Place, running: Process) -> None:
    with place.greet() as qmp:
        qmp.execute("quit")
    assert running.wait(10)
    assert running.exit_status() == ExitStatus(code=0)


def test_words_that_qemu_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "words", lambda *_: [os.fspath(place.qemu), "-device", "none-such"])
    with place.start() as process:
        assert process.wait(10)
        assert process.exit_status() == ExitStatus(code=1)
    assert "none-such" in place.log.read_text()


def test_crash_is_told_from_a_kill(running: Process) -> None:
    running.send_signal(signal.SIGABRT)
    assert running.wait(10)
    assert str(running.exit_status()) == "killed by SIGABRT"


def test_stopped_one_is_alive_and_can_be_killed(running: Process) -> None:
    running.send_signal(signal.SIGSTOP)
    while field(running.pid, "State")[0] != "T":
        time.sleep(0.001)
    with Process.attach(running.pid, running.start_time, running.boot_id, running.status_path) as found:
        assert found.alive
    running.kill()
    assert running.exit_status() == ExitStatus(signal=signal.SIGKILL)


def test_outlives_a_killed_manager(place: Place) -> None:
    manager = f"""
        import sys, time
        from pathlib import Path
        sys.path[:0] = {[os.fspath(Path(__file__).parent), *sys.path]!r}
        from test_process import Place
        process = Place(Path({os.fspath(place.directory)!r}), Path({os.fspath(place.qemu)!r})).start()
        print(process.pid, process.start_time, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(manager)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        pid, start_time = map(int, first.stdout.readline().split())
        first.kill()
    with Process.attach(pid, start_time, current_boot(), place.status) as process, ExitStack() as stack:
        stack.callback(process.kill)
        with place.greet() as qmp:
            assert not qmp.execute("query-status")["running"]
            assert place.locked()
            qmp.execute("quit")
        assert process.wait(10)
        assert process.exit_status() == ExitStatus(code=0)
        assert not place.locked()


def test_runs_in_its_control_group(place: Place) -> None:
    with own_tree() as tree:
        group = tree.make("web1")
        assert group is not None
        with place.start(cgroup=group) as process:
            place.greet().close()
            assert group.pids() == [process.pid]
            group.freeze()
            assert process.alive
            group.kill()
            assert process.wait(10)
        assert group.remove()
