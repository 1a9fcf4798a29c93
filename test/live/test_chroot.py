"""A QEMU with a root directory of its own: what is in there, what still works, and that nothing of it is left."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import ArgumentError, CommandError, SpawnFailed
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.record import Runtime
from drover.kvm.spec import parse
from drover.kvm.state import State
from instances import Guest, bare, bootable, temporary_node
from ports import free_port

TOP = Path(__file__).resolve().parents[2]
BRIDGE = "drchroot0"
MIB = 1 << 20
SIGNED = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-addext", "basicConstraints=CA:FALSE")


@pytest.fixture
def node() -> Iterator[Node]:
    """A node; its host has the same mounts at the end as at the beginning."""
    before = mounts()
    with temporary_node() as node:
        yield node
    assert mounts() == before


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.raw" for number in range(3)]
    for number, path in enumerate(paths, 1):
        path.touch(0o600)
        os.truncate(path, number * MIB)
    return list(map(str, paths))


@pytest.fixture
def bridge() -> Iterator[str]:
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    yield BRIDGE
    subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def runtime_of(vm: Instance) -> Runtime:
    runtime = vm.show().document.runtime
    assert runtime is not None
    return runtime


def monitor(vm: Instance) -> QmpConnection:
    return QmpConnection(vm.host.paths.instance(vm.name).socket("people"))


def points(pid: int) -> dict[str, set[str]]:
    """Where something is mounted for a process, and how."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines()
    return {line.split()[4]: set(line.split()[5].split(",")) for line in lines}


