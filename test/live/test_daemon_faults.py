"""Both daemons where the host fails them: what their pages in doc/ say under *What happens when*.

Real daemons over real QEMUs; faults are made by what makes them: a small file system, few descriptors, another clock.
"""

import contextlib
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clocks import Clock
from daemons import Daemon
from drover import QmpConnection
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.process import _stat
from instances import bare
from kvmd import Kvmd, journal, wait_event
from noded import Noded, UnixConnection
from waiting import wait_for

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(daemon: Daemon) -> float:
    """Seconds of CPU that it has had."""
    fields = _stat(daemon.pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def quiet(daemon: Daemon) -> Iterator[None]:
    """In the block it does not go round in a loop: less than a quarter of a core."""
    before, since = cpu(daemon), time.monotonic()
    yield
    assert cpu(daemon) - before < 0.25 * (time.monotonic() - since) + 0.1


def wait_row(noded: Noded, name: str, timeout: float = 30, **wanted: object) -> None:
    """Wait until a row of the list says so."""
    wait_for(lambda: wanted.items() <= noded.rows()[name].items(), timeout)


def pid_of(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    return 0 if runtime is None else runtime.pid


def tracebacks(daemon: Daemon) -> list[str]:
    """What it did not expect."""
    return [line["traceback"] for line in daemon.log if "traceback" in line]


@pytest.fixture
def noded(node: Node, tmp_path: Path) -> Iterator[Noded]:
    """Not started yet."""
    daemon = Noded(node.host.paths, tmp_path / "noded.log")
    yield daemon
    if daemon.runs:
        assert daemon.end() == 0


@pytest.fixture
def kvmd(node: Node, tmp_path: Path) -> Iterator[Kvmd]:
    """Not started yet."""
    daemon = Kvmd(node.host.paths, tmp_path / "kvmd.log")
    yield daemon
    daemon.close()


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_the_clock_jumps(node: Node, noded: Noded, kvmd: Kvmd, tmp_path: Path) -> None:
    """A day on, a day back: machines that end are started again after the time that was meant, and nobody spins."""
    clocks = [Clock(tmp_path / name) for name in ("noded.clock", "kvmd.clock")]
    noded.more_env, kvmd.more_env = clocks[0].env, clocks[1].env
    noded.start()
    kvmd.start()
    noded.create(bare("7.2", "a", restart="always"))
    noded.do("start", "a")
    vm, generation = node.instance("a"), 1
    wait_for(lambda: bool(journal(vm)))
    # who runs for so long after its restart as the clock says was well: the next delay is the first one again
    for seconds, delay in ((86400, 1), (0, 2), (-86400, 4), (0, 1)):
        for clock in clocks:
            clock.set(seconds)
        wait_for(lambda: journal(vm)[-1].generation == generation)  # noqa: B023, it is heard
        since = time.monotonic()
        os.kill(pid_of(vm), signal.SIGKILL)
        generation += 1
        wait_row(noded, "a", generation=generation, state="running")
        print(f"{seconds:+d} s: runs again after {(took := time.monotonic() - since):.1f} s")
        assert took >= 0.9 * delay
        wait_event(vm, "ended", generation - 1)
    with quiet(noded), quiet(kvmd):
        time.sleep(2)
    found = journal(vm)
    assert [it.number for it in found] == list(range(1, len(found) + 1))
    assert [it.data["who"] for it in found if it.name == "ended"] == ["crash"] * 4
    assert abs(found[0].at - time.time()) < 600
    assert not tracebacks(noded) + tracebacks(kvmd)


def test_one_that_crashes_again_and_again(node: Node, noded: Noded) -> None:
    """The node daemon alone starts it ever later."""
    noded.start()
    noded.create(bare("7.2", "a", restart="on-failure"))
    noded.do("start", "a")
    for generation, delay in ((2, 1), (3, 2)):
        since = time.monotonic()
        os.kill(pid_of(node.instance("a")), signal.SIGKILL)
        wait_row(noded, "a", generation=generation, state="running")
        assert time.monotonic() - since >= 0.9 * delay


# -- folders -----------------------------------------------------------------------------------------------------------


def test_the_folder_of_locks_goes(node: Node, noded: Noded, kvmd: Kvmd) -> None:
    """Removed, moved away, made anew: what others do is seen as before, and there is still one daemon of each kind."""
    noded.start()
    kvmd.start()
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    vm, locks = node.instance("a"), node.host.paths.locks

    def remove() -> None:
        shutil.rmtree(locks)

    def move() -> None:
        locks.rename(locks.with_name(f"aside-{time.time_ns()}"))

    def anew() -> None:
        move()
        locks.mkdir(mode=0o700)

    for go in (remove, move, anew, remove):
        go()
        wait_for(lambda: (locks / ".noded.lock").exists() and (locks / ".watch.lock").exists(), 5)
        for act, state in ((vm.pause, "paused"), (vm.resume, "running")):
            begun = time.monotonic()
            act()
            assert time.monotonic() - begun < 2
            wait_row(noded, "a", 2, state=state)
        for daemon in (noded, kvmd):
            second = subprocess.run(
                [daemon.program], env=daemon.env, capture_output=True, text=True, timeout=20, check=False
            )
            assert (second.returncode, f"process {daemon.pid}" in second.stderr) == (1, True), second
        noded.do("pause", "a")
        noded.do("resume", "a")
    os.kill(pid_of(vm), signal.SIGKILL)
    assert wait_event(vm, "ended").data["who"] == "crash"
    wait_for(lambda: noded.rows()["a"]["state"] == "stopped")
    with quiet(noded), quiet(kvmd):
        time.sleep(2)
    assert not tracebacks(noded) + tracebacks(kvmd)
    noded.create(bare("10.0", "b"))
    assert set(noded.rows()) == {"a", "b"}


def test_the_folder_of_what_runs_goes(node: Node, noded: Noded) -> None:
    """With all sockets in it: who is connected stays so, the list is true, and the machine can be ended."""
    noded.start()
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    vm = node.instance("a")
    shutil.rmtree(node.host.paths.runs)
    assert noded.rows()["a"]["state"] == "running"
    os.kill(pid := pid_of(vm), signal.SIGKILL)
    wait_for(lambda: noded.rows()["a"]["state"] == "stopped")
    assert noded.rows()["a"]["last_stop"]["reason"] == "crash", pid
    noded.do("start", "a")
    shutil.rmtree(node.host.paths.runs)
    noded.do("kill", "a")
    assert noded.rows()["a"]["state"] == "stopped"
    noded.do("start", "a")


# -- descriptors -------------------------------------------------------------------------------------------------------


def few_files(daemon: Daemon, more: int) -> None:
    """Let it open so many more than it has open."""
    count = max(int(fd) for fd in os.listdir(f"/proc/{daemon.pid}/fd")) + 1
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (count + more, hard))


def many_files(daemon: Daemon) -> None:
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))


