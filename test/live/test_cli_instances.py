"""The commands for instances, as a person types them: from nothing to a guest's console, and what goes wrong."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Host, host_with
from instances import bare, bootable
from terminal import Terminal, terminal


@pytest.fixture(params=["alone", "daemon"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Without a node daemon, and with one: the same words do the same."""
    with host_with(daemon=request.param == "daemon") as found:
        yield found


def ended(host: Host) -> str:
    """The state of a machine whose guest has shut down: a daemon takes note of that by itself."""
    return "stopped" if host.daemon else "shutdown"


def state(host: Host, name: str) -> str:
    found: str = json.loads(host("show", name, "-o", "json"))["state"]
    return found


def test_a_life(host: Host) -> None:
    vnc = {"vnc": {"password": "sesame"}}
    assert "vm is there, with uuid" in host("create", host.write(bare("7.2") | vnc))
    assert host("start", "vm", "--paused") == "vm is paused.\n"
    for verb, then in (("resume", "running"), ("pause", "paused"), ("resume", "running"), ("reset", "running")):
        host(verb, "vm")
        assert state(host, "vm") == then
    assert "sesame" not in host("show", "vm") + host("show", "vm", "-o", "json")
    [row] = json.loads(host("list", "-o", "json"))
    assert (row["name"], row["state"], row["memory_mib"]) == ("vm", "running", 64)
    (host.top / "d.raw").write_bytes(bytes(1 << 20))
    words = ("attach", "disk", "vm", str(host.top / "d.raw"), "--format", "raw", "--serial", "s1", "-o", "json")
    added = json.loads(host(*words))
    assert added["id"] in json.loads(host("show", "vm", "-o", "json"))["devices"].split(", ")
    refused = host.run("detach", "disk", "vm", added["id"], "--timeout", "0.2")
    assert (refused.returncode, "until its next reset" in refused.stderr) == (1, True)
    host("reset", "vm")
    assert "was taken out" in host("adopt")
    assert host("verify", "vm").endswith("vm (running): all agree.\n")
    assert json.loads(host("verify", "vm", "--repair", "-o", "json"))["agrees"]
    assert host("adopt").splitlines()[1].split() == ["vm", "running", str(row["pid"])]
    assert "forced" in host("stop", "vm", "--timeout", "0.2")
    assert host("rename", "vm", "other") == "vm is called other now.\n"
    assert json.loads(host("show", "other", "-o", "json"))["last stop"].startswith("request: forced")


