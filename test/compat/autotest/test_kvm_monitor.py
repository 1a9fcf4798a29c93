"""The monitors of autotest (2010 to 2012): their constructors, time-outs, and what they returned otherwise."""

import inspect
import pickle

import pytest

from compat.autotest.conftest import Machine
from drover.compat.autotest import kvm_monitor


def test_qmp(machine: Machine) -> None:
    monitor = kvm_monitor.QMPMonitor("m", str(machine.path / "qmp-mine"))
    assert monitor.verify_status("paused")
    assert monitor.cmd_qmp("query-name", id="a") == {"return": {}, "id": "a"}
    with pytest.raises(kvm_monitor.QMPCmdError):
        monitor.cmd("no-such")
    packed = pickle.dumps(monitor)
    monitor.close()
    again = pickle.loads(packed)
    assert again.is_responsive()
    again.close()


def test_human(machine: Machine) -> None:
    monitor = kvm_monitor.HumanMonitor("m", str(machine.path / "human-mine"))
    assert "paused" in monitor.get_status()
    assert monitor.cmd("netdev_del none").startswith("Error: ")
    assert monitor.send_args_cmd("info name;info name") == monitor.info("name") * 2
    assert "none" in monitor.set_link("none", up=True)
    monitor.close()


def test_nobody_there() -> None:
    for kind in (kvm_monitor.QMPMonitor, kvm_monitor.HumanMonitor):
        with pytest.raises(kvm_monitor.MonitorConnectError):
            kind("m", "/nowhere")
        assert not kind("m", "/nowhere", suppress_exceptions=True).is_responsive()


@pytest.mark.parametrize("name", ["cmd", "cmd_raw", "cmd_obj", "cmd_qmp"])
def test_time_outs(name: str) -> None:
    assert inspect.signature(getattr(kvm_monitor.QMPMonitor, name)).parameters["timeout"].default == 20
