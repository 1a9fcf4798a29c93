"""A machine moves between two nodes by TLS: that it does, that nothing of that is left, that silence stops no guest."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import waiting
from drover import QmpConnection
from drover.kvm.record import load
from instances import SHELL, bare, bootable, say, wait_for_shell
from pairs import Pair, ended, two_nodes
from people import Member

wait_for = partial(waiting.wait_for, timeout=60)
MIB = 1 << 20
SLOWLY = {"bandwidth": 128 << 10}  # a machine with nothing in it has 1 MB to send


@contextmanager
def qmp(member: Member, name: str) -> Iterator[QmpConnection]:
    with QmpConnection(member.paths.instance(name).socket("people"), timeout=10) as vm:
        yield vm


def armed(member: Member, name: str) -> dict[str, str]:
    """What its QEMU is told of TLS."""
    with qmp(member, name) as vm:
        parameters = vm.get_migration_parameters()
    return {key: value for key, value in parameters.items() if key.startswith("tls-") and value}


def keys_of(member: Member, name: str) -> list[str]:
    folder = member.paths.instance(name).private / "migration-keys"
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def has_none(member: Member, name: str) -> bool:
    """No key, no object, no setting."""
    with qmp(member, name) as vm:
        objects = [each.name for each in vm.qom_list("/objects") if each.name.startswith("migration-")]
    return not (keys_of(member, name) or objects or armed(member, name))


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_goes_by_tls_and_back(pair: Pair, version: str) -> None:
    pair.here.daemon.create(bare(version, "a", chroot=version == "7.2"))
    pair.here.daemon.do("start", "a")
    number = pair.begin("a", "memory", **SLOWLY)
    uuid = pair.here.daemon.rows()["a"]["uuid"]
    wait_for(lambda: bool(keys_of(pair.there, "a")))
    epoch = pair.here.daemon.call("GET", "/v1/instances/a/migration")[1]["epoch"]
    for each in pair.both:
        assert each.daemon.call("GET", "/v1/instances/a/migration")[1]["tls"] is True
        assert each.daemon.call("GET", "/v1/instances/a")[1]["document"]["passage"]["tls"] is True
    assert armed(pair.here, "a") == {"tls-creds": "migration-tls", "tls-hostname": f"{epoch}.{uuid}.drover"}
    assert armed(pair.there, "a") == {"tls-creds": "migration-tls", "tls-authz": "migration-peer"}
    with qmp(pair.there, "a") as vm:
        assert vm.qom_get("/objects/migration-peer", "identity") == f"CN={uuid}/{epoch}/source"
    assert keys_of(pair.here, "a") == ["ca-cert.pem", "client-cert.pem", "client-key.pem"]
    told = ended(pair.here.daemon, number)
    assert (told["state"], told["result"]["tls"]) == ("done", True)
    wait_for(lambda: has_none(pair.there, "a"))
    report = pair.move("a", back=True, multifd=2)
    assert report["tls"] is True
    wait_for(lambda: has_none(pair.here, "a"))


def test_it_goes_in_the_clear_where_that_is_wanted(pair: Pair) -> None:
    pair.here.daemon.create(bare("10.0", "a"))
    pair.here.daemon.do("start", "a")
    number = pair.begin("a", "memory", tls=False, **SLOWLY)
    assert armed(pair.here, "a") == {}
    assert has_none(pair.there, "a")
    assert pair.there.daemon.call("GET", "/v1/instances/a/migration")[1]["tls"] is False
    assert ended(pair.here.daemon, number)["result"]["tls"] is False
    said = pair.there.root("migrate", "a", pair.here.address, "--no-tls")
    assert "it went in the clear" in said
    told = json.loads(pair.here.root("migrate", "a", pair.there.address, "-o", "json"))
    assert told["tls"] is True


def test_cancelled_nothing_of_it_is_left(pair: Pair) -> None:
    pair.here.daemon.create(bare("7.2", "a"))
    pair.here.daemon.do("start", "a")
    number = pair.begin("a", "memory", **SLOWLY)
    pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(pair.here.daemon, number)["state"] == "cancelled"
    pair.runs_here_alone("a")
    wait_for(lambda: has_none(pair.here, "a"))
    assert pair.move("a")["tls"] is True


@pytest.mark.parametrize("side", ["here", "there", "both"])
def test_after_a_crash_nothing_of_it_is_left(pair: Pair, side: str) -> None:
    """Neither of a migration that was taken up, nor of one after whose end alone the daemon died."""
    pair.here.daemon.create(bare("10.0", "a"))
    pair.here.daemon.do("start", "a")
    number = pair.begin("a", "memory", **SLOWLY)
    wait_for(lambda: bool(keys_of(pair.there, "a")))
    killed = list(pair.both) if side == "both" else [getattr(pair, side)]
    for each in killed:
        each.daemon.kill()
    for each in killed:
        each.daemon.start()
    assert ended(pair.here.daemon, number)["state"] == "done"
    wait_for(lambda: has_none(pair.there, "a"))
    # as of a daemon that died before it took them away
    folder = pair.there.paths.instance("a").private / "migration-keys"
    with qmp(pair.there, "a") as vm:
        vm.object_add("authz-simple", "migration-peer", {"identity": "CN=nobody"})
    folder.mkdir()
    pair.there.daemon.kill()
    pair.there.daemon.start()
    wait_for(lambda: has_none(pair.there, "a"))


# Runs drover-noded, whose other side's QEMU is stopped right after it was seen to answer, once.
STOPPING = """
import os, signal, sys
from pathlib import Path
from drover.kvm.record import load
from drover.monitor.aio import AsyncQmpConnection
from drover.node import daemon

