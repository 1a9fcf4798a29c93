"""An instance that goes from one node to another, step by step: two nodes' folders on one host, real guests."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import waiting
from drover.errors import BinaryError, InstanceExists, MigrationError, NoRoom, NotSupported, Overtaken, WrongState
from drover.kvm import room
from drover.kvm.handover import Settings
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.record import Runtime, runtime_of
from drover.kvm.spec import parse
from drover.kvm.state import State
from drover.kvm.taps import open_tap
from instances import bare, bootable, say, temporary_node, wait_for_shell
from machines import qemu_of
from netns import Cable, Network
from noded import Noded, running

wait_for = partial(waiting.wait_for, timeout=60)

OLD = {"type": "pc-q35-7.2"}  # a type that both have
PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]


@pytest.fixture
def there() -> Iterator[Node]:
    """The other node."""
    with temporary_node() as node:
        yield node


def begin(vm: Instance, there: Node, epoch: int, emulator: str = "", **settings: Any) -> Instance:
    """Accept it there, and send it, until it stands before the switch."""
    wanted = Settings(**settings)
    arrival = there.accept(
        vm.parcel(), "tcp:127.0.0.1:0", epoch=epoch, other="here", settings=wanted, emulator=emulator
    )
    vm.send(f"tcp:127.0.0.1:{arrival.listens[0]['port']}", epoch=epoch, other="there", settings=wanted)
    wait_for(lambda: vm.going().migration.status in ("pre-switchover", "failed"))
    assert vm.going().migration.status == "pre-switchover", vm.going()
    return there.instance(vm.name)


def go(vm: Instance, arrived: Instance, epoch: int) -> None:
    """The rest of the way."""
    vm.switch_over(epoch=epoch)
    wait_for(lambda: (vm.going().migration.status, vm.going().run_state) == ("completed", "postmigrate"))
    wait_for(lambda: (arrived.going().migration.status, arrived.going().run_state) == ("completed", "paused"))
    arrived.finish_passage(epoch=epoch)
    vm.finish_passage(epoch=epoch)


def runs(vm: Instance) -> Runtime:
    condition = vm.show()
    assert condition.state is State.RUNNING
    assert condition.document.runtime is not None
    return condition.document.runtime


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_it_goes_and_comes_back(node: Node, there: Node, tmp_path: Path, old: str, new: str) -> None:
    """With a disk, a card whose cable is out, and what was plugged in since: it is the same guest everywhere."""
    image = tmp_path / "a.img"
    image.write_bytes(b"\0" * (1 << 20))
    spec = bootable(old, "a", machine=OLD, restart="always", nics=[{"mode": "user", "link_state": "down"}])
    vm = node.create(parse(spec))
    vm.start()
    wait_for_shell(vm)
    say(vm, "echo here >/tmp/mark")
    disk = vm.add_disk(source=str(image), format="raw")
    arrived = begin(vm, there, 1, str(qemu_of(new)))
    go(vm, arrived, 1)
    runtime = runs(arrived)
    assert runtime.version[0] == int(new.split(".", maxsplit=1)[0])
    assert "here" in say(arrived, "cat /tmp/mark")
    assert [each.id for each in runtime.spec.disks] == [disk.id]
    assert arrived.verify().agrees, [fact for fact in arrived.verify().facts if fact.differs]
    left = vm.show()
    assert (left.state, left.document.last_stop and left.document.last_stop.reason) == (State.STOPPED, "migrated")
    assert left.document.restart is None  # it is not to run here, whatever its policy says
    with pytest.raises(WrongState, match="gone to there"):
        vm.start()
    back = begin(arrived, node, 2, str(qemu_of(old)))
    go(arrived, back, 2)
    assert "here" in say(back, "cat /tmp/mark")
    back.remove_disk(disk.id, timeout=30)
    assert back.verify().agrees
    back.kill()
    assert there.instance("a").show().document.passage is not None
    there.delete("a")


def test_it_does_not_go(node: Node, there: Node, version: str) -> None:
    """Before the switch: it runs on here, and of the other side nothing stays. Then it goes after all."""
    vm = node.create(parse(bare(version, "a")))
    vm.start()
    begin(vm, there, 1)
    assert there.abort_passage("a", epoch=1) == "none"
    assert there.names == []
    assert vm.abort_passage(epoch=1) in ("cancelled", "failed")
    runs(vm)
    assert vm.show().document.passage is None
    assert vm.abort_passage(epoch=1) == "none"
    arrived = begin(vm, there, 2)
    go(vm, arrived, 2)
    runs(arrived)
    arrived.kill()


def test_who_was_overtaken_changes_nothing(node: Node, there: Node) -> None:
    vm = node.create(parse(bare("7.2", "a")))
    vm.start()
    arrived = begin(vm, there, 5)
    for side, act in (
        (vm, lambda: vm.switch_over(epoch=4)), (vm, lambda: vm.finish_passage(epoch=4)),
        (vm, lambda: vm.abort_passage(epoch=6)), (vm, lambda: vm.send("unix:/nowhere", epoch=5, other="x")),
        (arrived, lambda: arrived.finish_passage(epoch=4)), (arrived, lambda: arrived.switch_over(epoch=5)),
        (arrived, lambda: there.abort_passage("a", epoch=4)),
        (arrived, lambda: there.accept(vm.parcel(), "unix:/nowhere", epoch=4, other="here")),
    ):  # fmt: skip
        with pytest.raises(Overtaken):
            act()
        assert side.show().document.passage is not None
    with pytest.raises(MigrationError, match="has not arrived"):
        arrived.finish_passage(epoch=5)
    with pytest.raises(MigrationError, match="has not left"):
        vm.finish_passage(epoch=5)
    with pytest.raises(InstanceExists):
        node.accept(vm.parcel(), "unix:/nowhere", epoch=6, other="there")
    go(vm, arrived, 5)
    with pytest.raises(MigrationError, match="has gone to"):
        vm.abort_passage(epoch=5)
    for again in (vm, arrived):
        again.finish_passage(epoch=5)  # twice is once
    assert arrived.abort_passage(epoch=5) == "none"
    runs(arrived)
    arrived.kill()


def test_what_is_on_its_way_is_left_alone(node: Node, there: Node, version: str) -> None:
    """`cont` alone would make two of it: at the target it arms the start, and a source that has sent all runs again."""
    vm = node.create(parse(bare(version, "a")))
    vm.start()
    arrived = begin(vm, there, 1)

    def refuse(side: Instance, words: str) -> None:
        for act in (
            side.resume, side.go_on, side.pause, side.reset, lambda: side.add_nic(mode="user"),
            lambda: side.reboot(timeout=1), lambda: side.balloon(32 << 20),
        ):  # fmt: skip
            with pytest.raises(WrongState, match=words):
                act()

    refuse(vm, "on its way to there")
    refuse(arrived, "arriving from here")
    vm.switch_over(epoch=1)
    wait_for(lambda: (vm.going().migration.status, vm.going().run_state) == ("completed", "postmigrate"))
    wait_for(lambda: (arrived.going().migration.status, arrived.going().run_state) == ("completed", "paused"))
    refuse(vm, "on its way to there")
    refuse(arrived, "arriving from here")
    assert (vm.going().run_state, arrived.going().run_state) == ("postmigrate", "paused")
    with pytest.raises(MigrationError, match="is here"):
        there.abort_passage("a", epoch=1)  # the only one that has all of it
    arrived.finish_passage(epoch=1)
    vm.finish_passage(epoch=1)
    with pytest.raises(WrongState, match="gone to there"):
        vm.start()
    arrived.pause()
    arrived.resume()
    runs(arrived)
    with pytest.raises(Overtaken):
        arrived.send("unix:/nowhere", epoch=1, other="here")  # from somebody who was overtaken by what has ended
    arrived.kill()


def test_either_qemu_dies(node: Node, there: Node) -> None:
    """Nobody starts it by itself: who owns it has to say where it runs."""
    vm = node.create(parse(bare("10.0", "a", restart="always")))
    vm.start()
    arrived = begin(vm, there, 1)
    pid = arrived.show().document.runtime.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: arrived.mend() != [] or arrived.show().state is State.STOPPED)
    assert arrived.show().document.restart is None
    with pytest.raises(WrongState, match="arriving from here"):
        arrived.start()
    there.abort_passage("a", epoch=1)
    assert there.names == []
    vm.abort_passage(epoch=1)
    wait_for(lambda: vm.show().state is State.RUNNING)
    begin(vm, there, 2)
    os.kill(runs_or_waits(vm), signal.SIGKILL)
    wait_for(lambda: vm.mend() != [] or vm.show().state is State.STOPPED)
    assert vm.show().document.restart is None
    with pytest.raises(WrongState, match="on its way to there"):
        vm.start()
    with pytest.raises(MigrationError, match="nobody has seen"):
        vm.finish_passage(epoch=2)
    there.abort_passage("a", epoch=2)


def runs_or_waits(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime.pid


def test_what_cannot_be(node: Node, there: Node) -> None:
    vm = node.create(parse(bare("10.0", "a")))
    with pytest.raises(WrongState):
        vm.parcel()
    vm.start()
    with open_tap("drtest%d") as tap:
        card = vm.add_nic(mode="fd", fds=tap.fds)
    with pytest.raises(NotSupported, match=f"{card.id} .*to be taken out before"):
        vm.parcel()
    vm.kill()
    other = node.create(parse(bare("10.0", "b")))
    other.start()
    parcel = other.parcel()
    with pytest.raises(BinaryError):
        there.accept(parcel, "unix:/x", epoch=1, other="here", emulator="/none")
    assert there.names == []
    other.kill()


def test_two_never_share_one_gap(node: Node, there: Node) -> None:
    """Each would fit alone, and neither has taken its memory yet when the other one comes."""
    size = room.look(there.host.paths).free["off"] * 6 // 10 >> 20 << 20
    for name in "ab":
        node.create(parse(bare("10.0", name, memory={"size": size}))).start()
    there.accept(node.instance("a").parcel(), "tcp:127.0.0.1:0", epoch=1, other="here")
    with pytest.raises(NoRoom, match="promised to a"):
        there.accept(node.instance("b").parcel(), "tcp:127.0.0.1:0", epoch=1, other="here")
    assert there.names == ["a"]
    there.abort_passage("a", epoch=1)
    there.accept(node.instance("b").parcel(), "tcp:127.0.0.1:0", epoch=1, other="here")
    there.abort_passage("b", epoch=1)


def test_by_the_daemons(node: Node, there: Node, tmp_path: Path) -> None:
    """The same steps as calls, of two real daemons: a job each; an answer that was lost is asked for again."""
    with running(node.host.paths, tmp_path / "log") as here, running(there.host.paths, tmp_path / "there") as other:
        here.create(bootable("7.2", "a", machine=OLD, vnc={"password": "Unspoken"}))
        here.do("start", "a")
        wait_for_shell(node.instance("a"))
        status, parcel = here.call("GET", "/v1/instances/a/parcel")
        assert status == 200
        asked = {"parcel": parcel, "uri": "tcp:127.0.0.1:0", "epoch": 1, "other": "here"}
        asked |= {"emulator": str(qemu_of("10.0"))}
        arrival = [other.do("migration-accept", "a", **asked) for _ in range(2)]
        assert arrival[0]["listens"] == arrival[1]["listens"]
        assert other.rows()["a"]["state"] == "migrating"
        uri = f"tcp:127.0.0.1:{arrival[0]['listens'][0]['port']}"
        here.do("migration-start", "a", uri=uri, epoch=1, other="there")

        def going(side: Noded) -> tuple[str, str]:
            told = side.call("GET", "/v1/instances/a/migration")[1]
            return told["migration"]["status"], told["run_state"]

        wait_for(lambda: going(here)[0] == "pre-switchover")
        other.kill()
        other.start()
        here.do("migration-continue", "a", epoch=1)
        wait_for(lambda: going(here) == ("completed", "postmigrate") and going(other) == ("completed", "paused"))
        status, told = other.call("POST", "/v1/instances/a/migration-finish", {"epoch": 2})
        assert (status, told["code"]) == (409, "overtaken")
        for _ in range(2):
            other.do("migration-finish", "a", epoch=1)
            here.do("migration-finish", "a", epoch=1)
        assert (here.rows()["a"]["state"], other.rows()["a"]["state"]) == ("stopped", "running")
        assert other.rows()["a"]["version"].startswith("10.")
        assert here.call("POST", "/v1/instances/a/start", {})[1]["code"] == "wrong-state"
        for side in (here, other):
            assert "Unspoken" not in side.log_path.read_text()
            assert "Unspoken" not in str(side.call("GET", "/v1/jobs"))
        other.do("kill", "a")


def test_the_tap_of_one_that_comes_is_as_it_is_to_be(node: Node, there: Node) -> None:
    """It is off until its machine is here: nothing to tell of, nor to repair. And whether it comes by TLS is told."""
    with closing(Network()) as one, closing(Network()) as two:
        cable = Cable(one, two)
        for end in cable.ends:
            end.ip("link add br0 type bridge")
            end.ip("link set br0 up")
        with one.entered():
            vm = node.create(parse(bare("10.0", "a", nics=[{"mode": "bridge", "link": "br0"}])))
            vm.start()
        with two.entered():
            arrival = there.accept(vm.parcel(), f"tcp:{cable.addresses[1]}:0", epoch=1, other="here")
            arrived = there.instance("a")
            tap = runtime_of(arrived.show().document).devices["nic0"].tap
            for _ in range(2):
                assert "DOWN" in two.ip(f"-brief link show dev {tap}").split()
                differing = [fact.what for fact in arrived.verify().facts if fact.differs]
                assert [what for what in differing if "nic0" in what] == []
                arrived.repair()
            assert arrived.going().tls is False
        vm.send(f"tcp:{cable.addresses[1]}:{arrival.listens[0]['port']}", epoch=1, other="there")
        wait_for(lambda: vm.going().migration.status == "pre-switchover")
        with two.entered():
            go(vm, arrived, 1)
            assert arrived.verify().agrees
            assert ",UP," in two.ip(f"-brief link show dev {tap}")
