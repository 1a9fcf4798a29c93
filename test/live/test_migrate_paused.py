"""A machine that is paused moves, and stays paused: nobody has it run, wherever it is, until somebody wants it to."""

from functools import partial
from pathlib import Path

import pytest

import waiting
from instances import bare, bootable, say, wait_for_shell
from pairs import Pair, ended, two_nodes

wait_for = partial(waiting.wait_for, timeout=60)
KIB = 1 << 10


def paused(pair: Pair, version: str) -> None:
    pair.here.daemon.create(bootable(version, "a"))
    pair.here.daemon.do("start", "a")
    here = pair.here.node.instance("a")
    wait_for_shell(here)
    say(here, "word=it-is-me")
    pair.here.daemon.do("pause", "a")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_goes_and_comes_back(pair: Pair, version: str) -> None:
    """Also where the daemon there is another one before somebody has it run."""
    paused(pair, version)
    assert pair.move("a", check=True)["blockers"] == []
    report = pair.move("a", means=["postcopy"])  # that is for guests that run
    assert report["paused"]
    assert ["without postcopy" in text for text in report["notices"] if "paused" in text] == [True]
    assert "postcopy-ram" not in report["capabilities"]
    wait_for(lambda: pair.there.daemon.rows()["a"]["state"] == "paused")
    pair.there.daemon.kill()
    pair.there.daemon.start()
    wait_for(lambda: pair.there.daemon.rows()["a"]["state"] == "paused")
    pair.move("a", back=True)
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "paused")
    pair.here.daemon.do("resume", "a")
    assert "it-is-me" in say(pair.here.node.instance("a"), "echo $word")
    assert not pair.move("a")["paused"]
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_stays_paused_where_it_does_not_go(pair: Pair, version: str) -> None:
    paused(pair, version)
    number = pair.begin("a", "memory", bandwidth=64 * KIB)
    pair.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(pair.here.daemon, number)["state"] == "cancelled"
    wait_for(lambda: "a" not in pair.there.daemon.rows())
    assert pair.here.daemon.rows()["a"]["state"] == "paused"
    pair.here.daemon.do("resume", "a")
    assert "it-is-me" in say(pair.here.node.instance("a"), "echo $word")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("whose", ["here", "there"])
def test_a_daemon_is_killed_meanwhile(pair: Pair, version: str, whose: str) -> None:
    paused(pair, version)
    pair.begin("a", "memory", bandwidth=8192 * KIB)
    daemon = getattr(pair, whose).daemon
    daemon.kill()
    daemon.start()
    wait_for(lambda: pair.there.daemon.rows().get("a", {}).get("state") == "paused")
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "stopped")
    pair.there.daemon.do("resume", "a")
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word")


# Runs drover-noded; kills the other side's QEMU once the record is in a phase, of which a file tells, and waits for its
# end.
KILLING = """
import os, select, signal, sys
from pathlib import Path
from drover.kvm.record import load
from drover.node import daemon
from drover.node.books import OwnRegister

victim = Path(sys.argv[1]) / "victim"
does = OwnRegister.swap

async def swap(self, expect, new):
    found = await does(self, expect, new)
    if victim.exists():
        phase, document = victim.read_text().split(" ", 1)
        if new.phase == phase:
            process = os.pidfd_open(load(Path(document)).runtime.pid)
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 10)
            victim.unlink()
    return found

OwnRegister.swap = swap
daemon.main(sys.argv[2:])
"""


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("phase", ["switchover", "commit"])
def test_it_stays_paused_where_it_is_taken_back(tmp_path: Path, version: str, phase: str) -> None:
    """Also where all of it had gone, and the record named the other node."""
    program = tmp_path / "killing.py"
    program.write_text(KILLING)
    with two_nodes(tmp_path, program=program) as pair:
        paused(pair, version)
        victim = tmp_path / "a" / "victim"
        victim.write_text(f"{phase} {pair.there.paths.instance('a').document}")
        status, answer = pair.ask("a")
        assert (status, answer["code"], victim.exists()) == (409, "migration-error", False)
        wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "paused")
        wait_for(lambda: "a" not in pair.there.daemon.rows())
        assert pair.here.node.instance("a").show().state == "paused"
        stays = "postmigrate" in str(pair.here.daemon.rows()["a"]["detail"])
        blockers = [each["code"] for each in pair.move("a", check=True)["blockers"]]
        assert blockers == ["sent-before"] * stays
        pair.here.daemon.do("resume", "a")
        assert "it-is-me" in say(pair.here.node.instance("a"), "echo $word")


# Runs drover-noded, which cannot write down once that a machine waits.
FULL = """
import errno, sys
from drover.kvm.ledger import Ledger
from drover.node import daemon

does = Ledger.save

def save(self):
    if self.document.passage is not None and self.document.passage.listens:
        Ledger.save = does
        raise OSError(errno.ENOSPC, "No space left on device")
    does(self)

Ledger.save = save
daemon.main(sys.argv[2:])
"""


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_one_that_waits_unwritten_is_ended(tmp_path: Path, version: str) -> None:
    program = tmp_path / "full.py"
    program.write_text(FULL)
    with two_nodes(tmp_path, program=program) as pair:
        pair.here.daemon.create(bare(version, "a"))
        pair.here.daemon.do("start", "a")
        status, answer = pair.ask("a")
        assert (status, answer["code"]) == (409, "migration-error")
        assert "No space left" in answer["detail"]
        pair.runs_here_alone("a")
        assert not list(pair.there.paths.run.glob("instances/a/*"))
        assert pair.move("a")["node"] == "b"
