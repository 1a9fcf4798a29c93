"""How an unplug can end, on both faces: gone, refused, or silent until the next reset."""

from pathlib import Path
from typing import Any

import pytest

from drover.errors import HotplugError, UnplugPending, UnplugRefused
from drover.monitor.drive import drive
from drover.ops.unplug import RETRY_AFTER, is_end_of, unplug
from drover.qmp.messages import Event
from drover.testing.fake import FakeQemu
from drover.testing.model import QemuModel
from drover.testing.scripted import ScriptedPort
from faces import Face


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize(("guest", "reason"), [("refuses", "DEVICE_UNPLUG_GUEST_ERROR"), ("refuses-ost", "0x82")])
def test_a_guest_that_refuses_keeps_its_device(face: Face, image: Path, guest: str, reason: str) -> None:
    with FakeQemu(QemuModel("pc", guest=guest)) as fake, face.open(fake.path) as vm:
        vm.hot_add_disk(image, id="d1", cache="writeback")
        vm.hot_add_nic("n1", tap_fds=[0])
        before = fake.model.left()
        with pytest.raises(UnplugRefused, match=reason):
            vm.hot_remove_disk("d1", timeout=5)
        with pytest.raises(UnplugRefused):
            vm.hot_remove_nic("n1", timeout=5)
        assert fake.model.left() == before
        fake.model.guest = "obeys"
        vm.hot_remove_disk("d1")
        vm.hot_remove_nic("n1")


def test_a_silent_guest_leaves_it_pending_until_the_reset(face: Face, image: Path) -> None:
    with FakeQemu(QemuModel("pc", guest="ignores")) as fake, face.open(fake.path) as vm:
        clean = fake.model.left()
        vm.hot_add_disk(image, id="d1", cache="writeback")
        plugged = fake.model.left()
        with pytest.raises(UnplugPending, match="next reset"):
            vm.hot_remove_disk("d1", timeout=0.1)
        assert fake.model.left() == plugged
        vm.system_reset()
        vm.hot_remove_disk("d1")
        assert fake.model.left() == clean
        with pytest.raises(HotplugError, match="no such disk"):
            vm.hot_remove_disk("d1")


def test_the_event_of_another_device_is_not_taken_for_it(face: Face, image: Path) -> None:
    with FakeQemu(QemuModel("pc", guest="ignores")) as fake, face.open(fake.path) as vm:
        vm.hot_add_disk(image, id="d1", cache="writeback")
        fake.event("DEVICE_DELETED", {"device": "d2", "path": "/machine/peripheral/d2"})
        fake.event("DEVICE_DELETED", {"path": "/machine/peripheral/d1/virtio-backend"})
        with pytest.raises(UnplugPending):
            vm.hot_remove_disk("d1", timeout=0.1)


def test_an_event_that_was_missed_is_made_up_for_by_asking(face: Face, image: Path) -> None:
    with FakeQemu(QemuModel("pc")) as fake, face.open(fake.path) as vm:
        vm.hot_add_disk(image, id="d1", cache="writeback")
        fake.model.emit = lambda name, data: None
        vm.hot_remove_disk("d1", timeout=0.2)
        assert "d1" not in fake.model.devices


def test_a_request_is_repeated_for_a_guest_that_boots_meanwhile() -> None:
    model = QemuModel("pc", guest="ignores")
    port = ScriptedPort(model)
    asked: list[float] = []
    execute = model.execute

    def watch(command: str, arguments: Any, has_fd: bool = False) -> Any:
        if command == "device_del":
            asked.append(port.clock)
            if len(asked) == 3:
                model.guest = "obeys"
        return execute(command, arguments, has_fd)

    model.execute = watch  # type: ignore[method-assign]
    assert drive(unplug(port, "scsi0", timeout=60.0))
    assert asked == [0.0, RETRY_AFTER, 2 * RETRY_AFTER]


def ost(source: int, status: int) -> Event:
    info = {"device": "d", "slot": "0", "slot-type": "DIMM", "source": source, "status": status}
    return Event("ACPI_DEVICE_OST", {"info": info}, 0.0, 1)


@pytest.mark.parametrize(
    ("source", "status", "ends"),
    [(3, 0, False), (3, 0x84, False), (3, 0x82, True), (3, 1, True), (0x103, 0x80, True), (1, 0x82, False)],
)
def test_which_ost_is_a_refusal(source: int, status: int, ends: bool) -> None:
    assert is_end_of("d", ost(source, status)) is ends
    assert not is_end_of("other", ost(source, status))
