"""What real QEMUs say of themselves, and what is no QEMU."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drover.errors import BinaryError, BinarySlow
from drover.kvm import binary as module
from drover.kvm import trial as trial_module
from drover.kvm.binary import probe_binary, schema_of
from drover.kvm.trial import Trial
from machines import qemu_of

pytestmark = pytest.mark.live

VERSIONS = ["7.2", "10.0"]


@pytest.fixture(params=VERSIONS)
def qemu(request: pytest.FixtureRequest) -> Path:
    """A binary of each version."""
    return qemu_of(request.param)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Make a program of these lines."""

    def make(lines: str) -> Path:
        path = tmp_path / "fake-qemu"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return path

    return make


def children() -> set[int]:
    """Processes that this one has started."""
    return {
        int(pid)
        for thread in Path("/proc/self/task").iterdir()
        for pid in (thread / "children").read_text(encoding="ascii").split()
    }


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No descriptor, process or temporary file remains of any probe."""
    before = (len(os.listdir("/proc/self/fd")), children())
    yield
    assert (len(os.listdir("/proc/self/fd")), children()) == before
    assert not list(tmp_path.rglob("cache/.*"))


def test_says_what_it_is(qemu: Path, tmp_path: Path) -> None:
    binary = probe_binary(os.fspath(qemu), tmp_path)
    major, minor, _ = binary.version
    assert binary.path == os.path.realpath(qemu)
    assert binary.resolve_machine("q35") == f"pc-q35-{major}.{minor}"
    assert binary.machine("pc").default_ram_id == "pc.ram"
    assert binary.machine("q35").hotpluggable_cpus
    assert binary.machine("none").max_cpus == 1
    assert {"virtio-blk-pci", "virtio-net-pci", "qxl", "vfio-pci"} <= binary.devices
    assert {"host", "max", "qemu64", "Haswell-v1"} <= binary.cpu_models
    assert binary.accelerators == {"kvm", "tcg"}
    assert binary.target == "x86_64"
    assert "blockdev-add" in binary.commands
    assert schema_of(binary, tmp_path).has_argument("device_add", "driver")


def test_cost(qemu: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    first = probe_binary(os.fspath(qemu), tmp_path)
    asked = time.perf_counter()
    best = 1.0
    for _ in range(20):
        before = time.perf_counter()
        assert probe_binary(os.fspath(qemu), tmp_path) == first
        best = min(best, time.perf_counter() - before)
    assert best < 0.005
    assert asked - start < 5  # 0.2 s where there is nothing else to do


def test_script_is_known_by_what_it_executes(qemu: Path, tmp_path: Path, script: Callable[[str], Path]) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(qemu)
    path = script(f'exec {copy} "$@"')
    first = probe_binary(os.fspath(path), tmp_path / "cache")
    document = module._known(path, tmp_path / "cache")
    names = [Path(stamp.path).name for stamp in document.stamps]
    assert names[0] == "fake-qemu"
    assert {"qemu-system-x86_64", "qemu"} <= set(names)
    path.write_text(f'#!/bin/sh\nexec {copy} "$@" # again\n')
    assert probe_binary(os.fspath(path), tmp_path / "cache").key != first.key


@pytest.mark.parametrize(
    ("lines", "problem", "status", "log"),
    [
        ("exit 0", "it ended with exit status 0", "exit status 0", ""),
        ("echo one; echo two >&2; exit 3", "ended with exit status 3", "exit status 3", "one\ntwo"),
        ("kill -ABRT $$", "was killed by SIGABRT", "killed by SIGABRT", ""),
        ("yes | head -n 9999 >&2; exit 1", "exit status 1", "exit status 1", "y\n" * 9 + "y"),
        ("exec no-such-program", "exit status 127", "exit status 127", ""),
    ],
)
def test_one_that_dies(
    lines: str, problem: str, status: str, log: str, tmp_path: Path, script: Callable[[str], Path]
) -> None:
    path = script(lines)
    with pytest.raises(BinaryError, match=problem) as caught:
        probe_binary(os.fspath(path), tmp_path / "cache")
    assert caught.value.path == os.fspath(path)
    assert caught.value.status == status
    assert log in caught.value.log
    assert not isinstance(caught.value, BinarySlow)
    assert not list((tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize(
    "lines",
    [
        "echo here; sleep 100",
        "sleep 100 & wait",  # what it has started goes with it
        "yes",  # prints more than anybody reads
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        "kill -STOP $$",
    ],
)
def test_one_that_hangs(
    lines: str, tmp_path: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.3)
    path = script(lines)
    before = time.monotonic()
    with pytest.raises(BinarySlow, match=r"within 0.3 s") as caught:
        probe_binary(os.fspath(path), tmp_path / "cache")
    assert time.monotonic() - before < 3
    if "here" in lines:
        assert caught.value.log == "here"
    assert not list((tmp_path / "cache").glob("*.json"))


def test_one_that_is_stopped_in_the_middle(qemu: Path) -> None:
    with Trial(Path(os.path.realpath(qemu)), ["-machine", "none"], timeout=1) as trial:
        os.killpg(trial.pid, signal.SIGSTOP)
        with pytest.raises(BinarySlow):
            trial.ask("query-version")


def test_one_that_is_killed_in_the_middle(qemu: Path) -> None:
    with Trial(Path(os.path.realpath(qemu)), ["-machine", "none"], timeout=10) as trial:
        os.killpg(trial.pid, signal.SIGKILL)
        with pytest.raises(BinaryError, match="killed by SIGKILL"):
            trial.ask("query-version")


def test_one_that_speaks_something_else(tmp_path: Path, script: Callable[[str], Path]) -> None:
    path = script("""exec bash -c 'echo "{\\"no\\": \\"greeting\\"}" >&"${2##*fd=}"; sleep 100' bash "$@" """)
    with pytest.raises(BinaryError, match="greet"):
        probe_binary(os.fspath(path), tmp_path / "cache")


@pytest.mark.parametrize("content", [b"just text\n", b"", b"\x7fELF and nothing else"])
def test_file_that_is_no_program(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(BinaryError):
        probe_binary(os.fspath(path), tmp_path / "cache")


def test_one_that_cannot_be_killed(
    qemu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial_module, "KILL_TIMEOUT", 0.1)
    trial = Trial(Path(os.path.realpath(qemu)), ["-machine", "none"], timeout=10)

    def fail() -> None:
        with monkeypatch.context() as patched, trial:
            patched.setattr(os, "killpg", lambda *_: None)
            raise KeyError

    with pytest.raises(KeyError) as caught:
        fail()
    assert "has not ended within 0.1 s" in caught.value.__notes__[0]
    assert "undo of a trial QEMU failed" in caplog.text
    trial._end()


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o755)
    with pytest.raises(BinaryError, match="is not a file"):
        probe_binary(os.fspath(tmp_path / "pipe"), tmp_path / "cache")


def test_goes_with_a_killed_manager(qemu: Path, tmp_path: Path) -> None:
    manager = f"""
        import sys, time
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        from drover.kvm.trial import Trial
        with Trial(Path({os.path.realpath(qemu)!r}), ["-machine", "none"], timeout=60) as trial:
            print(trial.pid, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(manager)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        assert ended.poll(10_000)
    finally:
        os.close(pidfd)


def test_several_processes_at_once(qemu: Path, tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        from drover.kvm.binary import probe_binary
        print(probe_binary({os.fspath(qemu)!r}, Path({os.fspath(tmp_path / "cache")!r})).key)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {process.communicate(timeout=60)[0] for process in running}
    assert keys == {probe_binary(os.fspath(qemu), tmp_path / "cache").key + "\n"}
