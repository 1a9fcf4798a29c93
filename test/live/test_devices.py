"""Displays, input, QOM and what QEMU does by itself: on real QEMUs that stand still, with real VNC clients."""

import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ArgumentError, CommandError, NotSupported
from faces import FACES, Face
from machines import qemu_of
from vnc import Vnc, login

pytestmark = pytest.mark.live

DEVICES = [
    "-machine", "q35", "-accel", "tcg", "-m", "64", "-S", "-nodefaults", "-display", "none", "-name", "kuh",
    "-uuid", "0c8d4a4e-7a0c-4d0c-9c57-2f2d2b1b7a11",
    "-device", "VGA,id=vga0", "-device", "qemu-xhci", "-device", "usb-tablet",
    "-device", "virtio-net-pci,id=nic0,netdev=net0", "-netdev", "user,id=net0,restrict=on",
    "-device", "i6300esb", "-object", "iothread,id=io0", "-object", "secret,id=sec0,data=hush",
    "-chardev", "null,id=nothing",
]  # fmt: skip


class Qemu:
    def __init__(self, version: str, folder: Path) -> None:
        self.version, self.qmp, self.vnc = version, folder / "qmp", folder / "vnc"
        monitor = ["-qmp", f"unix:{self.qmp},server=on,wait=off", "-vnc", f"unix:{self.vnc},password=on"]
        self.process = subprocess.Popen([str(qemu_of(version)), *DEVICES, *monitor])


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def qemu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    qemu = Qemu(request.param, tmp_path_factory.mktemp("q"))
    yield qemu
    qemu.process.kill()
    qemu.process.wait()


