"""What is in the way of a migration is told before anything is done, all of it: real daemons, real QEMUs."""

import json
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clocks import Clock
from drover.testing.image import guest_image
from instances import bare, temporary_node
from machines import qemu_of
from pairs import Pair, two_nodes

OLD = {"type": "pc-q35-7.2"}  # a type that both have


def started(pair: Pair, version: str, **more: Any) -> None:
    pair.here.daemon.create(bare(version, "a", **more))
    pair.here.daemon.do("start", "a")


def checked(pair: Pair, **params: Any) -> dict[str, Any]:
    """Blockers, by their codes."""
    told = pair.move("a", check=True, **params)
    assert told["node"] == "b"
    assert all(each["why"] and each["remedy"] and each["what"] for each in told["blockers"])
    return {each["code"]: each for each in told["blockers"]}


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_nothing_is_in_the_way(pair: Pair, version: str) -> None:
    started(pair, version)
    assert checked(pair) == {}
    pair.runs_here_alone("a")
    assert pair.move("a")["node"] == "b"


def test_all_is_told_at_once(pair: Pair) -> None:
    """By the check, and by the real one, which then does nothing."""
    pair.there.daemon.create(bare("7.2", "a"))
    started(pair, "10.0", machine={"type": "pc-q35-10.0"}, memory={"size": "64MiB"})
    asked = {"emulator": str(qemu_of("7.2")), "postcopy": True, "multifd": 2}
    found = checked(pair, **asked)
    assert found.keys() - {"userfaultfd"} == {"name", "machine-type", "combination"}  # that one is up to the host
    status, answer = pair.ask("a", **asked)
    assert (status, answer["code"]) == (409, "migration-blocked")
    assert {each["code"]: each for each in answer["blockers"]} == found
    assert all(each["why"] in answer["detail"] for each in found.values())
    assert pair.here.daemon.rows()["a"]["state"] == "running"
    assert pair.there.daemon.rows()["a"]["state"] == "stopped"


def test_a_cpu_that_can_less(pair: Pair) -> None:
    """`max` of a new QEMU has what that of an old one has not; the other way round a guest misses nothing."""
    started(pair, "10.0", machine=OLD)
    found = checked(pair, emulator=str(qemu_of("7.2")))
    assert found.keys() == {"cpu-flags"}
    assert "sha-ni" in found["cpu-flags"]["why"]
    status, answer = pair.ask("a", emulator=str(qemu_of("7.2")))
    assert (status, answer["code"]) == (409, "migration-blocked")
    pair.runs_here_alone("a")


def test_what_only_one_host_has(tmp_path: Path) -> None:
    """A bridge, a kernel, a disk, and a port that somebody has there: each by its own name."""
    with two_nodes(tmp_path, apart=True) as pair, temporary_node() as other, ExitStack() as stack:
        here, there = (member.daemon.network for member in pair.both)
        assert here is not None
        assert there is not None
        with there.entered():
            stack.enter_context(socket.create_server(("10.77.0.2", 5907)))
        folder = other.host.paths.state
        folder.mkdir(mode=0o711)
        kernel, disk = folder / "kernel", folder / "disk"
        shutil.copy(guest_image().kernel, kernel)
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", disk, "1M"], check=True)
        pair.there.daemon.end()
        mount = f'mount -t tmpfs -o mode=711 none {folder} && exec "$@"'
        pair.there.daemon.under = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        pair.there.daemon.start()
        here.ip("link add br7 type bridge")
        here.ip("address add 10.77.0.2/32 dev lo")  # the machine listens at this address here, too
        started(
            pair, "10.0", boot={"kernel": str(kernel)}, disks=[{"id": "d", "source": str(disk), "format": "raw"}],
            nics=[{"id": "n", "mode": "bridge", "link": "br7"}], vnc={"listen": "10.77.0.2:5907"},
        )  # fmt: skip
        here.ip("address del 10.77.0.2/32 dev lo")
        found = checked(pair)
        assert {code: each["what"] for code, each in found.items()} == {
            "link": "nics[0].link", "path": "boot.kernel", "port": "vnc.listen", "disk": str(disk),
        }  # fmt: skip
        assert "there is no bridge br7 (there is no bridge at all)" in found["link"]["why"]
        assert checked(pair, copy_disks=True).keys() == {"link", "path", "port"}


def test_what_qemu_itself_says(pair: Pair) -> None:
    with temporary_node() as other:
        other.host.paths.state.mkdir(mode=0o777)
        other.host.paths.state.chmod(0o777)
        fat = f"driver=vvfat,node-name=fat,dir={other.host.paths.state},rw=on"
        started(pair, "10.0", extra_args=["-blockdev", fat])
        found = checked(pair)
    assert found.keys() == {"qemu"}
    assert "vvfat" in found["qemu"]["why"]


