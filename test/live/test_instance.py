"""Instances on real QEMUs: their life, how each end is told, and what an unfinished call leaves to the next one."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

import waiting
from drover import QmpConnection
from drover.errors import (
    ArgumentError,
    InstanceBusy,
    InstanceExists,
    InstanceNotFound,
    InstanceTimeout,
    MonitorTimeout,
    NotSupported,
    RecordError,
    SpawnFailed,
    StartFailed,
    WrongState,
)
from drover.kvm import launch
from drover.kvm.instance import Instance
from drover.kvm.ledger import opened
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import bare, bootable, temporary_node, type_in, wait_for_shell

wait_for = partial(waiting.wait_for, timeout=60)

TOP = Path(__file__).resolve().parents[2]


def pid_of(vm: Instance) -> int:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime.pid


def boot(vm: Instance) -> None:
    """Start it, and wait for the prompt of its shell."""
    vm.start()
    wait_for_shell(vm)


# -- a life -----------------------------------------------------------------------------------------------------------


def test_life(node: Node, version: str) -> None:
    """Every verb, twice: the second one finds nothing to do."""
    vm = node.create(parse(bare(version, nics=[{"id": "net0"}])))
    assert vm.show().state is State.STOPPED
    vm.start(paused=True)
    assert vm.show().state is State.STARTING
    vm.resume()
    pid = pid_of(vm)
    vm.start()
    vm.resume()
    assert (vm.show().state, pid_of(vm)) == (State.RUNNING, pid)
    vm.pause()
    vm.pause()
    assert vm.show().state is State.PAUSED
    vm.resume()
    vm.reset()
    assert vm.show().state is State.RUNNING
    assert vm.kill().reason == "request"
    assert vm.kill().reason == "request"
    with pytest.raises(WrongState, match="stopped"):
        vm.pause()
    runtime = vm.show().document
    assert (runtime.machine, runtime.generation) == (f"pc-q35-{version}", 1)


def test_button(node: Node, version: str) -> None:
    """A guest that hears its power button shuts down, and its console is in the log."""
    vm = node.create(parse(bootable(version)))
    boot(vm)
    stop = vm.stop(timeout=60)
    assert (stop.reason, stop.detail, stop.exit_code) == ("request", "the guest shut down", 0)
    assert "The power button was pressed" in vm.host.paths.instance("vm").console_log.read_text(errors="replace")
    assert vm.stop() == stop


def test_guest_that_does_not_hear(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version)))
    vm.start()
    pid = pid_of(vm)
    with pytest.raises(InstanceTimeout, match=r"has not shut down within 0\.3 s"):
        vm.stop(timeout=0.3, force=False)
    assert (vm.show().state, pid_of(vm)) == (State.RUNNING, pid)
    stop = vm.stop(timeout=0.3)
    assert stop.detail.startswith("forced")


def test_rights(node: Node, version: str, tmp_path: Path) -> None:
    """QEMU is nobody: a user of its own, no capability, a disk that it could not open itself, sockets that are ours."""
    disk = tmp_path / "disk.raw"
    disk.touch(0o600)
    os.truncate(disk, 1 << 20)
    disks = [{"id": "d", "source": str(disk), "format": "raw"}]
    vm = node.create(parse(bare(version, disks=disks)))
    vm.start()
    runtime = vm.show().document.runtime
    assert runtime is not None
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{runtime.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert runtime.uid is not None
    assert set(status["Uid"].split()) == {str(runtime.uid)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    paths = vm.host.paths.instance("vm")
    assert paths.run.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in paths.run.iterdir()} == {0o600}
    ours = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert str(disk) not in ours
    vm.kill()
    assert not paths.run.exists()
    assert not paths.private.exists()


def test_tpm(node: Node, version: str) -> None:
    """It runs beside QEMU as the same user, keeps its state, and goes with it, whoever ends it."""
    vm = node.create(parse(bare(version, tpm={"model": "crb"})))
    state = node.host.paths.tpm(vm.show().document.spec.uuid)
    for end in (vm.kill, lambda: os.kill(pid_of(vm), signal.SIGKILL)):
        vm.start()
        runtime = vm.show().document.runtime
        assert runtime is not None
        assert runtime.uid is not None
        assert os.stat(f"/proc/{runtime.tpm_pid}").st_uid == runtime.uid
        with QmpConnection(node.host.paths.instance("vm").socket("people")) as qmp:
            [tpm] = qmp.execute("query-tpm")
        assert tpm["model"] == "tpm-crb"
        wait_for(lambda: any(state.iterdir()))
        end()
        wait_for(lambda process=Path(f"/proc/{runtime.tpm_pid}"): not process.exists())
        vm.mend()
        assert vm.show().state is State.STOPPED
    assert any(state.iterdir())
    node.delete("vm")
    assert not state.exists()


def test_cloud_init(node: Node, version: str) -> None:
    """Its disk is made anew at each start, of what the specification says then."""
    seed = {"user_data": "#cloud-config\nhostname: web1\n"}
    vm = node.create(parse(bare(version, cloud_init=seed)))
    vm.start()
    with QmpConnection(node.host.paths.instance("vm").socket("people")) as qmp:
        assert "seed" in {it["node-name"] for it in qmp.query_block_nodes()}
    assert b"hostname: web1" in node.host.paths.instance("vm").seed.read_bytes()


# -- how it ended -----------------------------------------------------------------------------------------------------


def test_guest_shuts_down_by_itself(node: Node, version: str) -> None:
    """QEMU waits with it, until somebody takes note."""
    vm = node.create(parse(bootable(version)))
    boot(vm)
    type_in(vm, "poweroff -f")
    wait_for(lambda: vm.show().state is State.SHUTDOWN)
    vm.mend()
    stop = vm.show().document.last_stop
    assert stop is not None
    assert (vm.show().state, stop.reason) == (State.STOPPED, "guest-shutdown")


def test_guest_panics(node: Node, version: str) -> None:
    vm = node.create(parse(bootable(version)))
    boot(vm)
    type_in(vm, "echo c >/proc/sysrq-trigger")
    wait_for(lambda: vm.show().state is State.PANICKED)
    vm.mend()
    stop = vm.show().document.last_stop
    assert stop is not None
    assert stop.reason == "panic"


@pytest.mark.parametrize(
    ("number", "reason", "detail"),
    [
        (signal.SIGTERM, "host-signal", "signal 15 from process {me}"),
        (signal.SIGSEGV, "crash", "killed by SIGSEGV"),
        (signal.SIGKILL, "crash", "killed by SIGKILL"),
    ],
)
def test_host_ends_it(node: Node, version: str, number: int, reason: str, detail: str) -> None:
    vm = node.create(parse(bare(version)))
    vm.start()
    os.kill(pid_of(vm), number)
    wait_for(lambda: vm.show().state is State.ENDED)
    assert any(reason in notice for notice in vm.mend())
    stop = vm.show().document.last_stop
    assert stop is not None
    assert (stop.reason, stop.detail) == (reason, detail.format(me=os.getpid()))
    vm.start()
    assert vm.show().state is State.RUNNING


def test_host_booted(node: Node, version: str) -> None:
    """What ran before the host's boot runs no more, whoever has its pid now."""
    vm = node.create(parse(bare(version)))
    vm.start()
    pid = pid_of(vm)
    with opened(node.host.paths, "vm", "test") as ledger:
        assert ledger.document.runtime is not None
        ledger.document.runtime.boot_id = "another"
        ledger.save()
    assert vm.show().state is State.ENDED
    os.kill(pid, signal.SIGKILL)
    vm.mend()
    stop = vm.show().document.last_stop
    assert stop is not None
    assert stop.reason == "host-boot"


