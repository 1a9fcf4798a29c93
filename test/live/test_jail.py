"""A QEMU with a root directory of its own: what is in there, what still works, and that nothing of it is left."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import NotSupported, SpawnFailed
from drover.kvm import jail as jails
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.record import Runtime
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import VERSIONS, bare, bootable, temporary_node, wait_for_shell


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Of QEMU."""
    return str(request.param)


@pytest.fixture
def node() -> Iterator[Node]:
    """A node; its host has the same mounts at the end as at the beginning."""
    before = Path("/proc/self/mountinfo").read_text()
    with temporary_node() as node:
        yield node
    assert Path("/proc/self/mountinfo").read_text() == before


def runtime_of(vm: Instance) -> Runtime:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime


def seen_by(pid: int, uid: int, script: str) -> str:
    """What a shell in its root prints that has its user."""
    enter = ["nsenter", f"--target={pid}", "--mount", "--root", "--wd", "setpriv", f"--reuid={uid}", f"--regid={uid}"]
    done = subprocess.run([*enter, "--clear-groups", "sh", "-c", script], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_only_what_it_needs_is_there(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, chroot=True, vnc={})))
    assert not [notice for notice in vm.start() if "root" in notice]
    runtime = runtime_of(vm)
    assert runtime.uid is not None
    assert jails.rooted_elsewhere(runtime.pid)
    found = seen_by(runtime.pid, runtime.uid, "cd / && ls -A; ls -A etc dev; cat /etc/shadow /proc/1/cmdline").split()
    assert {"usr", "proc", "etc", "dev", "null", "hosts"} <= set(found)
    assert not {"home", "root", "var", "boot", "srv", "passwd", "shadow", "sda", "kmsg"} & set(found)
    assert found.count("cat:") == 2
    private = node.host.paths.instance("vm").private
    script = f"for place in / /usr /etc /proc {private}; do touch $place/x 2>/dev/null && echo $place; done"
    assert seen_by(runtime.pid, runtime.uid, script).split() == [str(private)]
    status = Path(f"/proc/{runtime.pid}/status").read_text()
    assert [line.split()[1] for line in status.splitlines() if line.startswith("Cap")] == ["0" * 16] * 5
    assert list(node.host.paths.instance("vm").root.iterdir()) == []
    assert vm.verify().agrees
    assert vm.stop(timeout=0.1).forced


def test_a_guest_in_it(node: Node, version: str, tmp_path: Path) -> None:
    """Kernel by descriptor, firmware with variables, TPM, screen; disks and a medium that come later."""
    image, more = tmp_path / "a.img", tmp_path / "b.img"
    for path in (image, more):
        with path.open("wb") as file:
            file.truncate(1 << 20)
    disk = {"id": "d0", "source": str(image), "format": "raw"}
    vm = node.create(parse(bootable(version, chroot=True, vnc={}, tpm={}, disks=[disk], nics=[{"id": "net0"}])))
    vm.start()
    wait_for_shell(vm)
    assert (node.host.paths.instance("vm").private / "vnc").is_socket()
    vm.remove_disk(vm.add_disk(source=str(more), format="raw").id)
    vm.add_disk(source=str(more), format="raw")
    assert vm.verify().agrees
    assert vm.stop().reason == "request"


def test_uefi_in_it(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, chroot=True, firmware={"type": "uefi"})))
    vm.start()
    assert vm.show().state is State.RUNNING
    assert vm.kill().reason == "request"


def test_what_cannot_be_made_stops_the_start(node: Node, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = node.create(parse(bare(version, chroot=True)))
    monkeypatch.setattr(jails, "_PROC", "nonsense=1")
    with pytest.raises(SpawnFailed, match=r"mount: .*proc"):
        vm.start()
    assert vm.show().document.runtime is None
    monkeypatch.undo()
    vm.start()
    vm.kill()


@pytest.mark.parametrize("victim", ["manager", "keeper", "qemu"])
def test_whoever_is_killed(node: Node, version: str, victim: str) -> None:
    """The mounts end with the last process in them, and the next start makes them anew."""
    vm = node.create(parse(bare(version, chroot=True)))
    paths = node.host.paths
    env = os.environ | {"DROVER_STATE_DIR": str(paths.state), "DROVER_RUN_DIR": str(paths.run)}
    with subprocess.Popen([str(Path(sys.executable).with_name("drover")), "start", "vm"], env=env) as manager:
        if victim == "manager":
            while not any(jailed(line) for line in processes()):
                assert manager.poll() is None, "it was too fast for us"
            manager.kill()
    if victim != "manager":
        runtime = runtime_of(vm)
        parent = int(Path(f"/proc/{runtime.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent if victim == "keeper" else runtime.pid, signal.SIGKILL)
    vm.kill()
    assert not any(str(paths.run) in line for line in processes())
    vm.start()
    assert jails.rooted_elsewhere(runtime_of(vm).pid)


def processes() -> Iterator[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def jailed(line: str) -> bool:
    return "drover-root" in line or line.startswith("unshare --mount")


def test_not_for_an_ordinary_user(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = node.create(parse(bare("7.2", chroot=True)))
    monkeypatch.setattr(node.host, "rootless", True)
    with pytest.raises(NotSupported, match="chroot = true.*root"):
        vm.start()
    assert vm.show().document.runtime is None
