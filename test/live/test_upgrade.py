"""A machine that goes over to another QEMU on its host while it runs: with real guests, on both and between them."""

import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from counting import counted, goes_on, killed_at, made
from drover.errors import DroverError, MigrationError, NoRoom, NotSupported, OperationCancelled, StartFailed
from drover.kvm import room
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.record import Runtime
from drover.kvm.spec import parse
from drover.kvm.state import State
from drover.kvm.witness import Witness, watched_by
from drover.migration import local as module
from drover.migration.local import upgrade
from instances import VERSIONS, agree, bare, say
from machines import qemu_of
from netns import ip, own_network
from waiting import is_dead

pytestmark = pytest.mark.timeout(240)  # emulated guests, which are booted and counted several times

F_OFD_SETLK = 37  # which Python 3.11 has no name for
UNSHARED_WRITE = 201  # a lock on this byte of an image says to QEMU that nobody else is to write to it
OLD = {"type": "pc-q35-7.2"}  # a type that both have


def runtime(vm: Instance) -> Runtime:
    found = vm.show().document.runtime
    assert found is not None
    return found


def other(version: str, tmp_path: Path) -> str:
    """The same QEMU under another path."""
    path = tmp_path / "qemu-of-the-update"
    if not path.exists():
        path.write_text(f'#!/bin/sh\nexec {quote(str(qemu_of(version)))} "$@"\n')
        path.chmod(0o755)
    for folder in (path, *path.parents[:-1]):  # QEMU's own user has to pass
        folder.chmod(folder.stat().st_mode | 0o055)
    return str(path)


def is_whole(vm: Instance, before: Runtime) -> None:
    """One QEMU is there, another one than before, with all that belongs to it where it always is."""
    now, paths = runtime(vm), vm.host.paths.instance(vm.name)
    assert (now.pid != before.pid, now.generation) == (True, before.generation + 1)
    assert is_dead(before.pid)
    assert_alone(vm)
    assert {"control", "events", "people", "serial"} <= set(os.listdir(paths.run))
    assert vm.verify().agrees
    agree(vm)


def assert_alone(vm: Instance) -> None:
    """Nothing is left of a second one."""
    document, paths = vm.show().document, vm.host.paths.instance(vm.name)
    assert (document.other, document.pending) == (None, None)
    for folder in (paths.run, paths.private, paths.state):
        assert not [name for name in os.listdir(folder) if "next" in name]


