"""Where ours differs from avocado-vt on purpose: lines of doc/switch-from-avocado-vt.md."""

import pickle
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from compat.autotest.conftest import Machine
from drover.compat import autotest
from drover.compat.autotest import parse


def qmp(machine: Machine) -> autotest.QMPMonitor:
    return autotest.QMPMonitor(machine, "m", machine.params("qmp", "mine"))


GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}\n'


def serve(server: socket.socket, may_answer: threading.Event) -> None:
    """Speak to one caller in parts: greet, negotiate, tell the commands; and answer one more when that may be."""
    sock, _ = server.accept()
    with sock, sock.makefile("rb") as lines:
        for part in (GREETING[:20], GREETING[20:60], GREETING[60:]):
            sock.sendall(part)
            time.sleep(0.02)
        for position, value in enumerate((b"{}", b'[{"name": "quit"}]', b"{}")):
            number = lines.readline().rpartition(b'"id":')[2].strip(b" }\n")
            if position == 2:
                may_answer.wait(30)
            sock.sendall(b'{"return": ' + value[:1])
            time.sleep(0.02)
            sock.sendall(value[1:] + b', "id": ' + number + b"}\n")


def test_parts_are_not_lost_and_who_waits_holds_up_nobody(tmp_path: Path) -> None:
    path, may_answer = str(tmp_path / "s"), threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        peer = threading.Thread(target=serve, args=(server, may_answer))
        peer.start()
        monitor = autotest.QMPMonitor(autotest.VM("v"), "m", {"monitor_filename": path})
        assert monitor._has_command("quit")
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(monitor.cmd("quit", timeout=30)))
        waiting.start()
        time.sleep(0.05)
        assert monitor.get_events() == []
        assert monitor._acquire_lock(10)
        monitor._lock.release()
        assert answers == []
        may_answer.set()
        waiting.join()
        peer.join()
        assert answers == [{}]
        monitor.close()


def test_unpickled_it_remembers_its_machine(machine: Machine) -> None:
    monitor = qmp(machine)
    monitor._enable_blockdev = monitor.vm.blockdev = True
    monitor.vm.pid = 7
    packed = pickle.dumps(monitor)
    monitor.close()
    again = pickle.loads(packed)
    assert (again._enable_blockdev, again.vm.get_pid()) == (True, 7)
    again.close()


def test_an_empty_drive_among_nodes() -> None:
    info: list[dict[str, Any]] = [{"device": "", "qdev": "cd", "locked": False}]
    assert parse.block_qmp(info, True)["cd"]["not-inserted"] is True
    assert info == [{"device": "", "qdev": "cd", "locked": False}]


def test_jobs_of_the_human_monitor() -> None:
    text = (
        "Type stream, device drive10: Completed 1 of 9 bytes, speed limit 3 bytes/s\n"
        "Type commit, device drive1: Completed 2 of 8 bytes, speed limit 0 bytes/s"
    )
    job = {"type": "commit", "device": "drive1", "offset": 2, "len": 8, "speed": 0}
    assert parse.block_job(text, "drive1") == job


def test_backing_file_of_the_human_monitor() -> None:
    text = "d0 (#block1): a (qcow2)\n    Cache mode:       writeback\n    Backing file:     b c (chain depth: 1)\n"
    assert parse.backing_file(text, "d0") == "b c"
    assert parse.backing_file(text, "d") is None


def test_what_the_peer_cannot_do(machine: Machine) -> None:
    monitor = qmp(machine)
    with pytest.raises(autotest.MonitorError, match="progress"):
        monitor.get_migrate_progress()
    with pytest.raises(autotest.QMPCmdError, match="migrate_set_speed"):
        monitor.migrate_set_speed(5)
    server = {"type": "unix", "path": str(machine.path / "nbd")}
    monitor.nbd_server_start(server)
    assert server["type"] == "unix"
    monitor.close()


def test_clearing_forgets_what_was_not_read(machine: Machine) -> None:
    monitor = qmp(machine)
    monitor.cmd("cont")
    monitor.clear_events()
    assert monitor.get_event("RESUME") is None
    monitor.close()
