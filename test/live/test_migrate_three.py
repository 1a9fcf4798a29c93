"""Three nodes: a machine goes round, two come to one at once, and one that was cut off learns where it went."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import waiting
from instances import bare, bootable, say, wait_for_shell
from machines import qemu_of
from noded import later
from pairs import Trio, ended, three_nodes

wait_for = partial(waiting.wait_for, timeout=60)
MIB = 1 << 20
OLD = {"machine": {"type": "pc-q35-7.2"}, "cpu": {"model": "qemu64"}}  # what both versions have


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    with three_nodes(tmp_path) as trio:
        yield trio


def booted(trio: Trio, version: str) -> None:
    """A guest on the first, which knows a word."""
    daemon = trio.members[0].daemon
    daemon.create(bootable(version, "vm", **OLD))
    daemon.do("start", "vm")
    guest = trio.members[0].node.instance("vm")
    wait_for_shell(guest)
    say(guest, "word=it-is-me")


def test_it_goes_round(trio: Trio) -> None:
    """And is on one node only, wherever it has come."""
    booted(trio, "7.2")
    for here, there, version in ((0, 1, "10.0"), (1, 2, "7.2"), (2, 0, "10.0"), (0, 2, "7.2"), (2, 1, "7.2")):
        pair = trio.pair(here, there)
        assert pair.move("vm", emulator=str(qemu_of(version)))["node"] == "abc"[there]
        assert {node: state for node, state in trio.states("vm").items() if state != "stopped"} == {
            "abc"[there]: "running"
        }
        assert "it-is-me" in say(pair.there.node.instance("vm"), "echo $word")


def test_two_nodes_are_to_have_it(trio: Trio) -> None:
    """It goes to the one that was asked first; the second question waits for that, and the other one gets nothing."""
    booted(trio, "10.0")
    number = trio.pair(0, 1).begin("vm", "memory", bandwidth=16 * MIB)
    status, answer = trio.pair(0, 2).ask("vm")
    assert (status, answer["code"]) == (409, "wrong-state"), answer
    assert "gone to b" in answer["detail"]
    told = ended(trio.members[0].daemon, number)
    assert (told["state"], told["result"]["node"]) == ("done", "b")
    assert "c" not in trio.states("vm")
    assert "it-is-me" in say(trio.members[1].node.instance("vm"), "echo $word")


def test_two_come_at_once(trio: Trio) -> None:
    """From two nodes to the third."""
    first, second, third = (member.daemon for member in trio.members)
    for daemon, name in ((first, "one"), (second, "two")):
        daemon.create(bare("10.0", name))
        daemon.do("start", name)
    where = trio.members[2].address
    numbers = [later(first, "migrate", "one", node=where), later(second, "migrate", "two", node=where)]
    for daemon, number in zip((first, second), numbers, strict=True):
        assert ended(daemon, number)["state"] == "done", trio.pair(0, 2).faults()
    assert {name: row["state"] for name, row in third.rows().items()} == {"one": "running", "two": "running"}


def test_it_goes_elsewhere_when_one_is_cut_off(trio: Trio) -> None:
    """What waits there is not asked any more, and cannot ask; when it can, it learns that it is not to run."""
    booted(trio, "10.0")
    daemon, silent = trio.members[0].daemon, trio.members[1].daemon
    number = trio.pair(0, 1).begin("vm", "memory", bandwidth=4 * MIB)
    trio.star.silence(1)
    daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(daemon, number)["state"] == "cancelled"
    wait_for(lambda: daemon.rows()["vm"]["state"] == "running")
    assert silent.rows()["vm"]["state"] == "migrating"
    assert trio.pair(0, 2).move("vm")["node"] == "c"
    assert trio.states("vm")["c"] == "running"
    assert trio.states("vm")["b"] == "migrating"
    trio.star.mend(1)
    wait_for(lambda: "vm" not in silent.rows())
    assert trio.states("vm")["c"] == "running"
    assert "it-is-me" in say(trio.members[2].node.instance("vm"), "echo $word")
    assert trio.pair(2, 1).move("vm")["node"] == "b"  # which takes it as any other
    assert "it-is-me" in say(trio.members[1].node.instance("vm"), "echo $word")