# -- what does not start ----------------------------------------------------------------------------------------------


def descriptors() -> int:
    """How many this process has open, once what a start does beside has ended (`Tree.expect`)."""
    for thread in threading.enumerate():
        if thread.name == "control groups":
            thread.join()
    return len(os.listdir("/proc/self/fd"))


def test_start_that_fails(node: Node, version: str, tmp_path: Path) -> None:
    """Nothing of it stays, the reason is told, and it can be started when that is mended."""
    disk = tmp_path / "disk.raw"
    vm = node.create(parse(bare(version, disks=[{"id": "d", "source": str(disk), "format": "raw"}])))
    with pytest.raises(FileNotFoundError):
        vm.start()
    before = descriptors()
    disk.write_bytes(b"")
    os.truncate(disk, 1 << 20)
    disk.rename(tmp_path / "there")
    with pytest.raises(FileNotFoundError):
        vm.start()
    assert descriptors() == before
    stop = vm.show().document.last_stop
    assert stop is not None
    assert stop.reason == "start-failed"
    (tmp_path / "there").rename(disk)
    vm.start()
    assert vm.show().state is State.RUNNING


def test_qemu_that_refuses(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, extra_args=["-device", "no-such-device"])))
    with pytest.raises(StartFailed, match="no-such-device"):
        vm.start()
    assert vm.show().state is State.STOPPED
    assert not node.host.paths.instance("vm").run.exists()