def test_changes(host: Host) -> None:
    """Each verb for a machine that runs, with what it answers to programs."""
    drive = {"id": "cd", "kind": "cdrom"}
    memory = {"size": "64MiB", "max": "1GiB", "slots": 2}
    document = bare("10.0", disks=[drive], memory=memory, machine={"usb": True}, nics=[{"id": "n"}], cpu={"max": 2})
    host("create", host.write(document))
    host("start", "vm")
    image = host.top / "d.raw"
    image.write_bytes(bytes(1 << 20))
    host("attach", "disk", "vm", str(image), "--format", "raw", "--id", "d", "--cache", "writeback", "--iothread", "io")
    expected: list[tuple[str, dict[str, object]]] = [
        ("resize disk vm d 2MiB", {"id": "d", "size": 2 << 20}),
        ("set throttle vm d iops_total=500", {"throttle": {"iops_total": 500}}),
        ("set medium vm cd " + str(image.with_suffix(".iso")), {"source": str(image.with_suffix(".iso"))}),
        ("set link vm n down", {"state": "down"}),
        ("attach usb vm --type mouse", {"id": "usb1"}),
        ("detach usb vm usb1", {"id": "usb1"}),
        ("attach memory vm 128MiB", {"id": "dimm0", "size": 128 << 20}),
        ("attach memory vm 256MiB --type virtio-mem", {"id": "vmem0"}),
        ("set vcpus vm 2 --even-under-tcg", {"count": 2}),
    ]
    image.with_suffix(".iso").write_bytes(bytes(1 << 20))
    for words, told in expected:
        answer = json.loads(host(*words.split(), "-o", "json"))
        assert answer | told == answer, words
    for words, text in (
        ("resize disk vm d 1MiB", "at least the 2097152 bytes"),
        ("resize disk vm d 1MB", "'1MB' is no size"),
        ("set throttle vm d iops=1", "disks[1].throttle.iops: there is no such field"),
        ("set medium vm d", "one of its CD drives: cd"),
        ("attach vfio vm 0000:00:1f.7", "vfio"),
        ("set vcpus vm 3", "1 to 2"),
        ("detach memory vm nosuch", "one of its memory devices: dimm0, vmem0"),
    ):
        done = host.run(*words.split())
        assert done.returncode, words
        assert text in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_what_goes_wrong(host: Host) -> None:
    broken = host.top / "broken.toml"
    broken.write_text('name = "a b"\n[memory]\nsizes = 3\n')
    done = host.run("create", str(broken))
    assert done.returncode == 1
    assert "memory.sizes: there is no such field; the nearest is 'size'" in done.stderr
    assert "name: 'a b'" in done.stderr
    for words, text in (
        (("start", "nosuch"), "there is no such instance"),
        (("run", "nosuch"), "ends with .toml or .json"),
        (("console", "nosuch"), "there is no such instance"),
    ):
        done = host.run(*words)
        status = 1 if words[0] == "run" else 3
        assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (status, True, False)
    host("create", host.write(bare("7.2")))
    lacking = bare("7.2", "other", disks=[{"source": "/nowhere", "format": "raw"}])
    host("create", host.write(lacking))
    assert host.run("start", "other").stderr == "drover: /nowhere: No such file or directory\n"
    assert "stopped; this needs it running" in host.run("pause", "vm").stderr
    assert "there is such an instance already" in host.run("create", host.write(bare("7.2"))).stderr


def test_console(host: Host) -> None:
    """`run` makes it, starts it, is at its console; Ctrl-] leaves; `console` comes back, and sees the guest's end."""
    path = host.write(bootable("10.0"))
    with terminal(["run", "--no-daemon", path], host.top, **host.env) as screen:
        screen.see("guest#")
        screen.enter("echo $((6*7))")
        screen.see("\n42")
        screen.press("C-]")
        screen.see("vm runs on", "EXIT 0")
    assert state(host, "vm") == "running"
    with terminal(["console", "vm"], host.top, **host.env) as screen:
        screen.see("At the console of vm")
        screen.enter("poweroff -f")
        screen.see("Power down")
    assert state(host, "vm") == ended(host)
    assert "the guest shut down" in (host("adopt") if not host.daemon else host("show", "vm"))
    assert json.loads(host("show", "vm", "-o", "json"))["last stop"].startswith("guest-shutdown")


# All of it is imported before the rights are dropped: an ordinary user may not be let into where the tests lie.
AS_SOMEBODY = """
import importlib, os, pkgutil, sys
import drover.cli, drover.kvm
for package in (drover.cli, drover.kvm):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from drover.cli.main import main
os.setgroups([]), os.setgid(64195), os.setuid(64195)
main()
"""


