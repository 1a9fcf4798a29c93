"""Every operation on real QEMUs with a real guest, on both faces, both machine types and both versions."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection
from drover.errors import (
    ArgumentError,
    CommandError,
    CommandNotSupported,
    ConnectTimeout,
    HotplugError,
    NoFreeSlot,
    NotSupported,
    UnplugPending,
)
from drover.kvm.taps import open_tap
from drover.ops.migration_settings import CAPABILITIES, PARAMETERS
from drover.ops.topology import query_pci_buses
from drover.testing.machine import Machine
from faces import Face

pytestmark = pytest.mark.live

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    path.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    return path


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "data.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    return path


def left(vm: Any) -> dict[str, Any]:
    """All that a hotplug can leave behind in QEMU, as far as QEMU can tell."""
    return {
        "devices": vm.query_devices(),
        "nodes": sorted(node["node-name"] for node in vm.query_block_nodes()),
        # 7.2 frees the descriptors of a set only while the machine runs
        "fdsets": vm.execute("query-fdsets") if vm.version >= (9, 0) or vm.query_status().running else None,
        "netdevs": vm.execute("human-monitor-command", {"command-line": "info network"}),
    }


# -- monitor ---------------------------------------------------------------------------------------------------------


def test_facts(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm:
        assert ".".join(map(str, vm.version[:2])) == booted.name.split("-")[0]
        assert vm.query_version()["package"] == vm.package
        assert {"query-status", "getfd", "add-fd", "device_add"} <= vm.supported_commands
        assert vm.supported_commands == vm.query_schema().commands
        with pytest.raises(CommandNotSupported):
            vm.execute("no-such-command")
        with pytest.raises(CommandError) as caught:
            vm.execute("device_del", {"id": "nobody"})
        assert caught.value.error_class == "DeviceNotFound"


def test_inventory(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm:
        assert len(vm.query_cpus()) == 2
        assert vm.query_cpus()[0].thread_id > 0
        assert vm.query_memory().base_memory == 256 * MIB
        assert vm.query_memory_devices() == []
        assert vm.query_devices()["scsi0"] == "virtio-scsi-pci"
        assert vm.query_pci()[0]["bus"] == 0
        assert vm.query_block() == []


def test_run_state_is_followed_by_the_guest(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm:
        mark = vm.event_mark()
        vm.stop()
        assert vm.wait_event("STOP", since=mark, timeout=5).number > mark
        assert vm.query_status().status == "paused"
        before = booted.console.view.beat
        time.sleep(0.1)
        assert booted.console.view.beat - before <= 2  # what was on its way
        vm.cont()
        vm.wait_event("RESUME", since=mark, timeout=5)
        booted.console.wait_until(lambda view: view.beat > before + 10)


def test_two_clients_of_one_socket(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp):
        with pytest.raises(ConnectTimeout, match="another client"):
            face.make(booted.qmp, timeout=0.3).connect()
    with face.open(booted.qmp) as vm:
        assert vm.query_status().running


def test_eight_threads_and_a_waiter(booted: Machine) -> None:
    with QmpConnection(booted.qmp) as vm:
        found: list[Any] = []
        waiter = threading.Thread(target=lambda: found.append(vm.wait_event("RESUME", timeout=60)))
        waiter.start()
        workers = [threading.Thread(target=lambda: [vm.query_status() for _ in range(100)]) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        vm.stop()
        vm.cont()
        waiter.join(10)
        assert found[0].name == "RESUME"


# -- disks -----------------------------------------------------------------------------------------------------------


def test_disk_with_data(booted: Machine, face: Face, image: Path) -> None:
    with face.open(booted.qmp) as vm:
        before = left(vm)
        disk = vm.hot_add_disk(image, id="data1", serial="drover-1")
        assert disk.size == 8 * MIB
        booted.console.wait_for_disk("vda")
        assert booted.console.run("cat /sys/block/vda/serial").strip() == "drover-1"
        expected = subprocess.run(["sha256sum", image], capture_output=True, text=True, check=True).stdout.split()[0]
        assert booted.console.run("sha256sum /dev/vda").split()[0] == expected
        booted.console.run("echo drover | dd of=/dev/vda bs=512 seek=9 conv=sync,fsync 2>/dev/null")
        assert [fdset["fds"] for fdset in vm.execute("query-fdsets")] in ([], [[]])
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)
        assert image.read_bytes()[9 * 512 :].startswith(b"drover\n")
        assert left(vm) == before


def test_disk_options(booted: Machine, face: Face, image: Path, qcow2: Path) -> None:
    with face.open(booted.qmp) as vm:
        before = left(vm)
        for options in (
            {"cache": "writeback"},
            {"cache": "unsafe", "discard": "ignore"},
            {"cache": "directsync", "aio": "native"},
            {"cache": "writethrough", "read_only": True},
        ):
            vm.hot_add_disk(image, id="data1", **options)
            booted.console.wait_for_disk("vda")
            read_only = booted.console.run("cat /sys/block/vda/ro").strip()
            assert read_only == str(int(options.get("read_only", False)))
            vm.hot_remove_disk("data1")
            booted.console.wait_for_disk("vda", present=False)
        vm.hot_add_disk(qcow2, id="data1", format="qcow2")
        booted.console.wait_for_disk("vda")
        booted.console.run("mke2fs /dev/vda && mount /dev/vda /mnt && echo hello >/mnt/a && umount /mnt")
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)
        assert left(vm) == before
    info = subprocess.run(["qemu-img", "check", "-f", "qcow2", qcow2], capture_output=True, text=True, check=False)
    assert info.returncode == 0, info.stdout + info.stderr


def test_scsi_disks_get_targets_of_their_own(booted: Machine, face: Face, image: Path, qcow2: Path) -> None:
    with face.open(booted.qmp) as vm:
        before = left(vm)
        first = vm.hot_add_disk(image, id="s1", driver="virtio-scsi")
        second = vm.hot_add_disk(qcow2, id="s2", driver="virtio-scsi", format="qcow2", bus="scsi0.0")
        assert (first.bus, first.addr, second.addr) == ("scsi0.0", "0:0", "1:0")
        booted.console.wait_for_disk("sda")
        booted.console.wait_for_disk("sdb")
        vm.hot_remove_disk("s1")
        third = vm.hot_add_disk(image, id="s3", driver="virtio-scsi")
        assert third.addr == "0:0"
        vm.hot_remove_disk("s2")
        vm.hot_remove_disk("s3")
        booted.console.wait_until(lambda view: not view.disks)
        with pytest.raises(ArgumentError, match=r"scsi9\.0"):
            vm.hot_add_disk(image, id="s4", driver="virtio-scsi", bus="scsi9.0")
        assert left(vm) == before


def test_resize_is_seen_by_the_guest(booted: Machine, face: Face, image: Path) -> None:
    with face.open(booted.qmp) as vm:
        vm.hot_add_disk(image, id="data1")
        booted.console.wait_for_disk("vda")
        assert vm.resize_disk("data1", 16 * MIB) == 16 * MIB
        booted.console.wait_until(lambda view: view.disks["vda"] == 16 * MIB)
        assert image.stat().st_size == 16 * MIB
        vm.hot_remove_disk("data1")
        with pytest.raises(HotplugError, match="no such disk"):
            vm.resize_disk("data1", 16 * MIB)
        booted.console.wait_for_disk("vda", present=False)


def test_refused_disks_leave_nothing(booted: Machine, face: Face, image: Path, qcow2: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    backing = ["-b", str(qcow2), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, overlay], check=True)
    with face.open(booted.qmp) as vm:
        before = left(vm)
        wrong: list[tuple[Any, dict[str, Any], type[Exception]]] = [
            (tmp_path / "none", {}, FileNotFoundError),
            (tmp_path, {"read_only": True}, ArgumentError),
            (overlay, {"format": "qcow2"}, ArgumentError),
            (image, {"format": "qcow2"}, ArgumentError),
            (image, {"format": "vmdk"}, ArgumentError),
            (image, {"cache": "fast"}, ArgumentError),
            (image, {"cache": "writeback", "aio": "native"}, ArgumentError),
            (image, {"bus": "nowhere"}, ArgumentError),
            (image, {"options": {"no-such-property": 1}}, CommandError),
        ]
        if vm.version >= (9, 2):  # older ones convert or ignore what is of the wrong type
            wrong.append((image, {"options": {"serial": 5}}, CommandError))
        for path, options, expected in wrong:
            with pytest.raises(expected):
                vm.hot_add_disk(path, id="data1", **options)
            assert left(vm) == before, options
        with pytest.raises(HotplugError, match="no such disk"):
            vm.hot_remove_disk("data1")


def test_an_id_that_is_taken(booted: Machine, face: Face, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    with face.open(booted.qmp) as vm:
        vm.hot_add_disk(image, id="data1")
        before = left(vm)
        with pytest.raises(CommandError):
            vm.hot_add_disk(other, id="data1")
        assert left(vm) == before
        booted.console.wait_for_disk("vda")
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)


def test_an_image_that_is_in_use(booted: Machine, face: Face, image: Path) -> None:
    with face.open(booted.qmp) as vm:
        vm.hot_add_disk(image, id="data1")
        before = left(vm)
        with pytest.raises(CommandError, match="lock"):
            vm.hot_add_disk(image, id="data2")
        assert left(vm) == before
        booted.console.wait_for_disk("vda")
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)
        # nobody, we ourselves least of all, holds the image any more
        subprocess.run(["qemu-img", "info", image], check=True, capture_output=True)


# -- NICs ------------------------------------------------------------------------------------------------------------


def test_nic(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm, open_tap() as tap:
        before = left(vm)
        nic = vm.hot_add_nic("net1", tap_fds=tap.fds, mac="52:54:00:ab:cd:01", options={"host_mtu": 1400})
        assert nic.mac == "52:54:00:ab:cd:01"
        name = booted.console.wait_for_nic(nic.mac)
        assert booted.console.run(f"cat /sys/class/net/{name}/mtu").strip() == "1400"
        tap.close()
        assert os.path.exists(f"/sys/class/net/{tap.name}"), "QEMU holds the tap"
        vm.hot_remove_nic("net1")
        booted.console.wait_for_nic(nic.mac, present=False)
        assert not os.path.exists(f"/sys/class/net/{tap.name}")
        assert left(vm) == before


def test_nic_with_several_queues(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm, open_tap(queues=2) as tap:
        before = left(vm)
        nic = vm.hot_add_nic("net1", tap_fds=tap.fds)
        name = booted.console.wait_for_nic(nic.mac)
        assert nic.queues == 2
        assert "rx-1" in booted.console.run(f"ls /sys/class/net/{name}/queues")
        vm.hot_remove_nic("net1")
        assert left(vm) == before


def test_packets_pass(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm, open_tap("drvtest0") as tap:
        nic = vm.hot_add_nic("net1", tap_fds=tap.fds)
        name = booted.console.wait_for_nic(nic.mac)
        for command in (f"addr add 10.99.0.1/30 dev {tap.name}", f"link set {tap.name} up"):
            subprocess.run(["ip", *command.split()], check=True)
        booted.console.run(f"ip addr add 10.99.0.2/30 dev {name} && ip link set {name} up")
        assert "0% packet loss" in booted.console.run("ping -c 2 -i 0.2 10.99.0.1", timeout=20)
        vm.hot_remove_nic("net1")


def test_refused_nics_leave_nothing(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm, open_tap() as tap:
        before = left(vm)
        fd = os.open("/dev/null", os.O_RDWR)
        wrong: list[tuple[dict[str, Any], type[Exception]]] = [
            ({"tap_fds": []}, ArgumentError),
            ({"tap_fds": tap.fds, "mac": "01:00:00:00:00:00"}, ArgumentError),
            ({"tap_fds": tap.fds, "mac": "no"}, ArgumentError),
            ({"tap_fds": tap.fds * 2, "model": "e1000"}, ArgumentError),
            ({"tap_fds": tap.fds, "vhost_fds": [1, 2]}, ArgumentError),
            ({"tap_fds": [fd]}, CommandError),
            ({"tap_fds": tap.fds, "vhost_fds": [fd]}, CommandError),
            ({"tap_fds": tap.fds, "model": "no-such-model"}, CommandError),
            ({"tap_fds": tap.fds, "options": {"no-such-property": True}}, CommandError),
        ]
        for options, expected in wrong:
            with pytest.raises(expected):
                vm.hot_add_nic("net1", **options)
            assert left(vm) == before, options
        os.close(fd)
        with pytest.raises(HotplugError, match="no such NIC"):
            vm.hot_remove_nic("net1")
        with pytest.raises(HotplugError, match="no NIC"):
            vm.hot_remove_nic("scsi0")


# -- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.machines("q35")  # pc: see test_slots_without_a_guest
def test_all_slots_and_one_more(booted: Machine, face: Face, tmp_path: Path) -> None:
    with face.open(booted.qmp) as vm:
        before = left(vm)
        names = []
        for number in range(4):
            path = tmp_path / f"{number}.raw"
            path.write_bytes(bytes(MIB))
            names.append(vm.hot_add_disk(path, id=f"d{number}").bus)
        assert sorted(names) == ["rp0", "rp1", "rp2", "rp3"]
        full = left(vm)
        with pytest.raises(NoFreeSlot, match="rp0 .* rp3"):
            vm.hot_add_disk(path, id="d9")
        assert left(vm) == full
        booted.console.wait_until(lambda view: len(view.disks) == 4)
        for number in range(4):
            vm.hot_remove_disk(f"d{number}")
        booted.console.wait_until(lambda view: not view.disks)
        assert left(vm) == before


def test_a_chosen_place(booted: Machine, face: Face, image: Path) -> None:
    bus, addr = ("rp2", "00.0") if "q35" in booted.name else ("pci.0", "1b.0")
    with face.open(booted.qmp) as vm:
        disk = vm.hot_add_disk(image, id="data1", bus=bus, addr=addr)
        assert (disk.bus, disk.addr) == (bus, addr)
        booted.console.wait_for_disk("vda")
        vm.hot_remove_disk("data1")
        booted.console.wait_for_disk("vda", present=False)


# -- migration settings ----------------------------------------------------------------------------------------------


def test_migration_settings_are_read_back(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm:
        wanted = {"events": True, "return-path": True}
        assert vm.set_migration_capabilities(wanted).items() >= wanted.items()
        assert vm.set_migration_parameters({"downtime-limit": 123, "max-bandwidth": 1 << 30})["downtime-limit"] == 123
        with pytest.raises(ArgumentError):
            vm.set_migration_parameters({"downtime-limit": "123"})
        with pytest.raises(ArgumentError):
            vm.set_migration_capabilities({"events": "on"})
        with pytest.raises(NotSupported, match="no-such"):
            vm.set_migration_capabilities({"no-such": True})
        if vm.version < (8, 0):
            with pytest.raises(NotSupported, match=r"needs QEMU 9\.0 or later"):
                vm.set_migration_capabilities({"mapped-ram": True})
            with pytest.raises(NotSupported, match=r"needs QEMU 8\.2 or later"):
                vm.set_migration_parameters({"mode": "normal"})
        else:
            with pytest.raises(NotSupported, match=r"needs QEMU 9\.0 or earlier"):
                vm.set_migration_parameters({"compress-level": 1})
        assert vm.set_migration_capabilities({"mapped-ram": False})["events"]
        vm.set_migration_capabilities({"events": False, "return-path": False})


def test_the_table_of_settings_is_true(booted: Machine) -> None:
    """What the table says of this version is what its schema says."""
    with QmpConnection(booted.qmp) as vm:
        schema, version = vm.query_schema(), vm.version[:2]
        for table, known in (
            (CAPABILITIES, schema.values("migrate-set-capabilities", "capabilities.capability")),
            (PARAMETERS, frozenset(schema.arguments("migrate-set-parameters"))),
        ):
            for name, setting in table.items():
                there = (setting.since is None or version >= setting.since) and (
                    setting.until is None or version <= setting.until
                )
                assert (name in known) == there, f"{name} on {version}"
            assert known <= set(table), f"not in the table: {known - set(table)}"


# -- what a guest does not do on demand ------------------------------------------------------------------------------


def test_a_guest_that_does_not_listen(firmware: Machine, image: Path) -> None:
    """It stays pending, completes at the reset, and what backs it is held until then."""
    with QmpConnection(firmware.qmp) as vm:
        before = left(vm)
        vm.hot_add_disk(image, id="data1")
        with pytest.raises(UnplugPending, match="until its next reset"):
            vm.hot_remove_disk("data1", timeout=0.5)
        assert "data1" in vm.query_devices()
        assert any(node["node-name"] == "data1" for node in vm.query_block_nodes())
        mark = vm.event_mark()
        vm.system_reset()
        vm.wait_event("DEVICE_DELETED", since=mark, match=lambda event: event.data.get("device") == "data1", timeout=5)
        vm.hot_remove_disk("data1")
        assert left(vm) == before
        with open_tap() as tap:
            vm.hot_add_nic("net1", tap_fds=tap.fds)
        with pytest.raises(UnplugPending):
            vm.hot_remove_nic("net1", timeout=0.5)
        vm.system_reset()
        vm.hot_remove_nic("net1")
        assert left(vm) == before


def test_a_guest_that_boots_while_it_is_asked(firmware: Machine, image: Path) -> None:
    with QmpConnection(firmware.qmp) as vm:
        vm.hot_add_disk(image, id="data1")
        vm.cont()
        time.sleep(0.1)  # see lib/ops/unplug.py: not in the machine's first millisecond
        vm.hot_remove_disk("data1", timeout=60)
        assert "data1" not in vm.query_devices()
        firmware.wait_ready()


def test_slots_without_a_guest(firmware: Machine, tmp_path: Path) -> None:
    """Before the firmware numbered the buses, and so before query-pci shows what is behind a bridge."""
    pc = firmware.name.endswith("pc")
    with QmpConnection(firmware.qmp) as vm:
        places = []

        def fill() -> None:
            for number in range(40):
                path = tmp_path / f"{number}.raw"
                path.write_bytes(bytes(MIB))
                disk = vm.hot_add_disk(path, id=f"d{number}", cache="writeback")
                places.append((disk.bus, disk.addr))

        with pytest.raises(NoFreeSlot) as caught:
            fill()
        assert len(set(places)) == len(places)
        assert caught.value.full == ({"pci.0": 31} if pc else {"rp0": 1, "rp1": 1, "rp2": 1, "rp3": 1})
        assert len(places) >= (25 if pc else 4)


def test_slots_while_the_firmware_numbers_the_buses(firmware: Machine, tmp_path: Path) -> None:
    """What is taken is, at each moment from reset on: for a while query-pci shows the wrong devices behind bridges."""
    with QmpConnection(firmware.qmp) as vm:
        places = set()
        for number in range(2):
            path = tmp_path / f"{number}.raw"
            path.write_bytes(bytes(MIB))
            disk = vm.hot_add_disk(path, id=f"d{number}")
            places.add((disk.bus, int(disk.addr.partition(".")[0], 16)))
        vm.cont()
        for _ in range(10):
            vm.system_reset()
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                buses = vm.perform(query_pci_buses)
                assert not places & {(bus.name, slot) for bus in buses for slot in bus.free()}


def test_quit_is_the_observed_end(firmware: Machine) -> None:
    with QmpConnection(firmware.qmp) as vm:
        vm.quit()
        assert not vm.is_connected()
    assert firmware.wait(10) == 0


def test_reset_is_observed(firmware: Machine) -> None:
    with QmpConnection(firmware.qmp) as vm:
        mark = vm.event_mark()
        vm.system_reset()
        assert vm.event_mark() > mark
        vm.system_powerdown()
        assert vm.wait_event("POWERDOWN", since=mark, timeout=5)
