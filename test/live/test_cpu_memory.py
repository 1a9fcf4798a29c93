"""vCPUs, memory, USB and the balloon in a real guest that runs, on both versions and both faces."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from drover.errors import (
    ArgumentError,
    CommandError,
    ConnectionClosed,
    HotplugError,
    MonitorTimeout,
    NoFreeSlot,
    NotSupported,
)
from drover.ops import memory
from drover.testing.machine import Machine
from faces import FACES
from machines import qemu_of

pytestmark = pytest.mark.live

MIB = 1 << 20
EXTRA = ["-m", "256M,slots=2,maxmem=2G", "-device", "qemu-xhci,id=usb0", "-device", "virtio-balloon-pci,id=balloon0"]
KINDS = [("7.2-q35", "blocking"), ("7.2-pc", "asyncio"), ("10.0-q35", "asyncio"), ("10.0-pc", "blocking")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Any]]:
    """A guest that takes memory as it comes, and a connection to its QEMU."""
    kind, name = request.param
    bridges = 1 if kind.endswith("pc") else 0
    options = {"smp": "1,maxcpus=3", "append": "memhp_default_state=online_movable", "extra": EXTRA, "bridges": bridges}
    with Machine(qemu=qemu_of(kind), machine=kind.split("-")[1], name=kind, **options) as machine:
        machine.wait_ready()
        face = FACES[name]()
        with face.open(machine.qmp) as vm:
            yield machine, vm
        face.close()


@pytest.fixture
def machine(pair: tuple[Machine, Any]) -> Machine:
    return pair[0]


@pytest.fixture
def vm(pair: tuple[Machine, Any]) -> Any:
    return pair[1]


def guest_memory(machine: Machine) -> int:
    """MemTotal as the guest has it, in MiB."""
    return int(machine.console.run("grep MemTotal /proc/meminfo").split()[1]) // 1024


def wait_for_memory(machine: Machine, size: int) -> None:
    """Until the guest has so much, in MiB: it takes a DIMM when it hears of it, which nobody tells."""
    deadline = time.monotonic() + 30
    while guest_memory(machine) != size:
        assert time.monotonic() < deadline, guest_memory(machine)
        time.sleep(0.05)


def guest_cpus(machine: Machine) -> str:
    return machine.console.run("cat /sys/devices/system/cpu/present").strip()


# -- vCPUs: in a machine of their own, which without KVM takes nothing else afterwards --------------------------------


@pytest.mark.parametrize(("kind", "name"), [("7.2-q35", "blocking"), ("10.0-pc", "asyncio")])
def test_cpu(kind: str, name: str) -> None:
    with Machine(qemu=qemu_of(kind), machine=kind.split("-")[1], name=kind, smp="1,maxcpus=3") as machine:
        machine.wait_ready()
        face = FACES[name]()
        with face.open(machine.qmp) as vm:
            check_cpus(machine, vm)
        face.close()


def check_cpus(machine: Machine, vm: Any) -> None:
    assert guest_cpus(machine) == "0"
    with pytest.raises(NotSupported, match="without KVM"):
        vm.hot_add_cpu(id="cpu1")
    first = vm.hot_add_cpu(id="cpu1", even_under_tcg=True)
    assert first.qom_path == "/machine/peripheral/cpu1"
    assert len(vm.query_cpus()) == 2
    free = [slot.props for slot in vm.query_hotpluggable_cpus() if slot.qom_path is None]
    assert len(free) == 1
    with pytest.raises(ArgumentError, match="props.*is taken"):
        vm.hot_add_cpu(id="cpu2", props=first.props)
    with pytest.raises(ArgumentError, match="props.*no place"):
        vm.hot_add_cpu(id="cpu2", props={"socket-id": 77})
    assert vm.hot_add_cpu(id="cpu2", props=free[0], even_under_tcg=True).props == free[0]
    with pytest.raises(NoFreeSlot, match="3 of 3"):
        vm.hot_add_cpu(id="cpu3")
    assert machine.console.run("for i in $(seq 100); do grep -q 2 /sys/devices/system/cpu/present && break; "
                               "usleep 50000; done; cat /sys/devices/system/cpu/present").strip() == "0-2"  # fmt: skip
    with pytest.raises(HotplugError, match="no such vCPU"):
        vm.hot_remove_cpu("cpu9", even_under_tcg=True)
    with pytest.raises(NotSupported, match="without KVM"):
        vm.hot_remove_cpu("cpu2")
    vm.hot_remove_cpu("cpu2", even_under_tcg=True)
    assert len(vm.query_cpus()) == 2
    assert not vm.has_device("cpu2")
    assert guest_cpus(machine) == "0-1"


# -- memory ----------------------------------------------------------------------------------------------------------


def test_dimm(machine: Machine, vm: Any) -> None:
    before = guest_memory(machine)
    device = vm.hot_add_dimm(id="dimm1", size=128 * MIB)
    assert (device.kind, device.size, device.slot, device.memdev) == ("dimm", 128 * MIB, 0, "/objects/dimm1-mem")
    assert vm.query_memory().plugged_memory == 128 * MIB
    wait_for_memory(machine, before + 128)
    with pytest.raises(CommandError):
        vm.object_del("dimm1-mem")  # it is in use
    vm.hot_remove_dimm("dimm1")
    assert vm.list_memory_devices() == []
    assert vm.query_memory().plugged_memory == 0
    assert guest_memory(machine) == before
    with pytest.raises(HotplugError, match="no such memory"):
        vm.hot_remove_dimm("dimm1")


def test_no_room_for_a_dimm(vm: Any) -> None:
    vm.hot_add_dimm(id="a", size=2 * MIB)
    vm.hot_add_dimm(id="b", size=2 * MIB, backend="memory-backend-memfd")
    try:
        with pytest.raises((NoFreeSlot, CommandError), match="slot"):
            vm.hot_add_dimm(id="c", size=2 * MIB)
        assert [device.id for device in vm.list_memory_devices()] == ["a", "b"]
    finally:
        vm.hot_remove_dimm("b")
        vm.hot_remove_dimm("a")
    assert "c-mem" not in {entry.name for entry in vm.qom_list("/objects")}
    with pytest.raises(ArgumentError, match="size.*maximum"):
        vm.hot_add_dimm(id="c", size=4096 * MIB)
    with pytest.raises(ArgumentError, match="2 MiB"):
        vm.hot_add_dimm(id="c", size=MIB)
    with pytest.raises(ArgumentError, match="backend"):
        vm.hot_add_dimm(id="c", size=2 * MIB, backend="memory-backend-file")


def test_a_refused_dimm_leaves_nothing(vm: Any) -> None:
    with pytest.raises(CommandError):
        vm.hot_add_dimm(id="d", size=2 * MIB, node=7)
    assert "d-mem" not in {entry.name for entry in vm.qom_list("/objects")}
    assert vm.list_memory_devices() == []


def test_virtio_mem(machine: Machine, vm: Any) -> None:
    before = guest_memory(machine)
    device = vm.hot_add_virtio_mem(id="vmem0", max_size=512 * MIB)
    assert (device.kind, device.size, device.max_size, device.requested_size) == ("virtio-mem", 0, 512 * MIB, 0)
    assert vm.resize_virtio_mem("vmem0", 256 * MIB) == 256 * MIB
    assert guest_memory(machine) == before + 256
    problem = "resize_virtio_mem to 0" if vm.version >= (8, 2) else "needs QEMU 8.2"
    with pytest.raises((HotplugError, NotSupported), match=problem):
        vm.hot_remove_virtio_mem("vmem0")
    with pytest.raises(ArgumentError, match="steps of"):
        vm.resize_virtio_mem("vmem0", 257 * MIB + 1)
    with pytest.raises(ArgumentError, match=str(512 * MIB)):
        vm.resize_virtio_mem("vmem0", 1024 * MIB)
    assert vm.resize_virtio_mem("vmem0", 0) == 0
    assert guest_memory(machine) <= before + 16
    if vm.version >= (8, 2):
        vm.hot_remove_virtio_mem("vmem0")
        assert vm.list_memory_devices() == []
        assert "vmem0-mem" not in {entry.name for entry in vm.qom_list("/objects")}


def test_a_guest_that_does_not_follow(machine: Machine, vm: Any) -> None:
    """What it has is told, not what it was asked for."""
    if not any(device.id == "vmem0" for device in vm.list_memory_devices()):
        vm.hot_add_virtio_mem(id="vmem0", max_size=512 * MIB)
    vm.stop()
    try:
        assert vm.resize_virtio_mem("vmem0", 128 * MIB, timeout=0.5) == 0
    finally:
        vm.cont()
    assert vm.resize_virtio_mem("vmem0", 128 * MIB) == 128 * MIB
    assert vm.resize_virtio_mem("vmem0", 0) == 0


# -- the balloon -----------------------------------------------------------------------------------------------------


def test_balloon(machine: Machine, vm: Any) -> None:
    before = guest_memory(machine)
    whole = vm.query_balloon()
    assert vm.balloon(whole - 64 * MIB) == whole - 64 * MIB
    assert guest_memory(machine) == before - 64
    vm.stop()
    assert vm.balloon(whole, timeout=0.3) == whole - 64 * MIB
    vm.cont()
    assert vm.balloon(whole) == whole
    with pytest.raises(ArgumentError, match="size"):
        vm.balloon(0)


def test_balloon_stats(machine: Machine, vm: Any) -> None:
    stats = vm.balloon_stats(interval=1)
    assert stats.total_memory is not None
    assert abs(stats.total_memory // MIB - guest_memory(machine)) <= 16
    assert stats.available_memory
    assert stats.last_update > 1_600_000_000
    assert vm.balloon_stats().total_memory
    with pytest.raises(ArgumentError, match="interval"):
        vm.balloon_stats(interval=0)


# -- USB -------------------------------------------------------------------------------------------------------------


def test_usb(vm: Any) -> None:
    (bus,) = vm.query_usb_buses()
    device = vm.hot_add_usb("usb-tablet", id="tablet")
    assert (device.id, device.driver, device.port, device.attached) == ("tablet", "usb-tablet", "", True)
    second = vm.hot_add_usb("usb-kbd", id="keys", bus=bus, usb_port="3")
    assert second.port == "3"
    assert {entry.id for entry in vm.query_usb()} == {"tablet", "keys"}
    for driver in ("usb-teapot", "virtio-net-pci"):
        with pytest.raises(CommandError):
            vm.hot_add_usb(driver, id="pot")
    with pytest.raises(ArgumentError, match=bus):
        vm.hot_add_usb("usb-kbd", id="pot", bus="no.0")
    with pytest.raises(CommandError):
        vm.hot_add_usb("usb-kbd", id="pot", usb_port="3")
    vm.hot_remove_usb("keys")
    vm.hot_remove_usb("tablet")
    assert vm.query_usb() == []
    with pytest.raises(HotplugError, match="no such device"):
        vm.hot_remove_usb("keys")


def test_usb_of_a_machine_that_is_older_than_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade of the package under a running machine: to look at it must not end it."""
    folders = qemu_of("10.0").parent.glob("root/usr/lib/*/qemu")
    monkeypatch.setenv("QEMU_MODULE_DIR", str(next(folders)))
    extra = ["-device", "qemu-xhci,id=xhci", "-device", "usb-hub,id=hub,port=1", "-device", "usb-kbd,port=1.2"]
    with Machine(qemu=qemu_of("7.2"), paused=True, extra=extra) as machine:
        with FACES["blocking"]().open(machine.qmp) as vm:
            found = {(entry.id, entry.driver, entry.port) for entry in vm.query_usb()}
            assert found == {("hub", "usb-hub", "1"), ("", "usb-kbd", "1.2")}
            assert vm.hot_add_usb("usb-tablet", id="tablet").attached
            vm.hot_remove_usb("tablet")
            with pytest.raises(ConnectionClosed):  # what is avoided
                vm.qom_list_types("usb-device")


