"""A machine's memory in a file, and back: with real guests, on both QEMUs, and from one to the other."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from counting import counted, goes_on, killed_at, made
from drover.errors import (
    MemorySaved,
    MemoryUnusable,
    MigrationFailed,
    NotSupported,
    OperationCancelled,
    StartFailed,
    WrongState,
)
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from drover.kvm.witness import Witness, watched_by
from instances import VERSIONS, agree, bare, say
from machines import qemu_of
from waiting import is_dead

pytestmark = pytest.mark.timeout(240)  # emulated guests, which are booted and counted several times

OLD = {"type": "pc-q35-7.2"}  # a type that both have


def places(vm: Instance) -> dict[str, tuple[str, int]]:
    """The bus of each device, and its slot."""
    runtime = vm.show().document.runtime
    assert runtime is not None
    return {name: (it.bus, int(it.addr.partition(".")[0], 16)) for name, it in runtime.devices.items() if it.bus}


def files(vm: Instance) -> list[str]:
    """What of memory lies in its folder."""
    return sorted(name for name in os.listdir(vm.host.paths.instance(vm.name).state) if "memory" in name)


@pytest.mark.parametrize("version", VERSIONS)
def test_its_memory_comes_back(node: Node, version: str) -> None:
    vm = made(node, version)
    before, first = counted(vm), vm.show().document
    assert first.runtime is not None
    saved = vm.save()
    condition = vm.show()
    assert (condition.state, condition.document.runtime) == (State.SAVED, None)
    assert saved.form == ("stream" if version == "7.2" else "mapped-ram")
    file = vm.host.paths.instance(vm.name).memory
    assert file.stat().st_mode & 0o7777 == 0o600
    assert 24 << 20 < saved.size < 256 << 20
    assert is_dead(first.runtime.pid)
    assert vm.save() == condition.document.saved
    assert vm.start() == vm.show().document.runtime.notice.splitlines()  # type: ignore[union-attr]
    goes_on(vm, before)
    assert vm.show().document.spec == first.spec
    assert files(vm) == []
    assert vm.stop().reason == "request"
    assert vm.show().state is State.STOPPED


@pytest.mark.parametrize("version", VERSIONS)
def test_also_what_was_plugged_in(node: Node, version: str, tmp_path: Path) -> None:
    memory = {"size": 256 << 20, "max": 1 << 30, "slots": 4}
    vm = made(node, version, machine={"root_ports": 2}, memory=memory, cpu={"count": 1, "max": 2})
    disk, later = tmp_path / "a.img", tmp_path / "b.img"
    for path in (disk, later):
        with path.open("wb") as file:
            file.truncate(16 << 20)
    vm.add_disk(source=str(disk), format="raw", serial="plugged", throttle={"iops_total": 1000})
    vm.add_nic(mode="user")
    vm.set_link("nic0", up=False)
    vm.add_memory(128 << 20)
    vm.set_vcpus(2, even_under_tcg=True)
    say(vm, "until [ -b /dev/vda ] && echo held > /dev/vda; do usleep 10000; done; (sleep 3600 < /dev/vda) & true")
    there = agree(vm)
    before = places(vm)
    vm.save(file=str(tmp_path / "memory"))
    assert files(vm) == []
    vm.restore()
    assert not (tmp_path / "memory").exists()
    assert agree(vm) == there
    assert places(vm) == before
    assert "held" in say(vm, "echo 3 > /proc/sys/vm/drop_caches; head -n 1 /dev/vda")
    vm.remove_disk("disk0")  # the guest lets go of it as before
    vm.add_disk(source=str(later), format="raw")
    assert vm.verify().agrees


@pytest.mark.parametrize("version", VERSIONS)
def test_one_with_firmware_a_tpm_and_a_root_of_its_own(node: Node, version: str) -> None:
    if os.geteuid():
        pytest.skip("only root can make a root directory")
    document = bare(version, chroot=True, firmware={"type": "uefi"}, tpm=True, vnc=True, cloud_init=True)
    vm = node.create(parse(document))
    vm.start()
    for _ in range(2):
        vm.save()
        vm.start()
        assert vm.show().state is State.RUNNING
        assert vm.verify().agrees


def test_from_the_old_qemu_to_the_new_one(node: Node) -> None:
    vm = made(node, "7.2", machine=OLD)
    before = counted(vm)
    vm.save()
    vm.restore(emulator=str(qemu_of("10.0")))
    goes_on(vm, before)
    document = vm.show().document
    assert document.runtime is not None
    assert document.runtime.version[0] == 10
    assert document.spec.emulator == str(qemu_of("10.0"))
    vm.save()
    with pytest.raises(NotSupported, match="QEMU 9.0"):
        vm.restore(emulator=str(qemu_of("7.2")))
    assert vm.show().state is State.SAVED
    vm.restore()
    goes_on(vm, before)


def test_one_that_stands_still_does_so_after_it(node: Node) -> None:
    vm = made(node, "10.0")
    before = counted(vm)
    vm.pause()
    vm.save()
    vm.start()
    assert vm.show().state is State.PAUSED
    vm.resume()
    goes_on(vm, before)
    vm.save()
    vm.restore(paused=True)
    assert vm.show().state is State.PAUSED
    vm.resume()
    goes_on(vm, before)


def test_what_would_make_it_useless_is_refused(node: Node, tmp_path: Path) -> None:
    vm = node.create(parse(bare("10.0")))
    with pytest.raises(WrongState):
        vm.restore()
    vm.start()
    with pytest.raises(WrongState):
        vm.restore()
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(FileExistsError):
        vm.save(file=str(taken))
    assert taken.read_text() == "mine"
    vm.save()
    with pytest.raises(MemorySaved):
        vm.reboot()
    with pytest.raises(MemorySaved):
        node.clone("vm", "other")
    vm = node.rename("vm", "new")
    vm.start()
    assert vm.show().document.spec.name == "new"
    vm.save()
    vm.discard()
    vm.discard()
    assert (vm.show().state, files(vm)) == (State.STOPPED, [])
    vm.start()
    vm.save(file=str(tmp_path / "there"))
    vm.start(fresh=True)
    assert not (tmp_path / "there").exists()
    vm.save(file=str(tmp_path / "there"))
    node.delete("new")
    assert not (tmp_path / "there").exists()


def test_a_file_that_was_moved_changed_or_taken_away(node: Node, tmp_path: Path) -> None:
    vm = made(node, "10.0")
    before = counted(vm)
    vm.save(file=str(tmp_path / "here"))
    os.rename(tmp_path / "here", tmp_path / "there")
    with pytest.raises(MemoryUnusable, match="No such file"):
        vm.start()
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    with pytest.raises(MemoryUnusable, match="not what was saved"):
        vm.restore(file=str(other))
    vm.restore(file=str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    goes_on(vm, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_that_does_not_load_is_saved_still(node: Node, version: str) -> None:
    vm = made(node, version)
    before = counted(vm)
    vm.save()
    file = vm.host.paths.instance(vm.name).memory
    whole = file.read_bytes()
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(bytes(64))
    with pytest.raises(StartFailed, match="did not take"):
        vm.start()
    assert vm.show().state is State.SAVED
    file.write_bytes(whole)
    vm.start()
    goes_on(vm, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_disks_that_were_written_to_since_are_found(node: Node, version: str, tmp_path: Path) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    vm = node.create(parse(bare(version, disks=[{"source": str(disk), "format": "raw"}])))
    vm.start()
    vm.save()
    disk.write_bytes(bytes(1 << 20))
    with pytest.raises(MemoryUnusable, match="disk0 was written to since"):
        vm.start()
    vm.start(fresh=True)


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder with less room than a guest's memory takes."""
    if os.geteuid():
        pytest.skip("only root mounts one")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.alone  # the chroot's tests see to it that the host's mounts are as before
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_disk_that_is_full(node: Node, version: str, paused: bool, small: Path) -> None:
    vm = made(node, version)
    before = counted(vm)
    if paused:
        vm.pause()
    with pytest.raises(MigrationFailed, match="No space left"):
        vm.save(file=str(small / "memory"))
    assert os.listdir(small) == []
    assert vm.show().document.pending is None
    if paused:
        assert vm.show().state is State.PAUSED
        vm.resume()
    goes_on(vm, before)
    vm.save()
    vm.start()
    goes_on(vm, before)


