"""A machine moves between two nodes by their daemons: real processes, certificates, and booted guests."""

import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import waiting
from drover import QmpConnection
from drover.kvm.faults import DEVICE
from drover.kvm.process import locks, may_lock
from drover.kvm.record import load
from drover.node.desk import STORE
from drover.store.jobs import Jobs
from drover.store.sqlite import SqliteStore
from instances import SHELL, bare, bootable, say, temporary_node, wait_for_shell
from machines import qemu_of
from pairs import Pair, ended, faults_by_anybody, two_nodes

wait_for = partial(waiting.wait_for, timeout=60)
OLD = {"type": "pc-q35-7.2"}  # a type that both have
CPU = {"model": "qemu64"}  # one that is the same in both
PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
MIB = 1 << 20


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_moves(pair: Pair, version: str) -> None:
    """A machine with nothing in it; and what is told of that."""
    pair.here.daemon.create(bare(version, "a"))
    pair.here.daemon.do("start", "a")
    report = pair.move("a")
    assert report["node"] == "b"
    assert report["steps"].keys() >= {"plan", "prepare", "memory", "switchover", "commit", "finish"}
    assert report["alarms"] == []
    assert 0 < report["blackout_ms"] < 1000 * report["seconds"]
    assert pair.there.daemon.rows()["a"]["state"] == "running"
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "stopped")
    status, answer = pair.here.daemon.call("POST", "/v1/instances/a/start", {})
    assert (status, answer["code"]) == (409, "wrong-state")
    assert "gone to b" in answer["detail"]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_guest_goes_and_comes_back(pair: Pair, old: str, new: str) -> None:
    """It is the same guest everywhere; by several connections on the way back."""
    pair.here.daemon.create(bootable(old, "a", SHELL, machine=OLD, cpu=CPU))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "word=it-is-me")
    pair.move("a", emulator=str(qemu_of(new)))
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")
    report = pair.move("a", back=True, emulator=str(qemu_of(old)), multifd=2, compression="zstd")
    assert report["node"] == "a"
    assert "it-is-me" in say(here, "echo $word")


def test_it_is_cancelled(pair: Pair) -> None:
    pair.here.daemon.create(bootable("10.0", "a"))
    pair.here.daemon.do("start", "a")
    wait_for_shell(pair.here.node.instance("a"))
    number = pair.begin("a", "memory", bandwidth=MIB)
    status, answer = pair.here.daemon.call("POST", "/v1/instances/a/stop", {})
    assert (status, answer["code"]) == (409, "instance-busy")
    assert "its migration to b" in answer["detail"]
    wait_for(lambda: pair.here.daemon.call("GET", "/v1/instances/a/migration")[1]["progress"]["transferred"] > 0)
    assert pair.here.daemon.rows()["a"]["state"] == "migrating"
    assert pair.there.daemon.rows()["a"]["state"] == "migrating"
    pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(pair.here.daemon, number)["state"] == "cancelled"
    pair.runs_here_alone("a")
    assert pair.move("a")["node"] == "b"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_is_cancelled_before_anybody_answers(tmp_path: Path, version: str) -> None:
    """What goes to the QEMU there gets no answer, as behind a firewall; the kernel would try for two minutes."""
    with two_nodes(tmp_path, apart=True) as pair:
        assert pair.cable is not None
        pair.here.daemon.create(bare(version, "a"))
        pair.here.daemon.do("start", "a")
        pair.cable.ends[1].ip("rule add ipproto tcp sport 32768-60999 dport 32768-60999 blackhole")
        number = pair.begin("a", "memory", tls=False)
        time.sleep(0.5)
        pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
        assert ended(pair.here.daemon, number)["state"] == "cancelled"
        pair.runs_here_alone("a")
        pair.cable.ends[1].ip("rule del ipproto tcp sport 32768-60999 dport 32768-60999 blackhole")
        assert pair.move("a")["node"] == "b"


def test_it_is_given_up_in_time(pair: Pair) -> None:
    pair.here.daemon.create(bootable("7.2", "a"))
    pair.here.daemon.do("start", "a")
    wait_for_shell(pair.here.node.instance("a"))
    status, answer = pair.ask("a", bandwidth=MIB, deadline=8)
    assert status == 500 or status == 409, answer
    assert "it stays where it was" in answer["detail"] or "stays where it was" in answer["detail"]
    assert "deadline" in answer["detail"]
    pair.runs_here_alone("a")


