"""The host's side of NICs, in networks of their own: made, taken away, and never left behind."""

import contextlib
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drover.errors import ArgumentError, NetworkError, ScriptFailed, ScriptSlow
from drover.kvm import net, netlink
from drover.kvm.net import connect, plug, release, tap_name
from drover.kvm.spec import Nic
from drover.kvm.taps import name_of, open_macvtap, open_tap
from netns import ip, own_network, traces

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
NAME = tap_name(UUID, "nic0")
WHERE = {"uuid": UUID, "index": 0}
BRIDGED = Nic(id="nic0", mode="bridge", link="br0", mac="52:54:00:12:34:56")
ROUTED = Nic(id="nic0", mode="routed", ip="10.9.0.5", mac="52:54:00:12:34:56")
MACVTAP = Nic(id="nic0", mode="macvtap", link="up0", mac="52:54:00:12:34:56")
change = msgspec.structs.replace


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """A network with a bridge, and a device that macvtap devices can stand on."""
    with own_network():
        ip("link add br0 type bridge")
        ip("link set br0 up")
        ip("link add up0 type veth peer up1")
        ip("link set up0 up")
        ip("link set up1 up")
        yield


@pytest.fixture(autouse=True)
def nothing_leaks(network: None) -> Iterator[None]:
    """No test leaves a descriptor, or anything in its network."""
    netlink.bridges()  # loads what stays loaded
    fds, before = open_fds(), traces()
    yield
    assert open_fds() == fds
    assert traces() == before


def open_fds() -> list[str]:
    """What is open here, apart from the directory that is read for it."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return sorted(name for name in names if not name.endswith(f"/proc/{os.getpid()}/fd"))


def script(path: Path, text: str) -> str:
    """A shell script that can be executed."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return os.fspath(path)


# -- a bridge --------------------------------------------------------------------------------------------------------


def test_a_tap_on_a_bridge_is_up_and_gone_with_its_descriptors() -> None:
    with plug(BRIDGED, "web1", **WHERE) as plugged:
        assert plugged.name == NAME
        assert plugged.notices == []
        assert [name_of(fd) for fd in plugged.tap_fds] == [NAME]
        assert all(os.get_inheritable(fd) is False for fd in plugged.tap_fds)
        shown = ip(f"-details link show {NAME}")
        assert "master br0" in shown
        assert ",UP" in shown
        assert "fe:54:00:12:34:56" in shown
        assert not ip(f"-6 address show {NAME}")
    assert not Path(f"/proc/sys/net/ipv4/conf/{NAME}").exists()
    assert release(BRIDGED, "web1", **WHERE, name=NAME) == []


def test_each_pair_of_queues_has_its_descriptor() -> None:
    with plug(change(BRIDGED, queues=4), "web1", **WHERE) as plugged:
        assert [name_of(fd) for fd in plugged.tap_fds] == [NAME] * 4


def test_a_tap_does_not_lower_its_bridges_mtu() -> None:
    ip("link set up1 mtu 9000")
    ip("link set up1 master br0")
    ip("link set br0 mtu 9000")
    with plug(change(BRIDGED, mtu=1400), "web1", **WHERE) as plugged:
        assert "mtu 9000" in ip("link show br0")
        assert plugged.notices == []


def test_a_bridge_with_too_low_an_mtu_is_told_of() -> None:
    ip("link set up1 master br0")
    with plug(change(BRIDGED, mtu=9000), "web1", **WHERE) as plugged:
        assert plugged.notices == ["br0 takes packets of 1500 bytes, and drops larger ones, up to 9000"]


def test_a_mtu_beyond_the_kernels_is_wrong() -> None:
    with pytest.raises(ArgumentError, match=r"nics\[0\].mtu: 70000 is not allowed; 68 to 65521"):
        plug(change(BRIDGED, mtu=70000), "web1", **WHERE)


