"""A machine that is paused moves, and stays paused: nobody has it run, wherever it is, until somebody wants it to."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import waiting
from instances import bootable, say, wait_for_shell
from pairs import Pair, ended, two_nodes

wait_for = partial(waiting.wait_for, timeout=60)
KIB = 1 << 10


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with two_nodes(tmp_path) as pair:
        yield pair


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