victim = Path(sys.argv[1]) / "victim"
does = AsyncQmpConnection.check_tls_target

async def check(self, address):
    await does.__get__(self)(address)
    if victim.exists():
        os.kill(load(Path(victim.read_text())).runtime.pid, signal.SIGSTOP)
        victim.unlink()

AsyncQmpConnection.check_tls_target = check
daemon.main(sys.argv[2:])
"""


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_target_that_falls_silent_stops_no_guest(tmp_path: Path, version: str) -> None:
    """Between our question whether it answers and QEMU's handshake: QEMU hangs, and is freed."""
    program = tmp_path / "stopping.py"
    program.write_text(STOPPING)
    with two_nodes(tmp_path, program=program) as pair:
        pair.here.daemon.create(bootable(version, "a", SHELL))
        pair.here.daemon.do("start", "a")
        here = pair.here.node.instance("a")
        wait_for_shell(here)
        victim = tmp_path / "a" / "victim"
        victim.write_text(str(pair.there.paths.instance("a").document))
        number = pair.begin("a", "prepare", bandwidth=MIB)
        wait_for(lambda: not victim.exists())
        pid = pid_of(pair.there, "a")
        try:
            longest = 0.0
            while longest < 0.5:  # it hangs by now, or will
                longest = max(longest, silence(pair.here, "a"))
            assert longest < 5
            assert ended(pair.here.daemon, number)["state"] == "failed"
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert "alive" in say(here, "echo alive")
        words = "does not answer, and holds up QEMU: its connection was cut"
        assert [line for line in pair.here.log if words in line["text"] and line["instance"] == "a"]
        pair.runs_here_alone("a")
        wait_for(lambda: has_none(pair.here, "a"))
        assert pair.move("a")["tls"] is True


def pid_of(member: Member, name: str) -> int:
    runtime = load(member.paths.instance(name).document).runtime
    assert runtime is not None
    return runtime.pid


def silence(member: Member, name: str) -> float:
    """Seconds for which its QEMU does not answer."""
    since = time.monotonic()
    with qmp(member, name) as vm:
        vm.query_status()
    return time.monotonic() - since


@pytest.mark.usefixtures("faults_by_anybody")
@pytest.mark.parametrize(("version", "tls"), [("7.2", True), ("7.2", False), ("10.0", True), ("10.0", False)])
def test_a_postcopy_that_is_cut_is_mended(tmp_path: Path, version: str, *, tls: bool) -> None:
    """From 8.0 on both of its connections: pages that the guest waits for have one of their own."""
    with two_nodes(tmp_path, apart=True) as pair:
        assert pair.cable is not None
        pair.here.daemon.create(bootable(version, "a"))
        pair.here.daemon.do("start", "a")
        here = pair.here.node.instance("a")
        wait_for_shell(here)
        say(here, "word=it-is-me; helper dirty 300 160")
        pair.cable.limit(200)
        number = pair.begin("a", "memory", bandwidth=16 * MIB, means=["postcopy"], deadline=60, tls=tls)
        wait_for(lambda: status(pair.there, "a") == "postcopy-active" and runs(pair.there, "a"))
        time.sleep(1)
        with qmp(pair.here, "a") as vm:
            vm.migrate_pause()
        told: dict[str, Any] = ended(pair.here.daemon, number)
        assert (told["state"], told["result"]["tls"]) == ("done", tls)
        assert ("postcopy-preempt" in told["result"]["capabilities"]) is (version != "7.2")
        assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")
        wait_for(lambda: has_none(pair.there, "a"))


def status(member: Member, name: str) -> str:
    """QEMU's own word."""
    found: str = member.daemon.call("GET", f"/v1/instances/{name}/migration")[1].get("migration", {}).get("status", "")
    return found


def runs(member: Member, name: str) -> bool:
    state: bool = member.daemon.rows()[name]["state"] == "running"
    return state
