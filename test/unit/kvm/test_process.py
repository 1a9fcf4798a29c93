"""Processes under a keeper, with the system's own small programs."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drover.errors import (
    ArgumentError,
    ConnectionClosed,
    MonitorTimeout,
    ProcessGone,
    ProcessRuns,
    ProcessStuck,
    SpawnFailed,
)
from drover.kvm import process as process_module
from drover.kvm.cgroup import Cgroup
from drover.kvm.ending import is_over
from drover.kvm.identity import Identity
from drover.kvm.keeper import ExitStatus, read_status
from drover.kvm.process import Process, current_boot, spawn

SOMEBODY = Identity(64190, 64190, (64191,))
Spawn = Callable[..., Process]


@pytest.fixture
def status(tmp_path: Path) -> Path:
    """Where the exit status goes."""
    return tmp_path / "status"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    """The descriptor of a log file."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


@pytest.fixture
def start(status: Path, log: int) -> Iterator[Spawn]:
    """`spawn`, with an end for all that it started."""
    started: list[Process] = []

    def start(*words: str, **options: object) -> Process:
        started.append(spawn(words, **{"status_path": status, "log_fd": log} | options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for process in started:
        if process.fileno() >= 0:
            process.kill()
            process.close()


def field(pid: int, name: str) -> list[str]:
    """A line of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return line.split()[1:]
    raise LookupError(name)


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process, and where they lead."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # what listed them here
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


def wait_for_state(pid: int, state: str) -> None:
    """Until the kernel says so."""
    while field(pid, "State")[0] != state:
        time.sleep(0.001)


def keeper_of(process: Process) -> int:
    """Its parent."""
    return int(field(process.pid, "PPid")[0])


def test_drops_all_rights(start: Spawn) -> None:
    if os.getuid():
        pytest.fail("only root can start something as somebody else: run the tests as root")
    pid = start("sleep", "60", identity=SOMEBODY).pid
    assert field(pid, "Uid") == ["64190"] * 4
    assert field(pid, "Gid") == ["64190"] * 4
    assert field(pid, "Groups") == ["64191"]
    assert field(pid, "NoNewPrivs") == ["1"]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(field(pid, kind)[0], 16) == 0, kind
    # what the test runner was itself started to ignore, nobody down the line can undo
    assert int(field(pid, "SigIgn")[0], 16) & ~int(field(os.getpid(), "SigIgn")[0], 16) == 0


def test_without_an_identity_it_stays_ours_but_gains_nothing(start: Spawn) -> None:
    pid = start("sleep", "60").pid
    assert field(pid, "Uid") == [str(os.getuid())] * 4
    assert field(pid, "NoNewPrivs") == ["1"]


def test_an_ordinary_user_starts_programs_as_himself_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for directory in tmp_path.parents:
        if directory.stat().st_mode & 0o777 == 0o700:  # as pytest makes them
            directory.chmod(0o711)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which a worker of pytest's has
        child = os.fork()
    if not child:
        try:
            os.setresgid(64190, 64190, 64190)
            os.setresuid(64190, 64190, 64190)
            log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            options = {"status_path": tmp_path / "status", "log_fd": log}
            with spawn(["sleep", "60"], **options) as process:  # type: ignore[arg-type]
                assert field(process.pid, "Uid") == ["64190"] * 4
                assert field(process.pid, "NoNewPrivs") == ["1"]
                process.kill()
                assert process.exit_status() == ExitStatus(signal=signal.SIGKILL)
            with pytest.raises(SpawnFailed, match="Operation not permitted"):
                spawn(["true"], identity=SOMEBODY, **options)  # type: ignore[arg-type]
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_may_open_as_many_files_as_it_can(start: Spawn) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        process = start("sleep", "60")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_inherits_what_was_passed_and_the_keeper_nothing(start: Spawn, tmp_path: Path, status: Path) -> None:
    (tmp_path / "disk").touch()
    low = os.open(tmp_path / "disk", os.O_RDWR)
    high = os.dup2(low, 321)
    try:
        process = start("sh", "-c", "kill -STOP $$", fds=[low, high])
    finally:
        os.close(low)
        os.close(high)
    wait_for_state(process.pid, "T")  # no longer at loading its libraries
    disk, log = str(tmp_path / "disk"), str(tmp_path / "log")
    assert descriptors(process.pid) == {0: "/dev/null", 1: log, 2: log, low: disk, high: disk}
    kept = descriptors(keeper_of(process))
    assert sorted(kept.values()) == ["/dev/null"] * 3 + [str(status)]


def test_leaves_no_descriptor_and_no_child_here(start: Spawn) -> None:
    before = descriptors(os.getpid())
    finished = start("true")
    finished.kill()
    for words in (["nosuch-program"], ["/etc/passwd"]):
        with pytest.raises(SpawnFailed):
            start(*words)
    finished.close()
    assert descriptors(os.getpid()) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_gets_its_words_directory_and_environment(start: Spawn, tmp_path: Path) -> None:
    odd = ["a b", "", "'\"$(id)\\", "line\nline", "ümläut\udcff", "--", "-x"]
    script = "import os, sys; print(ascii(sys.argv[1:]), os.getcwd(), os.environ.get('COLOUR'))"
    env = {"COLOUR": "blue", "BASH_ENV": "/etc/passwd", "BASH_FUNC_exec%%": "() { false; }", "PATH": "/usr/bin:/bin"}
    process = start(sys.executable, "-c", script, *odd, cwd=str(tmp_path), env=env)
    assert process.wait(10)
    assert (tmp_path / "log").read_text() == f"{odd!a} {tmp_path} blue\n"


@pytest.mark.parametrize(
    ("script", "expected", "text"),
    [
        ("exit 0", ExitStatus(code=0), "exit status 0"),
        ("exit 3", ExitStatus(code=3), "exit status 3"),
        ("kill -SEGV $$", ExitStatus(signal=signal.SIGSEGV), "killed by SIGSEGV"),
    ],
)
def test_status_is_written(start: Spawn, script: str, expected: ExitStatus, text: str) -> None:
    process = start("sh", "-c", script)
    assert process.wait(10)
    assert process.exit_status() == expected
    assert str(expected) == text
    assert field_missing(process.pid)


def field_missing(pid: int) -> bool:
    """Whether nobody has that pid: a keeper that wrote the status has also taken the zombie away."""
    return not Path(f"/proc/{pid}").exists()


def test_no_status_while_it_runs_and_none_without_its_keeper(start: Spawn) -> None:
    process = start("sleep", "60")
    assert process.exit_status() is None
    os.kill(keeper_of(process), signal.SIGKILL)
    process.kill()
    began = time.monotonic()
    assert process.exit_status(timeout=5) is None
    assert time.monotonic() - began < 1, "nobody is left to wait for"


def test_keeper_survives_the_signals_of_a_shutdown(start: Spawn) -> None:
    process = start("sleep", "60")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(keeper_of(process), number)
    process.kill()
    assert process.exit_status() == ExitStatus(signal=signal.SIGKILL)


def test_is_in_its_control_group_and_the_keeper_beside_it(start: Spawn, group: Cgroup) -> None:
    process = start("sleep", "60", cgroup=group, before=lambda _: None)
    assert group.pids() == [process.pid]
    assert keeper_of(process) in Cgroup(group.keepers).pids()
    group.kill()
    assert process.exit_status() == ExitStatus(signal=signal.SIGKILL)
    assert group.remove()


def test_what_cannot_join_its_control_group_does_not_run(start: Spawn, group: Cgroup, tmp_path: Path) -> None:
    group.remove()
    with pytest.raises(SpawnFailed, match=r"cannot start touch: .*cgroup\.procs\.vm/cgroup\.procs: No such file"):
        start("touch", str(tmp_path / "ran"), cgroup=group)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/nonexistent/qemu", "setpriv: failed to execute /nonexistent/qemu: No such file or directory"),
        ("/etc/passwd", "setpriv: failed to execute /etc/passwd: Permission denied"),
    ],
)
def test_what_cannot_execute_is_an_error_with_its_reason(
    start: Spawn, log: int, status: Path, program: str, reason: str
) -> None:
    os.write(log, b"what an earlier one said\n")
    with pytest.raises(SpawnFailed) as caught:
        start(program)
    assert (caught.value.program, caught.value.reason) == (program, reason)
    start("true")


def test_no_bash_is_an_error_with_its_reason(start: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SpawnFailed, match="cannot start bash: bash: No such file or directory"):
        start("true", env={"PATH": "/nonexistent"})


def test_no_setpriv_is_an_error_with_its_reason(start: Spawn, tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to("/bin/bash")
    with pytest.raises(SpawnFailed, match="setpriv: not found"):
        start("true", env={"PATH": str(tmp_path)})


def test_what_raises_before_keeps_it_from_running(start: Spawn, tmp_path: Path, status: Path) -> None:
    seen: list[Process] = []

    def fail(process: Process) -> None:
        assert process.alive
        seen.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("touch", str(tmp_path / "ran"), before=fail)
    read_status(status, 5)
    assert not (tmp_path / "ran").exists()
    assert seen[0].fileno() == -1
    assert field_missing(seen[0].pid)


def test_second_one_is_refused_while_the_first_runs(start: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STATUS_TIMEOUT", 0.01)
    process = start("sleep", "60")
    with pytest.raises(ProcessRuns):
        start("true")
    process.kill()
    monkeypatch.setattr(process_module, "STATUS_TIMEOUT", 5)
    assert start("true").wait(10)


def test_wrong_arguments(start: Spawn) -> None:
    with pytest.raises(ArgumentError, match="words"):
        start()
    with pytest.raises(ArgumentError, match="words"):
        start("true", "a\0b")
    with pytest.raises(ArgumentError, match="fds"):
        start("true", fds=[2])
    with pytest.raises(ArgumentError, match="status_path"):
        start("true", status_path=Path("status"))


def test_attach(start: Spawn, status: Path) -> None:
    process = start("sleep", "60")
    known = (process.pid, process.start_time, process.boot_id, status)
    with Process.attach(*known) as found:
        assert found.alive
        for other in ((1, 1), (2, "another")):  # a recycled pid has another start time; so may all pids after a boot
            with pytest.raises(ProcessGone):
                Process.attach(*(other[1] if at == other[0] else value for at, value in enumerate(known)))  # type: ignore[arg-type]
        process.kill()
        assert not found.alive
    with pytest.raises(ProcessGone):
        Process.attach(*known)


def test_a_pid_that_is_now_a_threads_is_gone(status: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    try:
        with pytest.raises(ProcessGone):
            Process.attach(thread.native_id, 1, current_boot(), status)
    finally:
        done.set()
        thread.join()


def test_a_zombie_has_ended(status: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    start_time = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    with Process.attach(child.pid, start_time, current_boot(), status) as process:
        child.send_signal(signal.SIGKILL)
        assert process.wait(10)
        assert field(child.pid, "State")[0] == "Z"
        os.kill(child.pid, 0)  # which tells nothing of that
        assert not process.alive
        assert process.exit_status() is None
        process.kill()
    with pytest.raises(ProcessGone):
        Process.attach(child.pid, start_time, current_boot(), status)
    child.wait()


def test_one_that_closed_its_monitor_is_given_time_to_end(start: Spawn) -> None:
    """A silent one is not: it will not end by itself."""
    with start("sleep", "0.3") as process:
        assert not is_over(process, MonitorTimeout("query-status", 1), 30)
        assert not is_over(process, ConnectionClosed("QEMU closed the connection"), 0.01)
        assert is_over(process, ConnectionClosed("QEMU closed the connection"), 30)


def test_signals_reach_this_process_only(start: Spawn) -> None:
    process = start("sleep", "60")
    assert not process.wait(0)
    assert process.send_signal(signal.SIGTERM)
    assert process.wait(10)
    process.exit_status()
    assert not process.send_signal(signal.SIGTERM)


def test_kills_what_is_stopped(start: Spawn) -> None:
    process = start("sleep", "60")
    process.send_signal(signal.SIGSTOP)
    process.kill()
    assert process.exit_status() == ExitStatus(signal=signal.SIGKILL)


def test_what_does_not_end_is_told(start: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("sleep", "60")
    process.send_signal(signal.SIGSTOP)
    wait_for_state(process.pid, "T")
    with monkeypatch.context() as patch:
        patch.setattr(Process, "send_signal", lambda *_: True)  # as if it sat in the kernel
        with pytest.raises(ProcessStuck) as caught:
            process.kill(timeout=0.01)
    assert (caught.value.pid, caught.value.state) == (process.pid, "T")


def test_outlives_who_started_it(tmp_path: Path, status: Path) -> None:
    manager = f"""
        import os, time
        from pathlib import Path
        from drover.kvm.process import spawn
        log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        process = spawn(["sh", "-c", "sleep 0.3; exit 7"], status_path=Path({str(status)!r}), log_fd=log)
        print(process.pid, process.start_time, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(manager)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    ) as first:
        assert first.stdout is not None
        pid, start_time = map(int, first.stdout.readline().split())
        first.kill()
    with Process.attach(pid, start_time, current_boot(), status) as process:
        assert process.wait(10)
        assert process.exit_status() == ExitStatus(code=7)


def test_nothing_runs_if_we_die_before_it_is_recorded(tmp_path: Path, status: Path) -> None:
    manager = f"""
        import os, signal
        from pathlib import Path
        from drover.kvm.process import spawn
        log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        def die(process):
            print(process.pid, process.start_time, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        spawn(["touch", {str(tmp_path / "ran")!r}], status_path=Path({str(status)!r}), log_fd=log, before=die)
    """
    command = [sys.executable, "-c", textwrap.dedent(manager)]
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(command, capture_output=True, env=env, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pid, start_time = map(int, ended.stdout.split())
    assert read_status(status, 5) == ExitStatus(code=125)
    with pytest.raises(ProcessGone):
        Process.attach(pid, start_time, current_boot(), status)
    assert not (tmp_path / "ran").exists()


def test_status_file_that_is_not_there(tmp_path: Path) -> None:
    assert read_status(tmp_path / "none", 0) is None