@pytest.mark.parametrize(("old", "new"), [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")])
def test_it_goes_over(node: Node, old: str, new: str, tmp_path: Path) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(16 << 20))
    vm = made(node, old, machine=OLD | {"root_ports": 2}, vnc={"password": "secret"})
    vm.add_disk(source=str(disk), format="raw", throttle={"iops_total": 1000})
    say(vm, "until [ -b /dev/vda ] && echo held > /dev/vda; do usleep 10000; done")
    before, counter = runtime(vm), counted(vm)
    assert upgrade(vm).moved is False
    done = upgrade(vm, emulator=other(new, tmp_path))
    assert (done.moved, ".".join(map(str, done.version[:2]))) == (True, new)
    assert {"prepare", "memory", "switchover", "commit", "finish"} <= done.steps.keys()
    assert 0 < done.blackout < done.seconds
    assert (done.transferred > 24 << 20, done.rounds > 0) == (True, True)
    goes_on(vm, counter)
    is_whole(vm, before)
    assert "held" in say(vm, "echo 3 > /proc/sys/vm/drop_caches; head -n 1 /dev/vda")
    between = runtime(vm)
    upgrade(vm, emulator=str(qemu_of(old)))  # and back
    goes_on(vm, counter)
    is_whole(vm, between)
    assert vm.show().document.spec.emulator == str(qemu_of(old))
    vm.remove_disk("disk0")
    assert vm.stop().reason == "request"
    assert not vm.host.paths.instance(vm.name).run.exists()


def test_its_card_stays_on_the_bridge(node: Node, tmp_path: Path) -> None:
    with own_network():
        for words in ("link add br0 type bridge", "address add 10.9.0.1/24 dev br0", "link set br0 up"):
            ip(words)
        vm = made(node, "10.0", nics=[{"mode": "bridge", "link": "br0"}])
        say(vm, "n=$(ls -d /sys/class/net/e* | head -n 1 | sed s:.*/::); ip a add 10.9.0.2/24 dev $n; ip l set $n up")
        assert "0% packet loss" in say(vm, "ping -c 1 -W 5 10.9.0.1")
        for _ in range(2):
            before = runtime(vm)
            upgrade(vm, emulator=other("10.0", tmp_path) if before.mark == "" else str(qemu_of("10.0")))
            is_whole(vm, before)
            assert " 0% packet loss" in say(vm, "ping -c 3 -W 5 10.9.0.1")
            tap = runtime(vm).devices["nic0"].tap
            assert ip("-br link show master br0").split()[0] == tap
            assert ip("-br link show master br0").count("\n") == 1
        vm.kill()
        assert ip("-br link show master br0") == ""


def test_one_that_stands_still_does_so_after_it(node: Node, tmp_path: Path) -> None:
    vm = made(node, "10.0")
    counter = counted(vm)
    vm.pause()
    before = runtime(vm)
    upgrade(vm, emulator=other("10.0", tmp_path))
    assert vm.show().state is State.PAUSED
    is_whole(vm, before)
    vm.resume()
    goes_on(vm, counter)


def test_one_that_writes_faster_than_it_is_sent(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    vm = made(node, "10.0")
    counter, before = counted(vm), runtime(vm)
    done = upgrade(vm, emulator=other("10.0", tmp_path))
    assert "stands still" in "".join(done.helped)
    goes_on(vm, counter)
    is_whole(vm, before)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"vnc": {"listen": "127.0.0.1:5977"}}, "vnc.listen"),
        ({"nics": [{"mode": "user", "forwards": ["tcp:127.0.0.1:2277-:22"]}]}, "forwards"),
    ],
)
def test_what_cannot_be_there_twice_is_refused(node: Node, more: dict[str, Any], named: str, tmp_path: Path) -> None:
    vm = node.create(parse(bare("10.0", **more)))
    vm.start()
    before = runtime(vm)
    with pytest.raises(NotSupported, match=rf"{named}.*drover save vm"):
        upgrade(vm, emulator=other("10.0", tmp_path))
    assert (runtime(vm), vm.show().state) == (before, State.RUNNING)


