"""The watcher on real QEMUs: what ends is written down and started again, whoever died; nothing that was to stop is."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import waiting
from drover import QmpConnection
from drover.errors import InstanceTimeout, WatcherRuns
from drover.events.watcher import Notice, Watcher
from drover.kvm.instance import Instance
from drover.kvm.logs import LIMIT
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import bare, bootable, type_in, wait_for_shell

pytestmark = pytest.mark.alone

wait_for = partial(waiting.wait_for, timeout=60)

TOP = Path(__file__).resolve().parents[2]


class Watching:
    """A watcher on a thread, and what it told."""

    def __init__(self, node: Node, log_limit: int) -> None:
        self.told: list[Notice] = []
        self.watcher = Watcher(node, self.hear, log_limit=log_limit)
        self.thread = threading.Thread(target=self.watcher.run)

    def hear(self, notice: Notice) -> None:
        """Keep it; a failed test shows it."""
        print(notice)
        self.told.append(notice)

    def wait(self, name: str, what: str, count: int = 1, timeout: float = 30) -> Notice:
        """Wait until it has told something of an instance `count` times."""
        deadline = time.monotonic() + timeout
        while len(found := [it for it in self.told if (it.name, it.what) == (name, what)]) < count:
            assert time.monotonic() < deadline, f"{what} was not told in time; but {self.words(name)}"
            time.sleep(0.02)
        return found[count - 1]

    def words(self, name: str) -> list[str]:
        """What it told of an instance, in order."""
        return [it.what for it in self.told if it.name == name]


@contextlib.contextmanager
def watching(node: Node, *, log_limit: int = LIMIT) -> Iterator[Watching]:
    it = Watching(node, log_limit)
    it.thread.start()
    try:
        yield it
    finally:
        it.watcher.stop()
        it.thread.join(20)
        assert not it.thread.is_alive()


@pytest.fixture(params=["10.0", pytest.param("7.2", marks=pytest.mark.slow)])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def create(node: Node, spec: dict[str, Any], **more: Any) -> Instance:
    return node.create(parse(spec | more))


def pid_of(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime.pid


def reason_of(vm: Instance) -> str:
    stop = vm.show().document.last_stop
    assert stop is not None
    return stop.reason


# -- what is started again ---------------------------------------------------------------------------------------------


def test_killed(node: Node, version: str) -> None:
    """One that crashes is started again, later each time; one that is stopped meanwhile stays so."""
    vm = create(node, bare(version), restart="on-failure")
    with watching(node) as it:
        vm.start()  # found though the watcher was there before
        pid, since = pid_of(vm), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        it.wait("vm", "restarted")
        assert 1 <= time.monotonic() - since < 4
        assert vm.show().state is State.RUNNING
        assert pid_of(vm) != pid
        with QmpConnection(node.host.paths.instance("vm").socket("control"), timeout=5) as control:
            assert control.query_status().running  # nobody has it
        os.kill(pid_of(vm), signal.SIGKILL)
        assert "in 2 s" in it.wait("vm", "waiting", 2).text
        assert vm.stop().reason == "crash"
        assert vm.show().document.restart is None
        time.sleep(2.5)
        assert vm.show().state is State.STOPPED
    assert it.words("vm") == ["mended", "waiting", "restarted", "mended", "waiting"]


def test_stopped_by_us(node: Node, version: str) -> None:
    """Whoever asks for it, and however: by us, by a signal, by a `quit` on a monitor."""

    def quit_it(name: str) -> None:
        with QmpConnection(node.host.paths.instance(name).socket("people"), timeout=5) as people:
            people.quit()

    ends: dict[str, Callable[[], object]] = {
        "stop": lambda: node.instance("stop").stop(timeout=0.2),
        "kill": lambda: node.instance("kill").kill(),
        "term": lambda: os.kill(pid_of(node.instance("term")), signal.SIGTERM),
        "quit": lambda: quit_it("quit"),
    }
    for name in ends:
        create(node, bare(version, name), restart="always").start()
    with watching(node) as it:
        for end in ends.values():
            end()
        for name in ends:
            vm = node.instance(name)
            wait_for(lambda: vm.show().state is State.STOPPED)  # noqa: B023, it is called at once
        time.sleep(2)
        assert {name: str(node.instance(name).show().state) for name in ends} == dict.fromkeys(ends, "stopped")
    assert not {notice.what for notice in it.told} - {"mended"}


@pytest.mark.slow
def test_guest_shuts_down(node: Node) -> None:
    """It is started again if its policy is always; not if it was we who asked, however late the guest heard."""
    again = create(node, bootable("7.2", "again"), restart="always")
    stays = create(node, bootable("10.0", "stays"), restart="on-failure")
    with watching(node) as it:
        for vm in (again, stays):
            vm.start()
        for vm in (again, stays):
            wait_for_shell(vm)
            type_in(vm, "poweroff -f")
        it.wait("stays", "mended")
        assert (stays.show().state, reason_of(stays)) == (State.STOPPED, "guest-shutdown")
        it.wait("again", "restarted")
        wait_for_shell(again)
        again.pause()
        with pytest.raises(InstanceTimeout):
            again.stop(timeout=0.3, force=False)
        again.resume()  # only now it hears the button
        it.wait("again", "mended", 2)
        assert (again.show().state, reason_of(again)) == (State.STOPPED, "request")
        assert not again.show().document.restart
    assert it.words("stays") == ["mended"]


@pytest.mark.slow
def test_guest_panics(node: Node, version: str) -> None:
    vm = create(node, bootable(version), restart="on-failure")
    with watching(node) as it:
        vm.start()
        wait_for_shell(vm)
        type_in(vm, "echo c >/proc/sysrq-trigger")
        it.wait("vm", "restarted", timeout=60)
        wait_for_shell(vm)
        assert (vm.show().state, reason_of(vm)) == (State.RUNNING, "panic")


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["disk.raw", "qemu"])
def test_start_that_fails(node: Node, tmp_path: Path, missing: str) -> None:
    """It is tried again until it works, whether it has begun when it fails or not."""
    disk, qemu, aside = tmp_path / "disk.raw", tmp_path / "qemu", tmp_path / "aside"
    disk.write_bytes(bytes(1 << 20))
    spec = bare("7.2", disks=[{"id": "d", "source": str(disk), "format": "raw"}], restart="on-failure")
    qemu.symlink_to(spec["emulator"])
    vm = node.create(parse(spec | {"emulator": str(qemu)}))
    vm.start()
    with watching(node) as it:
        (tmp_path / missing).rename(aside)
        os.kill(pid_of(vm), signal.SIGKILL)
        assert missing in it.wait("vm", "failed").text
        aside.rename(tmp_path / missing)
        it.wait("vm", "restarted")
        assert vm.show().state is State.RUNNING


def test_start_of_somebody_that_fails(node: Node, tmp_path: Path) -> None:
    """It is his to repeat."""
    vm = create(node, bare("7.2", disks=[{"source": str(tmp_path / "no"), "format": "raw"}]), restart="always")
    with watching(node) as it:
        with pytest.raises(FileNotFoundError):
            vm.start()
        time.sleep(1.5)
    assert reason_of(vm) == "start-failed"
    assert it.words("vm") == []


# -- who dies, and who hangs -------------------------------------------------------------------------------------------


def test_missed(node: Node, version: str) -> None:
    """What ended while nobody watched is found, also where somebody else took note of it, or began the restart."""
    names = ("unseen", "noted", "runs")
    for name in names:
        create(node, bare(version, name), restart="on-failure").start()
    well = pid_of(node.instance("runs"))
    for name in ("unseen", "noted"):
        os.kill(pid_of(node.instance(name)), signal.SIGKILL)
    wait_for(lambda: node.instance("noted").show().state is State.ENDED)
    node.instance("noted").mend()
    with watching(node) as it:
        for name in ("unseen", "noted"):
            it.wait(name, "restarted")
        assert {str(node.instance(name).show().state) for name in names} == {"running"}
    assert pid_of(node.instance("runs")) == well
    assert it.words("runs") == []


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_in_a_restart(node: Node, step: int) -> None:
    """A watcher that dies at a write of a restart: the next one completes it, or does it again."""
    vm = create(node, bare("10.0"), restart="always")
    vm.start()
    os.kill(pid_of(vm), signal.SIGKILL)
    wait_for(lambda: vm.show().state is State.ENDED)
    vm.mend()
    code = (
        "import os, sys, time; from pathlib import Path; from drover.kvm import record, ledger\n"
        "from drover.kvm.node import Node; from drover.kvm.paths import Paths\n"
        "save, writes = record.save, []\n"
        "def die(path, document, **more):\n"
        "    save(path, document, **more); writes.append(path)\n"
        f"    if len(writes) == {step}: os.kill(os.getpid(), 9)\n"
        "ledger.save = die\n"
        "Node(Paths(Path(sys.argv[1]), Path(sys.argv[2]))).instance('vm').restart_due()\n"
    )
    words = [sys.executable, "-c", code, str(node.host.paths.state), str(node.host.paths.run)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with watching(node):
        wait_for(lambda: vm.show().state is State.RUNNING, timeout=20)
    assert vm.show().document.pending is None


@pytest.mark.slow
def test_hung(node: Node, version: str) -> None:
    """A QEMU that hangs delays nobody; it is told once, and that it is over."""
    for name in ("hung", "well"):
        create(node, bare(version, name), restart="on-failure").start()
    os.kill(pid := pid_of(node.instance("hung")), signal.SIGSTOP)
    with watching(node) as it:
        since = time.monotonic()
        os.kill(pid_of(node.instance("well")), signal.SIGKILL)
        it.wait("well", "restarted")
        assert time.monotonic() - since < 4
        it.wait("hung", "trouble")
        os.kill(pid, signal.SIGCONT)
        it.wait("hung", "well")
        os.kill(pid, signal.SIGKILL)
        it.wait("hung", "restarted")
    assert it.words("hung") == ["trouble", "well", "mended", "waiting", "restarted"]


def test_one_watcher(node: Node) -> None:
    with watching(node) as it:
        wait_for(lambda: it.watcher._watched)
        with pytest.raises(WatcherRuns, match=rf"watch \(process {os.getpid()}\)"):
            Watcher(node, lambda notice: None).run()
    with watching(node):
        pass


@pytest.mark.slow
def test_folder_that_goes(node: Node) -> None:
    """It is made and watched again."""
    create(node, bare("7.2"), restart="on-failure")
    runs = node.host.paths.runs
    with watching(node) as it:
        wait_for(lambda: it.watcher._watched)
        shutil.rmtree(runs)
        wait_for(runs.exists, timeout=5)
        vm = node.instance("vm")
        vm.start()
        os.kill(pid_of(vm), signal.SIGKILL)
        it.wait("vm", "restarted", timeout=10)


@pytest.mark.slow
def test_command(node: Node) -> None:
    """What it prints, that it outlives who reads it, and that it ends when asked to."""
    env = {"DROVER_STATE_DIR": str(node.host.paths.state), "DROVER_RUN_DIR": str(node.host.paths.run)}
    env["PYTHONPATH"] = str(TOP / "build" / "py")
    words = [sys.executable, "-c", "from drover.cli.main import main; main()", "watch"]
    vm = create(node, bare("7.2"), restart="on-failure")
    vm.start()
    for options in (["-o", "json"], []):
        with contextlib.ExitStack() as stack:
            program = stack.enter_context(
                subprocess.Popen([*words, *options], env=os.environ | env, stdout=subprocess.PIPE, text=True)
            )
            assert program.stdout is not None
            stack.callback(program.kill)
            os.kill(pid_of(vm), signal.SIGKILL)
            lines = [program.stdout.readline() for _ in range(3)]
            if options:
                assert [json.loads(line)["what"] for line in lines] == ["mended", "waiting", "restarted"]
                assert json.loads(lines[0])["text"].startswith("its run has ended: crash, killed by SIGKILL")
                program.kill()
            else:
                assert "vm mended: its run has ended: crash, killed by SIGKILL" in lines[0]
                program.terminate()
                assert program.wait(10) == 0


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_guest_that_floods_its_console(node: Node, version: str) -> None:
    """Its log stays short while it runs; how it began and what came last are there, and only the middle is not."""
    limit = 256 << 10
    vm = create(node, bootable(version))
    log = node.host.paths.instance("vm").console_log
    with watching(node, log_limit=limit) as it:
        vm.start()
        wait_for_shell(vm)
        type_in(vm, 'i=0; while :; do i=$((i+1)); echo "line $i of a flood"; done')
        longest, deadline = 0, time.monotonic() + 60
        while it.words("vm").count("log") < 3:
            assert time.monotonic() < deadline
            longest = max([longest, *(path.stat().st_size for path in log.parent.glob("console.log*"))])
            time.sleep(0.05)
        assert vm.show().state is State.RUNNING
        vm.kill()
    assert longest < limit + (1 << 20)
    head, mark, tail = log.read_bytes().partition(b"\n-- drover took out what was here")
    assert b"This is Linux" in head
    assert mark
    newest = (log.with_name("console.log.1").read_bytes() + tail[tail.index(b"\n") + 1 :]).decode(errors="replace")
    found = [int(number) for number in re.findall(r"\nline (\d+) of a flood\r", newest)]
    told = [one for one, after in itertools.pairwise(found) if one + 1 != after]
    assert len(found) > 1000
    # the one place where the newest of the middle begins, behind the mark that was there before
    assert len(told) <= 1
    assert not told or found.index(told[0]) < 10


@pytest.mark.slow
def test_log_that_cannot_be_cut(node: Node) -> None:
    """It is told once, however often it is tried, and the watcher goes on."""
    vm = create(node, bare("10.0"), restart="on-failure")
    with watching(node) as it:
        vm.start()
        log = node.host.paths.instance("vm").console_log
        log.unlink(missing_ok=True)
        log.symlink_to("/nowhere")
        it.wait("vm", "trouble")
        time.sleep(2.2)
        os.kill(pid_of(vm), signal.SIGKILL)
        it.wait("vm", "mended")
        assert it.words("vm").count("trouble") == 1
        vm.kill()


def test_which_run_a_log_is_of(node: Node, version: str) -> None:
    """What an earlier run said last is not taken for this one's."""
    vm = create(node, bare(version))
    for reason in ("host-signal", "request"):
        vm.start()
        if reason == "host-signal":
            os.kill(pid_of(vm), signal.SIGTERM)
        else:
            with QmpConnection(node.host.paths.instance("vm").socket("people"), timeout=5) as people:
                people.quit()
        wait_for(lambda: vm.show().state is State.ENDED)
        vm.mend()
        assert reason_of(vm) == reason