def test_few_descriptors_from_the_start(node: Node, noded: Noded) -> None:
    """It serves with sixty-four; idle connections take no more than half of them."""
    noded.under = ["prlimit", "--nofile=64:64"]
    noded.start()
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    socks = []
    for _ in range(200):
        socks.append(socket.socket(socket.AF_UNIX))
        socks[-1].connect(str(noded.socket))
    assert noded.call("GET", "/v1/node")[1]["limits"]["connections"] == 32
    for verb in ("pause", "resume", "kill", "start"):
        noded.do(verb, "a")
    for sock in socks:
        sock.close()
    assert noded.rows()["a"]["state"] == "running"
    assert not tracebacks(noded)


def test_no_descriptors_for_a_while(node: Node, noded: Noded, kvmd: Kvmd) -> None:
    """Neither daemon takes a machine for dead that it cannot ask, or spins; afterwards all is as it was."""
    noded.start()
    kvmd.start()
    noded.create(bare("10.0", "a", restart="on-failure"))
    noded.do("start", "a")
    vm = node.instance("a")
    pid = pid_of(vm)
    for daemon in (noded, kvmd):
        few_files(daemon, 0)
    socks = []
    with quiet(noded), quiet(kvmd):
        for _ in range(50):
            socks.append(socket.socket(socket.AF_UNIX))
            socks[-1].connect(str(noded.socket))
        vm.pause()  # takes the monitor from the daemon, which cannot have it again
        time.sleep(8)
    many_files(noded)
    many_files(kvmd)
    for sock in socks:
        sock.close()
    wait_for(lambda: noded.rows()["a"]["state"] == "paused", 10)
    assert (noded.rows()["a"]["pid"], noded.rows()["a"]["generation"]) == (pid, 1)
    vm.resume()
    wait_for(lambda: noded.rows()["a"]["state"] == "running", 10)
    os.kill(pid, signal.SIGKILL)
    wait_event(vm, "ended")
    wait_for(lambda: noded.rows()["a"]["generation"] == 2)
    assert not tracebacks(noded) + tracebacks(kvmd)