@pytest.mark.parametrize("link", ["br9", "", "a-name-that-is-too-long", "br0-and-more-of-it"])
def test_a_bridge_that_is_not_there_is_named_with_those_that_are(link: str) -> None:
    ip("link add br1 type bridge")
    with pytest.raises(ArgumentError) as caught:
        plug(change(BRIDGED, link=link), "web1", uuid=UUID, index=3)
    ip("link del br1")
    assert str(caught.value) == f"nics[3].link: {link!r} is not allowed; a bridge of this host: br0, br1"


def test_what_is_no_bridge_is_not_taken_for_one() -> None:
    with pytest.raises(ArgumentError, match=r"nics\[0\].link: 'up0' is not allowed; a bridge of this host: br0"):
        plug(change(BRIDGED, link="up0"), "web1", **WHERE)


def test_a_vlan_on_a_bridge_that_does_not_filter_is_wrong() -> None:
    with pytest.raises(ArgumentError, match=r"nics\[0\].vlan: 7 is not allowed; none on a bridge that does not"):
        plug(change(BRIDGED, vlan=7), "web1", **WHERE)


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_of_somebody_elses_is_never_shared(queues: int) -> None:
    with open_tap(NAME, queues=2), pytest.raises(NetworkError, match=f"{NAME} is in use"):
        plug(change(BRIDGED, queues=queues), "web1", **WHERE)


def test_names_differ_and_stay() -> None:
    names = {tap_name(UUID, f"nic{number}") for number in range(1000)}
    assert len(names) == 1000
    assert NAME == "dr8cc899c41a7f"
    assert all(len(name) <= 15 for name in names)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_plugs_leave_no_descriptor() -> None:
    """The kernel takes 15 ms to end a tap, so this takes half a minute. The fixture counts."""
    for number in range(1000):
        nic = change(BRIDGED, id=f"nic{number}", queues=number % 2 + 1)
        plug(nic, "web1", uuid=UUID, index=0).close()


# -- routed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "option"), [("10.9.0.5", "-4"), ("fd00:9::5", "-6")])
def test_a_route_leads_to_the_guest(address: str, option: str) -> None:
    nic = change(ROUTED, ip=address)
    with plug(nic, "web1", **WHERE) as plugged:
        assert f"dev {NAME}" in ip(f"{option} route show {address}")
        family, proxy = ("ipv4", "proxy_arp") if option == "-4" else ("ipv6", "proxy_ndp")
        for name in (proxy, "forwarding"):
            assert Path(f"/proc/sys/net/{family}/conf/{NAME}/{name}").read_text() == "1\n"
        assert len(plugged.notices) == 1
        assert "forward" in plugged.notices[0]
        assert f"is 0: nobody but this host reaches {address}" in plugged.notices[0]
    assert release(nic, "web1", **WHERE, name=NAME) == []


def test_where_the_host_forwards_there_is_no_notice() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    with plug(ROUTED, "web1", **WHERE) as plugged:
        assert plugged.notices == []


@pytest.mark.parametrize("address", ["10.9.0.5", "fd00:9::5"])
def test_a_table_of_its_own_has_the_route_and_a_rule(address: str) -> None:
    nic = change(ROUTED, ip=address, link="100")
    plugged = plug(nic, "web1", **WHERE)
    option = "-6" if ":" in address else "-4"
    assert f"iif {NAME} lookup 100" in ip(f"{option} rule")
    assert f"dev {NAME}" in ip(f"{option} route show table 100")
    plugged.close()
    assert f"iif {NAME} [detached]" in ip(f"{option} rule")
    release(nic, "web1", **WHERE, name=NAME)
    release(nic, "web1", **WHERE, name=NAME)


def test_a_table_may_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "rt_tables"
    names.write_text("# a comment\n255\tlocal\n\n77 guests\n")
    monkeypatch.setattr(netlink, "_TABLE_NAMES", (os.fspath(tmp_path / "not there"), os.fspath(names)))
    nic = change(ROUTED, link="guests")
    with plug(nic, "web1", **WHERE):
        assert f"iif {NAME} lookup 77" in ip("rule")
    release(nic, "web1", **WHERE, name=NAME)
    with pytest.raises(ArgumentError, match=r"nics\[0\].link: 'servers' is not allowed; a routing table"):
        plug(change(ROUTED, link="servers"), "web1", **WHERE)