def test_what_is_refused(pair: Pair) -> None:
    pair.here.daemon.create(bare("10.0", "a"))
    status, answer = pair.ask("a")
    assert (status, answer["code"]) == (409, "wrong-state")
    pair.here.daemon.do("start", "a")
    status, answer = pair.ask("a", node=pair.here.address)
    assert (status, answer["errors"][0]["field"]) == (422, "node")
    status, answer = pair.ask("a", node="127.0.0.1:1")
    assert "127.0.0.1:1 is not to be reached" in answer["detail"]
    status, answer = pair.ask("a", emulator="/nowhere/qemu")
    assert "/nowhere/qemu" in answer["detail"]
    pair.runs_here_alone("a")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_daemon_is_killed_once_it_was_cancelled(pair: Pair, version: str) -> None:
    """The next one cancels it, also where all but the last of it is sent by then."""
    pair.here.daemon.create(bare(version, "a"))
    pair.here.daemon.do("start", "a")
    number = pair.begin("a", "memory", bandwidth=128 << 10)
    pair.here.daemon.send_signal(signal.SIGSTOP)
    with SqliteStore(pair.here.paths.state / STORE) as store:
        Jobs(store).ask_cancel(number)
    pair.here.daemon.kill()
    people = pair.here.paths.instance("a").socket("people")
    with QmpConnection(people, timeout=10) as vm:
        wait_for(lambda: vm.query_migrate().status == "pre-switchover")
    pair.here.daemon.start()
    assert ended(pair.here.daemon, number)["state"] == "cancelled"
    pair.runs_here_alone("a")


@pytest.mark.parametrize("side", ["here", "there", "both"])
def test_a_daemon_is_killed_in_the_middle(pair: Pair, side: str) -> None:
    """The next one takes it up, and brings it to its end."""
    pair.here.daemon.create(bootable("10.0", "a"))
    pair.here.daemon.do("start", "a")
    wait_for_shell(pair.here.node.instance("a"))
    number = pair.begin("a", "memory", bandwidth=8 * MIB)
    killed = [pair.here, pair.there] if side == "both" else [getattr(pair, side)]
    for each in killed:
        each.daemon.kill()
    for each in killed:
        each.daemon.start()
    told = ended(pair.here.daemon, number)
    assert told["state"] == "done", (told["error"], pair.faults())
    wait_for(lambda: pair.there.daemon.rows()["a"]["state"] == "running")
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "stopped")


