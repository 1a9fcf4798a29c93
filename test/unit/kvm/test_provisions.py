"""What a specification names of a host that has not got it: looked for on this one."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from drover.errors import Blocker, ScriptFailed
from drover.kvm import provisions
from drover.kvm.host import Host
from drover.kvm.paths import Paths
from drover.kvm.spec import completed, parse
from netns import ip, own_network


@pytest.fixture
def host(tmp_path: Path) -> Host:
    paths = Paths(tmp_path / "state", tmp_path / "run")
    paths.state.mkdir()
    return Host(paths)


@pytest.fixture(autouse=True)
def taps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host can make taps, unless a test says otherwise."""
    monkeypatch.setattr(provisions, "_TUN", tmp_path)
    monkeypatch.setattr(provisions, "_may_make_links", lambda: True)


def missing(host: Host, **fields: Any) -> list[Blocker]:
    found = list(provisions.missing(host, completed(parse({"name": "vm"} | fields))))
    assert all(each.why and each.remedy for each in found)
    return found


def only(host: Host, code: str, what: str, **fields: Any) -> str:
    (blocker,) = missing(host, **fields)
    assert (blocker.code, blocker.what) == (code, what)
    return blocker.why


def card(mode: str, **more: Any) -> dict[str, Any]:
    return {"nics": [{"mode": mode} | more]}


def test_a_plain_one_misses_nothing(host: Host) -> None:
    assert missing(host, nics=[{"mode": "user"}], vnc={}, spice={}) == []


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "what"),
    [("bridge", "bridge"), ("ovs", "bridge of Open vSwitch's"), ("macvtap", "network device")],
)
def test_no_such_link(host: Host, mode: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisions.netlink, "bridges", lambda: ["br0", "br1"])
    monkeypatch.setattr(provisions.ovs, "bridges", list)
    why = only(host, "link", "nics[0].link", **card(mode, link="br9"))
    assert why.startswith(f"there is no {what} br9 (")
    there = {"bridge": "bridges there: br0, br1", "ovs": f"there is no {what} at all", "macvtap": "lo"}[mode]
    assert there in why


def test_a_link_that_is_no_bridge(host: Host) -> None:
    assert "there is no bridge lo" in only(host, "link", "nics[0].link", **card("bridge", link="lo"))


def test_a_link_that_is_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisions.links, "is_bridge", lambda name: True)
    monkeypatch.setattr(provisions.ovs, "bridges", lambda: ["ovs0"])
    for fields in (card("bridge", link="lo"), card("ovs", link="ovs0"), card("macvtap", link="lo"),
                   card("routed", ip="192.0.2.7"), card("routed", ip="192.0.2.7", link="7")):  # fmt: skip
        assert missing(host, **fields) == []


def test_links_of_a_real_network(host: Host) -> None:
    with own_network():
        ip("link add br0 type bridge")
        ip("link add br1 type bridge")
        ip("link add d0 type veth peer name d1")
        assert missing(host, **card("bridge", link="br0")) == []
        assert only(host, "link", "nics[0].vlan", **card("bridge", link="br0", vlan=7))
        for name in ("d0", "lo", "none"):
            assert "bridges there: br0, br1" in only(host, "link", "nics[0].link", **card("bridge", link=name))


def test_a_bridge_without_vlans(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisions.links, "is_bridge", lambda name: True)
    monkeypatch.setattr(provisions.netlink, "filters_vlans", lambda name: False)
    assert "does not filter VLANs" in only(host, "link", "nics[0].vlan", **card("bridge", link="lo", vlan=7))


def test_a_table_that_nobody_has_named(host: Host) -> None:
    assert missing(host, **card("routed", ip="192.0.2.7", link="no-table"))[0].what == "nics[0].link"


def test_a_switch_that_does_not_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def bridges() -> list[str]:
        raise ScriptFailed("ovs-vsctl", "it is not there", "")

    monkeypatch.setattr(provisions.ovs, "bridges", bridges)
    assert "it is not there" in only(host, "link", "nics[0].link", **card("ovs", link="ovs0"))


