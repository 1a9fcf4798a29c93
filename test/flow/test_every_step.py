"""Each flow, failed and cancelled at each of its steps: all of it happens, or nothing of it stays.

The steps are counted by running the flow; no test lists them.
"""

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.monitor.drive import drive
from drover.ops import cpu, disk, memory, migration, migration_settings, nic, power, vfio
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.scripted import Fault, ScriptedPort
from steps import MACHINES, Case, check_change, check_removal, count_steps, descriptors, failure, prepare


@pytest.fixture(autouse=True)
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(IMAGE).write_bytes(bytes(1 << 20))


IMAGE = "image.raw"


def add_nic(port: Port) -> Coroutine[Any, Any, object]:
    fds = [0, 0]
    return nic.hot_add_nic(port, "nic1", tap_fds=fds, vhost_fds=fds, mac="52:54:00:00:00:01")


def add_user_nic(port: Port) -> Coroutine[Any, Any, object]:
    return nic.hot_add_nic(port, "nic2", backend={"type": "user"}, mac="52:54:00:00:00:02")


def add_vfio(port: Port) -> Coroutine[Any, Any, object]:
    return vfio.hot_add_vfio(port, id="vfio1", host="0000:3b:00.0", rom=False)


def add_disk(port: Port) -> Coroutine[Any, Any, object]:
    return disk.hot_add_disk(port, IMAGE, id="disk1", cache="writeback", serial="s1")


def add_scsi_disk(port: Port) -> Coroutine[Any, Any, object]:
    return disk.hot_add_disk(port, IMAGE, id="disk2", cache="writeback", driver="virtio-scsi")


def add_dimm(port: Port) -> Coroutine[Any, Any, object]:
    return memory.hot_add_dimm(port, id="dimm1", size=1 << 27)


def add_virtio_mem(port: Port) -> Coroutine[Any, Any, object]:
    return memory.hot_add_virtio_mem(port, id="vmem1", max_size=1 << 27)


def add_cpu(port: Port) -> Coroutine[Any, Any, object]:
    return cpu.hot_add_cpu(port, id="cpu1")


CHANGES = {
    "add a DIMM": Case(add_dimm),
    "add virtio-mem": Case(add_virtio_mem),
    "add a vCPU": Case(add_cpu),
    "add a NIC": Case(add_nic),
    "add a NIC on QEMU's own network": Case(add_user_nic),
    "add a device of the host": Case(add_vfio),
    "add a virtio-blk disk": Case(add_disk),
    "add a virtio-scsi disk": Case(add_scsi_disk),
    "migrate over a descriptor": Case(lambda port: migration.migrate(port, fd=0)),
    "wait for a machine over a descriptor": Case(lambda port: migration.migrate_incoming(port, fd=0)),
}
REMOVALS = {
    "remove a DIMM": Case(lambda port: memory.hot_remove_dimm(port, "dimm1"), add_dimm),
    "remove a vCPU": Case(lambda port: cpu.hot_remove_cpu(port, "cpu1"), add_cpu),
    "remove a device of the host": Case(lambda port: vfio.hot_remove_vfio(port, "vfio1"), add_vfio),
    "remove a NIC": Case(lambda port: nic.hot_remove_nic(port, "nic1"), add_nic),
    "remove a virtio-blk disk": Case(lambda port: disk.hot_remove_disk(port, "disk1"), add_disk),
    "remove a virtio-scsi disk": Case(lambda port: disk.hot_remove_disk(port, "disk2"), add_scsi_disk),
}
OTHERS = {
    "resize": Case(lambda port: disk.resize_disk(port, "disk1", 1 << 21), add_disk),
    "reset": Case(power.system_reset),
    "quit": Case(power.quit_machine),
    "capabilities": Case(lambda port: migration_settings.set_migration_capabilities(port, {"events": True})),
    "parameters": Case(lambda port: migration_settings.set_migration_parameters(port, {"downtime-limit": 5})),
    "cancel": Case(migration.migrate_cancel, lambda port: migration.migrate(port, "unix:/x")),
}


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CHANGES)
def test_change_happens_or_leaves_nothing(name: str, machine: str, fault: Fault) -> None:
    check_change(CHANGES[name], machine, fault)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", REMOVALS)
def test_removal_can_be_repeated_to_its_end(name: str, machine: str, fault: Fault) -> None:
    check_removal(REMOVALS[name], machine, fault)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("name", OTHERS)
def test_error_of_the_step_is_raised(name: str, fault: Fault) -> None:
    case = OTHERS[name]
    for step in range(count_steps(case, "q35")):
        port = ScriptedPort(prepare(case, "q35"), fault, step)
        failed = failure(case, port) is not None
        # these ask again after a timeout before they call it a failure
        assert failed or not port.struck or fault in (Fault.LOST, Fault.LATE, Fault.CLOSED), port.steps


def test_our_copy_of_a_disks_descriptor_is_closed_before_qemu_uses_its_own() -> None:
    """An open copy would keep the image locked after QEMU's death."""
    model = QemuModel()
    execute, seen = model.execute, []

    def watch(command: str, arguments: Any, has_fd: bool = False) -> Any:
        if command == "blockdev-add":
            paths = [f"/proc/self/fd/{fd}" for fd in descriptors()]
            seen.extend(os.readlink(path) for path in paths if os.path.lexists(path))
        return execute(command, arguments, has_fd)

    model.execute = watch  # type: ignore[method-assign]
    drive(add_disk(ScriptedPort(model)))
    assert seen
    assert not [path for path in seen if path.endswith(IMAGE)]
