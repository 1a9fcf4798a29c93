"""The whole face against a real QEMU, without a guest: a SCSI disk goes without one, a NIC at the next reset."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compat.ganeti.machine import Qemu
from drover.compat.ganeti import (
    HotplugError,
    HypervisorError,
    QemuMonitorSocket,
    QmpCommandNotSupported,
    QmpConnection,
    QmpTimeoutError,
    legacy,
)
from drover.kvm.taps import open_tap
from machines import qemu_of

pytestmark = pytest.mark.live

@pytest.fixture
def vm(qemu: Qemu) -> QmpConnection:
    vm = QmpConnection(qemu.path)
    vm.unplug_timeout = 0.5
    return vm


@pytest.fixture
def running(vm: QmpConnection) -> Iterator[None]:
    """QEMU 7.2 closes removed descriptors only while the machine runs."""
    vm.ContinueGuestEmulation()
    yield
    vm.StopGuestEmulation()


def scsi_disk(target: int) -> Any:
    name = f"disk-{target}"
    return SimpleNamespace(
        hvinfo={"driver": "scsi-hd", "id": name, "bus": "scsi.0", "channel": 0, "scsi-id": target, "lun": 0}
    )


def block_device(image: Path, name: str) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(image), "aio": "threads"}
    cache = {"direct": False, "no-flush": False}
    return {"driver": "raw", "node-name": name, "discard": "ignore", "cache": cache, "file": file}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    return image


@pytest.mark.usefixtures("running")
def test_disk(vm: QmpConnection, image: Path) -> None:
    for _ in range(2):  # the same id again
        vm.HotAddDisk(scsi_disk(1), "kernelspace", True, False, block_device(image, "disk-1"))
        assert vm.HasDevice("disk-1")
        vm.ResizeBlockDevice("disk-1", 2 << 20)
        assert image.stat().st_size == 2 << 20
        vm.HotDelDisk("disk-1")
        assert not vm.HasDevice("disk-1")
    with vm:
        assert vm.execute_qmp("query-named-block-nodes") == []
        assert vm.execute_qmp("query-fdsets") == []


def test_disk_of_3_0(qemu: Qemu, image: Path) -> None:
    vm = legacy.QmpConnection(qemu.path)
    vm.HotAddDisk(scsi_disk(2), "disk-2", str(image))
    assert vm.HasDevice("disk-2")
    vm.HotDelDisk("disk-2")
    with vm:
        assert vm.Execute("query-named-block-nodes") == []


@pytest.mark.usefixtures("running")
def test_a_failed_disk_leaves_nothing(vm: QmpConnection, image: Path) -> None:
    disk = scsi_disk(1)
    disk.hvinfo["bus"] = "none.0"
    with pytest.raises(HypervisorError, match=r"executing the device_add command: Bus 'none\.0' not found"):
        vm.HotAddDisk(disk, "kernelspace", True, False, block_device(image, "disk-1"))
    with vm:
        assert vm.execute_qmp("query-named-block-nodes") == []
        assert vm.execute_qmp("query-fdsets") == []


def test_nic(vm: QmpConnection) -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.fail("no right to make a tap device: run as root")
    slot = vm.GetFreePCISlot()
    place = {"driver": "virtio-net-pci", "id": "nic-1", "bus": "pci.0", "addr": hex(slot)}
    nic = SimpleNamespace(mac="aa:00:00:00:00:01", hvinfo=place)
    with open_tap(queues=2) as tap:
        vm.HotAddNic(nic, "nic-1", tap.fds, features={"mq": (True, 2)}, is_chrooted=True)
    assert vm.HasDevice("nic-1")
    assert vm.GetFreePCISlot() == slot + 1
    with vm:
        # 7.2 and 10.0 take no second request for a device whose first came before the machine ever ran
        vm.ContinueGuestEmulation()
        with pytest.raises(HotplugError, match="has not let go"):
            vm.HotDelNic("nic-1")  # there is no guest
        assert vm.HasDevice("nic-1")
        vm.execute_qmp("system_reset")
        event = vm.wait_for_qmp_event(["RESET"], 10)
        assert event is not None
        assert event["guest"] is False
        vm.HotDelNic("nic-1")
        assert not vm.HasDevice("nic-1")
        vm.StopGuestEmulation()


def test_migration_names(vm: QmpConnection) -> None:
    vm.SetMigrationParameters(32 << 20, 30)
    vm.SetMigrationCapabilities(["xbzrle", "postcopy-ram"], True)
    with vm:
        parameters = vm.execute_qmp("query-migrate-parameters")
        assert (parameters["max-bandwidth"], parameters["downtime-limit"]) == (32 << 20, 30)
        assert parameters["max-postcopy-bandwidth"] == 32 << 20
        on = {item["capability"] for item in vm.execute_qmp("query-migrate-capabilities") if item["state"]}
        assert {"xbzrle", "postcopy-ram"} <= on
    vm.SetMigrationCapabilities(["xbzrle", "postcopy-ram"], False)
    assert vm.GetMigrationStatus() == {}
    with pytest.raises(HypervisorError, match="migrate-start-postcopy"):
        vm.StartPostcopyMigration()


def test_migration(tmp_path: Path) -> None:
    source = Qemu(qemu_of("7.2-pc"))
    target = Qemu(qemu_of("7.2-pc"), "-incoming", "defer")
    try:
        there = QmpConnection(target.path)
        there.SetMigrationCapabilities(["events"], True)
        there.connect()
        there.execute_qmp("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
        port = there.GetMigrationStatus()["socket-address"][0]["port"]
        here = QmpConnection(source.path)
        here.StartMigration("127.0.0.1", port)
        deadline = time.monotonic() + 30
        while here.GetMigrationStatus()["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while (event := there.wait_for_qmp_event(["MIGRATION"], 30)) is not None and event["status"] != "completed":
            pass
        assert event is not None
        there.close()
    finally:
        source.close()
        target.close()


def test_the_rest(vm: QmpConnection) -> None:
    version = vm.GetVersion()
    assert version is not None
    assert version >= (7, 2, 0)
    vm.CheckDiskHotAddSupport()
    vm.CheckNicHotAddSupport()
    assert vm.HasDynamicAutoReadOnly() is True
    assert [cpu["cpu-index"] for cpu in vm.GetCpuInformation()] == [0]
    vm.ContinueGuestEmulation()
    vm.StopGuestEmulation()
    vm.Powerdown()
    vm.SetBalloonMemory(32)
    with vm:
        assert vm.execute_qmp("query-balloon")[vm.ACTUAL_KEY] > 0
        with pytest.raises(QmpCommandNotSupported):
            vm.execute_qmp("query-nonsense")
    for call in (vm.SetVNCPassword, vm.SetSpicePassword):
        with pytest.raises(HypervisorError, match="executing the set_password command"):
            call("secret")
    assert not vm.is_connected()


def test_events_of_a_real_one(vm: QmpConnection) -> None:
    with vm:
        for _ in range(2):
            vm.ContinueGuestEmulation()
            vm.StopGuestEmulation()
        for _ in range(2):
            for name in ("STOP", "RESUME"):
                assert vm.wait_for_qmp_event([name], 1) is not None


def test_a_second_client_waits_and_says_why(vm: QmpConnection, qemu: Qemu) -> None:
    with vm:
        other = QmpConnection(qemu.path)
        other.timeout = 0.3
        with pytest.raises(QmpTimeoutError, match="another client"):
            other.GetVersion()


def test_a_descriptor_in_a_message_of_its_own(vm: QmpConnection) -> None:
    """As Ganeti's `utils.SendFds` does on the monitor's `sock`."""
    with vm, open(os.devnull) as file:
        assert vm.sock is not None
        socket.send_fds(vm.sock, [b" "], [file.fileno()])
        assert vm.execute_qmp("getfd", {"fdname": "mine"}) == {}
        assert vm.execute_qmp("closefd", {"fdname": "mine"}) == {}


def test_a_raw_socket(qemu: Qemu) -> None:
    with QemuMonitorSocket(qemu.path, 5) as raw:
        assert "QMP" in raw.recv_qmp().data
        raw.execute_qmp("qmp_capabilities")
        assert raw.execute_qmp("query-status")["running"] is False
