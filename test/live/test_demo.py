"""`drover demo` as its user runs it: to its end, interrupted, with a QEMU killed under it, and kept."""

import errno
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection
from drover.cli import demo_needs
from drover.cli.demo_needs import NeedError, find_options
from drover.cli.demo_signals import Interrupted, Interrupts
from drover.errors import MonitorError
from drover.testing.machine import qemu_binaries

live = pytest.mark.live
pytestmark = pytest.mark.alone

COMMAND = [sys.executable, "-c", "from drover.cli.main import main; main()", "demo"]
PACKAGE = Path(__file__).resolve().parents[2] / "build" / "py"
LIMIT = 150.0  # seconds for a whole demo: 9 on an idle machine
STEPS = ["prepare", "boot", "add-disk", "add-nic", "write", "second", "migrate", "end-first", "compare"]
STEPS += ["remove-disk", "remove-nic"]
TURNS = [("7.2", "7.2", "q35"), ("7.2", "7.2", "pc"), ("7.2", "10.0", "q35"), ("10.0", "10.0", "pc")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes all its files; its path is also how its processes are known. Short, for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def processes(folder: Path) -> dict[int, list[str]]:
    """The QEMUs, and whatever else has the folder in its command line: pid to its words."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if any(str(folder) in word for word in words):
            found[int(entry.name)] = words
    return found


def check_nothing_is_left(folder: Path) -> None:
    assert not processes(folder)
    assert not list(folder.iterdir())


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"env": os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(PACKAGE), "TERM": "xterm-256color"}} | more


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    limits = options(folder, capture_output=True, text=True, timeout=LIMIT)
    return subprocess.run([*COMMAND, *words], check=False, **limits)


@contextmanager
def started(folder: Path, *words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """The demo, under way; killed if the test fails."""
    with subprocess.Popen([*COMMAND, *words], **options(folder, text=True, **more)) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def wait_until(condition: Callable[[], bool], demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert demo.poll() is None, f"it ended with {demo.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_migration(folder: Path, demo: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait until memory goes over; return the pids of both QEMUs."""

    def pids(incoming: bool) -> list[int]:
        return [pid for pid, words in processes(folder).items() if ("-incoming" in words) is incoming]

    wait_until(lambda: bool(pids(True)), demo)
    (source,), (target,) = pids(False), pids(True)
    words = processes(folder)[source]
    wait_until(lambda: is_moving(words), demo)
    return source, target


def is_moving(words: list[str]) -> bool:
    path = next(word for word in words if "/qmp2," in word).removeprefix("unix:").partition(",")[0]
    try:
        with QmpConnection(path, timeout=5) as qmp:
            return qmp.query_migrate().ram.transferred > 1 << 20
    except MonitorError:
        return False  # it has just started, or just ended


# -- to its end --------------------------------------------------------------------------------------------------------


@live
@pytest.mark.parametrize(("source", "target", "kind"), TURNS)
def test_all_of_it(folder: Path, source: str, target: str, kind: str) -> None:
    qemu = qemu_binaries()
    words = ["--machine", kind, "--qemu", str(qemu[source])]
    words += ["--target-qemu", str(qemu[target])] if target != source else []
    done = run(folder, "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    *steps, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert [step["step"] for step in steps] == STEPS
    assert all(step["ok"] for step in steps)
    assert summary["ok"]
    assert summary["source_qemu"].startswith(source)
    assert summary["target_qemu"].startswith(target)
    assert summary["checksum_before"] == summary["checksum_after"]
    assert (summary["beats_lost"], summary["beats_doubled"]) == (0, 0)
    assert summary["disk"] == "vda"
    assert summary["nic"].startswith("eth")
    assert summary["disk_gone"]
    assert summary["nic_gone"]
    assert summary["rounds"] > 1
    assert summary["transferred_bytes"] > 20 << 20
    assert 0 < summary["downtime_ms"] < summary["total_ms"]
    assert 5 <= summary["blackout_ms"] < summary["total_ms"]
    check_nothing_is_left(folder)


@live
def test_kept_guest_runs_on_and_can_be_reached(folder: Path) -> None:
    done = run(folder, "--json", "--keep")
    assert (done.returncode, done.stderr) == (0, "")
    kept = json.loads(done.stdout.splitlines()[-1])["kept"]
    assert set(processes(folder)) == {kept["pid"]}
    assert list(folder.iterdir()) == [Path(kept["directory"])]
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(LIMIT)
        console.connect(kept["serial"])
        console.sendall(b"\n#1 8 uname -n\n")
        with console.makefile("rb") as lines:
            assert b"#1 END 0" in next(line for line in lines if b"#1 END" in line)
    with QmpConnection(kept["qmp"]) as qmp:
        assert qmp.query_status().running
        qmp.quit()
    deadline = time.monotonic() + 10
    while processes(folder) and time.monotonic() < deadline:  # its sockets close a moment before it ends
        time.sleep(0.01)
    shutil.rmtree(kept["directory"])
    check_nothing_is_left(folder)


# -- cut short ---------------------------------------------------------------------------------------------------------


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.text = ""

    def wait_for(self, what: str) -> None:
        while what not in self.text:
            assert self._read(), f"{what!r} never came: {self.text}"

    def read_to_the_end(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace"))  # no colours, no moves
        return bool(data)


@live
def test_ctrl_c_in_a_terminal(folder: Path) -> None:
    keyboard, terminal = pty.openpty()
    command = ["setsid", "--ctty", *COMMAND]
    with subprocess.Popen(command, **options(folder, stdin=terminal, stdout=terminal, stderr=terminal)) as demo:
        os.close(terminal)
        screen = Screen(keyboard)
        screen.wait_for("round 1")
        os.write(keyboard, b"\x03")
        os.write(keyboard, b"\x03")
        screen.read_to_the_end()
    os.close(keyboard)
    assert demo.returncode == 128 + signal.SIGINT
    assert "✓ Hot-add a disk" in screen.text
    assert "interrupted by SIGINT; nothing is left" in screen.text
    assert "Traceback" not in screen.text
    check_nothing_is_left(folder)


@live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_while_the_guest_boots(folder: Path, number: signal.Signals) -> None:
    with started(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        wait_until(lambda: bool(processes(folder)), demo)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 128 + number
    assert errors == f"drover: Boot the guest: interrupted by {number.name}; nothing is left\n"
    check_nothing_is_left(folder)


@live
def test_source_that_is_killed_on_the_way(folder: Path) -> None:
    with started(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        source, _ = wait_for_migration(folder, demo)
        os.kill(source, signal.SIGKILL)
        told, errors = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 1
    assert told.splitlines()[-1].startswith("FAIL Migrate the guest")
    assert errors.startswith("drover: Migrate the guest: ")
    assert "the source's QEMU was killed by SIGKILL" in errors
    assert "the guest could not be kept running at the source" in errors
    assert "Traceback" not in errors
    check_nothing_is_left(folder)


@live
def test_target_that_is_killed_on_the_way(folder: Path) -> None:
    with started(folder, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        _, target = wait_for_migration(folder, demo)
        os.kill(target, signal.SIGKILL)
        told, errors = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 1
    *_, step, summary = (json.loads(line) for line in told.splitlines())
    assert (step["step"], step["ok"], summary["ok"], summary["failed"]) == ("migrate", False, False, "migrate")
    assert step["notes"] == ["the target never ran; the guest runs on at the source"]
    assert step["qemu"]["target"]["ended"] == "was killed by SIGKILL"
    assert step["qemu"]["source"]["ended"] is None
    assert errors.startswith("drover: Migrate the guest: ")
    check_nothing_is_left(folder)


# -- what it needs: no QEMU here ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOENT, "no /dev/net/tun: `modprobe tun`"), (errno.EPERM, "run it as root"), (errno.EBUSY, "tap device")],
)
def test_without_tap_devices_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(demo_needs, "open_tap", refuse)
    with pytest.raises(NeedError, match=advice) as told:
        find_options("q35", "qemu-system-x86_64", None, 256, False)
    assert "\n" not in str(told.value)


def test_it_takes_the_newest_machine_type_that_both_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_needs, "open_tap", io.BytesIO)  # only closed

    def qemu(name: str, *types: str) -> str:
        path = tmp_path / name
        path.write_text("#!/bin/sh\ncat <<END\nSupported machines are:\n" + "\n".join(types) + "\nEND\n")
        path.chmod(0o755)
        return str(path)

    old = qemu("old", "q35  Standard PC (alias of pc-q35-7.2)", "pc-q35-7.2  a", "pc-q35-6.2  b", "pc-i440fx-2.1  c")
    new = qemu("new", "pc-q35-10.0  a", "pc-q35-9.2  b", "pc-q35-7.2  c", "pc-q35-6.2  d", "pc-i440fx-10.0  e")
    assert find_options("q35", new, None, 256, False).machine_type == "pc-q35-10.0"
    assert find_options("q35", old, new, 256, False).machine_type == "pc-q35-7.2"
    with pytest.raises(NeedError, match="no versioned machine type of kind pc in common"):
        find_options("pc", old, new, 256, False)
    with pytest.raises(NeedError, match="no QEMU that works"):
        find_options("pc", "/bin/false", None, 256, False)
    with pytest.raises(NeedError, match="not an executable file"):
        find_options("pc", str(tmp_path / "none"), None, 256, False)


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whatever a test does to them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_first_signal_interrupts_and_later_ones_do_not() -> None:
    with Interrupts():
        with pytest.raises(Interrupted, match="SIGINT") as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.value.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)  # on the way out


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("handlers")
def test_held_signal_interrupts_when_it_is_over() -> None:
    with Interrupts() as interrupts:
        held = interrupts.held()
        held.__enter__()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            held.__exit__(None, None, None)


@pytest.mark.usefixtures("handlers")
def test_nothing_interrupts_what_follows_an_error_or_hold() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyError):
            with interrupts.held():
                raise KeyError
        signal.raise_signal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.hold()
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("handlers")
def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts():
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