@pytest.mark.parametrize("address", ["", "10.9.0", "10.9.0.0/24"])
def test_a_routed_nic_needs_an_address(address: str) -> None:
    with pytest.raises(ArgumentError, match=r"nics\[0\].ip"):
        plug(change(ROUTED, ip=address), "web1", **WHERE)


@pytest.mark.parametrize("link", ["", "100"])
def test_an_address_that_another_guest_has_stays_its(link: str) -> None:
    first, second = change(ROUTED, link=link), change(ROUTED, link=link, id="nic1")
    with plug(first, "web1", **WHERE):
        with pytest.raises(ArgumentError, match=r"nics\[1\].ip: '10.9.0.5' is not allowed; one that no other device"):
            plug(second, "web1", uuid=UUID, index=1)
        assert f"dev {NAME}" in ip(f"route show table {link or 'main'}")
    release(first, "web1", **WHERE, name=NAME)


# -- macvtap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 4])
def test_a_macvtap_device_stays_until_it_is_released(queues: int) -> None:
    nic = change(MACVTAP, queues=queues)
    with plug(nic, "web1", **WHERE) as plugged:
        assert [name_of(fd) for fd in plugged.tap_fds] == [NAME] * queues
        shown = ip(f"-details link show {NAME}")
        assert "macvtap mode bridge" in shown
        assert "52:54:00:12:34:56" in shown
        assert ",UP" in shown
    assert NAME in ip("link")
    assert release(nic, "web1", **WHERE, name=NAME) == []
    assert NAME not in ip("link")
    assert release(nic, "web1", **WHERE, name=NAME) == []


def test_only_a_macvtap_device_is_ever_deleted() -> None:
    with open_tap(NAME):
        release(MACVTAP, "web1", **WHERE, name=NAME)
        assert NAME in ip("link")


def test_a_device_of_another_network_is_not_taken_for_ours() -> None:
    """There is one /dev for all networks, and in each of them the kernel counts from 1."""
    ip("link add link up0 name other type macvtap")
    number = int(ip("-oneline link show other").partition(":")[0])
    with plug(MACVTAP, "web1", **WHERE) as here, own_network():
        ip("link add up0 type veth peer up1")
        ip("link set up0 up")
        with plug(MACVTAP, "web1", **WHERE) as there:  # the same one, as on the target of a migration
            devices = [os.fstat(plugged.tap_fds[0]).st_rdev for plugged in (here, there)]
            assert devices[0] != devices[1]
        release(MACVTAP, "web1", **WHERE, name=NAME)
        ip(f"link add link up0 name mine index {number} type macvtap")
        with pytest.raises(OSError, match="belongs to another interface than mine"):
            open_macvtap("mine")
    release(MACVTAP, "web1", **WHERE, name=NAME)
    ip("link del other")


