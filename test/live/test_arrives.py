"""What a machine has arrives with it: what it was started with, what was changed, and what was plugged in since."""

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import waiting
from drover import QmpConnection
from drover.kvm.instance import Instance
from drover.kvm.record import Runtime
from drover.testing.agent_image import agent_image
from instances import SHELL, Guest, bare, bootable
from machines import qemu_of
from pairs import Pair, ended, two_nodes
from people import Member
from stream import Announcements, Stream
from vnc import login

wait_for = partial(waiting.wait_for, timeout=60)
MIB = 1 << 20
OLD = {"type": "pc-q35-7.2"}  # a type that both have
PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
PASSWORD = "Unspoken"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Each has a network of its own, with a bridge."""
    with two_nodes(tmp_path, apart=True) as pair:
        assert pair.cable is not None
        for end in pair.cable.ends:
            end.ip("link add br0 type bridge")
            end.ip("link set br0 up")
        yield pair


def image(path: Path) -> str:
    path.write_bytes(os.urandom(MIB))
    return str(path)


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def rich(version: str, tmp_path: Path) -> dict[str, Any]:
    """A machine with all that a specification can say of what has to arrive."""
    with_agent = agent_image()
    document = bootable(
        version, "a", f"{SHELL} memhp_default_state=online_movable", machine=OLD | {"usb": True},
        memory={"size": 256 * MIB, "max": 1024 * MIB, "slots": 4},
        cpu={"model": "qemu64", "count": 1, "max": 3, "pinning": ["0", "1"]},
        vnc={"password": PASSWORD}, nics=[{"mode": "bridge", "link": "br0"}, {"mode": "user"}],
        disks=[{"source": image(tmp_path / "cold.img"), "format": "raw", "throttle": {"iops_total": 700}}],
    )  # fmt: skip
    document["boot"] |= {"kernel": str(with_agent.kernel), "initrd": str(with_agent.initrd)}
    return document


def plug(member: Member, tmp_path: Path) -> None:
    """All that can be plugged in and changed while it runs."""
    do = partial(member.daemon.do, name="a")
    do("add-disk", id="hot", source=image(tmp_path / "hot.img"), format="raw", throttle={"bps_total": 5 * MIB})
    do("add-disk", id="scsi", source=image(tmp_path / "scsi.img"), format="raw", bus="virtio-scsi")
    do("add-nic", id="second", mode="bridge", link="br0")
    for name in ("hot", "second"):
        do("wait-driver", id=name)  # a guest gives names in the order in which it sees devices
    do("add-nic", id="third", mode="user")
    do("wait-driver", id="third")
    do("remove-nic", id="third")  # there is one place less in use than there was, and one port more
    do("add-usb", id="mouse", type="mouse")
    do("add-usb", id="keyboard", type="keyboard")
    do("remove-usb", id="mouse")
    do("set-throttle", id="disk0", limits={"iops_total": 900})
    do("set-link", id="nic1", up=False)
    do("add-memory", size=128 * MIB)
    do("add-memory", size=256 * MIB, type="virtio-mem")
    do("resize-memory", id="vmem0", size=128 * MIB)
    do("set-vcpus", count=2, even_under_tcg=True)
    do("balloon", size=300 * MIB)


def runtime(vm: Instance) -> Runtime:
    found = vm.show().document.runtime
    assert found is not None
    return found


class Arrived:
    """What the guest, QEMU and the host have of it, on the node where it is."""

    def __init__(self, member: Member, guest: Guest) -> None:
        self.vm = member.node.instance("a")
        self.guest = guest
        self.member = member

    def check(self) -> None:
        """One after the other."""
        with QmpConnection(self.vm.host.paths.instance("a").socket("people")) as self.qmp:
            for each in (self.disks, self.cards, self.memory, self.vcpus, self.usb, self.screen):
                each()
        self.console()
        self.agent()
        assert self.member.daemon.network is not None
        with self.member.daemon.network.entered():
            report = self.vm.verify()
        assert report.agrees, [fact for fact in report.facts if fact.differs]

    def disks(self) -> None:
        assert self.qmp.query_disk_throttle("disk0").iops_total == 900
        assert self.qmp.query_disk_throttle("hot").bps_total == 5 * MIB
        assert self.qmp.query_disk_throttle("scsi").iops_total == 0
        said = runtime(self.vm).spec.disks
        assert [disk.id for disk in said] == ["disk0", "hot", "scsi"]
        sums = re.findall(r"([0-9a-f]{32})  (\S+)\r", self.guest.run("md5sum /dev/[vs]d?"))
        names = ("/dev/vda", "/dev/vdb", "/dev/sda")
        images = {name: digest(Path(disk.source)) for name, disk in zip(names, said, strict=True)}
        assert {name: found for found, name in sums} == images

    def cards(self) -> None:
        for number in range(3):
            self.guest.run(f"ip link set eth{number} up")
        carriers = re.findall(r"^([01])\r", self.guest.run("cat /sys/class/net/eth*/carrier"), re.MULTILINE)
        assert carriers == ["1", "0", "1"]
        taps = {device.tap for device in runtime(self.vm).devices.values() if device.tap}
        assert self.member.daemon.network is not None
        ports = self.member.daemon.network.ip("-brief link show master br0")
        assert len(taps) == 2
        assert all(tap in ports for tap in taps)

    def memory(self) -> None:
        sizes = {device.id: device.size for device in self.qmp.list_memory_devices()}
        assert sizes == {"dimm0": 128 * MIB, "vmem0": 128 * MIB}
        assert self.qmp.query_balloon() == 300 * MIB
        assert self.qmp.query_memory().base_memory == 256 * MIB
        assert {name: runtime(self.vm).devices[name].size for name in sizes} == sizes
        assert runtime(self.vm).spec.memory.size == 512 * MIB

    def vcpus(self) -> None:
        assert "cpu1" in self.guest.run("ls /sys/devices/system/cpu")
        pins = [os.sched_getaffinity(cpu.thread_id) for cpu in self.qmp.query_cpus()]
        assert pins == [{0}, {1}]

    def usb(self) -> None:
        assert {name for name, kind in self.qmp.query_devices().items() if kind.startswith("usb-")} == {
            "tablet",
            "keyboard",
        }

    def screen(self) -> None:
        path = self.vm.host.paths.instance("a").private / "vnc"
        assert login(path, PASSWORD)
        assert not login(path, "another")

    def console(self) -> None:
        assert "echo it-is-me" in self.vm.host.paths.instance("a").console_log.read_text()

    def agent(self) -> None:
        told = self.member.daemon.do("agent-exec", "a", path="/bin/cat", args=["/tmp/mark"])
        assert base64.b64decode(told["stdout"]) == b"it-is-me\n"


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_all_of_it_arrives(pair: Pair, tmp_path: Path, old: str, new: str) -> None:
    """There and back again, each time with all of it."""
    pair.here.daemon.create(rich(old, tmp_path))
    pair.here.daemon.do("start", "a")
    with closing(Guest(pair.here.node.instance("a"))) as guest:
        plug(pair.here, tmp_path)
        guest.until("ls /sys/devices/system/cpu", "cpu1", there=True)
        guest.until("ls /dev", "sda", there=True)
        guest.run("echo it-is-me >/tmp/mark")
        wait_for(lambda: pair.here.daemon.call("GET", "/v1/instances/a/agent")[0] == 200)
        Arrived(pair.here, guest).check()
    for back, version in ((False, new), (True, old)):
        report = pair.move("a", back=back, emulator=str(qemu_of(version)))
        assert report["alarms"] == []
        member = pair.here if back else pair.there
        with closing(Guest(member.node.instance("a"), booting=False)) as guest:
            arrived = Arrived(member, guest)
            assert runtime(arrived.vm).version[0] == int(version.split(".", maxsplit=1)[0])
            wait_for(lambda: member.daemon.call("GET", "/v1/instances/a/agent")[0] == 200)  # noqa: B023
            arrived.check()
    for kind, name in (("nic", "nic1"), ("disk", "hot"), ("disk", "scsi"), ("usb", "keyboard")):
        member.daemon.do(f"remove-{kind}", "a", id=name)
    assert pair.move("a", emulator=str(qemu_of(new)))["alarms"] == []  # what they were plugged into is still there
    pair.there.daemon.do("kill", "a")


def test_what_does_not_fit_is_refused(pair: Pair) -> None:
    """Before anything moves, each with its name; it runs on here, and nothing of it is there."""
    new = {"machine": {"type": "pc-q35-10.0"}, "cpu": {"model": "qemu64"}}
    pair.here.daemon.create(bare("10.0", "a", nics=[{"mode": "bridge", "link": "br0"}], **new))
    pair.here.daemon.do("start", "a")
    assert pair.cable is not None
    for words, asked in (("pc-q35-10.0", {"emulator": str(qemu_of("7.2"))}), ("br0", {})):
        if not asked:
            pair.cable.ends[1].ip("link del br0")
        status, answer = pair.ask("a", **asked)
        assert status == 409, answer
        assert words in answer["detail"], answer
        pair.runs_here_alone("a")
    pair.cable.ends[1].ip("link add br0 type bridge")
    assert pair.move("a")["alarms"] == []


# -- packets ---------------------------------------------------------------------------------------------------------

MAC = "52:54:00:00:00:07"
PAUSE = 0.002  # s between two packets
# s that a packet may be on its way, in a host as busy as one with tests is, when its guest is stopped, or has just run
ON_ITS_WAY = 0.02


def trunk(pair: Pair) -> None:
    """Both bridges are one network; what asks is at the first."""
    assert pair.cable is not None
    here, there = pair.cable.ends
    here.ip(f"link add trunk type veth peer name trunk netns {there.path}")
    for end in (here, there):
        end.ip("link set trunk master br0")
        end.ip("link set trunk up")
    here.ip("address add 10.9.0.1/24 dev br0")


class Heard:
    """The moment of an event of a QEMU's, by QEMU's clock, which is the host's."""

    def __init__(self, vm: Instance, event: str) -> None:
        self._qmp = QmpConnection(vm.host.paths.instance("a").socket("people"))
        self._qmp.connect()
        self._events = self._qmp.events(event, timeout=60)
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()
        self.at = 0.0

    def _hear(self) -> None:
        self.at = next(self._events).timestamp

    def wait(self) -> float:
        self._thread.join()
        self._qmp.close()
        return self.at