# -- the disk ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own for a folder; what it gives makes it larger."""
    assert os.geteuid() == 0, "only root can mount a file system"
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "small", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Leave no room but for so many pages."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        file.truncate(file.tell() - 4096 * leave)
    return path


def test_no_room_for_what_lasts(node: Node, tmp_path: Path) -> None:
    """What is asked for fails, and says why; what runs runs on, and is known; when there is room all goes on."""
    with small_disk(node.host.paths.state, "4m") as _:
        noded, kvmd = Noded(node.host.paths, tmp_path / "noded.log"), Kvmd(node.host.paths, tmp_path / "kvmd.log")
        try:
            noded.start()
            kvmd.start()
            for name in "ab":
                noded.create(bare("10.0", name))
            noded.do("start", "a")
            wait_for(lambda: noded.rows()["a"]["state"] == "running")  # on a busy host it is not waited for
            before = noded.rows()["a"]
            filler = fill(node.host.paths.state)
            for method, path, body in (
                ("POST", "/v1/instances", bare("10.0", "c")),
                ("POST", "/v1/instances/b/start", {}),
                ("POST", "/v1/instances/a/add-nic", {"mode": "user"}),
                ("DELETE", "/v1/instances/b", None),
            ):
                status, told = noded.call(method, path, body)
                assert status == 507, told
                print(told["detail"])
            assert noded.rows()["a"] == before
            assert set(noded.rows()) == {"a", "b"}
            # a daemon that begins now serves, too
            noded.kill()
            noded.start()
            assert noded.rows()["a"]["pid"] == before["pid"]
            assert noded.rows()["a"]["state"] == "running"
            with quiet(noded), quiet(kvmd):
                time.sleep(2)
            filler.unlink()
            noded.create(bare("10.0", "c"))
            noded.do("start", "b")
            noded.do("add-nic", "a", mode="user")
            noded.do("kill", "b")
            assert noded.call("DELETE", "/v1/instances/b")[0] == 200
            assert {row["name"]: row["state"] for row in noded.rows().values()} == {"a": "running", "c": "stopped"}
            assert noded.call("GET", "/v1/instances/a/verify")[1]["agrees"] is True
            assert not tracebacks(noded) + tracebacks(kvmd)
        finally:
            (node.host.paths.state / "filler").unlink(missing_ok=True)
            for name in node.names:
                node.instance(name).kill()
                node.delete(name)
            kvmd.close()
            noded.end()


def test_no_room_for_what_runs(node: Node, noded: Noded) -> None:
    """A start fails, and says why; a machine that runs can be changed and ended."""
    with small_disk(node.host.paths.run, "1m"):
        noded.start()
        for name in "ab":
            noded.create(bare("10.0", name))
        noded.do("start", "a")
        filler = fill(node.host.paths.run)
        noded.create(bare("10.0", "c"))  # which takes a lock there
        status, told = noded.call("POST", "/v1/instances/b/start", {})
        print(status, told)
        assert status in (200, 409, 507)
        for verb in ("pause", "resume"):
            noded.do(verb, "a")
        filler.unlink()
        noded.do("start", "b")
        for name in "ab":
            noded.do("kill", name)
        assert noded.end() == 0


def test_hardly_any_room(node: Node, tmp_path: Path) -> None:
    """Wherever a change finds no room, it is done or not, says so, and can be done when there is some."""
    with small_disk(node.host.paths.state, "16m"):
        noded = Noded(node.host.paths, tmp_path / "noded.log")
        noded.start()
        try:
            noded.create(bare("10.0", "a"))
            told: dict[int, list[tuple[int, str]]] = {}
            for leave in range(0, 36, 3):
                filler = fill(node.host.paths.state, leave)
                found = [noded.call("POST", "/v1/instances", bare("10.0", "b"))]
                for verb, body in (("start", {}), ("add-nic", {"mode": "user"}), ("kill", {})):
                    found.append(noded.call("POST", f"/v1/instances/a/{verb}", body))
                told[leave] = [(status, answer.get("code", "")) for status, answer in found]
                filler.unlink()
                noded.do("kill", "a")
                noded.do("start", "a")
                assert noded.call("GET", "/v1/instances/a/verify")[1]["agrees"] is True
                noded.do("kill", "a")
                if "b" in noded.rows():
                    assert noded.call("DELETE", "/v1/instances/b")[0] == 200
            print(told)
            codes = {answer for answers in told.values() for answer in answers if answer[0] >= 400}
            assert codes <= {(507, "store-full"), (507, "no-space"), (409, "wrong-state"), (409, "start-failed")}
            assert not tracebacks(noded)
        finally:
            (node.host.paths.state / "filler").unlink(missing_ok=True)
            for name in node.names:
                node.instance(name).kill()
                node.delete(name)
            noded.end()


