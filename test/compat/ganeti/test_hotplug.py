"""Ganeti's hotplug: its payloads, and an order and a way back that it has not."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drover.compat.ganeti import HotplugError, HypervisorError, NoFreeSlots, QmpConnection, legacy
from drover.errors import UnplugPending
from drover.testing.fake import Do, FakeQemu
from drover.testing.model import QemuModel

PLACE = {"driver": "virtio-net-pci", "id": "nic-1", "bus": "pci.0", "addr": "0xd", "hotpluggable": True}
NIC = SimpleNamespace(mac="aa:00:00:00:00:01", hvinfo=PLACE)
SCSI = {"driver": "scsi-hd", "id": "disk-1", "bus": "scsi0.0", "channel": 0, "scsi-id": 3, "lun": 0, "pci": 5}
DISK = SimpleNamespace(hvinfo=SCSI)
MQ = {"vhost": True, "mq": (True, 2)}


class Recorder:
    """A fake on an i440fx machine that keeps each command's arguments, and fails one of them."""

    def __init__(self, fake: FakeQemu) -> None:
        self.fake = fake
        self.model = fake.model
        self.sent: list[tuple[str, Any]] = []
        self.refuse = ""
        fake.script = self._script

    def _script(self, command: str, arguments: dict[str, Any]) -> Do | None:
        self.sent.append((command, arguments))
        return Do.REFUSE if command == self.refuse else None

    def names(self) -> list[str]:
        return [command for command, _ in self.sent if command != "query-commands"]


@pytest.fixture
def qemu() -> Iterator[Recorder]:
    with FakeQemu(QemuModel("pc")) as fake:
        yield Recorder(fake)


@pytest.fixture
def vm(qemu: Recorder) -> Iterator[QmpConnection]:
    vm = QmpConnection(str(qemu.fake.path))
    vm.unplug_timeout = 0.2
    with vm:
        yield vm


