"""A machine moves between two Open vSwitches: no packet comes in where it is to run before it does."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

import waiting
from instances import Guest, bootable
from pairs import Pair, ended, two_nodes
from stream import Announcements, Stream
from vswitch import Switch, open_vswitch

wait_for = partial(waiting.wait_for, timeout=60)
MIB = 1 << 20
MAC = "52:54:00:00:00:07"
PAUSE = 0.005  # s between two packets; the switch is a program, too
SPARE = 0.1  # s that the switches may be late: 0.03 to 0.05 was seen


@pytest.fixture
def switched(tmp_path: Path) -> Iterator[tuple[Pair, list[Switch]]]:
    """Each node has a switch of its own, and they are joined."""
    with ExitStack() as stack:
        pair = stack.enter_context(two_nodes(tmp_path, apart=True))
        assert pair.cable is not None
        here, there = pair.cable.ends
        here.ip(f"link add trunk type veth peer name trunk netns {there.path}")
        switches = []
        for member, end in zip(pair.both, pair.cable.ends, strict=True):
            member.daemon.end()
            end.ip("link set trunk up")
            with end.entered():
                switch = stack.enter_context(open_vswitch(tmp_path / f"ovs{len(switches)}"))
                switch.add_bridge("br0")
                switch.vsctl("add-port", "br0", "trunk")
            member.daemon.more_env = {name: os.environ[name] for name in ("PATH", "OVS_RUNDIR", "OVS_DBDIR")}
            member.daemon.start()
            switches.append(switch)
        here.ip("address add 10.9.0.1/24 dev br0")
        here.ip("link set br0 up")
        yield pair, switches


@pytest.mark.alone
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_no_packet_comes_too_early(switched: tuple[Pair, list[Switch]], version: str) -> None:
    pair, (ours, theirs) = switched
    assert pair.cable is not None
    here, there = pair.cable.ends
    nics = [{"mode": "ovs", "link": "br0", "mac": MAC}]
    pair.here.daemon.create(bootable(version, "a", nics=nics))
    pair.here.daemon.do("start", "a")
    vm = pair.here.node.instance("a")
    runtime = vm.show().document.runtime
    assert runtime is not None
    tap = runtime.devices["nic0"].tap
    with closing(Guest(vm)) as guest:
        guest.run("ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up")
    with Announcements(here, "br0", MAC) as announced, Stream(here, "10.9.0.2", PAUSE) as stream:
        wait_for(lambda: len(stream.answered) > 100)
        number = pair.begin("a", "memory", bandwidth=32 * MIB)
        assert tap in theirs.vsctl("list-ports", "br0").split()
        assert "DOWN" in there.ip(f"-brief link show dev {tap}").split()
        came = json.loads(there.ip(f"-json -statistics link show dev {tap}"))[0]["stats64"]["tx"]["packets"]
        told = ended(pair.here.daemon, number)
        assert told["state"] == "done", told["error"]
        wait_for(lambda: max(stream.answered) > max(stream.sent) - 20)
        wait_for(lambda: len(announced.at) >= 3)
    assert came == 0
    lost = [stream.sent[packet] for packet in stream.lost]
    print({"stood still for": told["result"]["blackout_ms"], "lost": len(lost), "for": max(lost) - min(lost)})
    assert max(lost) - min(lost) < told["result"]["blackout_ms"] / 1000 + SPARE
    assert tap in theirs.vsctl("list-ports", "br0").split()
    wait_for(lambda: tap not in ours.vsctl("list-ports", "br0").split())
    report = pair.there.node.instance("a").show().document.runtime
    assert report is not None
    assert report.devices["nic0"].tap == tap