class Meanwhile(Witness):
    """One that sees another machine asked to go over while this one is on its way; there is memory for one."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act, self.refused = act, ""

    def step(self, name: str) -> None:
        if name == "run":
            with pytest.raises(NoRoom) as caught:
                self._act()
            self.refused = str(caught.value)


def test_two_do_not_share_what_one_of_them_takes(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, second = made(node, "10.0"), node.create(parse(bare("10.0", name="second")))
    second.start()
    takes = max(sum(room.wanted(each.show().document.spec).values()) for each in (vm, second))
    monkeypatch.setattr(room, "_available", lambda: takes)
    before, emulator = runtime(second), other("10.0", tmp_path)
    with watched_by(meanwhile := Meanwhile(lambda: upgrade(second, emulator=emulator))):
        upgrade(vm, emulator=emulator)
    assert "promised to vm" in meanwhile.refused
    assert (runtime(second), second.show().document.pending) == (before, None)
    upgrade(second, emulator=emulator)
    assert runtime(second).generation == before.generation + 1


# -- what goes wrong --------------------------------------------------------------------------------------------------


def stays(vm: Instance, before: Runtime, counter: int) -> None:
    """It runs where it was, as if nothing had been."""
    assert runtime(vm).pid == before.pid
    assert_alone(vm)
    goes_on(vm, counter)


class Kills(Witness):
    """One that kills the second QEMU when something begins."""

    def __init__(self, vm: Instance, at: str) -> None:
        self._vm, self._at = vm, at

    def step(self, name: str) -> None:
        if name == self._at:
            second = self._vm.show().document.other
            assert second is not None
            os.kill(second.pid, signal.SIGKILL)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_one_that_dies(node: Node, version: str, tmp_path: Path) -> None:
    vm = made(node, version)
    before, counter = runtime(vm), counted(vm)
    with watched_by(Kills(vm, "send")), pytest.raises(DroverError):
        upgrade(vm, emulator=other(version, tmp_path))
    stays(vm, before, counter)
    upgrade(vm, emulator=other(version, tmp_path))
    goes_on(vm, counter)


def test_a_second_one_that_does_not_come_up(node: Node, tmp_path: Path) -> None:
    vm = made(node, "10.0")
    before, counter = runtime(vm), counted(vm)
    broken = tmp_path / "broken"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *defer*) exit 3;; esac\nexec {quote(str(qemu_of("10.0")))} "$@"\n')
    broken.chmod(0o755)
    other("10.0", tmp_path)
    with pytest.raises(StartFailed):
        upgrade(vm, emulator=str(broken))
    stays(vm, before, counter)
    with pytest.raises(DroverError):  # it does not know that type of board
        upgrade(vm, emulator=str(qemu_of("7.2")))
    stays(vm, before, counter)


class Holds(Witness):
    """One that has the disk as somebody has who writes to it, for as long as the second QEMU is the machine."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == "switched":
            self._held = self._disk.open("rb")
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, UNSHARED_WRITE, 1, 0)
            fcntl.fcntl(self._held, F_OFD_SETLK, lock)
        elif name == "back":
            self._held.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_one_that_is_not_let_run(node: Node, version: str, tmp_path: Path) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    vm = made(node, version, disks=[{"source": str(disk), "format": "raw"}])
    before, counter = runtime(vm), counted(vm)
    with watched_by(holds := Holds(disk)), pytest.raises(MigrationError, match='does not let it run.*"write" lock'):
        upgrade(vm, emulator=other(version, tmp_path))
    assert "back" in holds.steps
    stays(vm, before, counter)


class Impatient(Witness):
    """One that wants it to end at once."""

    def wants_end(self) -> bool:
        return True


@pytest.mark.parametrize("version", VERSIONS)
def test_one_that_is_cancelled(node: Node, version: str, tmp_path: Path) -> None:
    vm = made(node, version)
    before, counter = runtime(vm), counted(vm)
    with watched_by(Impatient()), pytest.raises((OperationCancelled, MigrationError)):
        upgrade(vm, emulator=other(version, tmp_path))
    stays(vm, before, counter)


@pytest.mark.parametrize("step", ["upgrade", "claim", "run", "send", "stand", "switched"])
@pytest.mark.parametrize("version", VERSIONS)
def test_killed_meanwhile(node: Node, version: str, step: str, tmp_path: Path) -> None:
    """It runs on where it was, or where it goes: once, and never nowhere."""
    vm = made(node, version)
    before, counter = runtime(vm), counted(vm)
    killed_at(step, lambda: upgrade(vm, emulator=other(version, tmp_path)))
    vm.mend()
    if step == "switched":
        goes_on(vm, counter)
        is_whole(vm, before)
    else:
        stays(vm, before, counter)


@pytest.mark.parametrize("step", ["send", "switched"])
def test_killed_and_then_ended(node: Node, step: str, tmp_path: Path) -> None:
    vm = made(node, "10.0")
    killed_at(step, lambda: upgrade(vm, emulator=other("10.0", tmp_path)))
    document = vm.show().document
    assert document.runtime is not None
    assert document.other is not None
    os.kill(document.runtime.pid, signal.SIGKILL)  # that is the machine
    vm.kill()
    for each in (document.runtime, document.other):
        assert is_dead(each.pid)
    assert (vm.show().state, vm.show().document.other) == (State.STOPPED, None)
    vm.start()