@pytest.fixture
def fds() -> Iterator[list[int]]:
    fds = [os.open("/dev/null", os.O_RDWR) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    file = {"driver": "file", "filename": str(image), "aio": "threads"}
    cache = {"direct": False, "no-flush": False}
    return {"driver": "raw", "node-name": "disk-1", "discard": "ignore", "cache": cache, "file": file}


def open_files() -> set[str]:
    return {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}


# -- NICs ----------------------------------------------------------------


def test_nic_payloads(qemu: Recorder, vm: QmpConnection, fds: list[int]) -> None:
    vm.HotAddNic(NIC, "nic-1", fds[:2], fds[2:], MQ, True)
    assert qemu.sent[1:] == [
        ("getfd", {"fdname": "nic-1-0"}),
        ("getfd", {"fdname": "nic-1-1"}),
        ("getfd", {"fdname": "nic-1-vhost-0"}),
        ("getfd", {"fdname": "nic-1-vhost-1"}),
        (
            "netdev_add",
            {
                "type": "tap",
                "id": "nic-1",
                "fds": "nic-1-0:nic-1-1",
                "vhost": True,
                "vhostfds": "nic-1-vhost-0:nic-1-vhost-1",
            },
        ),
        (
            "device_add",
            {
                "netdev": "nic-1",
                "mac": "aa:00:00:00:00:01",
                "romfile": "",
                "driver": "virtio-net-pci",
                "id": "nic-1",
                "bus": "pci.0",
                "addr": "0xd",
                "mq": True,
                "vectors": 6,
            },
        ),
    ]
    assert qemu.fake.fds == [("getfd", 1)] * 4
    assert vm.HasDevice("nic-1")


def test_plain_nic(qemu: Recorder, vm: QmpConnection, fds: list[int]) -> None:
    vm.HotAddNic(NIC, "nic-1", fds[:1], fds[1:])
    assert qemu.model.netdevs == {"nic-1": {"type": "tap", "id": "nic-1", "fds": "nic-1-0"}}
    assert set(qemu.model.devices["nic-1"]) == {"netdev", "mac", "driver", "id", "bus", "addr"}


@pytest.mark.parametrize("step", ["getfd", "netdev_add", "device_add"])
def test_a_nic_comes_whole_or_not(qemu: Recorder, vm: QmpConnection, fds: list[int], step: str) -> None:
    before = qemu.model.left()
    qemu.refuse = step
    with pytest.raises(HypervisorError, match=f"executing the {step} command: scripted refusal"):
        vm.HotAddNic(NIC, "nic-1", fds[:2], fds[2:], MQ)
    assert qemu.model.left() == before
    for fd in fds:
        os.fstat(fd)  # still ours


def test_a_netdev_stays_as_long_as_its_nic(qemu: Recorder, vm: QmpConnection, fds: list[int]) -> None:
    vm.HotAddNic(NIC, "nic-1", fds[:1])
    qemu.model.guest = "ignores"
    with pytest.raises(HotplugError) as info:
        vm.HotDelNic("nic-1")
    assert isinstance(info.value.__cause__, UnplugPending)
    assert "nic-1" in qemu.model.netdevs  # Ganeti: gone, and the NIC is deaf
    qemu.model.guest = "refuses"
    with pytest.raises(HotplugError, match="refuses"):
        vm.HotDelNic("nic-1")
    assert "nic-1" in qemu.model.netdevs
    qemu.model.guest = "obeys"
    vm.HotDelNic("nic-1")
    assert "nic-1" not in qemu.model.netdevs
    vm.HotAddNic(NIC, "nic-1", fds[:1])  # the same id, at once
    assert qemu.names()[-5:] == ["device_del", "netdev_del", "getfd", "netdev_add", "device_add"]
    with pytest.raises(HotplugError, match="no such NIC"):
        vm.HotDelNic("nic-2")


# -- disks ---------------------------------------------------------------


def test_disk_payloads(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    files = open_files()
    wanted = node | {"file": node["file"] | {"filename": "/dev/fdset/0"}}
    device = {"drive": "disk-1", "write-cache": "on", **{key: SCSI[key] for key in SCSI if key != "pci"}}
    given = dict(node)
    vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    assert qemu.sent[1:] == [
        ("add-fd", {}),
        ("blockdev-add", wanted),
        ("device_add", device),
        ("remove-fd", {"fdset-id": 0}),
    ]
    assert node == given
    assert open_files() == files
    assert vm.HasDevice("disk-1")  # Ganeti: never found, for its block device has no name
    vm.ResizeBlockDevice("disk-1", 2 << 20)
    assert qemu.model.sizes["disk-1"] == 2 << 20
    vm.HotDelDisk("disk-1")
    assert [command for command, _ in qemu.sent[-2:]] == ["device_del", "blockdev-del"]
    assert not vm.HasDevice("disk-1")


@pytest.mark.parametrize("direct", [True, False])
def test_an_image_is_opened_as_its_cache_wants(
    vm: QmpConnection, node: dict[str, Any], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flag: [flags.append(flag), opened(path, os.O_RDWR | os.O_CLOEXEC)][1])
    vm.HotAddDisk(DISK, "kernelspace", True, direct, node)
    assert [bool(flag & os.O_DIRECT) for flag in flags] == [direct]


def test_userspace_disk(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    qemu.model.fdsets[7] = ""
    node["file"] = {"driver": "file", "filename": "/dev/fdset/7"}  # all that the model opens
    vm.HotAddDisk(DISK, "userspace", False, False, node)
    assert "add-fd" not in qemu.names()
    assert qemu.model.devices["disk-1"]["write-cache"] == "off"


@pytest.mark.parametrize("step", ["add-fd", "blockdev-add", "device_add"])
def test_a_disk_comes_whole_or_not(qemu: Recorder, vm: QmpConnection, node: dict[str, Any], step: str) -> None:
    before, files = qemu.model.left(), open_files()
    qemu.refuse = step
    with pytest.raises(HypervisorError, match="scripted refusal"):
        vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    assert qemu.model.left() == before
    assert open_files() == files


def test_a_descriptor_set_that_stays_is_no_failure(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    qemu.refuse = "remove-fd"
    vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    assert vm.HasDevice("disk-1")


def test_no_image_touches_nothing(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    node["file"]["filename"] = "/nowhere"
    with pytest.raises(FileNotFoundError):
        vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    node["file"]["filename"] = "/dev/null"
    with pytest.raises(HypervisorError, match="a file or a block device"):
        vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    assert qemu.names() == []


def test_another_devices_event_does_not_count(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    qemu.model.guest = "ignores"
    qemu.fake.event("DEVICE_DELETED", {"path": "/machine/peripheral/disk-1/virtio-backend"})
    qemu.fake.event("DEVICE_DELETED", {"device": "other", "path": "/machine/peripheral/other"})
    with pytest.raises(HotplugError, match="has not let go"):
        vm.HotDelDisk("disk-1")
    assert "blockdev-del" not in qemu.names()


def test_a_removal_can_be_repeated_after_the_guest_let_go(
    qemu: Recorder, vm: QmpConnection, node: dict[str, Any]
) -> None:
    vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    qemu.model.guest = "ignores"
    with pytest.raises(HotplugError):
        vm.HotDelDisk("disk-1")
    vm.execute_qmp("system_reset")
    assert "disk-1" in qemu.model.nodes
    vm.HotDelDisk("disk-1")  # Ganeti: DeviceNotFound, for ever
    assert "disk-1" not in qemu.model.nodes
    with pytest.raises(HotplugError, match="no such disk"):
        vm.HotDelDisk("disk-1")


def test_a_node_in_use_is_told(qemu: Recorder, vm: QmpConnection, node: dict[str, Any]) -> None:
    vm.HotAddDisk(DISK, "kernelspace", True, False, node)
    qemu.refuse = "blockdev-del"
    with pytest.raises(HypervisorError, match="scripted refusal"):
        vm.HotDelDisk("disk-1")


# -- the disks of 3.0 ----------------------------------------------------


def test_disks_of_3_0(qemu: Recorder, node: dict[str, Any]) -> None:
    image = node["file"]["filename"]
    vm = legacy.QmpConnection(str(qemu.fake.path))
    vm.HotAddDisk(DISK, "disk-1", image)
    assert qemu.model.nodes["disk-1"]["file"] == {"driver": "file", "filename": "/dev/fdset/0"}
    vm.HotDelDisk("disk-1")
    opened = []

    def drive_add(filename: str) -> None:
        opened.append(filename)
        qemu.model.nodes["disk-1"] = {}

    vm.HotAddDisk(DISK, "disk-1", image, drive_add)
    assert opened == ["/dev/fdset/0"]
    assert not qemu.model.fdsets
    del qemu.model.nodes["disk-1"]  # a drive of HMP's goes with its device
    vm.HotDelDisk("disk-1")
    vm.HotAddDisk(DISK, "disk-1", "rbd:pool/image", drive_add)
    assert opened[1:] == ["rbd:pool/image"]
    with pytest.raises(HotplugError, match="needs drive_add_fn"):
        vm.HotAddDisk(DISK, "disk-1", "rbd:pool/image")


# -- places and support --------------------------------------------------


def test_free_slot(vm: QmpConnection) -> None:
    assert vm.GetFreePCISlot() == 2  # 0 is the host bridge, 1 the SCSI controller


def test_no_free_slot_where_the_root_bus_takes_no_hotplug() -> None:
    with FakeQemu(QemuModel("q35")) as fake, pytest.raises(NoFreeSlots, match="pcie.0"):
        QmpConnection(str(fake.path)).GetFreePCISlot()


def test_support(vm: QmpConnection) -> None:
    vm.CheckDiskHotAddSupport()
    vm.CheckNicHotAddSupport()
    vm.supported_commands = frozenset({"add-fd"})
    with pytest.raises(HotplugError, match=r"Cannot hot-add disk: blockdev-add qmp command is not supported\."):
        vm.CheckDiskHotAddSupport()
    with pytest.raises(HotplugError, match="Cannot hot-add NIC: getfd"):
        vm.CheckNicHotAddSupport()


# -- the rest ------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (("SetMigrationParameters", 32 << 20, 30), ("migrate-set-parameters", {
            "max-bandwidth": 32 << 20, "downtime-limit": 30, "max-postcopy-bandwidth": 32 << 20})),
        (("SetMigrationCapabilities", ["xbzrle", "events"], True), ("migrate-set-capabilities", {"capabilities": [
            {"capability": "xbzrle", "state": True}, {"capability": "events", "state": True}]})),
        (("StartMigration", "10.0.0.2", 8102), ("migrate", {"uri": "tcp:10.0.0.2:8102"})),
        (("StartMigration", "fe80::1", 8102), ("migrate", {"uri": "tcp:[fe80::1]:8102"})),
        (("StartPostcopyMigration",), ("migrate-start-postcopy", {})),
        (("GetMigrationStatus",), ("query-migrate", {})),
        (("GetCpuInformation",), ("query-cpus-fast", {})),
        (("SetSpicePassword", "x"), ("set_password", {"protocol": "spice", "password": "x"})),
        (("SetVNCPassword", "x"), ("set_password", {"protocol": "vnc", "password": "x"})),
        (("SetBalloonMemory", 512), ("balloon", {"value": 512 << 20})),
        (("Powerdown",), ("system_powerdown", {})),
        (("StopGuestEmulation",), ("stop", {})),
        (("ContinueGuestEmulation",), ("cont", {})),
    ],
)  # fmt: skip
def test_payloads(qemu: Recorder, vm: QmpConnection, call: tuple[Any, ...], wanted: tuple[str, Any]) -> None:
    qemu.refuse = wanted[0]
    with pytest.raises(HypervisorError, match="scripted refusal"):
        getattr(vm, call[0])(*call[1:])
    assert qemu.sent[1:] == [wanted]