def test_no_taps(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provisions, "_TUN", tmp_path / "tun")
    monkeypatch.setattr(provisions, "_VHOST_NET", tmp_path / "vhost-net")
    monkeypatch.setattr(provisions, "_may_make_links", lambda: False)
    found = missing(host, **card("routed", ip="192.0.2.7", vhost=True))
    assert [(each.code, each.what) for each in found] == [
        ("tap", "nics[0].mode"), ("tap", "nics[0].mode"), ("tap", "nics[0].vhost"),
    ]  # fmt: skip
    assert "CAP_NET_ADMIN" in found[0].why


def test_a_name_that_is_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisions, "tap_name", lambda uuid, nic: "lo")
    assert "an interface lo" in only(host, "tap", "nics[0]", **card("routed", ip="192.0.2.7"))


def test_a_script(host: Host, tmp_path: Path) -> None:
    script = tmp_path / "up"
    script.touch(0o600)
    fields = card("routed", ip="192.0.2.7", script_up=str(script))
    assert "cannot be executed" in only(host, "path", "nics[0].script_up", **fields)
    script.chmod(0o700)
    assert missing(host, **fields) == []


# -- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("screen", ["vnc", "spice"])
@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_port_that_is_in_use(host: Host, screen: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address.strip("[]"), 0), family=family) as other:
        fields = {screen: {"listen": f"{address}:{other.getsockname()[1]}"}}
        why = only(host, "port", f"{screen}.listen", **fields)
    assert "Address already in use" in why
    assert missing(host, **fields) == []


def test_an_address_that_is_not_ours(host: Host) -> None:
    why = only(host, "port", "vnc.listen", vnc={"listen": "192.0.2.1:5901"})
    assert "Cannot assign requested address" in why


@pytest.mark.parametrize(("kind", "name"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_a_forward(host: Host, kind: socket.SocketKind, name: str) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            other.listen(1)
        fields = card("user", forwards=[f"{name}:127.0.0.1:{other.getsockname()[1]}-:22"])
        assert "in use" in only(host, "port", "nics[0].forwards", **fields)
    assert missing(host, **fields) == []


# -- files and devices ------------------------------------------------------------------------------------------------


def test_files(host: Host, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    fields: dict[str, Any] = {"boot": {"kernel": str(kernel), "initrd": "/nowhere/initrd"}}
    found = missing(host, **fields, vnc={"tls_dir": "/nowhere/tls"})
    assert [(each.code, each.what) for each in found] == [
        ("path", "vnc.tls_dir"), ("path", "boot.kernel"), ("path", "boot.initrd"),
    ]  # fmt: skip
    kernel.touch()
    assert only(host, "path", "boot.initrd", **fields) == "/nowhere/initrd is not there"


def test_a_chroot(host: Host) -> None:
    host.rootless = True
    assert missing(host, chroot=True)[0].code == "chroot"


def test_a_tpm(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "swtpm" in only(host, "tpm", "tpm", tpm={})
    (tmp_path / "swtpm").touch(0o700)
    assert missing(host, tpm={}) == []


def test_pinning(host: Host) -> None:
    number = os.cpu_count()
    assert number
    assert missing(host, cpu={"pinning": [f"0,{number + 4000}"]}) == []
    beyond = f"{number + 4000}-{number + 4001}"
    why = only(host, "pinning", "cpu.pinning[1]", cpu={"count": 2, "pinning": ["0", beyond]})
    assert f"no CPU of {beyond}" in why


def test_an_nbd_server(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        uri = f"nbd://127.0.0.1:{other.getsockname()[1]}/disk"
    disks = [{"id": "a", "source": uri, "format": "raw"},
             {"id": "b", "source": "nbd+unix:///disk?socket=/nowhere/socket", "format": "raw"}]  # fmt: skip
    assert f"{uri} is of no use there" in only(host, "disk", "disks[0].source", disks=disks)


def test_vsock(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provisions, "_VHOST_VSOCK", tmp_path / "vhost-vsock")
    assert "vhost-vsock" in only(host, "vsock", "vsock_cid", vsock_cid=7)


def test_no_room(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(host.paths.state)
    monkeypatch.setattr(provisions, "_LEAST", found.f_bavail * found.f_frsize * 2)
    assert "bytes are free there" in only(host, "space", str(host.paths.state))
