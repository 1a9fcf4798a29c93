"""A machine moves with its disks: shared, copied on the way, or refused; real daemons, a booted guest."""

import hashlib
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import waiting
from drover import QmpConnection
from drover.errors import NbdRefused
from drover.kvm.record import load
from instances import bootable, say, temporary_node, wait_for_shell
from pairs import Pair, ended

wait_for = partial(waiting.wait_for, timeout=60)
MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where QEMU's own user may pass."""
    with temporary_node() as node:
        place = node.host.paths.state
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o711)
        yield place


def started(pair: Pair, version: str, image: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    disk = {"id": "data", "source": str(image), "format": "qcow2"}
    pair.here.daemon.create(bootable(version, "a", disks=[disk]))
    pair.here.daemon.do("start", "a")
    wait_for_shell(pair.here.node.instance("a"))


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_shared_disk_stays_where_it_is(pair: Pair, folder: Path, version: str) -> None:
    """Both nodes see that it is the very same."""
    started(pair, version, folder / "disk.qcow2")
    say(pair.here.node.instance("a"), "echo hello-there | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    pair.move("a")
    there = pair.there.node.instance("a")
    assert "hello-there" in say(there, "dd if=/dev/vda bs=512 count=1 2>/dev/null")
    say(there, "echo and-back | dd of=/dev/vda bs=512 seek=1 conv=sync,fsync 2>/dev/null")
    pair.move("a", back=True)
    assert "and-back" in say(pair.here.node.instance("a"), "dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null")


@pytest.fixture
def apart(pair: Pair, folder: Path) -> Pair:
    """The other node has another disk under the same folder."""
    pair.there.daemon.end()
    mount = f'mount -t tmpfs -o mode=711 none {folder} && exec "$@"'
    pair.there.daemon.under = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    pair.there.daemon.start()
    return pair


def on_the_other(pair: Pair, path: Path) -> Path:
    """A file as the other node's daemon sees it."""
    return Path(f"/proc/{pair.there.daemon.pid}/root{path}")


def test_what_is_not_there_is_not_gone_to(apart: Pair, folder: Path) -> None:
    image = folder / "disk.qcow2"
    started(apart, "10.0", image)
    status, answer = apart.ask("a")
    assert (status, answer["code"]) == (409, "migration-blocked")
    assert f"{image}: not there on the other node" in answer["detail"]
    on_the_other(apart, image).write_bytes(b"somebody else's")
    for copy in (False, True):
        status, answer = apart.ask("a", copy_disks=copy)
        assert (status, answer["code"]) == (409, "migration-blocked")
        assert f"there is something under {image} on the other node, and it is not the same" in answer["detail"]
    assert on_the_other(apart, image).read_bytes() == b"somebody else's"
    apart.runs_here_alone("a")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_disk_goes_along_with_one_that_is_paused(apart: Pair, folder: Path, version: str) -> None:
    """Nobody has it run there until somebody wants it to; then it has its disk for itself."""
    image = folder / "disk.qcow2"
    started(apart, version, image)
    say(apart.here.node.instance("a"), "echo before | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    apart.here.daemon.do("pause", "a")
    report = apart.move("a", copy_disks=True)
    assert (report["paused"], report.get("blackout_ms")) == (True, None)
    wait_for(lambda: apart.there.daemon.rows()["a"]["state"] == "paused")
    there = apart.there.node.instance("a")
    with QmpConnection(apart.there.paths.instance("a").socket("people")) as vm:
        wait_for(lambda: not vm.query_block_exports())
    apart.there.daemon.do("resume", "a")
    assert "before" in say(there, "dd if=/dev/vda bs=512 count=1 2>/dev/null")
    assert "after" in say(there, "echo after | dd of=/dev/vda bs=512 conv=sync,fsync; dd if=/dev/vda bs=512 count=1")


def check_disks_go_by_tls(pair: Pair) -> None:
    """The other node gives nobody anything without it, and lets in nobody but the source."""
    document = pair.there.paths.instance("a").document
    wait_for(lambda: (passage := load(document).passage) is not None and passage.exports != "")
    passage = load(document).passage
    assert passage is not None
    with QmpConnection(pair.there.paths.instance("a").socket("people")) as vm:
        with pytest.raises(NbdRefused) as refused:
            vm.check_nbd_server(passage.exports, "data")
        assert refused.value.code == "tls-required"
        assert vm.check_nbd_server(passage.exports, "data", tls=True).tls
        assert vm.qom_get("/objects/migration-peer", "identity").endswith(f"/{passage.epoch}/source")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_disk_goes_along(apart: Pair, folder: Path, version: str) -> None:
    """With all that is in it, and what is written meanwhile."""
    image = folder / "disk.qcow2"
    started(apart, version, image)
    here = apart.here.node.instance("a")
    say(here, "dd if=/dev/urandom of=/dev/vda bs=1M count=24 conv=fsync 2>/dev/null")
    write = "echo $n | dd of=/dev/vda bs=4k seek=8000 conv=sync,notrunc,fsync 2>/dev/null && echo $n > /tmp/told"
    say(here, f"(n=0; while [ ! -e /tmp/enough ]; do n=$((n + 1)); {write}; done; touch /tmp/through) & true")
    report = apart.move("a", copy_disks=True)
    assert report["steps"].keys() >= {"storage", "memory", "switchover"}
    there = apart.there.node.instance("a")
    text = say(there, "touch /tmp/enough; while [ ! -e /tmp/through ]; do usleep 20000; done; sync; "
                      "echo 3 > /proc/sys/vm/drop_caches; echo told $(cat /tmp/told) "
                      "found $(dd if=/dev/vda bs=4k skip=8000 count=1 2>/dev/null | tr -d '\\0'); "
                      "echo sum $(dd if=/dev/vda bs=1M count=24 2>/dev/null | sha256sum)")  # fmt: skip
    told = re.search(r"^told ([1-9]\d*) found (\d+)\r?$", text, re.MULTILINE)
    assert told, text
    assert told[1] == told[2]
    taken = subprocess.run(["qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=1M", "count=24", f"if={image}",
                            f"of={folder}/raw"], capture_output=True, check=False)  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    assert f"sum {hashlib.sha256((folder / 'raw').read_bytes()).hexdigest()}" in text
    wait_for(lambda: apart.here.daemon.rows()["a"]["state"] == "stopped")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_disk_that_is_in_step_no_longer_ends_it_at_once(apart: Pair, folder: Path, version: str) -> None:
    """While the memory goes, its connection breaks: nothing that goes over would be whole, and the guest may wait."""
    image = folder / "disk.qcow2"
    started(apart, version, image)
    here = apart.here.node.instance("a")
    say(here, "(while :; do echo x | dd of=/dev/vda bs=4k conv=sync,notrunc,fsync 2>/dev/null; done) & true")
    number = apart.begin("a", "memory", copy_disks=True, bandwidth=MIB)
    instances = apart.here.daemon.do("qmp", "a", execute="query-yank")["result"]
    cut = [each for each in instances if each["type"] == "block-node"]
    assert cut
    apart.here.daemon.do("qmp", "a", execute="yank", arguments={"instances": cut})
    told = ended(apart.here.daemon, number)
    assert (told["state"], told["error"]["code"]) == ("failed", "migration-error"), told["error"]
    assert "'move-data' failed" in told["error"]["message"]
    apart.runs_here_alone("a")
    assert "i-go-on" in say(here, "echo i-go-on")


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_so_it_does_where_the_next_daemon_goes_on(apart: Pair, folder: Path, version: str) -> None:
    """Nobody has looked at the mirror since the one died that began it, and the other node lets go of the disk."""
    image = folder / "disk.qcow2"
    started(apart, version, image)
    here = apart.here.node.instance("a")
    say(here, "(while :; do echo x | dd of=/dev/vda bs=4k conv=sync,notrunc,fsync 2>/dev/null; done) & true")
    number = apart.begin("a", "memory", copy_disks=True, bandwidth=MIB)
    apart.here.daemon.kill()
    apart.here.daemon.start()
    wait_for(lambda: step(apart) == "memory")
    with QmpConnection(apart.there.paths.instance("a").socket("people")) as vm:
        (export,) = vm.execute("query-block-exports")
        vm.execute("block-export-del", {"id": export["id"], "mode": "hard"})
    told = ended(apart.here.daemon, number)
    assert (told["state"], told["error"]["code"]) == ("failed", "migration-error"), told["error"]
    assert "'move-data' failed" in told["error"]["message"]
    apart.runs_here_alone("a")
    assert "i-go-on" in say(here, "echo i-go-on")


def step(pair: Pair) -> str:
    """What the node that it leaves is at."""
    _, told = pair.here.daemon.call("GET", "/v1/instances/a/migration")
    found: str = told.get("progress", {}).get("step", "")
    return found


def test_cancelled_in_the_middle_nothing_of_it_stays(apart: Pair, folder: Path) -> None:
    image = folder / "disk.qcow2"
    started(apart, "10.0", image)
    here = apart.here.node.instance("a")
    say(here, "dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null")
    number = apart.begin("a", "storage", copy_disks=True, bandwidth=2 * MIB)
    assert on_the_other(apart, image).exists()
    check_disks_go_by_tls(apart)
    apart.here.daemon.call("POST", f"/v1/jobs/{number}/cancel")
    assert ended(apart.here.daemon, number)["state"] == "cancelled"
    apart.runs_here_alone("a")
    wait_for(lambda: not on_the_other(apart, image).exists())
    jobs = apart.here.daemon.do("qmp", "a", execute="query-jobs")
    assert jobs in ([], {"result": []})
    assert apart.move("a", copy_disks=True)["node"] == "b"
