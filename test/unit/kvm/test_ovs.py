"""NICs on a real Open vSwitch."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drover.errors import ArgumentError, NetworkError, ScriptFailed
from drover.kvm import ovs
from drover.kvm.net import plug, release, tap_name
from drover.kvm.scripts import nic_uuid
from drover.kvm.spec import Nic
from netns import ip, own_network
from vswitch import Switch, open_vswitch

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
NAME = tap_name(UUID, "nic0")
WHERE = {"uuid": UUID, "index": 0}
NIC = Nic(id="nic0", mode="ovs", link="ovs0", mac="52:54:00:12:34:56")
change = msgspec.structs.replace


@pytest.fixture(autouse=True)
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """A switch with a bridge, which no test leaves a port on; and little patience."""
    monkeypatch.setattr(ovs, "_PATIENCE", 1)
    with own_network(), open_vswitch(tmp_path / "ovs") as switch:
        switch.add_bridge("ovs0")
        fds = len(os.listdir("/proc/self/fd"))
        yield switch
        assert switch.vsctl("list-ports", "ovs0") == ""
        assert len(os.listdir("/proc/self/fd")) == fds
        assert NAME not in ip("link")


def test_a_port_stays_until_it_is_released(switch: Switch) -> None:
    with plug(change(NIC, vlan=7), "web1", **WHERE) as plugged:
        assert plugged.name == NAME
        assert ",UP" in ip(f"link show {NAME}")
        assert switch.vsctl("get", "Port", NAME, "tag").strip() == "7"
        marks = switch.vsctl("get", "Interface", NAME, "external_ids")
        assert f'iface-id="{nic_uuid(UUID, "nic0")}"' in marks
        assert 'attached-mac="52:54:00:12:34:56"' in marks
        assert int(switch.vsctl("get", "Interface", NAME, "ofport")) > 0
    assert switch.vsctl("list-ports", "ovs0").split() == [NAME]
    assert release(NIC, "web1", **WHERE, name=NAME) == []
    assert release(NIC, "web1", **WHERE, name=NAME) == []


def test_without_a_vlan_it_is_a_trunk(switch: Switch) -> None:
    with plug(NIC, "web1", **WHERE):
        assert switch.vsctl("get", "Port", NAME, "tag").strip() == "[]"
    release(NIC, "web1", **WHERE, name=NAME)


def test_a_bridge_that_is_not_there_is_named_with_those_that_are(switch: Switch) -> None:
    switch.add_bridge("ovs1")
    with pytest.raises(ArgumentError) as caught:
        plug(change(NIC, link="ovs9"), "web1", **WHERE)
    allowed = "a bridge of Open vSwitch's of this host: ovs0, ovs1"
    assert str(caught.value) == f"nics[0].link: 'ovs9' is not allowed; {allowed}"


def test_a_port_that_was_left_behind_is_replaced(switch: Switch) -> None:
    plug(change(NIC, vlan=7), "web1", **WHERE).close()
    switch.add_bridge("ovs1")
    with plug(change(NIC, link="ovs1"), "web1", **WHERE):
        assert switch.vsctl("list-ports", "ovs0") == ""
        assert switch.vsctl("list-ports", "ovs1").split() == [NAME]
        assert switch.vsctl("get", "Port", NAME, "tag").strip() == "[]"
    release(NIC, "web1", **WHERE, name=NAME)


def test_a_switch_that_stands_still_is_not_waited_for_for_ever(switch: Switch) -> None:
    with switch.stopped(switch.switch):
        with pytest.raises(ScriptFailed, match="ovs-vsctl: was killed by signal 14"):
            plug(NIC, "web1", **WHERE)
        assert switch.vsctl("list-ports", "ovs0") == ""  # its database had the port for that second


def test_a_port_is_released_also_while_the_switch_stands_still(switch: Switch) -> None:
    plug(NIC, "web1", **WHERE).close()
    with switch.stopped(switch.switch):
        release(NIC, "web1", **WHERE, name=NAME)


def test_what_could_not_be_released_is_an_error_and_can_be_later(switch: Switch) -> None:
    plug(NIC, "web1", **WHERE).close()
    with switch.stopped(switch.database), pytest.raises(NetworkError):
        release(NIC, "web1", **WHERE, name=NAME)
    release(NIC, "web1", **WHERE, name=NAME)


def test_an_interface_that_the_switch_cannot_use_is_an_error(switch: Switch) -> None:
    with pytest.raises(NetworkError, match=r"nothing0: Open vSwitch cannot use it: .*No such device"):
        ovs.add_port("ovs0", "nothing0", None, {"vm-id": UUID})
    ovs.delete_port("nothing0")


def test_without_its_program_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", os.fspath(tmp_path))
        with pytest.raises(ScriptFailed, match="ovs-vsctl: is not installed: .* openvswitch-switch"):
            plug(NIC, "web1", **WHERE)