def test_many_at_once_do_not_get_in_each_others_way() -> None:
    errors = []

    def work(number: int) -> None:
        try:
            for plan in (change(ROUTED, ip=f"10.9.{number}.5", link="100"), MACVTAP, BRIDGED):
                nic = change(plan, id=f"nic{number}", mac=f"52:54:00:12:34:{number:02x}")
                for _ in range(3):
                    with plug(nic, "web1", **WHERE) as plugged:
                        pass
                    release(nic, "web1", **WHERE, name=plugged.name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_device_that_was_not_released_is_left_alone() -> None:
    plug(MACVTAP, "web1", **WHERE).close()
    with pytest.raises(NetworkError, match="there is an interface of this name already"):
        plug(MACVTAP, "web1", **WHERE)
    assert NAME in ip("link")
    release(MACVTAP, "web1", **WHERE, name=NAME)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"link": "eth7"}, r"nics\[0\].link: 'eth7' is not allowed; a network device of this host: .*up0"),
        ({"mtu": 9000}, r"nics\[0\].mtu: 9000 is not allowed; at most that of up0, which is 1500"),
        ({"vlan": 7}, r"nics\[0\].vlan: 7 is not allowed; none in mode macvtap"),
    ],
)
def test_what_macvtap_cannot_do(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        plug(change(MACVTAP, **wrong), "web1", **WHERE)


# -- user, fd, vhost, rights -----------------------------------------------------------------------------------------


def test_user_mode_needs_nothing(tmp_path: Path) -> None:
    up = script(tmp_path / "up", f"touch {tmp_path}/ran")
    nic = change(BRIDGED, mode="user", script_up=up, script_down=up)
    with plug(nic, "web1", **WHERE) as plugged:
        assert (plugged.name, plugged.tap_fds, plugged.vhost_fds) == ("", [], [])
    assert release(nic, "web1", **WHERE, name="") == []
    assert not (tmp_path / "ran").exists()


def test_given_descriptors_stay_the_givers() -> None:
    with open_tap("mine", queues=2) as tap:
        with plug(change(BRIDGED, mode="fd", queues=2), "web1", **WHERE, given=tap.fds) as plugged:
            assert plugged.name == "mine"
            assert [name_of(fd) for fd in plugged.tap_fds] == ["mine", "mine"]
            assert not set(plugged.tap_fds) & set(tap.fds)
        assert [name_of(fd) for fd in tap.fds] == ["mine", "mine"]


def test_descriptors_that_do_not_fit_are_wrong() -> None:
    nic = change(BRIDGED, mode="fd", queues=2)
    with open_tap("mine", queues=2) as mine, open_tap("other") as other, open(os.devnull) as null:
        for given in ((), mine.fds[:1], (mine.fds[0], other.fds[0]), (null.fileno(), null.fileno()), (9999, 9998)):
            with pytest.raises(ArgumentError, match=r"nics\[0\].mode: 'fd' is not allowed; descriptors of one tap"):
                plug(nic, "web1", **WHERE, given=given)


def test_without_vhost_the_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "_VHOST", "/dev/vhost-nothing")
    monkeypatch.setattr(net, "_HINTS", {"/dev/vhost-nothing": net._HINTS["/dev/vhost-net"]})
    with pytest.raises(NetworkError, match="/dev/vhost-nothing: No such file or directory: .* module vhost_net"):
        plug(change(BRIDGED, vhost=True), "web1", **WHERE)
    with pytest.raises(ArgumentError, match=r"nics\[0\].vhost: True is not allowed; only a NIC that stands on a tap"):
        plug(change(BRIDGED, mode="user", vhost=True), "web1", **WHERE)


def test_each_pair_of_queues_has_its_vhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "_VHOST", os.devnull)
    with plug(change(BRIDGED, vhost=True, queues=3), "web1", **WHERE) as plugged:
        assert len({*plugged.vhost_fds, *plugged.tap_fds}) == 6
        assert all(stat.S_ISCHR(os.fstat(fd).st_mode) for fd in plugged.vhost_fds)


