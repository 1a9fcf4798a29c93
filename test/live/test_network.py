"""Real guests behind every kind of NIC: what the host has made for it is made for packets to go through."""

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from drover import QmpConnection
from drover.kvm import netlink
from drover.kvm.net import Plugged, plug, release, tap_name
from drover.kvm.spec import Nic
from drover.testing.machine import Machine
from machines import qemu_of
from netns import ip, own_network, traces
from vswitch import open_vswitch

pytestmark = pytest.mark.live

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
NAME = tap_name(UUID, "nic0")
WHERE = {"uuid": UUID, "index": 0}
NIC = Nic(id="nic0", mode="bridge", link="br0", mac="52:54:00:12:34:56")
NOBODY = 64190
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine without a NIC, whose QEMU has no rights and is in its sandbox, as an instance's."""
    wrapper = tmp_path_factory.mktemp("qemu") / "qemu"
    rights = f"--reuid={NOBODY} --regid={NOBODY} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv {rights} -- {shlex.quote(str(qemu_of(request.param)))} "$@"\n')
    wrapper.chmod(0o755)
    machine = Machine(qemu=wrapper, smp=2, extra=["-sandbox", SANDBOX], name=request.param)
    machine.directory.chmod(0o777)
    with machine:
        machine.wait_ready()
        yield machine


@pytest.fixture(autouse=True)
def network(machine: Machine) -> Iterator[None]:
    """A network with a bridge and a device, in which nothing is left, as there is none of our descriptors."""
    with own_network():
        ip("link add br0 type bridge")
        ip("address add 10.9.0.1/24 dev br0")
        ip("link set br0 up")
        ip("link add up0 type veth peer up1")
        ip("link set up0 up")
        ip("link set up1 up")
        netlink.bridges()
        before, fds = traces(), len(os.listdir("/proc/self/fd"))
        yield
        assert traces() == before
        assert len(os.listdir("/proc/self/fd")) == fds


@contextmanager
def guest_with(machine: Machine, nic: Nic, **options: int) -> Iterator[tuple[str, Plugged]]:
    """The guest has this NIC for a while: what it calls it, and what it stands on."""
    with QmpConnection(machine.qmp, timeout=30) as vm:
        with plug(nic, "web1", **WHERE) as plugged:
            vm.hot_add_nic("nic0", tap_fds=plugged.tap_fds, mac=nic.mac, options=options)
        yield machine.console.wait_for_nic(nic.mac), plugged
        vm.hot_remove_nic("nic0")
        machine.console.wait_for_nic(nic.mac, present=False)
    assert release(nic, "web1", **WHERE, name=plugged.name) == []


def configure(machine: Machine, device: str, address: str, *more: str) -> None:
    """Give the guest's NIC an address, and do more with `ip`."""
    for words in (f"address add {address} dev {device}", f"link set {device} up", *more):
        machine.console.run(f"ip {words}")


@pytest.mark.parametrize("queues", [1, 2])
def test_a_bridge(machine: Machine, queues: int) -> None:
    with guest_with(machine, replace(NIC, queues=queues)) as (device, _):
        configure(machine, device, "10.9.0.2/24")
        machine.console.run("ping -c 3 -W 5 10.9.0.1")
        assert len(machine.console.run(f"ls -d /sys/class/net/{device}/queues/rx-*").split()) == queues
        assert f"lladdr {NIC.mac} " in ip("neigh show 10.9.0.2")


def test_larger_packets_where_the_bridge_takes_them(machine: Machine) -> None:
    with guest_with(machine, replace(NIC, mtu=9000), host_mtu=9000) as (device, plugged):
        assert plugged.notices == []
        assert machine.console.run(f"cat /sys/class/net/{device}/mtu").strip() == "9000"
        configure(machine, device, "10.9.0.2/24")
        machine.console.run("ping -c 1 -W 5 -s 8972 10.9.0.1")


def test_a_route_and_a_world_behind_the_host(machine: Machine) -> None:
    """The guest asks for an address that is on none of its wires: the host answers for it, and forwards."""
    world = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE)
    try:
        assert world.stdout
        world.stdout.readline()
        ip(f"link set up1 netns {world.pid}")
        inside = ["nsenter", "-t", str(world.pid), "-n", "ip"]
        for words in ("address add 192.0.2.2/24 dev up1", "link set up1 up", "route add 10.9.7.5 via 192.0.2.1"):
            subprocess.run([*inside, *words.split()], check=True)
        ip("address add 192.0.2.1/24 dev up0")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        nic = replace(NIC, mode="routed", link="", ip="10.9.7.5")
        with guest_with(machine, nic) as (device, plugged):
            assert plugged.notices == []
            configure(machine, device, "10.9.7.5/32", f"route add default dev {device}")
            machine.console.run("ping -c 1 -W 5 192.0.2.2")
            machine.console.run("ping -c 1 -W 5 10.9.0.1")
        ip("address del 192.0.2.1/24 dev up0")
        subprocess.run([*inside, "link", "set", "up1", "netns", str(os.getpid())], check=True)
    finally:
        world.kill()
        world.communicate()


@pytest.mark.parametrize("queues", [1, 2])
def test_a_macvtap_device(machine: Machine, queues: int) -> None:
    ip("address add 10.8.0.1/24 dev up1")
    with guest_with(machine, replace(NIC, mode="macvtap", link="up0", queues=queues)) as (device, _):
        configure(machine, device, "10.8.0.2/24")
        assert "1 packets received" in machine.console.run("ping -c 1 -W 5 10.8.0.1")
    ip("address del 10.8.0.1/24 dev up1")


def test_open_vswitch(machine: Machine, tmp_path: Path) -> None:
    with open_vswitch(tmp_path / "ovs") as switch:
        for bridge, vlan in (("ovs0", 0), ("ovs1", 7)):
            switch.add_bridge(bridge)
            if vlan:
                switch.vsctl("add-port", bridge, "in7", "tag=7", "--", "set", "interface", "in7", "type=internal")
            inside = "in7" if vlan else bridge
            ip(f"address add 10.7.{vlan}.1/24 dev {inside}")
            ip(f"link set {inside} up")
            with guest_with(machine, replace(NIC, mode="ovs", link=bridge, vlan=vlan or None)) as (device, _):
                configure(machine, device, f"10.7.{vlan}.2/24")
                machine.console.run(f"ping -c 1 -W 5 10.7.{vlan}.1")
            assert NAME not in switch.vsctl("list-ports", bridge)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_hotplugs_leave_nothing(machine: Machine) -> None:
    """The network's fixture counts ours; here are QEMU's."""

    def fds() -> int:
        return len(os.listdir(f"/proc/{machine.pid}/fd"))

    def plug_in(times: int) -> None:
        for number in range(times):
            with guest_with(machine, replace(NIC, queues=number % 2 + 1)):
                pass

    plug_in(2)
    time.sleep(1)  # of a monitor that was left QEMU learns in its own time
    before = fds()
    plug_in(98)
    time.sleep(1)
    assert fds() == before
