"""Every public name of Ganeti's module is here, with its signature."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drover.compat import ganeti
from drover.compat.ganeti import bus_manager, errors, legacy, monitor
from drover.errors import DroverError

QMP_CONNECTION = {
    "__init__": "socket_path",
    "connect": "",
    "close": "",
    "is_connected": "",
    "send": "data",
    "recv": "bufsize",
    "reset_timeout": "",
    "execute_qmp": "command arguments=None",
    "Execute": "command arguments=None",
    "send_qmp": "message",
    "get_qmp_response": "command",
    "wait_for_qmp_event": "event_types timeout",
    "recv_qmp": "",
    "HotAddNic": "nic devid tapfds=None vhostfds=None features=None is_chrooted=False",
    "HotDelNic": "devid",
    "HotAddDisk": "disk access_mode cache_writeback direct blockdevice",
    "HotDelDisk": "devid",
    "ResizeBlockDevice": "disk_id new_size",
    "HasDevice": "devid",
    "GetFreePCISlot": "",
    "CheckDiskHotAddSupport": "",
    "CheckNicHotAddSupport": "",
    "GetVersion": "",
    "HasDynamicAutoReadOnly": "",
    "SetMigrationParameters": "max_bandwidth downtime_limit",
    "SetMigrationCapabilities": "capabilities state",
    "StopGuestEmulation": "",
    "ContinueGuestEmulation": "",
    "StartMigration": "target port",
    "StartPostcopyMigration": "",
    "GetCpuInformation": "",
    "GetMigrationStatus": "",
    "SetSpicePassword": "spice_pwd",
    "SetVNCPassword": "vnc_pwd",
    "SetBalloonMemory": "memory",
    "Powerdown": "",
}
SOCKET = ("connect", "close", "is_connected", "send", "recv", "reset_timeout", "__enter__", "__exit__")
QMP_SOCKET = ("execute_qmp", "send_qmp", "get_qmp_response", "wait_for_qmp_event", "recv_qmp")


def parameters(owner: type, name: str) -> str:
    """A method's parameters as the tables above have them."""
    found = list(inspect.signature(getattr(owner, name)).parameters.values())[1:]
    return " ".join(item.name if item.default is item.empty else f"{item.name}={item.default}" for item in found)


@pytest.mark.parametrize(("name", "wanted"), QMP_CONNECTION.items())
def test_qmp_connection(name: str, wanted: str) -> None:
    assert parameters(monitor.QmpConnection, name) == wanted


@pytest.mark.parametrize(("name", "wanted"), (QMP_CONNECTION | {
    "__init__": "monitor_filename", "HotAddDisk": "disk devid uri drive_add_fn=None"
}).items())  # fmt: skip
def test_qmp_connection_of_3_0(name: str, wanted: str) -> None:
    assert parameters(legacy.QmpConnection, name) == wanted


def test_has_device_of_2_15() -> None:
    assert parameters(legacy.QmpConnection, "HasPCIDevice") == "device devid"


def test_sockets() -> None:
    assert parameters(monitor.UnixFileSocketConnection, "__init__") == "socket_path timeout"
    assert parameters(monitor.QemuMonitorSocket, "__init__") == "socket_path timeout"
    assert parameters(ganeti.MonitorSocket, "__init__") == "monitor_filename"
    for name in SOCKET:
        assert hasattr(ganeti.MonitorSocket, name)
        assert hasattr(monitor.UnixFileSocketConnection, name)
    for name in QMP_SOCKET:
        assert hasattr(monitor.QemuMonitorSocket, name)


def test_messages() -> None:
    assert parameters(monitor.QmpMessage, "__init__") == "data"
    assert parameters(monitor.QmpEvent, "__init__") == "timestamp event_type data"
    assert monitor.QmpTimestamp._fields == ("seconds", "microseconds")
    for name in ("build_from_json_string", "BuildFromJsonString", "to_bytes", "to_json_string"):
        assert hasattr(monitor.QmpMessage, name)


def test_attributes_before_the_first_connect() -> None:
    vm = monitor.QmpConnection("/nowhere")
    assert (vm.version, vm.package, vm.supported_commands, vm.sock) == (None, None, None, None)
    assert (vm.socket_path, vm.monitor_filename, vm.timeout) == ("/nowhere", "/nowhere", 5)
    assert vm.ACTUAL_KEY == "actual"
    assert vm._MESSAGE_END_TOKEN == b"\r\n"


def test_errors() -> None:
    assert issubclass(monitor.QmpCommandNotSupported, errors.HypervisorError)
    assert issubclass(monitor.QmpTimeoutError, errors.HypervisorError)
    assert issubclass(errors.HotplugError, errors.HypervisorError)
    assert issubclass(errors.HypervisorError, errors.GenericError)
    assert issubclass(errors.ProgrammerError, errors.GenericError)
    assert issubclass(errors.GenericError, DroverError)
    assert not issubclass(errors.ProgrammerError, errors.HypervisorError)


THEIRS = """
import sys, types
theirs = types.ModuleType("ganeti.errors")
theirs.GenericError = type("GenericError", (Exception,), {})
for name in ("HypervisorError", "ProgrammerError"):
    setattr(theirs, name, type(name, (theirs.GenericError,), {}))
theirs.HotplugError = type("HotplugError", (theirs.HypervisorError,), {})
sys.modules["ganeti"] = types.ModuleType("ganeti")
sys.modules["ganeti.errors"] = theirs
from drover.compat.ganeti import QmpConnection, errors
for name in ("GenericError", "HypervisorError", "HotplugError", "ProgrammerError"):
    assert issubclass(getattr(errors, name), getattr(theirs, name)), name
try:
    QmpConnection("/nowhere").Powerdown()
except theirs.HypervisorError:
    print("caught")
"""


def test_where_ganeti_is_installed_its_own_names_catch_our_errors() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "build" / "py")}
    run = subprocess.run([sys.executable, "-c", THEIRS], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "caught\n", run.stderr


def test_bus_manager() -> None:
    manager = bus_manager.BusAllocatorManager
    assert bus_manager.BusAllocation._fields == ("bus", "bus_type", "device_params")
    for face in (bus_manager.PCIAllocator, bus_manager.SCSIAllocator):
        assert issubclass(face, bus_manager.BusAllocator)
        assert parameters(face, "__init__") == "max_slots reserved_slots"
    assert parameters(manager, "__init__") == "allocators"
    assert parameters(manager, "get_next_allocation") == "dev_type hv_dev_type"
    assert parameters(manager, "commit") == parameters(manager, "release") == "allocation"


@pytest.mark.parametrize("name", ganeti.__all__)
def test_each_name_is_exported(name: str) -> None:
    value: Any = getattr(ganeti, name)
    assert value.__doc__
