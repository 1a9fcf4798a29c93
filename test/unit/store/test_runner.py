"""Processes, known again."""

import os
import subprocess
import sys

from msgspec.structs import replace

from drover.store.runner import Runner, _stat


def of(pid: int) -> Runner:
    return replace(Runner.me(), pid=pid, start_time=int(_stat(pid)[19]))


def test_we_live() -> None:
    assert Runner.me().pid == os.getpid()
    assert Runner.me().lives
    assert Runner.me() == Runner.me()


def test_the_same_pid_at_another_time_is_another() -> None:
    assert not replace(Runner.me(), start_time=Runner.me().start_time - 1).lives
    assert not replace(Runner.me(), boot_id="another").lives


def test_a_process_that_ends() -> None:
    """One that ended and was not waited for has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        runner = of(process.pid)
        assert runner.lives
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _stat(process.pid)[0] == "Z"
        assert not runner.lives
    assert not runner.lives
