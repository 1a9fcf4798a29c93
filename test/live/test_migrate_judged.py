"""Guests that make memory dirty faster than the link between two nodes takes it: they come to their end as the policy
promises, or are given up as it says. They never hang, and what is told of them never goes back nor past its end.

`check` judges one of them, twice; `check-all` each way of going with each rate.
"""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import waiting
from drover.migration.means import MEANS, Means
from instances import SHELL, bootable, say, temporary_node, wait_for_shell
from machines import qemu_of
from noded import job, later
from pairs import Pair, two_nodes

pytestmark = pytest.mark.timeout(240)

wait_for = partial(waiting.wait_for, timeout=60)

LINK: Final = 200  # Mbit/s: half of the slowest guest
DIRTY: Final = 48  # MiB that the guest writes to, again and again
RATES: Final = (50, 100, 200, 400)  # MiB a second
DEADLINE: Final = 30.0  # s
SOON: Final = 12.0
# Seconds beyond it: until it has been cancelled, and the last memory of a postcopy has come, on a host that others use.
PATIENCE: Final = 60.0
BLACKOUT: Final = 300  # ms, promised by default
# A full link drops packets, and a busy host lets everybody wait: what QEMU cannot know when it stops the guest.
NOISE: Final = 3000
OLD: Final = {"machine": {"type": "pc-q35-7.2"}, "cpu": {"model": "qemu64"}}

WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "plain": {"tls": False},
    "tls": {"tls": True},
    "multifd": {"tls": True, "multifd": 4},
    "postcopy": {"tls": True, "postcopy": True},
    "storage": {"tls": True, "copy_disks": True},
}


@contextmanager
def busy(top: Path, rate: int, version: str = "10.0", **more: Any) -> Iterator[Pair]:
    """Two nodes, a cable that takes little, and a guest that writes to its memory.

    :param more: of the guest
    """
    with two_nodes(top, apart=True) as pair:
        pair.here.daemon.create(bootable(version, "a", SHELL, **more))
        pair.here.daemon.do("start", "a")
        here = pair.here.node.instance("a")
        wait_for_shell(here)
        say(here, f"word=it-is-me; helper dirty {rate} {DIRTY}")
        assert pair.cable is not None
        pair.cable.limit(LINK)
        yield pair


def judged(pair: Pair, deadline: float = DEADLINE, **params: Any) -> dict[str, Any]:
    """Have it moved; the job at its end. Seen all the way: it is told to be further each time, and is over in time."""
    daemon, percents, begun = pair.here.daemon, [0.0], time.monotonic()
    number = later(daemon, "migrate", "a", node=pair.there.address, deadline=deadline, **params)
    while (told := job(daemon, number, wait=0.2))["state"] not in ("done", "failed", "cancelled", "lost"):
        seen = daemon.call("GET", "/v1/instances/a/migration")[1].get("progress") or {}
        percents.append(seen.get("percent", percents[-1]))
        assert time.monotonic() < begun + deadline + PATIENCE, (told, pair.faults())
    assert percents == sorted(percents)
    assert percents[-1] <= 100
    return told


def is_as_told(pair: Pair, told: dict[str, Any], means: tuple[Means, ...] = MEANS) -> bool:
    """Whether it has come, which is so then; else it was given up for the time that it took, and is where it was."""
    if told["state"] != "done":
        assert "it does not come to its end by the deadline" in told["error"]["message"], (told, pair.faults())
        pair.runs_here_alone("a")
        assert "it-is-me" in say(pair.here.node.instance("a"), "echo $word")
        return False
    report = told["result"]
    assert report["node"] == "b"
    assert {text.partition(":")[0] for text in report["helped"]} <= {str(each) for each in means}
    assert "it-is-me" in say(pair.there.node.instance("a"), "echo $word; helper dirty-stop")
    wait_for(lambda: pair.here.daemon.rows()["a"]["state"] == "stopped")
    return True


def test_it_is_given_up_when_nothing_may_help(tmp_path: Path) -> None:
    """It writes more than goes over, and nobody may do anything about that; then it goes all the same, by postcopy."""
    with busy(tmp_path, 50) as pair:
        assert not is_as_told(pair, judged(pair, SOON, tls=True, means=[]), ())
        means = (Means.POSTCOPY,)
        told = judged(pair, SOON, tls=True, means=[str(each) for each in means])
        assert is_as_told(pair, told, means)
        assert told["result"]["helped"] == ["postcopy"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("way", ["plain", "tls", "multifd"])
def test_precopy(tmp_path: Path, way: str, rate: int) -> None:
    with busy(tmp_path, rate) as pair:
        told = judged(pair, **WAYS[way])
        if is_as_told(pair, told):
            assert told["result"]["blackout_ms"] < BLACKOUT + NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_postcopy(tmp_path: Path, rate: int) -> None:
    """It comes to its end whatever the guest does."""
    with busy(tmp_path, rate) as pair:
        told = judged(pair, **WAYS["postcopy"])
        assert is_as_told(pair, told, (*MEANS, Means.POSTCOPY))
        assert told["result"]["blackout_ms"] < BLACKOUT + NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_storage(tmp_path: Path, rate: int) -> None:
    """Its disk is copied while it writes there: what it had written before is there, and what it wrote meanwhile."""
    with temporary_node() as node:
        folder = node.host.paths.state
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        image = folder / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
        disk = {"id": "data", "source": str(image), "format": "qcow2"}
        with busy(tmp_path, rate, disks=[disk]) as pair:
            pair.there.daemon.end()
            mount = f'mount -t tmpfs -o mode=711 none {folder} && exec "$@"'
            pair.there.daemon.under = ["unshare", "--mount", "sh", "-c", mount, "sh"]
            pair.there.daemon.start()
            here = pair.here.node.instance("a")
            say(here, "dd if=/dev/urandom of=/tmp/x bs=64k count=64; dd if=/tmp/x of=/dev/vda conv=fsync")
            say(
                here,
                "(n=0; while [ ! -e /tmp/enough ]; do n=$((n + 1)); echo $n | "
                "dd of=/dev/vda bs=4k seek=$((4096 + n % 1999)) conv=sync,fsync 2>/dev/null && echo $n >/tmp/told; "
                "done; touch /tmp/through) >/dev/null 2>&1 & true",
            )
            told = judged(pair, **WAYS["storage"])
            there = pair.there if is_as_told(pair, told) else pair.here
            guest = there.node.instance("a")
            say(guest, "touch /tmp/enough; while [ ! -e /tmp/through ]; do usleep 100000; done")
            say(guest, "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/y bs=64k count=64")
            assert "alike" in say(guest, "cmp /tmp/x /tmp/y && echo al''ike")
            last = "dd if=/dev/vda bs=4k skip=$((4096 + $(cat /tmp/told) % 1999)) count=1 2>/dev/null"
            assert "same" in say(guest, f'[ "$({last} | head -n 1)" = "$(cat /tmp/told)" ] && echo sa""me')


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_to_a_newer_qemu(tmp_path: Path, rate: int) -> None:
    """Without KVM 7.2 sends it in one round, and all that was made dirty meanwhile while it stands still."""
    with busy(tmp_path, rate, "7.2", **OLD) as pair:
        told = judged(pair, **WAYS["tls"], emulator=str(qemu_of("10.0")))
        assert is_as_told(pair, told)
