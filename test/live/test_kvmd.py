"""The event daemon, from outside: a real process that hears real QEMUs."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.events.segment import Entry
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import bare, bootable, type_in, wait_for_shell
from kvmd import Kvmd, journal, journal_folder, running, wait_event
from waiting import wait_for


@pytest.fixture
def kvmd(node: Node, tmp_path: Path) -> Iterator[Kvmd]:
    with running(node.host.paths, tmp_path / "log") as daemon:
        yield daemon


def create(node: Node, version: str, name: str = "vm", **more: object) -> Instance:
    return node.create(parse(bare(version, name, **more)))


def names(vm: Instance) -> list[str]:
    return [it.name for it in journal(vm)]


def pid_of(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime.pid


def test_from_the_first_event(node: Node, kvmd: Kvmd, version: str) -> None:
    """A machine that starts under its eyes is heard from the first word to the last, run after run."""
    vm = create(node, version)
    for generation in (1, 2):
        vm.start()
        wait_event(vm, "RESUME", 2 * generation - 1)
        vm.pause()
        vm.resume()
        wait_event(vm, "RESUME", 2 * generation)
        vm.kill()
        wait_event(vm, "ended", generation)
    found = journal(vm)
    assert [it.name for it in found] == ["RESUME", "STOP", "RESUME", "ended"] * 2
    assert [it.number for it in found] == list(range(1, 9))
    assert [it.generation for it in found] == [1] * 4 + [2] * 4
    assert all(0 <= it.at - it.stamp < 2 for it in found if it.name != "ended")
    assert found[3].data == {"who": "admin", "reason": "request", "detail": "killed", "forced": True}


def test_before_and_after(node: Node, tmp_path: Path) -> None:
    """What ran before is heard from then on, and that something may be missing is told; a good stop loses nothing."""
    old = create(node, "7.2", "old")
    old.start()
    with running(node.host.paths, tmp_path / "log") as kvmd:
        wait_event(old, "lost")
        sockets = kvmd.sockets()
        new = create(node, "10.0", "new")
        new.start()
        wait_event(new, "RESUME")
        assert kvmd.sockets() == sockets + 1
        old.pause()
        wait_event(old, "STOP")
        assert names(old) == ["lost", "STOP"]
        assert kvmd.end() == 0
        kvmd.wait_told_stopping()
    size = len(journal(old))
    with running(node.host.paths, tmp_path / "log") as kvmd:
        wait_event(old, "lost", 2)
        old.resume()
        wait_event(old, "RESUME")
    found = journal(old)
    assert found[size].data["reason"] == "not-listening"
    assert [it.number for it in found] == [1, 2, 3, 4]


def test_killed_in_the_middle(node: Node, tmp_path: Path, version: str) -> None:
    """SIGKILLed again and again in a stream of events: what was on disk stays, numbers only grow, each gap is told."""
    vm = create(node, version)
    vm.start()
    log = tmp_path / "log"
    kvmd = Kvmd(node.host.paths, log)
    seen: list[Entry] = []
    try:
        with QmpConnection(node.host.paths.instance("vm").socket("people"), timeout=10) as people:
            for _ in range(5):
                kvmd.start()
                wait_event(vm, "lost", len([it for it in seen if it.name == "lost"]) + 1)
                until = time.monotonic() + random.uniform(0.2, 0.6)
                while time.monotonic() < until:
                    people.stop()
                    people.cont()
                time.sleep(0.15)  # all that was heard is written by then
                kvmd.end(signal.SIGKILL)
                now = journal(vm)
                assert now[: len(seen)] == seen
                assert len(now) > len(seen) + 10
                seen = now
    finally:
        kvmd.close()
    numbers = [it.number for it in seen]
    assert all(one < other for one, other in itertools.pairwise(numbers))
    lost = [it.data["reason"] for it in seen if it.name == "lost"]
    assert lost == ["not-listening"] + ["killed"] * 4
    for run in split(seen):  # in between, nothing is missing
        assert [it.number for it in run] == list(range(run[0].number, run[0].number + len(run)))
        assert {it.name for it in run[::2]} | {it.name for it in run[1::2]} == {"STOP", "RESUME"}
        assert len({it.name for it in run[::2]}) == 1


def split(entries: list[Entry]) -> Iterator[list[Entry]]:
    """The events between those that are called lost."""
    for is_lost, group in itertools.groupby(entries, lambda it: it.name == "lost"):
        if not is_lost:
            yield list(group)


def test_who_ended_it(node: Node, kvmd: Kvmd, version: str) -> None:
    """A crash, a signal, a quit, a stop: told in the journal as `drover show` tells it."""

    def quit_it(vm: Instance) -> None:
        with QmpConnection(node.host.paths.instance(vm.name).socket("people"), timeout=5) as people:
            people.quit()

    ends: dict[str, tuple[Callable[[Instance], object], str]] = {
        "crash": (lambda vm: os.kill(pid_of(vm), signal.SIGKILL), "crash"),
        "term": (lambda vm: os.kill(pid_of(vm), signal.SIGTERM), "host-signal"),
        "quit": (quit_it, "admin"),
        "stop": (lambda vm: vm.stop(timeout=0.2), "admin"),
    }
    for name in ends:
        create(node, version, name).start()
    for name, (end, who) in ends.items():
        vm = node.instance(name)
        wait_event(vm, "RESUME")
        end(vm)
        ended = wait_event(vm, "ended")
        stop = vm.show().document.last_stop
        assert stop is not None
        assert (ended.data["who"], ended.data["reason"], ended.data["detail"]) == (who, stop.reason, stop.detail)
        assert not (node.host.paths.shutdowns / f"{name}.shutdown").exists()


def test_keeper_killed_too(node: Node, kvmd: Kvmd, version: str) -> None:
    """Where nobody saw how QEMU ended, its own last word says it."""
    vm = create(node, version)
    vm.start()
    wait_event(vm, "RESUME")
    pid = pid_of(vm)
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    assert wait_event(vm, "ended").data["who"] == "host-signal"
    stop = vm.show().document.last_stop
    assert stop is not None
    assert stop.reason == "host-signal"


@pytest.mark.slow
def test_guest(node: Node, kvmd: Kvmd, version: str) -> None:
    """A guest that powers itself off, and Ganeti's word for it; one that is asked to is an admin's."""
    vm = node.create(parse(bootable(version)))
    mark = node.host.paths.shutdowns / "vm.shutdown"
    vm.start()
    wait_for_shell(vm)
    type_in(vm, "poweroff -f")
    assert wait_event(vm, "ended").data["who"] == "guest"
    assert mark.exists()
    shutdown = next(it for it in journal(vm) if it.name == "SHUTDOWN")
    assert shutdown.data == {"guest": True, "reason": "guest-shutdown"}
    vm.start()
    wait_for(lambda: not mark.exists())
    wait_for_shell(vm)
    assert not vm.stop().forced
    assert wait_event(vm, "ended", 2).data["who"] == "admin"
    assert not mark.exists()
    assert "lost" not in names(vm)


def test_folders_that_come_and_go(node: Node, kvmd: Kvmd) -> None:
    """The folder of what runs is removed, made anew, and moved away under its eyes."""
    vm = create(node, "10.0")
    runs = node.host.paths.runs
    wait_for(runs.exists)
    for generation, go in enumerate((shutil.rmtree, lambda path: path.rename(path.with_name("aside"))), 1):
        go(runs)
        wait_for(runs.exists, 5)
        vm.start()
        wait_event(vm, "RESUME", generation)
        vm.kill()
        wait_event(vm, "ended", generation)
    # the sockets of what runs are moved: what is connected stays so
    vm.start()
    wait_event(vm, "RESUME", 3)
    runs.rename(runs.with_name("other"))
    with QmpConnection(runs.with_name("other") / "vm" / "people", timeout=5) as people:
        people.stop()
    wait_event(vm, "STOP")
    os.kill(pid_of(vm), signal.SIGKILL)
    assert wait_event(vm, "ended", 3).data["who"] == "crash"
    assert "lost" not in names(vm)


def test_renamed_and_deleted(node: Node, kvmd: Kvmd) -> None:
    """The journal goes on under another name, and ends with the instance."""
    vm = create(node, "10.0", "one")
    vm.start()
    wait_event(vm, "RESUME")
    vm.kill()
    wait_event(vm, "ended")
    vm = node.rename("one", "two")
    vm.start()
    wait_event(vm, "RESUME", 2)
    vm.kill()
    wait_event(vm, "ended", 2)
    assert names(vm) == ["RESUME", "ended"] * 2
    folder = journal_folder(vm)
    node.delete("two")
    assert not folder.exists()


@pytest.mark.parametrize("new", ["one", "two"])
def test_the_next_run_has_begun(node: Node, kvmd: Kvmd, new: str) -> None:
    """Who ended a run is told also where the next one goes on before anybody looked, be it under another name."""
    vm = create(node, "10.0", "one")
    vm.start()
    wait_event(vm, "RESUME")
    kvmd.send_signal(signal.SIGSTOP)
    vm.kill()
    vm = node.rename("one", new)
    vm.start()
    kvmd.send_signal(signal.SIGCONT)
    wait_event(vm, "lost")
    vm.pause()
    wait_event(vm, "STOP")
    found = journal(vm)
    assert [(it.name, it.generation) for it in found] == [("RESUME", 1), ("ended", 1), ("lost", 2), ("STOP", 2)]
    assert [it.number for it in found] == [1, 2, 3, 4]
    assert found[1].data == {"who": "admin", "reason": "request", "detail": "killed", "forced": True}


def test_with_systemd(node: Node, tmp_path: Path) -> None:
    """It shows life as often as it is asked to, and says when it stops."""
    kvmd = Kvmd(node.host.paths, tmp_path / "log")
    try:
        kvmd.start(WATCHDOG_USEC="600000")
        since = time.monotonic()
        for _ in range(3):
            kvmd.wait_told("WATCHDOG=1")
        assert 0.2 < time.monotonic() - since < 1
        kvmd.end(signal.SIGTERM)
        kvmd.wait_told_stopping()
    finally:
        kvmd.close()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_garbage(node: Node, tmp_path: Path) -> None:
    """What answers on a socket and is no QEMU is told, tried again, and delays nobody; the real one is heard again."""
    vm, other = create(node, "10.0"), create(node, "7.2", "other")
    vm.start()
    path = node.host.paths.instance("vm").socket("events")
    path.rename(aside := path.with_name("aside"))
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(str(path))
        fake.listen()
        fake.settimeout(20)
        with running(node.host.paths, tmp_path / "log") as kvmd:
            for garbage in (b"\0" * 100_000, b'{"QMP": 3}\n'):
                client, _ = fake.accept()
                with client:
                    client.sendall(garbage)
                    with contextlib.suppress(ConnectionResetError):
                        while client.recv(1000):
                            pass
            other.start()
            wait_event(other, "RESUME")
            path.unlink()
            aside.rename(path)
            wait_event(vm, "lost")
            wait_for(lambda: any("vm well" in line["text"] for line in kvmd.log))
            vm.pause()
            wait_event(vm, "STOP")
            told = [line["text"].partition(":")[0] for line in kvmd.log if line["text"].startswith("vm")]
            assert told.count("vm well") == 1
            assert told.count("vm trouble") <= 3
    assert names(vm) == ["lost", "STOP"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_disk_full(node: Node, tmp_path: Path) -> None:
    """It acts on while it can keep nothing, and tells what it could not keep."""
    vm = create(node, "10.0", restart="on-failure")
    folder = node.host.paths.state / "events"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", str(folder)], check=True)
    try:
        with running(node.host.paths, tmp_path / "log"):
            vm.start()
            with QmpConnection(node.host.paths.instance("vm").socket("people"), timeout=10) as people:
                for _ in range(300):
                    people.stop()
                    people.cont()
            kept = len(journal(vm))
            pid = pid_of(vm)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: vm.show().state is State.RUNNING and pid_of(vm) != pid)
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
            lost = wait_event(vm, "lost")
            found = journal(vm)
            assert kept < 300
            assert found.index(lost) >= kept
            assert "No space" in lost.data["reason"]
            assert lost.number - found[found.index(lost) - 1].number == lost.data["count"] > 300
            vm.kill()
            wait_event(vm, "ended")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_one_that_hangs(node: Node, kvmd: Kvmd) -> None:
    """A QEMU that is stopped keeps nobody waiting, and what it says afterwards is heard on the same connection."""
    hung, well = create(node, "10.0", "hung"), create(node, "7.2", "well", restart="on-failure")
    for vm in (hung, well):
        vm.start()
        wait_event(vm, "RESUME")
    pid = pid_of(hung)
    os.kill(pid, signal.SIGSTOP)
    since = time.monotonic()
    os.kill(pid_of(well), signal.SIGKILL)
    wait_event(well, "RESUME", 2)
    assert time.monotonic() - since < 5
    os.kill(pid, signal.SIGCONT)
    hung.pause()
    wait_event(hung, "STOP")
    assert names(hung) == ["RESUME", "STOP"]
