"""Instances on a host that systemd runs: each in a scope of its own."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import waiting
from instances import VERSIONS, bare, bootable
from systemd import TOP, Container, container

wait_for = partial(waiting.wait_for, timeout=10)

DROVER = str(Path(sys.executable).with_name("drover"))

# What a session of an ordinary user has beside it: a systemd of their own.
USER = """\
[Service]
Type=notify
User=games
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user HOME=/run/user
ExecStartPre=+install -d -o games -m 0700 /run/user
ExecStart=/lib/systemd/systemd --user
"""


PROGRAMS = ("drover", "drover-noded")  # in /opt, with the environment that a test's host has


def shipped(unit: str) -> dict[str, str]:
    """A unit as it is installed."""
    text = (TOP / "daemons" / f"{unit}.in").read_text()
    return {unit: text.replace("@bindir@", "/opt").replace("@sbindir@", "/opt")}


class Node:
    """The instances in a container."""

    def __init__(self, host: Container) -> None:
        self.host = host
        self.env = {"PYTHONPATH": str(TOP / "build" / "py"), "DROVER_STATE_DIR": str(host.shared / "state")}

    def drover(self, *words: str) -> str:
        return self.host.run(DROVER, *words, env=self.env, timeout=120)

    def create(self, spec: dict[str, Any]) -> None:
        path = self.host.shared / f"{spec['name']}.json"
        path.write_text(json.dumps(spec))
        self.drover("create", str(path))

    def group(self, path: Path) -> list[str]:
        """The programs in a control group, in the order of their process ids."""
        return [self.host.enter("readlink", f"/proc/{pid}/exe").strip()
                for pid in self.host.enter("cat", f"{path}/cgroup.procs").split()]  # fmt: skip

    def property(self, unit: str, name: str) -> str:
        return self.host.enter("systemctl", "show", "--property", name, "--value", unit).strip()

    def document(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.host.shared / "state/instances" / name / "instance.json").read_text())
        return found


@contextlib.contextmanager
def host(shared: Path, units: Mapping[str, str] = MappingProxyType({})) -> Iterator[Node]:
    """A host of its own, with more units."""
    for folder in (shared, *shared.parents[:2]):
        folder.chmod(0o711)  # QEMU's own user has to pass
    with container(shared, {"user.service": USER, **units}) as inside:
        node = Node(inside)
        settings = "".join(f"export {name}='{value}'\n" for name, value in node.env.items())
        for name in PROGRAMS:
            (shared / name).write_text(f"#!/bin/sh\n{settings}exec '{Path(DROVER).with_name(name)}' \"$@\"\n")
            inside.enter("install", "-m", "755", str(shared / name), f"/opt/{name}")
        yield node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One that the tests share."""
    with host(tmp_path_factory.mktemp("host")) as node:
        yield node


@pytest.mark.parametrize("version", VERSIONS)
def test_each_has_a_scope_of_its_own(node: Node, version: str) -> None:
    """It holds all of the machine, outlives the unit that started it, and goes with the machine."""
    name = f"a{version}"
    node.create(bare(version, name, tpm={}))
    for _ in range(3):  # a scope of that name may be ending still
        assert "control group" not in node.drover("start", name)
        runtime = node.document(name)["runtime"]
        member = Path(runtime["cgroup"])
        unit = member.parent.name
        assert (unit[:9 + len(version)], member.parent.parent.name) == (f"drover-a{version}-", "machine.slice")
        here = [line for group in (member, member.parent / "keepers") for line in node.group(group)]
        assert [Path(line).name for line in here] == ["swtpm", runtime["emulator"].rpartition("/")[2], "bash", "bash"]
        assert node.property(unit, "ActiveState") == "active"
        assert "drover-guests.service" in node.property(unit, "Before")
        assert "control group" in node.drover("verify", name)
        node.drover("kill", name)
        wait_for(lambda unit=unit: node.property(unit, "LoadState") == "not-found")


def test_systemd_ends_one_as_the_host_does(node: Node) -> None:
    node.create(bare("10.0", "b"))
    node.drover("start", "b")
    unit = Path(node.document("b")["runtime"]["cgroup"]).parent.name
    node.host.enter("systemctl", "stop", unit)
    node.drover("stop", "b")
    stop = node.document("b")["last_stop"]
    assert (stop["reason"], stop["detail"]) == ("host-signal", "signal 15 from process 1")


def test_limits_where_there_is_no_controller(node: Node) -> None:
    """This kernel's may be version 1's: told, and no failure. Where they are not, they hold."""
    node.create(bare("7.2", "c", limits={"memory": "1GiB", "threads": 200}))
    said = node.drover("start", "c")
    group = node.document("c")["runtime"]["cgroup"]
    found = node.host.enter("cat", f"{group}/cgroup.controllers").split()
    for controller in ("memory", "pids"):
        assert (f"{controller}.max is not limited" in said) == (controller not in found)
    node.drover("kill", "c")


