"""Ours and Ganeti 3.0's own monitor module, side by side: names, signatures, and the answers of the same real QEMU."""

import ast
import inspect
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compat.ganeti.machine import Qemu
from compat.peers import ABSENT, GANETI, load_ganeti_monitor
from drover.compat.ganeti import legacy as ours
from drover.kvm.taps import open_tap

if not GANETI.exists():
    raise FileNotFoundError(f"Ganeti is {ABSENT}")

theirs = load_ganeti_monitor()

# Only these are Ganeti's interface; the others are how it did what Drover's session does.
USED_PRIVATES = {"_filter_hvinfo"}
# Ganeti moved this to another class in 3.1; ours, which has both generations, keeps it there.
MOVED = {"_SOCKET_TIMEOUT"}


def defined() -> list[str]:
    tree = ast.parse(Path(theirs.__file__).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name, value in inspect.getmembers(kind):
        public = not name.startswith("_") or name in USED_PRIVATES
        if public or (name in vars(kind) and name.endswith("__") and callable(value)):
            yield name, value


def unwrapped(function: Any) -> Any:
    """What Ganeti's decorator, which hides the signature, has wrapped."""
    if getattr(function, "__name__", "") == "wrapper":
        return inspect.getclosurevars(function).nonlocals["fn"]
    return function


def shape(function: Any) -> list[tuple[Any, ...]]:
    found = inspect.signature(unwrapped(function)).parameters.values()
    return [(item.name, item.kind, item.default) for item in found]


@pytest.mark.parametrize("name", defined())
def test_every_name_is_there_with_its_signature(name: str) -> None:
    kind, mine = getattr(theirs, name), getattr(ours, name)
    assert {base.__name__ for base in kind.__mro__ if issubclass(base, Exception)} <= {b.__name__ for b in mine.__mro__}
    for member, value in methods(kind):
        found = getattr(mine, member)
        if member == "__eq__" or not callable(value) or issubclass(kind, Exception):
            continue
        if not member.startswith("__"):  # of those, nobody names the arguments
            assert shape(found) == shape(value), member


def test_constants() -> None:
    for kind, mine in ((theirs.MonitorSocket, ours.MonitorSocket), (theirs.QmpConnection, ours.QmpConnection)):
        for name, value in vars(kind).items():
            if name.isupper() and name not in MOVED:
                found = getattr(mine, name)
                assert (list(found) if isinstance(value, list) else found) == value, name
    assert theirs.MonitorSocket._SOCKET_TIMEOUT == ours.MonitorSocket._SOCKET_TIMEOUT == 5


# -- the same scenario twice ----------------------------------------------


def told(call: Callable[[], Any]) -> Any:
    """What a call returned, or the name of what it raised and of that one's Ganeti ancestors."""
    try:
        value = call()
    except Exception as error:
        names = {"QmpCommandNotSupported", "HypervisorError", "HotplugError", "ProgrammerError", "GenericError"}
        return {base.__name__ for base in type(error).__mro__} & (names | {"ValueError", "TypeError"})
    return value


def text(call: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one it is, told() compares
        call()
    return str(raised.value)


def both(scenario: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a scenario sees with theirs, and with ours."""
    return scenario(theirs), scenario(ours)


def without(answer: Any, *keys: str) -> Any:
    if isinstance(answer, list):
        return [without(item, *keys) for item in answer]
    if isinstance(answer, dict):
        return {key: without(value, *keys) for key, value in answer.items() if key not in keys}
    return answer


@pytest.mark.parametrize(
    ("member", "value"),
    [("x", 1), ("execute", "stop"), ("a", {"b": [None, True, 1.5, "ä"]})],
)
def test_messages(member: str, value: Any) -> None:
    def scenario(module: Any) -> Any:
        message = module.QmpMessage({"execute": "x"})
        message[member] = value
        copy = module.QmpMessage.BuildFromJsonString(message.to_bytes())
        seen = [len(message), message[member], message["none"], message == copy, message.to_bytes(), copy.data]
        del message[member]
        return [*seen, len(message), message == copy]

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.parametrize("wrong", [[], "x", None, 1])
def test_messages_that_are_none(wrong: Any) -> None:
    his, mine = both(lambda module: told(lambda: module.QmpMessage(wrong)))
    assert mine == his


@pytest.mark.parametrize("wrong", ["{", "", "[1]", '"x"'])
def test_texts_that_are_no_message(wrong: str) -> None:
    # ours is more than theirs: also what Ganeti's callers catch
    def scenario(module: Any) -> Any:
        return told(lambda: module.QmpMessage.BuildFromJsonString(wrong))

    assert scenario(theirs) <= scenario(ours)


def test_places_where_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))

    def scenario(module: Any) -> Any:
        seen = []
        for kind in (module.MonitorSocket, module.QmpConnection):
            for name in ("none", "file", "dead"):
                vm = kind(str(tmp_path / name))
                seen += [vm.monitor_filename, vm.is_connected(), told(vm.connect), vm.is_connected(), told(vm.close)]
                if (sock := getattr(vm, "sock", None)) is not None:
                    sock.close()  # theirs leaves it open
        vm = module.QmpConnection(str(tmp_path / "none"))
        seen += [vm.version, vm.package, vm.supported_commands, told(vm.StopGuestEmulation)]
        return [*seen, told(lambda: vm.Execute("stop"))]

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_its_life(qemu: Qemu) -> None:
    def scenario(module: Any) -> Any:
        raw = module.MonitorSocket(qemu.path)
        raw.connect()
        raw.connect()
        seen = [raw.is_connected(), raw.sock.recv(8), raw.sock.gettimeout()]
        raw.close()
        raw.close()
        with module.QmpConnection(qemu.path) as vm:
            seen += [vm.version, vm.package, sorted(vm.supported_commands), vm.is_connected()]
        seen += [vm.is_connected(), told(lambda: vm.Execute("stop"))]
        vm.connect()
        seen.append(vm.Execute("query-status"))
        vm.close()
        vm.StopGuestEmulation()
        return [*seen, vm.is_connected()]

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_commands(qemu: Qemu) -> None:
    def scenario(module: Any) -> Any:
        with module.QmpConnection(qemu.path) as vm:
            refused = lambda: vm.Execute("device_del", {"id": "none"})  # noqa: E731
            wrong = lambda: vm.Execute("query-status", {"none": 1})  # noqa: E731
            seen = [vm.Execute("query-pci"), vm.Execute("query-name", {})]
            seen += [vm.Execute("query-qmp-schema"), told(lambda: vm.Execute("nonsense"))]
            seen += [text(lambda: vm.Execute("nonsense")), told(refused), text(refused), told(wrong), text(wrong)]
            for command in ("cont", "stop"):  # events come before the reply
                seen += [vm.Execute(command), vm.Execute("query-status")["running"]]
            return seen

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_methods(qemu: Qemu) -> None:
    def scenario(module: Any) -> Any:
        vm = module.QmpConnection(qemu.path)
        seen = [vm.ContinueGuestEmulation(), vm.StopGuestEmulation(), vm.HasDevice("scsi"), vm.HasDevice("none")]
        seen += [vm.GetFreePCISlot(), vm.CheckDiskHotAddSupport(), vm.CheckNicHotAddSupport()]
        seen += [vm.HasDynamicAutoReadOnly(), vm._filter_hvinfo({"id": "x", "lun": 1, "hvinfo": 2, "pci": 3})]
        password = lambda: vm.SetSpicePassword("x")  # noqa: E731
        return [*seen, told(password), text(password)]

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_migration(qemu: Qemu) -> None:
    def scenario(module: Any) -> Any:
        vm = module.QmpConnection(qemu.path)
        seen = [vm.SetMigrationParameters(5 << 20, 100), vm.SetMigrationCapabilities(["xbzrle", "events"], True)]
        with vm:
            parameters = vm.Execute("query-migrate-parameters")
            seen += [parameters, vm.Execute("query-migrate-capabilities")]
        seen += [vm.SetMigrationCapabilities(["xbzrle", "events"], False)]
        none = lambda: vm.SetMigrationCapabilities(["none"], True)  # noqa: E731
        seen += [told(none), text(none), told(vm.StartPostcopyMigration), text(vm.StartPostcopyMigration)]
        return seen

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_a_migration_that_nobody_takes(qemu: Qemu) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))  # and does not listen

        def scenario(module: Any) -> Any:
            vm = module.QmpConnection(qemu.path)
            began = told(lambda: vm.StartMigration("127.0.0.1", busy.getsockname()[1]))
            while (status := vm.GetMigrationStatus())["status"] in ("setup", "active"):
                pass
            return began, status["status"]

        his, mine = both(scenario)
        assert mine == his


def disk(target: int) -> Any:
    place = {"driver": "scsi-hd", "id": "d1", "bus": "scsi.0", "channel": 0, "scsi-id": target, "lun": 0, "pci": 9}
    return SimpleNamespace(hvinfo=place)


@pytest.mark.live
def test_a_disk_by_the_human_monitor(qemu: Qemu, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))

    def scenario(module: Any) -> Any:
        vm, given = module.QmpConnection(qemu.path), []

        def drive_add(filename: str) -> None:
            given.append(filename.rstrip("0123456789"))
            line = f"drive_add dummy file={filename},if=none,id=d1,format=raw,auto-read-only=off"
            assert "OK" in vm.Execute("human-monitor-command", {"command-line": line})

        seen = [vm.HotAddDisk(disk(3), "d1", str(image), drive_add), vm.HasDevice("d1"), given]
        with vm:
            drives = vm.Execute("query-block")
            seen.append([(drive["device"], drive["qdev"]) for drive in drives])
        wrong = disk(3)
        wrong.hvinfo["id"] = "d2"
        seen.append(told(lambda: vm.HotAddDisk(wrong, "d1", str(image), lambda filename: None)))
        vm.HotDelDisk("d1")
        deadline = time.monotonic() + 10  # theirs does not wait for QEMU to let go
        while vm.HasDevice("d1"):
            assert time.monotonic() < deadline
        return seen

    his, mine = both(scenario)
    assert mine == his


@pytest.mark.live
def test_a_nic(qemu: Qemu) -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.fail("no right to make a tap device: run as root")
    slots = iter((20, 21))  # theirs stays in its place: without a guest, nobody lets go of it

    def scenario(module: Any) -> Any:
        vm, slot = module.QmpConnection(qemu.path), next(slots)
        name = f"n{slot}"
        place = {"driver": "virtio-net-pci", "id": name, "bus": "pci.0", "addr": hex(slot), "pci": 1}
        nic = SimpleNamespace(mac="aa:00:00:00:00:02", hvinfo=place)
        with open_tap() as tap:
            seen = [vm.HotAddNic(nic, name, tap.fds, is_chrooted=True), vm.HasDevice(name)]
            seen.append(told(lambda: vm.HotAddNic(nic, name, tap.fds)))
        with vm:
            mac = vm.Execute("qom-get", {"path": f"/machine/peripheral/{name}", "property": "mac"})
            devices = vm.Execute("query-pci")[0]["devices"]
        (found,) = [device for device in devices if device["qdev_id"] == name]
        return [*seen, mac, without(found, "slot", "qdev_id", "regions", "irq", "address")]

    his, mine = both(scenario)
    assert mine == his