def test_somebody_without_rights_is_told_what_he_lacks() -> None:
    code = """\
        import os
        from drover.errors import NetworkError
        from drover.kvm import netlink
        from drover.kvm.net import plug
        from drover.kvm.spec import Nic
        netlink.bridges()
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        for mode, link in (("bridge", "br0"), ("routed", ""), ("macvtap", "up0"), ("user", "")):
            nic = Nic(id="nic0", mode=mode, link=link, ip="10.9.0.5", mac="52:54:00:12:34:56")
            try:
                plug(nic, "web1", uuid="6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1", index=0)
                print(mode, "works")
            except NetworkError as error:
                print(mode, error)
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines[:3]:
        assert "this needs the right CAP_NET_ADMIN, as root has; mode = 'user' needs none" in line
    assert lines[3] == "user works"


# -- scripts ---------------------------------------------------------------------------------------------------------


def test_scripts_run_when_all_is_there_and_when_it_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = f'echo "$ACTION $INTERFACE $(ip -brief link show $INTERFACE 2>&1 | cut -d" " -f1)" >>{log}'
    nic = change(BRIDGED, script_up=script(tmp_path / "up", write), script_down=script(tmp_path / "down", write))
    with plug(nic, "web1", **WHERE):
        assert log.read_text() == f"up {NAME} {NAME}\n"
    assert release(nic, "web1", **WHERE, name=NAME) == []
    assert log.read_text().splitlines()[1] == f"down {NAME} Device"  # … does not exist


def test_a_script_that_fails_undoes_all(tmp_path: Path) -> None:
    up = script(tmp_path / "up", "echo no such tenant; exit 3")
    down = script(tmp_path / "down", f"echo $ACTION $(ip -brief link show $INTERFACE | cut -d' ' -f1) >{tmp_path}/log")
    nic = change(ROUTED, link="100", script_up=up, script_down=down)
    with pytest.raises(ScriptFailed, match=f"{up}: exit status 3: no such tenant"):
        plug(nic, "web1", **WHERE)
    assert (tmp_path / "log").read_text() == f"down {NAME}\n"


def test_a_script_that_hangs_undoes_all_of_every_mode(tmp_path: Path) -> None:
    up = script(tmp_path / "up", "echo waiting; sleep 1000 & sleep 1000")
    for plan in (BRIDGED, ROUTED, MACVTAP):
        with pytest.raises(ScriptSlow, match="did not end within 0.3 s, and was killed: waiting"):
            plug(change(plan, script_up=up), "web1", **WHERE, timeout=0.3)


def test_what_goes_wrong_in_the_undo_is_a_note(tmp_path: Path) -> None:
    bad = script(tmp_path / "bad", "echo no way $ACTION; exit 1")
    with pytest.raises(ScriptFailed, match="no way up") as caught:
        plug(change(MACVTAP, script_up=bad, script_down=bad), "web1", **WHERE)
    assert "no way down" in caught.value.__notes__[0]


def test_a_script_that_fails_on_the_way_down_is_a_notice(tmp_path: Path) -> None:
    nic = change(MACVTAP, script_down=script(tmp_path / "down", "echo tenant unknown; exit 1"))
    plug(nic, "web1", **WHERE).close()
    notices = release(nic, "web1", **WHERE, name=NAME)
    assert notices == [f"{nic.script_down}: exit status 1: tenant unknown"]
    assert NAME not in ip("link")


# -- of a machine that is still on its way ---------------------------------------------------------------------------


@pytest.mark.parametrize("nic", [BRIDGED, ROUTED, change(ROUTED, link="100"), MACVTAP], ids=lambda nic: nic.mode)
def test_nothing_comes_through_before_it_is_connected(nic: Nic) -> None:
    """All is made, and where it is to be; connecting it twice is as good as once."""

    def leads() -> bool:
        return "10.9.0.5 dev" in ip("route show table all")

    with plug(nic, "web1", held=True, **WHERE):
        state = netlink.state_of(NAME)
        assert state == (False, "br0" if nic is BRIDGED else "")
        assert not leads()
        for _ in range(2):
            connect(nic, "web1", **WHERE)
            assert netlink.state_of(NAME) == (True, state[1])
            assert leads() == (nic.mode == "routed")
    release(nic, "web1", name=NAME, **WHERE)


def test_a_port_that_has_to_wait_is_switched_on_at_once() -> None:
    ip("link set br0 type bridge stp_state 1")
    with plug(BRIDGED, "web1", held=True, **WHERE):
        assert netlink.state_of(NAME) == (True, "br0")


def test_what_cannot_be_connected_is_told() -> None:
    with pytest.raises(NetworkError, match=NAME):
        connect(BRIDGED, "web1", **WHERE)
    connect(change(BRIDGED, mode="user"), "web1", **WHERE)