# -- storage that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = Path("/run") / f"drover-small-{os.getpid()}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def write(vm: Instance, mebibytes: int) -> None:
    """Have the guest fill its disk; it says "written" when all is on the disk."""
    # each line fits the guest's terminal, which breaks what it echoes
    type_in(vm, r"w() { tr '\0' x </dev/zero | dd of=/dev/vda bs=64k $*; sync; }")
    type_in(vm, f"w iflag=fullblock count={mebibytes * 16}; echo wr''itten")


def test_storage_that_is_full(node: Node, version: str, small: Path) -> None:
    """The guest stands still, and is shown with its disk; when there is space it goes on, and nothing is lost."""
    disk, ballast = small / "disk.raw", small / "ballast"
    disk.touch(0o600)
    os.truncate(disk, 16 << 20)
    ballast.write_bytes(bytes(20 << 20))
    disks = [{"id": "data", "source": str(disk), "format": "raw", "cache": "writeback"}]
    vm = create(node, bootable(version), disks=disks)
    vm.start()
    wait_for_shell(vm)
    with watching(node) as it:
        write(vm, 12)
        told = it.wait("vm", "io-error")
        assert "data: nospace" in told.text
        condition = vm.show()
        assert (condition.state, condition.detail) == (State.IO_ERROR, "data: nospace")
        time.sleep(2.5)
        assert (vm.show().state, it.words("vm")) == (State.IO_ERROR, ["io-error"])  # tried only where there is hope
        ballast.unlink()
        it.wait("vm", "resumed")
        console = node.host.paths.instance("vm").console_log
        wait_for(lambda: "\nwritten" in console.read_text(errors="replace"))
        assert vm.show().state is State.RUNNING
    assert disk.read_bytes() == (b"x" * (12 << 20)).ljust(16 << 20, b"\0")


