"""The host's boot and shutdown on real QEMUs: the order, those that fail, and guests that do not hear."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from drover.cli.boot import start_all, stop_all
from drover.kvm.boot import Outcome
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import bare, bootable, wait_for_shell

pytestmark = pytest.mark.alone


def create(node: Node, spec: dict[str, Any], **more: Any) -> Instance:
    return node.create(parse(spec | more))


def pid_of(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime.pid


def short(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(it.name, it.outcome) for it in outcomes]


def test_started_in_their_order(node: Node, tmp_path: Path) -> None:
    """The lowest first, pauses behind those that were started; what fails and what runs keeps nobody waiting."""
    missing = [{"id": "d", "source": str(tmp_path / "missing.raw"), "format": "raw"}]
    create(node, bare("7.2", "last"), autostart=True, autostart_order=7)
    create(node, bare("10.0", "first"), autostart=True, autostart_order=-1, autostart_delay=0.7)
    create(node, bare("7.2", "broken"), autostart=True, disks=missing, autostart_delay=600)
    create(node, bare("7.2", "runs"), autostart=True, autostart_order=1, autostart_delay=600).start(paused=True)
    create(node, bare("7.2", "other"))
    pid = pid_of(node.instance("runs"))
    came = list[tuple[str, float]]()
    outcomes = node.start_all(tell=lambda it: came.append((it.name, time.monotonic())))
    assert short(outcomes) == [("first", "started"), ("broken", "failed"), ("runs", "running"), ("last", "started")]
    assert isinstance(outcomes[1].error, FileNotFoundError)
    assert [name for name, _ in came] == [it.name for it in outcomes]
    assert came[1][1] - came[0][1] >= 0.7
    assert (pid_of(node.instance("runs")), node.instance("runs").show().state) == (pid, State.STARTING)
    assert node.instance("other").show().state is State.STOPPED
    assert [it for _, it in short(node.start_all())] == ["running", "failed", "running", "running"]


def test_document_that_cannot_be_read(node: Node) -> None:
    """It is told, and the others start and stop."""
    create(node, bare("7.2", "well"), autostart=True)
    create(node, bare("7.2", "ill"), autostart=True)
    path = node.host.paths.instance("ill").document
    text = path.read_bytes()
    path.write_text("{")
    assert sorted(short(node.start_all())) == [("ill", "failed"), ("well", "started")]
    assert sorted(short(node.stop_all(timeout=0.1))) == [("ill", "failed"), ("well", "forced")]
    path.write_bytes(text)


def test_shut_down_in_their_order(node: Node) -> None:
    """The highest first, and the next one when that is done; what does not run is not touched."""
    guests = {order: create(node, bootable(version, f"guest{order}"), autostart_order=order)
              for order, version in ((1, "7.2"), (2, "10.0"))}  # fmt: skip
    create(node, bare("10.0", "stopped"), autostart_order=9)
    for vm in guests.values():
        vm.start()
    for vm in guests.values():
        wait_for_shell(vm)
    came = dict[str, float]()
    outcomes = node.stop_all(timeout=60, tell=lambda it: came.setdefault(it.name, time.time()) and None)
    assert short(outcomes) == [("guest2", "stopped"), ("guest1", "stopped")]
    console = node.host.paths.instance("guest1").console_log
    assert "The power button was pressed" in console.read_text(errors="replace")
    first = outcomes[0].stop
    assert first is not None
    assert first.reason == "request"
    assert came["guest1"] - outcomes[1].seconds >= first.at - 0.01, "the lower order did not wait"
    assert node.stop_all() == []


def test_deaf_ones_at_once(node: Node) -> None:
    """Those of one order have their time together, not one after another."""
    for number in range(4):
        create(node, bare("10.0", f"deaf{number}")).start()
    since = time.monotonic()
    outcomes = node.stop_all(timeout=2)
    assert time.monotonic() - since < 6
    assert {it.outcome for it in outcomes} == {"forced"}
    assert min(it.seconds for it in outcomes) >= 2


def test_restart_that_is_due(node: Node) -> None:
    """It is called off: the host is on its way down."""
    vm = create(node, bare("7.2"), restart="on-failure")
    vm.start()
    os.kill(pid_of(vm), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while vm.show().state is not State.ENDED:
        assert time.monotonic() < deadline
    vm.mend()
    assert vm.show().document.restart is not None
    assert short(node.stop_all()) == [("vm", "stopped")]
    assert vm.show().document.restart is None


@pytest.mark.slow
def test_hung_one(node: Node) -> None:
    """A QEMU that does not answer is ended, and a guest of its order shuts down meanwhile."""
    guest, hung = create(node, bootable("10.0", "guest")), create(node, bare("7.2", "hung"))
    hung.start()
    guest.start()
    wait_for_shell(guest)
    os.kill(pid_of(hung), signal.SIGSTOP)
    outcomes = node.stop_all(timeout=30)
    assert short(outcomes) == [("guest", "stopped"), ("hung", "forced")]
    assert {it.stop and it.stop.reason for it in outcomes} == {"request"}


def test_commands(node: Node) -> None:
    """What is told, and the exit status."""
    env = {"DROVER_STATE_DIR": str(node.host.paths.state), "DROVER_RUN_DIR": str(node.host.paths.run)}
    runner = CliRunner(env=env)
    create(node, bare("7.2", "vm"), autostart=True)
    create(node, bare("7.2", "bad", emulator="/nowhere/qemu"), autostart=True, autostart_order=1)
    done = runner.invoke(start_all, ["-o", "json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert (rows["vm"]["outcome"], rows["bad"]["outcome"]) == ("started", "failed")
    assert "/nowhere/qemu" in rows["bad"]["error"]
    assert "1 of 2 did not start: bad" in str(done.exception)
    done = runner.invoke(stop_all, ["--timeout", "0.2"])
    assert (done.exit_code, done.exception) == (0, None)
    assert "vm was forced to stop" in done.stdout
    assert "1 instances, 0 failed." in done.stdout
    for command in (start_all, stop_all):
        assert "Exit status: 0 if" in " ".join(runner.invoke(command, ["--help"]).stdout.split())