def test_an_ordinary_users(node: Node) -> None:
    """Their own systemd has the scope, below what the host's has given it."""
    node.host.enter("systemctl", "start", "user.service")
    path = node.host.shared / "u.json"
    path.write_text(json.dumps(bare("7.2", "u", tpm={}) | {"emulator": "/usr/bin/qemu-system-x86_64"}))
    path.chmod(0o644)
    place = "XDG_RUNTIME_DIR=/run/user", "HOME=/run/user", f"PYTHONPATH={TOP}/build/py"
    user = ("setpriv", "--reuid=games", "--clear-groups", "env", *place)
    node.host.enter(*user, DROVER, "create", str(path))
    assert "control group" not in node.host.enter(*user, DROVER, "start", "u")
    unit, = node.host.enter(*user, "systemctl", "--user", "show", "drover-*", "--property=ControlGroup").split()
    scope = unit.removeprefix("ControlGroup=")
    assert scope.startswith("/system.slice/user.service/machine.slice/drover-u-")
    members = {Path(program).name for group in ("keepers", f"{Path(scope).stem.removeprefix('drover-')}.vm")
               for program in node.group(Path(f"/sys/fs/cgroup{scope}/{group}"))}  # fmt: skip
    assert members == {"bash", "swtpm", "qemu-system-x86_64"}
    node.host.enter(*user, DROVER, "kill", "u")


def test_a_systemd_that_does_not_answer_is_a_notice(node: Node) -> None:
    """Here its bus is hidden; the machine runs without a group."""
    node.create(bare("10.0", "d"))
    path = node.host.shared / "no-bus"
    wrapper = f"#!/bin/sh\nmount -t tmpfs none /run/dbus && exec '{DROVER}' start d\n"
    path.write_text(wrapper)
    path.chmod(0o755)
    said = node.host.run("unshare", "--mount", str(path), env=node.env)
    assert "no control groups" in said
    assert node.document("d")["runtime"].get("cgroup") is None
    node.drover("kill", "d")


def test_the_node_daemon_as_a_unit(tmp_path: Path) -> None:
    """The unit as it is shipped: ready when it answers, and its end is not the machines'."""
    with host(tmp_path, shipped("drover-noded.service")) as node:
        unit = "/etc/systemd/system/drover-noded.service"
        assert node.host.enter("systemd-analyze", "verify", "--man=no", unit) == ""
        node.host.enter("systemctl", "start", "drover-noded.service")  # returns when it is ready
        node.create(bare("7.2", "a"))
        call = "d = Daemon(Path('/run/drover/noded.sock')); print(d.call('POST', '/v1/instances/a/start', {}))"
        call = f"from pathlib import Path; from drover.node.client import Daemon; {call}"
        assert "notices" in node.host.run(sys.executable, "-c", call, env=node.env)
        node.host.enter("systemctl", "restart", "drover-noded.service")
        assert "running" in node.drover("show", "a")
        node.host.enter("systemctl", "stop", "drover-noded.service")
        assert "running" in node.drover("show", "a")
        node.drover("kill", "a")


def test_a_bus_that_hangs_does_not_stop_a_start(node: Node) -> None:
    """SIGSTOP: each machine runs without a group, after the deadline; and has one again when the bus goes on."""
    node.create(bare("7.2", "h", tpm={}))
    bus = node.host.enter("systemctl", "show", "--property=MainPID", "--value", "dbus.service").strip()
    node.host.enter("kill", "-STOP", bus)
    try:
        begun = time.monotonic()
        place = [f"{name}={value}" for name, value in node.env.items()]
        said = node.host.enter("env", *place, DROVER, "start", "h")
        assert 4 < time.monotonic() - begun < 20
        assert "no control groups" in said
    finally:
        node.host.enter("kill", "-CONT", bus)
    assert "running" in node.drover("show", "h")
    node.drover("kill", "h")
    assert "control group" not in node.drover("start", "h")
    node.drover("kill", "h")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_hosts_boot_and_shutdown(tmp_path: Path, version: str) -> None:
    """The unit as it is shipped starts guests; and the host's end comes to them by ACPI, before their scopes'."""
    with host(tmp_path, shipped("drover-guests.service")) as node:
        unit = "/etc/systemd/system/drover-guests.service"
        assert node.host.enter("systemd-analyze", "verify", "--man=no", unit) == ""
        node.create(bootable(version, "guest", autostart=True))
        node.host.enter("systemctl", "start", "drover-guests.service")
        assert "machine.slice" in node.document("guest")["runtime"]["cgroup"]
        console = node.host.shared / "state/instances/guest/console.log"
        wait_for(lambda: b"guest# " in console.read_bytes(), timeout=90)
        node.host.enter("systemctl", "poweroff")
        node.host.wait_for_end(90)
        stop = node.document("guest")["last_stop"]
        assert (stop["reason"], stop.get("forced", False)) == ("request", False)