def test_image_that_is_in_use(node: Node, version: str, tmp_path: Path) -> None:
    """Two machines never write to one image."""
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, 1 << 20)
    disks = [{"id": "d", "source": str(disk), "format": "raw"}]
    node.create(parse(bare(version, "one", disks=disks))).start()
    two = node.create(parse(bare(version, "two", disks=disks)))
    with pytest.raises(StartFailed, match="lock"):
        two.start()
    node.instance("one").kill()
    two.start()


# -- several ----------------------------------------------------------------------------------------------------------


def test_names(node: Node) -> None:
    vm = node.create(parse(bare("7.2", "web1")))
    with pytest.raises(InstanceExists):
        node.create(parse(bare("7.2", "web1")))
    with pytest.raises(InstanceNotFound, match="did you mean web1"):
        node.instance("web2")
    with pytest.raises(ArgumentError):
        node.instance("../etc")
    uuid = vm.show().document.spec.uuid
    moved = node.rename("web1", "www")
    assert node.names == ["www"]
    vm = moved
    vm.start()
    assert (vm.show().document.spec.name, vm.show().document.spec.uuid) == ("www", uuid)
    for act in (lambda: node.delete("www"), lambda: node.rename("www", "web1")):
        with pytest.raises(WrongState, match="running"):
            act()
    vm.kill()
    node.delete("www")
    assert node.names == []
    with pytest.raises(InstanceNotFound):
        vm.start()


def test_one_that_hangs(node: Node, version: str) -> None:
    """It delays nobody else, is told as what it is, and can be ended."""
    stuck, well = (node.create(parse(bare(version, name))) for name in ("stuck", "well"))
    stuck.start()
    well.start()
    os.kill(pid_of(stuck), signal.SIGSTOP)
    since = time.monotonic()
    found = {report.name: report.condition for report in node.survey(timeout=1)}
    assert time.monotonic() - since < 5
    assert {name: it and it.state for name, it in found.items()} == {"stuck": "unresponsive", "well": "running"}
    with pytest.raises(MonitorTimeout):
        stuck.mend(timeout=0.5)
    assert well.stop(timeout=0.1).reason == "request"
    stuck.kill()
    assert stuck.show().state is State.STOPPED


def test_busy(node: Node) -> None:
    """Who looks is told what somebody is at; who wants to act waits, for as long as it says."""
    node.create(parse(bare("7.2")))
    with opened(node.host.paths, "vm", "a long job"):
        condition = node.instance("vm").show()
        assert condition.state is State.BUSY
        assert condition.detail == f"a long job (process {os.getpid()})"
        with pytest.raises(InstanceBusy, match="a long job"):
            node.instance("vm", lock_timeout=0.1).start()


def test_document_of_a_newer_drover(node: Node) -> None:
    """It is left as it is, and keeps nobody from the others."""
    node.create(parse(bare("7.2", "old")))
    node.create(parse(bare("7.2", "new")))
    path = node.host.paths.instance("new").document
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2'))
    kept = path.read_bytes()
    with pytest.raises(RecordError, match="schema is 2"):
        node.instance("new").start()
    found = {report.name: report for report in node.survey()}
    assert isinstance(found["new"].error, RecordError)
    assert found["old"].condition is not None
    assert path.read_bytes() == kept
    path.write_bytes(kept.replace(b'"schema": 2', b'"schema": 1'))


# -- we die -----------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from drover.kvm import record
from drover.kvm.node import Node
from drover.kvm.paths import Paths

