"""Disks of all kinds, failed and cancelled at each step; what QEMU is told of them; what is refused before that."""

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ArgumentError, CommandError, HotplugError, NbdRefused, NbdUnreachable, NoFreeSlot
from drover.monitor.drive import drive
from drover.ops import disk, qom, storage
from drover.ops.nbd import Nbd, parse_nbd
from drover.ops.port import Port
from drover.ops.snapshots import Overlay, snapshot_disks
from drover.testing.model import QemuModel
from drover.testing.scripted import Fault, ScriptedPort
from qcow2 import header
from steps import MACHINES, SERVER, Case, check_change, check_removal, descriptors, prepare

MIB = 1 << 20
BACKING = [("middle", "qcow2"), ("base", "raw")]


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of three, and a disk that stands by itself."""
    monkeypatch.chdir(tmp_path)
    Path("top").write_bytes(header(MIB, "middle", "qcow2"))
    Path("middle").write_bytes(header(MIB, "base", "raw"))
    for name in ("base", "alone"):
        Path(name).write_bytes(bytes(MIB))


def add(port: Port, **options: Any) -> Coroutine[Any, Any, disk.Disk]:
    return disk.hot_add_disk(port, "alone", id="disk1", cache="writeback", **options)


def add_chain(port: Port) -> Coroutine[Any, Any, disk.Disk]:
    return disk.hot_add_disk(port, "top", id="disk1", format="qcow2", backing=BACKING, cache="writeback")


def add_nbd(port: Port) -> Coroutine[Any, Any, disk.Disk]:
    return disk.hot_add_disk(port, f"nbd://{SERVER}/disk", id="disk1", driver="virtio-scsi")


def remove(port: Port) -> Coroutine[Any, Any, None]:
    return disk.hot_remove_disk(port, "disk1")


async def make_thread(port: Port) -> None:
    await qom.object_add(port, "iothread", "io1")


async def add_and_snapshot(port: Port) -> None:
    await add_chain(port)
    await snapshot_disks(port, Overlay(node="disk1", name="disk1-s1", path="new"), timeout=60)


CHANGES = {
    "a chain": Case(add_chain),
    "an NBD server": Case(add_nbd),
    "a place on SCSI": Case(lambda port: add(port, driver="virtio-scsi", addr="7:3")),
    "a thread": Case(lambda port: add(port, iothread="io1", werror="stop"), make_thread),
}
REMOVALS = {"a chain": Case(remove, add_chain), "an NBD server": Case(remove, add_nbd)}


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CHANGES)
def test_added_or_not(name: str, machine: str, fault: Fault) -> None:
    check_change(CHANGES[name], machine, fault)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", REMOVALS)
def test_removed_in_the_end(name: str, machine: str, fault: Fault) -> None:
    check_removal(REMOVALS[name], machine, fault)


def added(model: QemuModel, **options: Any) -> dict[str, Any]:
    drive(add(ScriptedPort(model), **options))
    return model.devices["disk1"]


def test_a_chain_is_told_node_by_node() -> None:
    """Each by its own descriptor; nothing is left to be looked up, and only the topmost one may be written to."""
    model = QemuModel()
    fds = descriptors()
    drive(add_chain(ScriptedPort(model)))
    assert list(model.nodes) == [
        "disk1-back2-file", "disk1-back2", "disk1-back1-file", "disk1-back1", "disk1-file", "disk1",
    ]  # fmt: skip
    assert "backing" not in model.nodes["disk1-back2"], "a raw image has none"
    assert model.nodes["disk1-back1"]["backing"] == "disk1-back2"
    assert model.nodes["disk1"]["backing"] == "disk1-back1"
    assert [node.get("read-only", False) for node in model.nodes.values()] == [True] * 4 + [False] * 2
    assert [node["driver"] for node in model.nodes.values()] == ["file", "raw", "file", "qcow2", "file", "qcow2"]
    assert not model.fdsets
    assert descriptors() == fds


def test_an_image_without_one_beneath_is_told_so() -> None:
    model = QemuModel()
    Path("top").write_bytes(header(MIB))
    drive(disk.hot_add_disk(ScriptedPort(model), "top", id="disk1", format="qcow2", cache="writeback"))
    assert model.nodes["disk1"]["backing"] is None


def test_options_go_where_they_belong() -> None:
    model = prepare(Case(make_thread, make_thread), "q35")
    device = added(model, detect_zeroes="unmap", werror="enospc", rerror="stop", iothread="io1", serial="s")
    assert {name: device[name] for name in ("werror", "rerror", "iothread", "serial")} == {
        "werror": "enospc", "rerror": "stop", "iothread": "io1", "serial": "s",
    }  # fmt: skip
    assert model.nodes["disk1"]["detect-zeroes"] == "unmap"
    assert "detect-zeroes" not in model.nodes["disk1-file"]
    assert not {"werror", "rerror", "iothread", "serial"} & set(added(QemuModel()))


def test_a_place_on_scsi() -> None:
    model = QemuModel()
    port = ScriptedPort(model)
    places = [
        drive(disk.hot_add_disk(port, "alone", id=f"d{n}", driver="virtio-scsi", addr=addr, cache="writeback")).addr
        for n, addr in enumerate((None, "1:5", None, "1:0", "255:16383", None))
    ]
    assert places == ["0:0", "1:5", "2:0", "1:0", "255:16383", "3:0"]
    assert (model.devices["d1"]["scsi-id"], model.devices["d1"]["lun"]) == (1, 5)
    with pytest.raises(CommandError, match="in use by d1"):
        drive(add(port, driver="virtio-scsi", addr="1:5"))


def test_a_disk_on_a_server() -> None:
    for source in (f"nbd://{SERVER}/disk", Nbd(address=f"tcp:{SERVER}", export="disk", reconnect_delay=3)):
        model = prepare(Case(remove), "pc")
        drive(disk.hot_add_disk(ScriptedPort(model), source, id="disk1"))
        file = model.nodes["disk1-file"]
        assert (file["driver"], file["export"], model.nodes["disk1"]["driver"]) == ("nbd", "disk", "raw")
        assert file["server"] == {"type": "inet", "host": "storage", "port": "10809"}
        assert file["reconnect-delay"] in (0, 3)
        drive(remove(ScriptedPort(model)))
        assert model.left() == QemuModel("pc").left()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("nbd://host/disk", Nbd(address="tcp:host:10809", export="disk")),
        ("nbd://host:99/a%20b/c", Nbd(address="tcp:host:99", export="a b/c")),
        ("nbd://[::1]:99", Nbd(address="[::1]:99")),
        ("nbd+unix:///disk?socket=/run/n%20bd", Nbd(address="unix:/run/n bd", export="disk")),
        ("nbd+unix://?socket=/run/nbd", Nbd(address="unix:/run/nbd")),
    ],
)
def test_addresses_of_servers(uri: str, expected: Nbd) -> None:
    assert parse_nbd(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "nbds://host/disk", "nbd:///disk", "nbd://host:x/", "nbd://host/disk?a=b", "nbd+unix:///disk",
        "nbd+unix:///disk?socket=/a&socket=/b", "nbd+unix://host/disk?socket=/a", "nbd+unix:///disk?path=/a",
        "http://host/disk", "nbd://host/disk#x",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_server(uri: str) -> None:
    with pytest.raises(ArgumentError, match=r"nbd://HOST:PORT/EXPORT"):
        drive(disk.hot_add_disk(ScriptedPort(QemuModel()), uri, id="disk1"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"id": "disk1-file"}, "id"),
        ({"id": "disk1-back2"}, "id"),
        ({"id": "disk1-back2-file"}, "id"),
        ({"id": "a" * 27}, "id"),
        ({"id": "a" * 21, "format": "qcow2", "backing": BACKING}, "id"),
        ({"driver": "ide"}, "driver"),
        ({"detect_zeroes": "yes"}, "detect_zeroes"),
        ({"detect_zeroes": "unmap", "discard": "ignore"}, "detect_zeroes"),
        ({"werror": "panic"}, "werror"),
        ({"rerror": "enospc"}, "rerror"),
        ({"iothread": "io9"}, "iothread"),
        ({"iothread": "io9", "driver": "virtio-scsi"}, "iothread"),
        ({"backing": BACKING}, "backing"),
        ({"driver": "virtio-scsi", "addr": "05"}, "addr"),
        ({"driver": "virtio-scsi", "bus": "scsi1.0"}, "bus"),
    ],
)
def test_refused_before_anything_is_touched(options: dict[str, Any], field: str) -> None:
    model = QemuModel()
    with pytest.raises(ArgumentError) as caught:
        drive(disk.hot_add_disk(ScriptedPort(model), "alone", **{"id": "disk1", "cache": "writeback"} | options))
    assert caught.value.field == field
    assert model.left() == QemuModel().left()


def test_servers_that_will_not_do() -> None:
    model = prepare(Case(remove), "q35")
    port = ScriptedPort(model)
    for uri, error in ((f"nbd://{SERVER}/cd", NbdRefused), ("nbd://nowhere/disk", NbdUnreachable)):
        with pytest.raises(error):
            drive(disk.hot_add_disk(port, uri, id="disk1"))
    with pytest.raises(ArgumentError, match="raw on an NBD server"):
        drive(disk.hot_add_disk(port, f"nbd://{SERVER}/disk", id="disk1", format="qcow2"))
    with pytest.raises(ArgumentError, match="from 0 to"):
        drive(disk.hot_add_disk(port, Nbd(address="x", reconnect_delay=-1), id="disk1"))
    assert drive(disk.hot_add_disk(port, f"nbd://{SERVER}/cd", id="disk1", read_only=True)).size == MIB


def test_a_chain_that_headers_tell_otherwise() -> None:
    for backing in ([], BACKING[:1], [*BACKING, ("alone", "raw")], [("nowhere", "qcow2"), BACKING[1]]):
        fds = descriptors()
        with pytest.raises((ArgumentError, FileNotFoundError)):
            drive(disk.hot_add_disk(ScriptedPort(QemuModel()), "top", id="disk1", format="qcow2", backing=backing))
        assert descriptors() == fds


# -- away again ------------------------------------------------------------------------------------------------------


def test_a_chain_goes_with_its_snapshots() -> None:
    """Also where the guest let go of the device later, so that only nodes are left of the disk."""
    for guest in ("obeys", "ignores"):
        Path("new").unlink(missing_ok=True)
        model = prepare(Case(remove, add_and_snapshot), "q35", guest=guest)
        assert model.devices["disk1"]["drive"] == "disk1-s1"
        if guest == "ignores":
            with pytest.raises(HotplugError, match="next reset"):
                drive(remove(ScriptedPort(model)))
            assert len(model.nodes) == 8, "nothing is released before QEMU has let go"
            model.execute("system_reset", None)
            assert "disk1" not in model.devices
        drive(remove(ScriptedPort(model)))
        assert model.left() == QemuModel().left()
        with pytest.raises(HotplugError, match="no such disk"):
            drive(remove(ScriptedPort(model)))


def test_whose_nodes_are_whose() -> None:
    nodes = ["disk10", "disk1-file", "disk1", "disk1-back10", "disk1-back2-file", "disk1-back2", "disk1-s1", "xdisk1"]
    assert storage.own_nodes("disk1", nodes) == [
        "disk1",
        "disk1-file",
        "disk1-back2",
        "disk1-back2-file",
        "disk1-back10",
    ]
    assert storage.own_nodes("disk", nodes) == []


def test_a_shared_base_is_not_taken_from_others() -> None:
    model = QemuModel()
    drive(add_chain(ScriptedPort(model)))
    model.nodes["other"] = {"driver": "qcow2", "backing": "disk1-back2"}
    model.sizes["other"] = MIB
    with pytest.raises(CommandError, match="in use"):
        drive(remove(ScriptedPort(model)))
    assert set(model.nodes) == {"disk1-back2", "disk1-back2-file", "other"}


def test_a_full_controller() -> None:
    model = QemuModel()
    for target in range(256):
        model.devices[f"d{target}"] = {"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": target, "lun": 1}
    with pytest.raises(NoFreeSlot, match=r"scsi0\.0 \(256 of 256 used\)"):
        drive(add(ScriptedPort(model), driver="virtio-scsi"))
    assert drive(add(ScriptedPort(model), driver="virtio-scsi", addr="9:0")).addr == "9:0"
    assert os.path.exists("alone")