@pytest.fixture(params=["blocking", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = FACES[request.param]()
    yield face
    face.close()


@pytest.fixture
def vm(qemu: Qemu, face: Face) -> Iterator[Any]:
    with face.open(qemu.qmp) as vm:
        yield vm


# -- the screen ------------------------------------------------------------------------------------------------------


def png_size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG whose every part is whole."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    position, size, pixels = 8, (0, 0), b""
    while position < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, position)
        data = picture[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", picture, position + 8 + length)[0] == zlib.crc32(kind + data)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data)
        elif kind == b"IDAT":
            pixels += data
        position += 12 + length
    assert len(zlib.decompress(pixels)) >= size[0] * size[1]
    return size


def test_screenshot(vm: Any, tmp_path: Path) -> None:
    before = vm.execute("query-fdsets")
    width, height = png_size(vm.screenshot())
    assert width >= 640
    ppm = vm.screenshot(format="ppm", device="vga0", head=0)
    assert ppm.startswith(f"P6\n{width} {height}\n255\n".encode())
    path = tmp_path / "screen.png"
    path.write_bytes(b"an old one")
    vm.screendump(path)
    assert png_size(path.read_bytes()) == (width, height)
    assert os.listdir(tmp_path) == ["screen.png"]
    if vm.version >= (9, 0):  # 7.2 frees what is left of a set only while the machine runs
        assert vm.execute("query-fdsets") == before


def test_screenshot_refused(vm: Any, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        vm.screenshot(device="nobody")
    assert caught.value.error_class == "DeviceNotFound"
    with pytest.raises(ArgumentError, match="head"):
        vm.screenshot(head=1)
    with pytest.raises(ArgumentError, match="png, ppm"):
        vm.screenshot(format="jpg")
    with pytest.raises(OSError, match="No such file"):
        vm.screendump(tmp_path / "nowhere" / "x.png")


# -- VNC -------------------------------------------------------------------------------------------------------------


def test_vnc_password(qemu: Qemu, vm: Any) -> None:
    vm.set_password("vnc", "kuhstall")
    vm.expire_password("vnc", "never")
    assert login(qemu.vnc, "kuhstall")
    assert not login(qemu.vnc, "kuhstal")
    vm.expire_password("vnc", "now")
    assert not login(qemu.vnc, "kuhstall")
    vm.expire_password("vnc", datetime.now(UTC) + timedelta(hours=1))
    assert login(qemu.vnc, "kuhstall")
    vm.expire_password("vnc", datetime.now(UTC) - timedelta(hours=1))
    assert not login(qemu.vnc, "kuhstall")
    vm.expire_password("vnc", 1)
    time.sleep(2.1)
    assert not login(qemu.vnc, "kuhstall")
    vm.expire_password("vnc", 3600)
    vm.set_password("vnc", "heu")
    assert login(qemu.vnc, "heu")


def test_a_password_never_shows(vm: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        vm.set_password("vnc", "hushhush")
        with pytest.raises(ArgumentError, match="8 bytes") as caught:
            vm.set_password("vnc", "hushhush9")
        with pytest.raises(CommandError):
            vm.set_password("vnc", "hushhush", display="nobody")
    assert "set_password" in caplog.text
    assert "hushhush" not in caplog.text + str(caught.value) + repr(caught.value.args)


def test_query_vnc(qemu: Qemu, vm: Any) -> None:
    vm.set_password("vnc", "heu")
    vm.expire_password("vnc", "never")
    client = Vnc(qemu.vnc)
    with client.socket:
        assert client.login("heu")
        client.socket.sendall(b"\1")  # ClientInit: shared; from here on the client counts
        client.take(24)
        deadline = time.monotonic() + 20  # QEMU may still count who has just gone
        while len(vm.query_vnc()[0].clients) != 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        (server,) = vm.query_vnc()
        assert server.auth == "vnc"
        assert [place.service for place in server.server] == [str(qemu.vnc)]
        assert [who.family for who in server.clients] == ["unix"]


def test_a_client_is_handed_over(vm: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        vm.add_client("vnc", theirs.fileno(), skip_auth=True)
        assert ours.recv(12) == b"RFB 003.008\n"
        with pytest.raises(CommandError):
            vm.add_client("nothing", theirs.fileno())
        with pytest.raises(CommandError, match="closefd"):
            vm.execute("closefd", {"fdname": "drover-client"})


def test_what_vnc_cannot(vm: Any) -> None:
    with pytest.raises(ArgumentError, match="protocol"):
        vm.set_password("rdp", "x")
    with pytest.raises(ArgumentError, match="connected"):
        vm.set_password("vnc", "x", connected="fail")
    with pytest.raises(ArgumentError, match="display"):
        vm.expire_password("spice", "now", display="x")
    for when in ("tomorrow", -1, True, datetime.now()):  # noqa: DTZ005 - just what is refused
        with pytest.raises(ArgumentError, match="when"):
            vm.expire_password("vnc", when)
    with pytest.raises(CommandError):
        vm.reload_vnc_certificates()  # this server has none


def test_spice_where_there_is_none(vm: Any) -> None:
    if "query-spice" in vm.supported_commands:
        assert not vm.query_spice().enabled
    else:
        with pytest.raises(NotSupported, match="built with SPICE"):
            vm.query_spice()


# -- input -----------------------------------------------------------------------------------------------------------


def test_input_is_taken(vm: Any) -> None:
    with pytest.raises(CommandError, match="not running"):
        vm.mouse_move(1, 1)
    vm.cont()
    mice = vm.query_mice()
    assert any(mouse.absolute and "Tablet" in mouse.name for mouse in mice)
    assert any(mouse.current for mouse in mice)
    vm.sendkey("ctrl-alt-F1")
    vm.sendkey(["ctrl", 0x1E], hold=30)
    vm.sendkey("0x1c")
    vm.sendkey("enter")
    vm.press_key("shift", down=True)
    vm.press_key("shift", down=False)
    vm.type_text("aZ ?\n")
    vm.mouse_move(3, -4)
    vm.mouse_move_to(0.5, 1)
    vm.mouse_click()
    vm.mouse_button("right", down=True)
    vm.mouse_button("right", down=False)
    vm.mouse_scroll(-2)
    vm.stop()


def test_every_key_of_a_text_is_one_of_qemus(vm: Any) -> None:
    from drover.ops.input import _ALIASES, _KEYS

    known = vm.query_schema().values("send-key", "keys.data")
    assert {key for key, _ in _KEYS.values()} | {"shift"} <= known
    assert set(_ALIASES.values()) <= known
    assert set(_KEYS) == {chr(code) for code in range(32, 127)} | {"\n", "\t"}


def test_keys_that_do_not_exist(vm: Any) -> None:
    with pytest.raises(ArgumentError, match="such as .*delete"):
        vm.sendkey("ctrl-delite")
    with pytest.raises(ArgumentError, match="one key"):
        vm.sendkey([])
    with pytest.raises(ArgumentError, match="hold"):
        vm.sendkey("a", hold=0)
    with pytest.raises(ArgumentError, match=r"U\+00E4 at 1") as caught:
        vm.type_text("xä")
    assert "xä" not in str(caught.value)
    with pytest.raises(ArgumentError, match="0.0 to 1.0"):
        vm.mouse_move_to(2, 0)
    with pytest.raises(ArgumentError, match="button"):
        vm.mouse_button("fourth", down=True)


# -- reactions and small things --------------------------------------------------------------------------------------


def test_set_action(vm: Any) -> None:
    vm.set_action(reboot="shutdown", shutdown="pause", panic="exit-failure", watchdog="inject-nmi")
    vm.watchdog_set_action("pause")
    with pytest.raises(ArgumentError, match="watchdog: 'bark'.*inject-nmi"):
        vm.watchdog_set_action("bark")
    with pytest.raises(ArgumentError, match="at least"):
        vm.set_action()
    vm.set_action(reboot="reset", shutdown="poweroff", panic="shutdown", watchdog="reset")


def test_small_questions(vm: Any) -> None:
    assert vm.query_name() == "kuh"
    assert vm.query_uuid() == "0c8d4a4e-7a0c-4d0c-9c57-2f2d2b1b7a11"
    assert not vm.query_kvm().enabled
    assert [chardev.filename for chardev in vm.query_chardevs() if chardev.label == "nothing"] == ["null"]
    assert [(thread.id, thread.thread_id > 0) for thread in vm.query_iothreads()] == [("io0", True)]
    vm.set_link("nic0", up=False)
    vm.set_link("net0", up=True)
    with pytest.raises(CommandError):
        vm.set_link("nobody", up=True)
    vm.inject_nmi()
    with pytest.raises(CommandError):
        vm.system_wakeup()


# -- QOM -------------------------------------------------------------------------------------------------------------


def test_qom(vm: Any) -> None:
    found = {entry.name: entry for entry in vm.qom_list("/machine/peripheral")}
    assert found["vga0"].is_child
    assert found["vga0"].inner == "VGA"
    assert vm.qom_get("/machine/peripheral/vga0", "type") == "VGA"
    vm.qom_set("/objects/io0", "poll-max-ns", 1000)
    assert vm.qom_get("/objects/io0", "poll-max-ns") == 1000
    with pytest.raises(CommandError):
        vm.qom_set("/objects/io0", "poll-max-ns", "much")
    with pytest.raises(CommandError) as caught:
        vm.qom_list("/nowhere")
    assert caught.value.error_class == "DeviceNotFound"


def test_qom_tree(vm: Any) -> None:
    tree = vm.qom_tree("/")
    objects = {found.path: found for found in tree.walk()}
    assert objects["/machine/peripheral/vga0"].type == "VGA"
    assert objects["/machine/peripheral/vga0"].values["vgamem_mb"] == 16
    assert objects["/objects/sec0"].values["data"] == "<hidden>"
    assert "hush" not in str(tree)
    assert any(found.unreadable for found in tree.walk()), "some properties can only be set"
    assert any(entry.is_link for found in tree.walk() for entry in found.properties.values())
    assert next(vm.qom_tree("/machine", depth=1, values=False).walk()).path == "/machine"
    assert vm.qom_tree("/machine", depth=0).children == ()
    assert vm.find_objects({"VGA"}) == ["/machine/peripheral/vga0"]
    with pytest.raises(ArgumentError, match="depth"):
        vm.qom_tree(depth=-1)


def test_types_and_objects(vm: Any) -> None:
    assert {"VGA", "virtio-net-pci"} <= {kind.name for kind in vm.qom_list_types("device")}
    assert any(kind.abstract for kind in vm.qom_list_types(abstract=True))
    assert "mac" in {entry.name for entry in vm.device_list_properties("virtio-net-pci")}
    assert "size" in {entry.name for entry in vm.qom_list_properties("memory-backend-ram")}
    vm.object_add("memory-backend-ram", "mem7", {"size": 1 << 20})
    assert vm.qom_get("/objects/mem7", "size") == 1 << 20
    with pytest.raises(CommandError):
        vm.object_add("memory-backend-ram", "mem7", {"size": 1 << 20})
    with pytest.raises(ArgumentError, match="properties"):
        vm.object_add("secret", "s", {"id": "t"})
    vm.object_del("mem7")
    with pytest.raises(CommandError):
        vm.object_del("mem7")
