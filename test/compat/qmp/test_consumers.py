"""What stands on qemu.qmp, on ours instead: QEMU's own way to start a machine for its tests, and the peer's shell."""

import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compat.ganeti.machine import Qemu
from compat.peers import ABSENT, QEMU_QMP
from drover.compat.qmp import ExecInterruptedError
from drover.compat.qmp.legacy import QEMUMonitorProtocol
from machines import qemu_of

pytestmark = pytest.mark.live
MACHINE = ["-machine", "none", "-display", "none", "-nodefaults", "-S"]
SOON = 30.0


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_machine_as_qemus_tests_start_it(version: str) -> None:
    """One end of a pair of sockets is QEMU's monitor; it is driven by names that `qemu.machine.QEMUMachine` uses."""
    theirs, mine = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    monitor = ["-chardev", f"socket,id=mon,fd={theirs.fileno()}", "-mon", "chardev=mon,mode=control"]
    vm = QEMUMonitorProtocol(mine, nickname="machine")
    with subprocess.Popen([str(qemu_of(version)), *MACHINE, *monitor], close_fds=False) as process:
        try:
            theirs.close()
            greeting = vm.connect()
            assert greeting is not None
            assert greeting == vm._get_greeting()
            vm.settimeout(SOON)
            assert vm.cmd_raw("query-status", args={})["return"]["running"] is False
            assert vm.cmd("query-status") == vm.command("query-status")
            assert vm.cmd("human-monitor-command", **{"command-line": "info name"}) == ""
            with open(os.devnull) as null:
                vm.send_fd_scm(null.fileno())
                vm.cmd("getfd", fdname="null")
            vm.cmd("cont")
            vm.cmd("stop")
            seen: list[str] = []
            while "STOP" not in seen:
                event = vm.pull_event(wait=SOON)
                assert event is not None
                seen.append(event["event"])
            assert vm.get_events(wait=False) == []
            with pytest.raises(asyncio.TimeoutError):
                vm.pull_event(wait=0.05)
            vm.cmd("quit")
            assert process.wait(SOON) == 0
            vm.close()
        finally:
            process.kill()


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_machine_that_is_killed(version: str, tmp_path: Path) -> None:
    """A command learns of it; an end that nobody announced is then an EOFError of `close`, as QEMU's tests expect."""
    path = str(tmp_path / "monitor")
    vm = QEMUMonitorProtocol(path, server=True)
    with subprocess.Popen([str(qemu_of(version)), *MACHINE, "-qmp", f"unix:{path}"]) as process:
        try:
            vm.accept(SOON)
            process.kill()
            process.wait()
            with pytest.raises(ExecInterruptedError):
                vm.cmd("query-status")
            with pytest.raises(EOFError):
                vm.close()
            vm.close()
        finally:
            process.kill()


def peers_shell() -> Any:
    """The module `qmp_shell` of qemu.qmp; all that is changed is what it imports."""
    source = (QEMU_QMP / "qemu" / "qmp" / "qmp_shell.py").read_text(encoding="utf-8")
    module = ModuleType("qmp_shell")
    exec(compile(source.replace("qemu.qmp", "drover.compat.qmp"), "qmp_shell", "exec"), vars(module))
    return module


def typed(shell: Any, monkeypatch: Any, capsys: Any, *lines: str) -> str:
    """What `shell` prints when these lines are typed."""
    left = list(lines)
    monkeypatch.setattr("builtins.input", lambda prompt: left.pop(0))
    with shell:
        shell.connect()
        shell.show_banner()
        while left:
            assert shell.read_exec_command()
    return str(capsys.readouterr().out)


@pytest.mark.skipif(not QEMU_QMP.exists(), reason=ABSENT)
def test_the_peers_shell(start: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shell = peers_shell().QMPShell(str(start()))
    lines = ("query-status", "nonsense", "cont", "", "transaction(", "abort", ")")
    out = typed(shell, monkeypatch, capsys, *lines)
    assert "Connected to QEMU" in out
    assert "'event': 'RESUME'" in out
    answers = [json.loads(line) for line in out.splitlines() if line.startswith('{"')]
    assert ["return" in answer for answer in answers] == [True, False, True, False]


@pytest.mark.skipif(not QEMU_QMP.exists(), reason=ABSENT)
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_the_peers_human_shell(version: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    qemu = Qemu(qemu_of(version))
    try:
        out = typed(peers_shell().HMPShell(qemu.path), monkeypatch, capsys, "info status", "nonsense")
    finally:
        qemu.close()
    assert "VM status: paused" in out
    assert "unknown command: 'nonsense'" in out