@pytest.mark.slow
def test_storage_that_fills_again(node: Node, small: Path) -> None:
    """A little space is soon full again: each try is later than the last; a guest that was paused is left so."""
    disk, ballast = small / "disk.raw", [small / f"ballast{number}" for number in range(4)]
    disk.touch(0o600)
    os.truncate(disk, 20 << 20)
    for path in ballast:
        path.write_bytes(bytes(5 << 20))
    disks = [{"id": "data", "source": str(disk), "format": "raw", "cache": "writeback"}]
    vm = create(node, bootable("10.0"), disks=disks)
    vm.start()
    wait_for_shell(vm)
    with watching(node) as it:
        write(vm, 20)
        it.wait("vm", "io-error")
        for number in (1, 2):
            ballast.pop().unlink()
            it.wait("vm", "resumed", number)
            it.wait("vm", "io-error", number + 1)
        errors = [notice.at for notice in it.told if notice.what == "io-error"]
        resumed = [notice.at for notice in it.told if notice.what == "resumed"]
        assert resumed[1] - errors[1] > 1.9
        vm.pause()
        for path in ballast:
            path.unlink()
        time.sleep(9)
        assert it.words("vm").count("resumed") == 2
        vm.resume()
        console = node.host.paths.instance("vm").console_log
        wait_for(lambda: "\nwritten" in console.read_text(errors="replace"))
    assert it.words("vm").count("resumed") == 2