def test_two_share_the_link(pair: Pair) -> None:
    """Each has half of what their node allows; who is left has all. The other node has its say, too."""
    whole = 128 << 10
    for member, limit in ((pair.here, whole), (pair.there, 3 * whole // 4)):
        member.daemon.end()
        member.daemon.options = [*member.daemon.options, "--limit", f"migration_bandwidth={limit}"]
        member.daemon.start()
    for name in ("a", "b"):
        pair.here.daemon.create(bare("10.0", name))
        pair.here.daemon.do("start", name)

    def allowed(name: str) -> int:
        told: dict[str, int] = pair.here.daemon.do("qmp", name, execute="query-migrate-parameters")
        return told["max-bandwidth"]

    jobs = {name: pair.begin(name, "memory") for name in ("a", "b")}
    wait_for(lambda: allowed("a") == allowed("b") == 3 * whole // 8)
    pair.here.daemon.call("POST", f"/v1/jobs/{jobs['b']}/cancel")
    assert ended(pair.here.daemon, jobs["b"])["state"] == "cancelled"
    wait_for(lambda: allowed("a") == 3 * whole // 4)
    assert ended(pair.here.daemon, jobs["a"])["state"] == "done"


@pytest.fixture
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    """QEMU runs as a user of its own, and 7.2 knows no other way to catch the faults of its guest's memory."""
    version: str = request.param
    with faults_by_anybody(version == "7.2"):
        yield version


@pytest.mark.parametrize("version", ["7.2", "10.0"], indirect=True)
def test_it_is_finished_by_postcopy(pair: Pair, version: str) -> None:
    """A guest that makes more dirty than goes over: it runs there, and fetches the rest.

    Nobody has rights; 10.0 is let open the device that it takes, for so long.
    """
    device = Path(DEVICE).stat().st_mode
    pair.here.daemon.create(bootable(version, "a"))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "word=it-is-me; helper dirty 300 160")
    report = pair.move("a", bandwidth=16 * MIB, means=["postcopy"], deadline=40)
    assert report["helped"] == ["postcopy"]
    assert ("postcopy-preempt" in report["capabilities"]) is (version != "7.2")
    assert report["blackout_ms"] < 5000  # and not for all that it makes dirty, some 20 s
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "stopped")
    assert pair.there.node.instance("a").show().document.runtime.uid  # type: ignore[union-attr]
    assert Path(DEVICE).stat().st_mode == device


@pytest.mark.usefixtures("faults_by_anybody")
@pytest.mark.parametrize(("old", "new", "preempt"), [(*PAIRS[2], True), (*PAIRS[3], True), (*PAIRS[1], False)])
def test_postcopy_between_versions(pair: Pair, old: str, new: str, *, preempt: bool) -> None:
    """By one connection or two."""
    pair.here.daemon.create(bootable(old, "a", machine=OLD, cpu=CPU))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "word=it-is-me; helper dirty 300 160")
    asked = {"bandwidth": 16 * MIB, "means": ["postcopy"], "deadline": 60, "postcopy_preempt": preempt}
    report = pair.move("a", emulator=str(qemu_of(new)), **asked)
    assert report["helped"] == ["postcopy"]
    assert ("postcopy-preempt" in report["capabilities"]) is preempt
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")


ZERO_COPY = {"zero_copy": True, "multifd": 2, "tls": False}


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_without_a_copy(pair: Pair, old: str, new: str) -> None:
    """QEMU, which has no rights, may lock its memory for that; cancelled, the next one goes as ever."""
    pair.here.daemon.create(bootable(old, "a", machine=OLD, cpu=CPU))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "word=it-is-me; dd if=/dev/urandom of=/tmp/noise bs=1M count=32 2>/dev/null")
    runtime = here.show().document.runtime
    assert runtime is not None
    if not may_lock(runtime.pid, 512 * MIB):
        pytest.skip(f"we may not let a process lock more than {locks(runtime.pid)} bytes: no CAP_SYS_RESOURCE")
    before = locks(runtime.pid)
    number = pair.begin("a", "memory", emulator=str(qemu_of(new)), bandwidth=MIB, **ZERO_COPY)
    assert before < 256 * MIB < locks(runtime.pid)
    wait_for(lambda: pair.here.daemon.call("GET", "/v1/instances/a/migration")[1]["progress"]["transferred"] > 0)
    pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(pair.here.daemon, number)["state"] == "cancelled"
    report = pair.move("a", emulator=str(qemu_of(new)), **ZERO_COPY)
    assert {"multifd", "zero-copy-send"} <= set(report["capabilities"])
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")
    report = pair.move("a", back=True, emulator=str(qemu_of(old)))
    assert not {"multifd", "zero-copy-send"} & set(report["capabilities"])
    assert "it-is-me" in say(here, "echo $word")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"tls": True}, "tls with zero-copy-send: it sends memory as it is"),
        ({"compression": "zstd"}, "zero-copy-send: it sends memory as it is"),
        ({"multifd": 0}, "zero-copy-send: only multifd does without a copy"),
        ({"postcopy": True}, "multifd with postcopy-ram"),
    ],
)
def test_what_does_not_go_without_a_copy(pair: Pair, asked: dict[str, Any], why: str) -> None:
    """Is told, with what to do."""
    pair.here.daemon.create(bare("10.0", "a"))
    pair.here.daemon.do("start", "a")
    runtime = pair.here.node.instance("a").show().document.runtime
    assert runtime is not None
    (*locked,) = [each["why"] for each in pair.move("a", check=True, **ZERO_COPY)["blockers"]]
    may = may_lock(runtime.pid, 512 * MIB)
    assert locked == ([] if may else ["zero-copy-send: the kernel locks what it has not sent yet"])
    status, answer = pair.ask("a", **ZERO_COPY | asked)
    assert (status, answer["code"]) == (409, "migration-blocked")
    assert any(why in each["why"] and each["remedy"] for each in answer["blockers"]), answer
    pair.runs_here_alone("a")