def talking(member: Member, version: str) -> Instance:
    """A guest that answers, at 10.9.0.2."""
    nics = [{"mode": "bridge", "link": "br0", "mac": MAC}]
    member.daemon.create(bootable(version, "a", machine=OLD, cpu={"model": "qemu64"}, nics=nics))
    member.daemon.do("start", "a")
    vm = member.node.instance("a")
    with closing(Guest(vm)) as guest:
        guest.run("ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up")
    return vm


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_one_that_does_not_go_loses_nothing(pair: Pair, version: str) -> None:
    """Nobody is told that it is elsewhere, and its packets go nowhere else."""
    trunk(pair)
    assert pair.cable is not None
    here, _ = pair.cable.ends
    talking(pair.here, version)
    with Announcements(here, "br0", MAC) as announced, Stream(here, "10.9.0.2", PAUSE) as stream:
        wait_for(lambda: len(stream.answered) > 100)
        number = pair.begin("a", "memory", bandwidth=4 * MIB)
        time.sleep(0.5)
        pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
        assert ended(pair.here.daemon, number)["state"] == "cancelled"
    assert (announced.at, stream.lost) == ([], [])
    pair.runs_here_alone("a")


class Passed:
    """What a stream of packets saw of a migration.

    :ivar report: of the migration
    :ivar lost: when each packet was sent that was
    :ivar begin: when the guest stood still
    :ivar end: when it ran
    """

    def __init__(self, pair: Pair, vm: Instance, **asked: Any) -> None:
        assert pair.cable is not None
        here, there = pair.cable.ends
        tap = runtime(vm).devices["nic0"].tap
        stopped = Heard(vm, "STOP")
        with Announcements(here, "br0", MAC) as announced, Stream(here, "10.9.0.2", PAUSE) as stream:
            wait_for(lambda: len(stream.answered) > 100)
            announce = {"rounds": 3, "initial": 20, "step": 20}
            number = pair.begin("a", "memory", announce=announce, **asked)
            line = there.ip(f"-brief link show master br0 dev {tap}")
            assert "DOWN" in line.split()
            came = json.loads(there.ip(f"-json -statistics link show dev {tap}"))[0]["stats64"]["tx"]["packets"]
            runs = Heard(pair.there.node.instance("a"), "RESUME")
            told = ended(pair.here.daemon, number)
            assert told["state"] == "done", told["error"]
            self.report = told["result"]
            self.begin, self.end = stopped.wait(), runs.wait()
            time.sleep(1.0)
        assert came == 0
        self.lost = [stream.sent[packet] for packet in stream.lost]
        self._announced = announced.at

    def check(self) -> None:
        """Those that were sent while it stood still are lost, and no others."""
        begin, end, lost, announced = self.begin, self.end, self.lost, self._announced
        told = {"stood still for": end - begin, "lost": len(lost), "the first": lost[0] - begin,
                "the last": lost[-1] - end, "announced": [at - end for at in announced]}  # fmt: skip
        print(told)
        assert begin - ON_ITS_WAY <= lost[0] <= lost[-1] <= end + ON_ITS_WAY, told
        assert len(lost) <= (end - begin + 2 * ON_ITS_WAY) / PAUSE, told
        assert len(announced) >= 3, told
        assert announced[0] >= end - ON_ITS_WAY / 2, told  # no switch is told before it is so
        assert announced[0] <= end + ON_ITS_WAY, told


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_no_packet_is_lost_beyond_the_blackout(pair: Pair, old: str, new: str) -> None:
    """None comes in at the other side before."""
    trunk(pair)
    Passed(pair, talking(pair.here, old), emulator=str(qemu_of(new)), bandwidth=32 * MIB).check()


@pytest.mark.usefixtures("faults_by_anybody")
@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_nor_in_a_postcopy(pair: Pair, version: str, *, tls: bool) -> None:
    """Though most of its memory is still to come when it runs there."""
    trunk(pair)
    vm = talking(pair.here, version)
    with closing(Guest(vm, booting=False)) as guest:
        guest.run("helper dirty 300 160")
    seen = Passed(pair, vm, bandwidth=16 * MIB, means=["postcopy"], deadline=60, tls=tls)
    assert (seen.report["helped"], seen.report["tls"]) == (["postcopy"], tls)
    seen.check()