def test_a_certificate_that_ends(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as pair:
        pair.here.root("node", "init", "--days", "3")
        started(pair, "10.0")
        assert checked(pair) == {}
        found = checked(pair, deadline=4 * 86_400)
    assert {code: each["what"] for code, each in found.items()} == {"certificate": "this node"}


@pytest.mark.parametrize(("seconds", "way"), [(60, "ahead of"), (-60, "behind")])
def test_a_clock_that_goes_wrong(pair: Pair, tmp_path: Path, seconds: int, way: str) -> None:
    """Its guest's own would jump."""
    started(pair, "10.0")
    clock = Clock(tmp_path / "clock")
    pair.there.daemon.end()
    pair.there.daemon.more_env = clock.env
    pair.there.daemon.start()
    clock.set(seconds)
    found = checked(pair)
    assert {code: each["what"] for code, each in found.items()} == {"clock": "b"}
    assert f"s {way} this node's" in found["clock"]["why"]
    clock.set(0)
    assert checked(pair) == {}


@pytest.mark.alone  # they are the host's
def test_huge_pages_that_are_not_there(pair: Pair) -> None:
    """Both nodes are on one host, so it has what is there."""
    keeps = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = keeps.read_text()
    keeps.write_text("40")
    try:
        assert int(keeps.read_text()) == 40, "the kernel has no 80 MiB in one piece each of 2: reboot, or free some"
        started(pair, "10.0", memory={"size": "64MiB", "hugepages": "2MiB"})
        found = checked(pair)
        assert {code: each["what"] for code, each in found.items()} == {"hugepages": "memory.hugepages"}
        assert f"in pages of 2MiB it takes {64 << 20} bytes, and {16 << 20} are free there" in found["hugepages"]["why"]
        pair.runs_here_alone("a")
        pair.here.daemon.do("kill", "a")
    finally:
        keeps.write_text(before)


def test_a_base_that_somebody_writes_to(pair: Pair) -> None:
    """It is the same on both nodes, and would not be copied; but a QEMU there has it open, and not to read."""
    with temporary_node() as other:
        folder = other.host.paths.state
        folder.mkdir(mode=0o711)
        base, disk = folder / "base", folder / "disk"
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", base, "1M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk], check=True)
        pair.there.daemon.end()
        mount = f'mount -t tmpfs -o mode=711 none {folder} && exec "$@"'
        pair.there.daemon.under = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        pair.there.daemon.start()
        theirs = Path(f"/proc/{pair.there.daemon.pid}/root{base}")
        theirs.write_bytes(base.read_bytes())
        below = {"source": str(base), "format": "raw"}
        started(pair, "10.0", disks=[{"id": "d", "source": str(disk), "format": "qcow2", "backing": [below]}])
        assert checked(pair, copy_disks=True) == {}
        with subprocess.Popen(["qemu-io", "-f", "raw", theirs], stdin=-1, stdout=-1, text=True) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write("read 0 512\n")  # opened to write, too
            writer.stdin.flush()
            assert "read 512" in writer.stdout.readline()
            found = checked(pair, copy_disks=True)
            writer.stdin.close()
        assert {code: each["what"] for code, each in found.items()} == {"lock": "d"}
        assert f"a QEMU on the other node has {base} open to write to it" in found["lock"]["why"]


def test_a_tap_of_that_name(pair: Pair) -> None:
    """Two nodes on one host would have one tap for it."""
    started(pair, "10.0", nics=[{"id": "n", "mode": "routed", "ip": "192.0.2.77"}])
    assert checked(pair).keys() == {"tap"}


def test_in_words(pair: Pair) -> None:
    started(pair, "10.0")
    told = pair.here.root("migrate", "a", pair.there.address, "--check")
    assert told.strip() == "a can go to b: nothing is in the way."
    asked = ("migrate", "a", pair.there.address, "--check", "--emulator", "/nowhere/qemu")
    done = pair.here.root.run(*asked)
    assert done.returncode == 1
    assert done.stdout.startswith("a cannot go to b. In the way:\n- emulator (emulator): /nowhere/qemu is no")
    assert "What to do: install it there" in done.stdout
    done = pair.here.root.run(*asked, "-o", "json")
    assert done.returncode == 1
    assert [each["code"] for each in json.loads(done.stdout)["blockers"]] == ["emulator"]
    done = pair.here.root.run("migrate", "a", pair.there.address, "--emulator", "/nowhere/qemu")
    assert done.returncode == 4
    assert "a cannot go to b: emulator: /nowhere/qemu is no usable QEMU: it is not there" in done.stderr