class Impatient(Witness):
    """One that wants it to end at once."""

    def wants_end(self) -> bool:
        return True


@pytest.mark.parametrize("version", VERSIONS)
def test_one_that_is_cancelled(node: Node, version: str) -> None:
    vm = made(node, version)
    before = counted(vm)
    with watched_by(Impatient()), pytest.raises(OperationCancelled):
        vm.save()
    goes_on(vm, before)
    assert files(vm) == []


@pytest.mark.parametrize("step", ["save", "write", "keep", "saved"])
@pytest.mark.parametrize("version", VERSIONS)
def test_killed_while_it_saves(node: Node, version: str, step: str, tmp_path: Path) -> None:
    """It runs on, or is saved: never both, and never neither."""
    vm = made(node, version)
    before = counted(vm)
    target = tmp_path / "memory"
    killed_at(step, lambda: vm.save(file=str(target)))
    vm.mend()
    if step == "saved":
        assert vm.show().state is State.SAVED
        vm.start()
    goes_on(vm, before)
    assert os.listdir(tmp_path) == []
    assert vm.show().document.saved is None


@pytest.mark.parametrize("step", ["restore", "run", "load", "run again"])
@pytest.mark.parametrize("version", VERSIONS)
def test_killed_while_it_restores(node: Node, version: str, step: str) -> None:
    vm = made(node, version)
    before = counted(vm)
    vm.save()
    killed_at(step, vm.restore)
    vm.mend()
    if step == "run again":
        assert vm.show().document.saved is None
    else:
        assert vm.show().state is State.SAVED
        vm.start()
    goes_on(vm, before)
    assert files(vm) == []
    assert vm.show().document.pending is None


@pytest.mark.parametrize("how", ["mend", "kill"])
def test_what_may_have_run_is_not_restored_again(node: Node, how: str) -> None:
    """The manager and its QEMU both died when it was let run: nobody knows whether it did."""
    vm = made(node, "10.0")
    vm.save()
    killed_at("run again", vm.restore)
    runtime = vm.show().document.runtime
    assert runtime is not None
    os.kill(runtime.pid, signal.SIGKILL)
    getattr(vm, how)()
    condition = vm.show()
    assert condition.state is State.STOPPED
    assert "may have run" in condition.document.last_stop.detail  # type: ignore[union-attr]
    assert files(vm) == ["memory"]  # for whoever knows better
    vm.start()
    vm.save()
    vm.start()
    assert files(vm) == []