class SomebodysHost(Host):
    """The same for a user who has no rights."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        env = {"HOME": str(self.top), "XDG_RUNTIME_DIR": str(self.top), "PYTHONPATH": self.env["PYTHONPATH"]}
        words = (sys.executable, "-c", AS_SOMEBODY, *words)
        env["PATH"] = os.environ["PATH"]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_an_ordinary_user() -> None:
    """Has machines of his own, in folders of his own, and is told what they lack."""
    host = SomebodysHost(Path(tempfile.mkdtemp(prefix="drover-")), daemon=False)
    os.chown(host.top, 64195, 64195)
    file = host.write(bare("7.2", nics=[{"mode": "user"}]))
    os.chmod(file, 0o644)
    host("create", file)
    done = host.run("start", "vm")
    assert done.returncode == 0, done.stderr
    assert "control group" in done.stderr
    shown = json.loads(host("show", "vm", "-o", "json"))
    assert shown["state"] == "running"
    assert os.stat(f"/proc/{shown['pid']}").st_uid == 64195
    refused = host.run("attach", "nic", "vm", "--mode", "bridge", "--link", "lo")
    assert (refused.returncode, "CAP_NET_ADMIN" in refused.stderr) == (1, True), refused.stderr
    host("attach", "nic", "vm", "--mode", "user")
    assert "killed" in host("kill", "vm")
    host("delete", "--yes", "vm")
    shutil.rmtree(host.top)


# -- clones -----------------------------------------------------------------------------------------------------------


def test_clone(host: Host) -> None:
    """Names what is refused, tells what is to be known, and shows no bar to a program."""
    (host.top / "vm.raw").write_bytes(bytes(1 << 20))
    disks = [{"id": "d", "source": str(host.top / "vm.raw"), "format": "raw"}]
    host("create", host.write(bare("7.2", disks=disks, autostart=True)))
    done = host.run("clone", "vm", "vm2")
    assert (done.returncode, "vm2 is there, with uuid" in done.stdout) == (0, True)
    assert done.stderr == "note: its autostart is off\n"
    again = host.run("clone", "vm", "vm3", "--disk", f"d={host.top}/vm2.raw")
    assert (again.returncode, again.stderr) == (1, f"drover: {host.top}/vm2.raw: there is something already\n")
    made = json.loads(host("clone", "vm", "vm3", "--disk", f"d={host.top}/x.raw", "-o", "json"))
    assert made["disks"] == {"d": f"{host.top}/x.raw"}
    assert made["notices"] == ["its autostart is off"]
    for words in (("--disk", "x.raw"), ("--disk", "d=a", "--disk", "d=b")):
        wrong = host.run("clone", "vm", "vm4", *words)
        assert (wrong.returncode, "ID=PATH" in wrong.stderr) == (2, True)
    refused = host.run("clone", "vm", "vm4", "--linked")
    assert (refused.returncode, "disks[0].read_only" in refused.stderr) == (1, True)


def test_clone_of_an_ordinary_user() -> None:
    """In folders of his own; where he may not write, he is told, and nothing is left."""
    host = SomebodysHost(Path(tempfile.mkdtemp(prefix="drover-")), daemon=False)
    (host.top / "vm.raw").write_bytes(bytes(1 << 20))
    for path in (host.top, host.top / "vm.raw"):
        os.chown(path, 64195, 64195)
    disks = [{"id": "d", "source": str(host.top / "vm.raw"), "format": "raw"}]
    file = host.write(bare("7.2", disks=disks))
    os.chmod(file, 0o644)
    host("create", file)
    refused = host.run("clone", "vm", "vm2", "--disk", "d=/root/x.raw")
    assert (refused.returncode, refused.stderr) == (1, "drover: /root/x.raw: Permission denied\n")
    host("clone", "vm", "vm2")
    for name in ("vm", "vm2"):
        host("start", name)
    for name in ("vm", "vm2"):
        host("kill", name)
        host("delete", "--yes", name)
    assert {path.name for path in host.top.glob("*.raw")} == {"vm.raw", "vm2.raw"}
    shutil.rmtree(host.top)


def test_bar_of_a_clone(host: Host) -> None:
    """At a terminal one sees how far it is; then the bar is gone."""
    code = (
        "import time; from drover.cli.clone import _bar\n"
        "with _bar('text') as tell: tell(3 << 20, 8 << 20); time.sleep(3)\n"
        "print('gone', flush=True)"
    )
    screen = Terminal(f"drover-test-{os.getpid()}-bar")
    try:
        screen.start([sys.executable, "-c", code], host.env | {"LC_ALL": "C.UTF-8"})
        screen.see("copying", "3.0/8.0 MiB")
        assert "MiB" not in screen.see("gone", "EXIT 0")
    finally:
        screen.stop()