# -- those who stand still, and monitors that lie ----------------------------------------------------------------------


@pytest.mark.slow
def test_stopped_for_thirty_seconds(node: Node, noded: Noded, kvmd: Kvmd) -> None:
    """Machines run on; who called meanwhile is answered, and what happened meanwhile is seen."""
    noded.start()
    kvmd.start()
    for name in ("a", "b"):
        noded.create(bare("10.0", name))
        noded.do("start", name)
    a, b = node.instance("a"), node.instance("b")
    early = UnixConnection(noded.socket, 60)
    early.connect()  # it is let in, and asks later
    noded.call("GET", "/v1/node")
    for daemon in (noded, kvmd):
        daemon.send_signal(signal.SIGSTOP)
    with QmpConnection(node.host.paths.instance("a").socket("people"), timeout=10) as people:
        people.stop()
    os.kill(pid_of(b), signal.SIGKILL)
    with ThreadPoolExecutor(50) as threads:
        time.sleep(5)
        waiting = [threads.submit(noded.call, "GET", "/v1/instances") for _ in range(50)]
        early.request("GET", "/v1/instances")
        time.sleep(25)
        for daemon in (noded, kvmd):
            daemon.send_signal(signal.SIGCONT)
        assert {call.result()[0] for call in waiting} == {200}
    assert early.getresponse().status == 200
    early.close()
    wait_row(noded, "a", state="paused")
    wait_row(noded, "b", state="stopped")
    wait_event(a, "STOP")
    assert wait_event(b, "ended").data["who"] == "crash"
    noded.do("resume", "a")


@pytest.mark.slow
def test_a_monitor_that_lies(node: Node, noded: Noded) -> None:
    """Cut, silent, garbage or a flood: the list is answered meanwhile, the machine is let be, and is known again."""
    noded.start()
    noded.create(bare("10.0", "a"))
    noded.create(bare("7.2", "well"))
    for name in ("a", "well"):
        noded.do("start", name)
    pid = noded.rows()["a"]["pid"]
    noded.end()
    path = node.host.paths.instance("a").socket("control")
    path.rename(aside := path.with_name("aside"))
    version = b'{"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}'
    greeting = b'{"QMP": {"version": %s, "capabilities": []}}\n' % version
    event = b'{"timestamp": {"seconds": 1, "microseconds": 1}, "event": "STOP"}\n'
    says = [b"", greeting + b"{" * 2_000_000, greeting + event * 200_000, b'{"QMP": 3}\n', b"\0" * 100_000]
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(str(path))
        fake.listen()
        fake.settimeout(0.2)

        def lie() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    client, _ = fake.accept()
                    with client:
                        client.settimeout(5)
                        client.sendall(says.pop() if says else b"")
                        client.recv(1000)

        liar = threading.Thread(target=lie)
        liar.start()
        noded.start()
        begun, times = time.monotonic(), []
        before = cpu(noded)
        while says or time.monotonic() < begun + 10:
            assert time.monotonic() < begun + 100
            asked = time.monotonic()
            assert noded.rows()["well"]["state"] == "running"
            times.append(time.monotonic() - asked)
            time.sleep(0.02)
        over.set()
        liar.join()
        path.unlink()
        aside.rename(path)
    print(f"the longest of {len(times)} lists took {max(times):.3f} s; {cpu(noded) - before:.1f} s of CPU")
    assert max(times) < 2
    wait_row(noded, "a", state="running", pid=pid, generation=1)
    noded.do("pause", "a")
    assert not tracebacks(noded)


@pytest.mark.parametrize("what", ["instances", "watches"])
@pytest.mark.parametrize("kind", [Noded, Kvmd])
def test_no_inotify(node: Node, tmp_path: Path, kind: type[Daemon], what: str) -> None:
    """A daemon that could hear nothing says so, and which limits to raise."""
    daemon = kind(node.host.paths, tmp_path / "log")
    script = f"echo 0 >/proc/sys/user/max_inotify_{what}; exec {shlex.quote(daemon.program)}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script],
        env=daemon.env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if isinstance(daemon, Kvmd):
        daemon.close()
    assert done.returncode == 1, done
    assert "fs.inotify.max_user_instances" in done.stderr
    assert "Traceback" not in done.stderr