def test_postcopy_is_refused_where_it_cannot_be(pair: Pair) -> None:
    """Before anything moves."""
    pair.here.daemon.create(bare("7.2", "a"))
    pair.here.daemon.do("start", "a")
    with faults_by_anybody(allowed=False):
        status, answer = pair.ask("a", postcopy=True)
    assert (status, answer["code"]) == (409, "migration-blocked")
    assert "sysctl -w vm.unprivileged_userfaultfd=1, there" in answer["detail"]
    pair.runs_here_alone("a")


def test_as_it_is_typed(pair: Pair) -> None:
    """Moved, shown, refused once it is gone, and back."""
    here, there = pair.here.root, pair.there.root
    pair.here.daemon.create(bare("10.0", "web1"))
    pair.here.daemon.do("start", "web1")
    assert "NODE is missing" in here.run("migrate", "web1").stderr
    wrong = here.run("migrate", "web1", pair.there.address, "--announce", "often=9")
    assert (wrong.returncode, "'often=9' is none of rounds=NUMBER" in wrong.stderr) == (2, True)
    beyond = here.run("migrate", "web1", pair.there.address, "--announce", "rounds=9999")
    assert (beyond.returncode, "announce.rounds" in beyond.stderr) == (1, True), beyond.stderr
    said = here("migrate", "web1", pair.there.address, "--announce", "rounds=2", "--announce", "initial=10")
    assert said.startswith("web1 runs on b now, after ")
    assert "it stood still for " in said
    assert "it went to b" in here("list")
    gone = here.run("migrate", "web1", pair.there.address)
    assert (gone.returncode, gone.stderr) == (4, "drover: web1: it is gone to b; this needs it running\n")
    assert here("migrate", "web1", "--recover") == "web1 has gone to b.\n"
    told = json.loads(there("migrate", "web1", pair.here.address, "-o", "json"))
    assert (told["name"], told["node"], told["alarms"]) == ("web1", "a", [])
    none = here.run("migrate", "web1", "--recover")
    assert (none.returncode, "web1 is on no way" in none.stderr) == (1, True)
    happened = here("events", "--kind", "instance").splitlines()
    steps = [line.rpartition(": ")[2] for line in happened if "it goes to b" in line]
    assert steps[:3] == ["plan", "prepare", "memory"]


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_no_write_is_lost_on_the_way(pair: Pair, version: str) -> None:
    """A guest that writes to its memory all the while has all of that; of a QEMU that would lose it that is told."""
    pair.here.daemon.create(bootable(version, "a"))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "helper dirty 40 30")
    found = pair.move("a", check=True)
    assert found["blockers"] == []
    told = [text for text in found["notices"] if "QEMU 7.2 loses what a guest writes" in text]
    assert (found["notices"], len(told)) == (told, version == "7.2")
    report = pair.move("a", bandwidth=48 * MIB)
    assert report["notices"] == found["notices"]
    assert (report["rounds"] <= 2) is (version == "7.2")
    assert "it-is-well" in say(pair.there.node.instance("a"), "echo it-is-well")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_over_ipv6(tmp_path: Path, version: str) -> None:
    """All of it: the daemons' link, the memory, by TLS and by several connections; and a disk by NBD."""
    with two_nodes(tmp_path, apart=True, ipv6=True) as pair, temporary_node() as node:
        folder = node.host.paths.state
        folder.mkdir(mode=0o711, parents=True)
        image = folder / "disk.img"
        image.write_bytes(b"it-is-me".ljust(MIB, b"."))
        pair.there.daemon.end()
        mount = f'mount -t tmpfs -o mode=711 none {folder} && exec "$@"'
        pair.there.daemon.under = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        pair.there.daemon.start()
        pair.here.daemon.create(bare(version, "a", disks=[{"id": "d", "source": str(image), "format": "raw"}]))
        pair.here.daemon.do("start", "a")
        number = pair.begin("a", "memory", copy_disks=True, multifd=2, bandwidth=128 << 10)
        passage = load(pair.there.paths.instance("a").document).passage
        assert passage is not None
        assert passage.listens.startswith("tcp:[fd77::2]:")
        assert passage.exports.startswith("[fd77::2]:")
        told = ended(pair.here.daemon, number)
        assert (told["state"], told["result"]["tls"]) == ("done", True), told["error"]
        copy = Path(f"/proc/{pair.there.daemon.pid}/root{image}")
        assert copy.read_bytes() == image.read_bytes()
        assert pair.there.daemon.rows()["a"]["state"] == "running"