def seen_by(runtime: Runtime, script: str) -> list[str]:
    """What a shell in its root prints that has its user."""
    enter = ["nsenter", f"--target={runtime.pid}", "--mount", "--", "setpriv", f"--reuid={runtime.uid}"]
    done = subprocess.run(
        [*enter, f"--regid={runtime.uid}", "--clear-groups", "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


def within(node: Node) -> set[int]:
    """Processes in a root directory of one of this node's instances, known by the folder for its sockets."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if f" {node.host.paths.run}/" in (folder / "mountinfo").read_text(encoding="utf-8"):
                found.add(int(folder.name))
    return found


# -- what is in there -------------------------------------------------------------------------------------------------


def test_only_what_it_needs_is_there(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, chroot=True, vnc=True)))
    vm.start()
    runtime, private = runtime_of(vm), str(node.host.paths.instance("vm").private)
    system = {"usr", "proc", "etc", "dev", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}
    # the way to the two folders that are neither the system's nor its own; build/qemu-10 is shown as a whole
    mine = {path.split("/")[1] for path in (runtime.emulator, private)} - {"usr"}
    assert {"usr", "proc", "etc", "dev"} | mine <= set(seen_by(runtime, "ls -A /")) <= system | mine
    assert {"/home", "/root", "/var", "/run", "/boot", "/sys"}.isdisjoint(points(runtime.pid))
    assert {"passwd", "shadow", "group", "ssh"}.isdisjoint(seen_by(runtime, "ls -A /etc"))
    assert {"tty", "vda", "mem", "net", "shm"}.isdisjoint(seen_by(runtime, "ls -A /dev"))
    assert {name for name in seen_by(runtime, "ls -A /proc") if not name.isdecimal()} == {"self", "thread-self"}
    assert str(os.getpid()) not in seen_by(runtime, "ls -A /proc")
    places = f"/ /usr /etc /dev /proc /tmp {Path(runtime.emulator).parent} {private}"
    assert seen_by(runtime, f"for place in {places}; do touch $place/x && echo $place; done") == [private]
    mounted = points(runtime.pid)
    assert {path for path, how in mounted.items() if "ro" not in how} == {private, "/proc"}
    assert {path for path, how in mounted.items() if "nosuid" not in how} == set()


def test_qemu_itself_finds_nothing_of_the_host(node: Node, version: str) -> None:
    """It opens what it likes, with a root directory of its own and without."""
    for name, chroot in (("free", False), ("held", True)):
        vm = node.create(parse(bare(version, name, chroot=chroot)))
        vm.start()
        assert (points(runtime_of(vm).pid) == points(os.getpid())) is not chroot
        with monitor(vm) as qmp:
            node_of = {"driver": "file", "node-name": "n", "filename": "/etc/passwd", "read-only": True}
            if chroot:
                with pytest.raises(CommandError, match="No such file or directory"):
                    qmp.execute("blockdev-add", node_of)
            else:
                qmp.execute("blockdev-add", node_of)
        [fact] = [fact for fact in vm.verify().facts if fact.what == "process root"]
        said = "its own" if chroot else "the host's"
        assert (fact.specification, fact.record, fact.qemu, fact.differs) == (said, said, said, False)


def test_it_has_no_rights(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version, chroot=True)))
    vm.start()
    runtime = runtime_of(vm)
    lines = Path(f"/proc/{runtime.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(runtime.uid)}
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    opened = {os.readlink(fd) for fd in Path(f"/proc/{runtime.pid}/fd").iterdir()}
    assert not {name for name in opened if name.startswith("mnt:")}


# -- what works in there ----------------------------------------------------------------------------------------------


def test_a_guest(node: Node, version: str, images: list[str], bridge: str) -> None:
    """Kernel, disks, cards, a medium, limits, the screen: at the start, and while it runs."""
    first, second, third = images
    disks = [
        {"id": "d", "source": first, "format": "raw", "cache": "writeback"},
        {"id": "cd", "kind": "cdrom", "bus": "virtio-scsi"},
    ]
    nics = [{"id": "lan", "mode": "bridge", "link": bridge}]
    document = bootable(version, chroot=True, vnc=True, tpm=True, disks=disks, nics=nics, cloud_init=True)
    vm = node.create(parse(document))
    vm.start()
    guest = Guest(vm)
    guest.until("cat /sys/block/vda/size", str(MIB // 512), there=True)
    with socket.socket(socket.AF_UNIX) as screen:
        screen.connect(str(node.host.paths.instance("vm").private / "vnc"))
        assert screen.recv(12) == b"RFB 003.008\n"
    with monitor(vm) as qmp:
        assert qmp.screenshot()[:8] == b"\x89PNG\r\n\x1a\n"
    disk = vm.add_disk(source=second, format="raw", cache="writeback")
    guest.until("ls /sys/block", "vdc", there=True)
    vm.set_throttle(disk.id, iops_total=100)
    vm.resize_disk(disk.id, 8 * MIB)
    vm.remove_disk(disk.id)
    guest.until("ls /sys/block", "vdc", there=False)
    vm.change_medium("cd", third)
    with monitor(vm) as qmp:
        assert qmp.query_cdrom("cd").size == 3 * MIB
    for how in ({"mode": "bridge", "link": bridge}, {"mode": "user"}):
        nic = vm.add_nic(**how)
        guest.until("ip link", nic.mac, there=True)
        vm.remove_nic(nic.id)
        guest.until("ip link", nic.mac, there=False)
    vm.add_usb(type="keyboard")
    assert [fact for fact in vm.verify().facts if fact.differs] == []
    guest.close()
    [report] = Node(node.host.paths).adopt()
    assert (report.error, report.notices) == (None, [])
    assert points(runtime_of(vm).pid) != points(os.getpid())
    stop = vm.stop(timeout=60)
    assert (stop.reason, stop.detail, stop.exit_code) == ("request", "the guest shut down", 0)
    assert not node.host.paths.instance("vm").run.exists()


def test_uefi(node: Node, version: str) -> None:
    """The firmware reads its code, and writes to its variables."""
    vm = node.create(parse(bare(version, chroot=True, firmware={"type": "uefi"}, memory={"size": "256MiB"})))
    vm.start(paused=True)
    paths = node.host.paths.instance("vm")
    before = paths.nvram.read_bytes()
    vm.resume()
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(paths.socket("serial")))
        console.settimeout(120)
        text = b""
        while b"Interactive Shell" not in text:
            text += console.recv(4096)
    assert paths.nvram.read_bytes() != before
    assert vm.kill().reason == "request"


def test_files_that_qemu_opens_itself(node: Node, version: str, tmp_path: Path) -> None:
    """Certificates, a BIOS, and the table of the host's time zone."""
    folder = tmp_path / "pki"
    folder.mkdir()
    for name, *of in (("ca", "-addext", "keyUsage=critical,keyCertSign"), ("server", *SIGNED)):
        files = ["-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem"]
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        subprocess.run([*words, *of, *files], cwd=folder, check=True, capture_output=True)
        (folder / f"{name}-key.pem").chmod(0o644)
    bios = shutil.copy("/usr/share/seabios/bios-256k.bin", tmp_path)
    more = {"firmware": {"code": bios}, "machine": {"rtc": "localtime"}}
    screen = {"listen": f"127.0.0.1:{free_port()}", "tls_dir": str(folder), "keymap": "de"}
    vm = node.create(parse(bare(version, chroot=True, vnc=screen, **more)))
    vm.start()
    with monitor(vm) as qmp:
        assert qmp.query_vnc()[0].auth == "vencrypt"
        qmp.reload_vnc_certificates()
    assert {str(folder), bios, "/etc/localtime"} <= points(runtime_of(vm).pid).keys()


def test_servers(node: Node, version: str, images: list[str]) -> None:
    """Of NBD: by the name of a host; by a socket that is named at the start; by one that is not."""
    folder = node.host.paths.state.parent
    port = free_port()
    words = ["qemu-nbd", "-f", "raw", "-x", "disk", "-t", "-e", "8"]
    sockets = [folder / "one", folder / "two"]
    servers = [["-b", "localhost", "-p", str(port)], *(["-k", str(path)] for path in sockets)]
    running = [subprocess.Popen([*words, *how, image]) for how, image in zip(servers, images, strict=True)]
    try:
        wait_for_server(port, sockets)
        sources = [f"nbd://localhost:{port}/disk", f"nbd+unix:///disk?socket={sockets[0]}"]
        vm = node.create(parse(bare(version, chroot=True, disks=[{"source": it, "format": "raw"} for it in sources])))
        vm.start()
        vm.add_disk(source=sources[0], format="raw", read_only=True)
        with pytest.raises(ArgumentError, match=f"source: .*without {sockets[1]}: that has to be in chroot_paths"):
            vm.add_disk(source=f"nbd+unix:///disk?socket={sockets[1]}", format="raw")
        with pytest.raises(ArgumentError, match="type: 'host' is not .* without /dev/bus/usb and /sys"):
            vm.add_usb(vendor="1234", product="5678")
        assert vm.verify().agrees
        vm.kill()
        more = node.create(parse(bare(version, "more", chroot=True, chroot_paths=[str(sockets[1])])))
        more.start()
        more.add_disk(source=f"nbd+unix:///disk?socket={sockets[1]}", format="raw")
        more.kill()
    finally:
        for server in running:
            server.kill()
            server.wait()


def wait_for_server(port: int, paths: list[Path]) -> None:
    """They answer, and QEMU's own user may dial them."""
    deadline = time.monotonic() + 30
    for family, address in ((socket.AF_INET, ("localhost", port)), *((socket.AF_UNIX, str(it)) for it in paths)):
        while not answers(family, address):
            assert time.monotonic() < deadline, f"nobody answers at {address}"
            time.sleep(0.02)
    for path in paths:
        path.chmod(0o666)


def answers(family: int, address: object) -> bool:
    with socket.socket(family) as sock:
        return sock.connect_ex(address) == 0  # type: ignore[arg-type]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_cannot_be_made_fails_the_start(node: Node, version: str) -> None:
    """With what of it; nothing stays, and nothing ran."""
    vm = node.create(parse(bare(version, chroot=True, chroot_paths=["/nowhere"], nics=[{"id": "n"}], tpm=True)))
    with pytest.raises(SpawnFailed, match="cannot start .*: no chroot could be made: .*No such file.*: /nowhere"):
        vm.start()
    condition = vm.show()
    assert (condition.state, condition.document.runtime) == (State.STOPPED, None)
    assert condition.document.last_stop is not None
    assert "/nowhere" in condition.document.last_stop.detail
    assert not node.host.paths.instance("vm").run.exists()


def test_an_emulator_that_would_show_too_much(node: Node, tmp_path: Path) -> None:
    home = Path.home() / "drover-test-qemu"
    home.write_text('#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    home.chmod(0o755)
    try:
        vm = node.create(parse(bare("7.2", chroot=True) | {"emulator": str(home)}))
        with pytest.raises(ArgumentError, match="emulator: .*in a folder of its own"):
            vm.start()
        assert vm.show().document.runtime is None
    finally:
        home.unlink()


def test_not_for_an_ordinary_user(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when it is made, and when it is started."""
    vm = node.create(parse(bare("7.2", chroot=True)))
    monkeypatch.setattr(node.host, "rootless", True)
    for act in (vm.start, lambda: node.create(parse(bare("7.2", "other", chroot=True)))):
        with pytest.raises(ArgumentError, match="chroot: True is not allowed; only root"):
            act()
    assert node.names == ["vm"]
    assert vm.show().document.runtime is None


# -- who dies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["qemu", "keeper"])
def test_killed(node: Node, version: str, victim: str) -> None:
    """The root goes with QEMU, and only with it; the next start makes it anew."""
    vm = node.create(parse(bare(version, chroot=True)))
    vm.start()
    runtime = runtime_of(vm)
    assert within(node) == {runtime.pid}
    parent = int(Path(f"/proc/{runtime.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent if victim == "keeper" else runtime.pid, signal.SIGKILL)
    if victim == "keeper":
        assert (vm.show().state, within(node)) == (State.RUNNING, {runtime.pid})
    else:
        assert (vm.show().state, within(node)) == (State.ENDED, set())
    stop = vm.kill()
    assert (stop.reason, stop.signal) == (("crash", 9) if victim == "qemu" else ("request", None))
    assert within(node) == set()
    vm.start()
    assert within(node) == {runtime_of(vm).pid}


DYING = """
import os, signal, sys
from pathlib import Path
from drover.kvm import keeper, record, root
from drover.kvm.node import Node
from drover.kvm.paths import Paths

state, run, where, what, *step = sys.argv[1:]
module = {"keeper": keeper.Held, "record": record, "root": root}[where]
real, count = getattr(module, what), 0

def dying(*arguments, **named):
    global count
    count += 1
    done = real(*arguments, **named)
    if count == int(step[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    return done

setattr(module, what, dying)
Node(Paths(Path(state), Path(run))).instance("vm").start()
"""


@pytest.mark.parametrize(
    ("where", "what", "step"),
    [
        ("root", "_mount", 5),
        ("root", "_leave_host", 1),
        ("record", "replace", 1),
        ("record", "replace", 2),
        ("record", "replace", 3),
        ("keeper", "let_go", 1),
    ],
)
def test_killed_manager(node: Node, where: str, what: str, step: int) -> None:
    """Wherever it dies, the machine runs in its own root or not at all, and the host has nothing of it.

    When it has just been let go, it is in there already or finds no way in.
    """
    vm, paths = node.create(parse(bare("10.0", chroot=True))), node.host.paths
    words = [sys.executable, "-c", DYING, str(paths.state), str(paths.run), where, what, str(step)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    [report] = node.adopt()
    assert report.error is None
    assert report.condition is not None
    runtime = report.condition.document.runtime
    if runtime is None:
        assert not paths.instance("vm").run.exists()
        assert within(node) == set()
    else:
        assert within(node) == {runtime.pid}
        assert vm.verify().agrees
    vm.start()
    assert vm.verify().agrees