state, run, name, verb, step, after = sys.argv[1:]
count = 0
real = record.replace

def replace(path, data, **how):
    global count
    count += 1
    if count == int(step) and after == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data, **how)
    if count == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

record.replace = replace
vm = Node(Paths(Path(state), Path(run))).instance(name)
verbs = {"start": vm.start, "paused": lambda: vm.start(paused=True), "stop": lambda: vm.stop(timeout=0.2)}
verbs.get(verb, vm.kill)()
"""


def die_in(node: Node, verb: str, step: int, after: int) -> bool:
    """Run a verb in a process that gets SIGKILL at its so-manieth write of the document. Whether there were so many."""
    paths = node.host.paths
    words = [sys.executable, "-c", DYING, str(paths.state), str(paths.run), "vm", verb, str(step), str(after)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def qemus(node: Node) -> list[int]:
    """The pids of all QEMUs of a node, whatever its documents say."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue
        uuid = node.instance("vm").show(timeout=0.5).document.spec.uuid.encode()
        if b"\0-uuid\0" + uuid in line:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("verb", ["start", pytest.param("paused", marks=pytest.mark.slow), "stop", "kill"])
def test_killed_at_each_write(version: str, verb: str, after: int) -> None:
    """Whatever was written when the process died: the next one finds document and QEMU in agreement, or makes them."""
    step = 1
    died = True
    while died:
        with temporary_node() as node:
            vm = node.create(parse(bare(version)))
            if verb in ("stop", "kill"):
                vm.start()
            died = die_in(node, verb, step, after)
            [report] = node.adopt()
            assert report.error is None
            assert report.condition is not None
            document, running = report.condition.document, qemus(node)
            assert document.pending is None
            if document.runtime is None:
                assert running == []
                assert not node.host.paths.instance("vm").run.exists()
            else:
                assert running == [document.runtime.pid]
                assert report.condition.state is (State.STARTING if verb == "paused" else State.RUNNING)
        step += 1
    assert step > 3


def test_adopted(node: Node, version: str) -> None:
    """QEMUs outlive who started them, and whoever comes next finds them as they are."""
    for number in range(3):
        node.create(parse(bare(version, f"vm{number}")))
    code = (
        "import sys; from pathlib import Path; from drover.kvm.node import Node; from drover.kvm.paths import Paths\n"
        "node = Node(Paths(Path(sys.argv[1]), Path(sys.argv[2])))\n"
        "for name in node.names: node.instance(name).start()\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    paths = node.host.paths
    words = [sys.executable, "-c", code, str(paths.state), str(paths.run)]
    subprocess.run(words, env=os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}, timeout=60, check=False)
    pids = [pid_of(node.instance(name)) for name in node.names]
    assert [report.notices for report in node.adopt()] == [[], [], []]
    assert [pid_of(node.instance(name)) for name in node.names] == pids
    assert {report.condition and report.condition.state for report in node.survey()} == {State.RUNNING}


def test_vsock_lacking(node: Node, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_VSOCK", str(tmp_path / "vhost-vsock"))
    vm = node.create(parse(bare(version, vsock_cid=7)))
    with pytest.raises(NotSupported, match="vsock_cid.*modprobe vhost_vsock"):
        vm.start()
    assert vm.show().state is State.STOPPED


def test_vsock_is_opened_for_qemu(node: Node, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel may have no vhost: QEMU then says of the descriptor that it is none."""
    path = tmp_path / "vhost-vsock"
    path.touch()
    monkeypatch.setattr(launch, "_VSOCK", str(path))
    vm = node.create(parse(bare(version, vsock_cid=7)))
    with pytest.raises(StartFailed, match=r"vhost|vsock|ioctl|device"):
        vm.start()
    assert vm.show().state is State.STOPPED


def test_a_start_that_fails_early_leaves_no_control_group(node: Node, version: str) -> None:
    """Here before QEMU is made, and behind the group."""
    vm = node.create(parse(bare(version, chroot=True, chroot_paths=["/nowhere/at/all"])))
    with pytest.raises(SpawnFailed, match="/nowhere/at/all"):
        vm.start()
    tree = node.host.tree.path
    assert tree is not None
    assert not list(tree.glob(f"vm-{vm.show().document.spec.uuid[:8]}*"))