# -- machines that lack it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_machine_without_any_of_it(version: str) -> None:
    with Machine(qemu=qemu_of(version), paused=True) as machine, FACES["blocking"]().open(machine.qmp) as vm:
        with pytest.raises((NotSupported, CommandError)):
            vm.hot_add_dimm(id="d", size=2 * MIB)
        assert "d-mem" not in {entry.name for entry in vm.qom_list("/objects")}
        with pytest.raises(HotplugError, match="qemu-xhci"):
            vm.hot_add_usb("usb-kbd", id="k")
        with pytest.raises(CommandError) as caught:
            vm.query_balloon()
        assert caught.value.error_class == "DeviceNotActive"
        with pytest.raises(HotplugError, match="virtio-balloon"):
            vm.balloon_stats()
        with pytest.raises(NoFreeSlot):
            vm.hot_add_cpu(id="cpu1")


def test_a_guest_without_a_driver_gives_no_figures() -> None:
    extra = ["-device", "virtio-balloon-pci,id=balloon0"]
    with Machine(qemu=qemu_of("10.0"), paused=True, extra=extra) as machine:
        with FACES["blocking"]().open(machine.qmp) as vm, pytest.raises(MonitorTimeout, match="figures"):
            vm.balloon_stats(timeout=0.3)


def test_the_grain_is_that_of_qemu() -> None:
    assert memory.GRAIN == 2 * MIB
