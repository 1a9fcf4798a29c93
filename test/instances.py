"""A node of one's own for a test, specifications of instances that boot the test guest, and what is in one."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drover import QmpConnection
from drover.kvm.instance import Instance
from drover.kvm.net import tap_name
from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.testing.image import guest_image
from drover.testing.machine import APPEND
from machines import qemu_of

VERSIONS = ["7.2", "10.0"]
SHELL = f"{APPEND} drover.shell"


@contextlib.contextmanager
def temporary_node() -> Iterator[Node]:
    """A node whose folders are new; at the end nothing of it runs."""
    # a socket's path is short, and pytest's folders are not
    top = Path(tempfile.mkdtemp(prefix="drover-"))
    top.chmod(0o711)  # QEMU's own user has to pass
    node = Node(Paths(top / "state", top / "run"))
    try:
        yield node
    finally:
        for name in node.names:
            runtime = node.instance(name).show().document.runtime
            if runtime is not None and runtime.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(runtime.pid, signal.SIGCONT)
            node.instance(name).kill()
            node.delete(name)
        shutil.rmtree(top)


def bare(version: str, name: str = "vm", **more: Any) -> dict[str, Any]:
    """A machine that starts fast and has nothing to boot."""
    return {
        "name": name,
        "emulator": str(qemu_of(version)),
        "acceleration": "tcg",
        "memory": {"size": "64MiB"},
    } | more


def bootable(version: str, name: str = "vm", cmdline: str = SHELL, **more: Any) -> dict[str, Any]:
    """A machine that boots the test guest: with a shell on its serial port, and a power button that works."""
    image = guest_image()
    boot = {"kernel": str(image.kernel), "initrd": str(image.initrd), "cmdline": cmdline}
    return bare(version, name) | {"memory": {"size": "256MiB"}, "boot": boot} | more


def wait_for_shell(vm: Instance, timeout: float = 90) -> None:
    """Wait for the prompt of a guest's shell. Timeout in seconds for each piece of what it prints."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(vm.host.paths.instance(vm.name).socket("serial")))
        console.settimeout(timeout)
        console.sendall(b"\n")  # its prompt may have come before anybody listened
        text = b""
        while b"guest# " not in text:
            text += console.recv(4096)


def say(vm: Instance, command: str) -> str:
    """What a guest's shell answers."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(vm.host.paths.instance(vm.name).socket("serial")))
        console.settimeout(60)
        console.sendall(command.encode() + b"; echo e''nd\n")
        text = b""
        while b"end\r\n" not in text:
            text += console.recv(4096)
    return text.decode()


def type_in(vm: Instance, line: str) -> None:
    """Type a line into its shell; the guest has it at the return, and nobody is at the console.

    A console that is open and not read would make the guest wait, and what is typed into one that is closed is lost.
    """
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(vm.host.paths.instance(vm.name).socket("serial")))
        console.settimeout(60)
        console.sendall(line.encode() + b"\n")
        text = b""
        while line.encode() + b"\r\n" not in text:
            text += console.recv(4096)


class Guest:
    """The shell on an instance's console.

    :param booting: its prompt is still to come; else it may have come before anybody listened
    """

    def __init__(self, vm: Instance, *, booting: bool = True) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(vm.host.paths.instance(vm.name).socket("serial")))
        self._socket.settimeout(90)
        if not booting:
            self._socket.sendall(b"\n")
        self._read("guest# ")

    def run(self, command: str) -> str:
        """What a command prints."""
        self._socket.sendall(f"{command}; echo; echo do''ne\n".encode())
        return self._read("\ndone\r\n")

    def until(self, command: str, text: str, *, there: bool) -> None:
        """Wait until `text` is, or is not, in what a command prints."""
        for _ in range(100):
            if (text in self.run(f"usleep 100000; {command}").partition("\n")[2]) == there:
                return
        raise AssertionError(f"{text} is {'not ' if there else ''}in what {command} prints")

    def close(self) -> None:
        """Leave the console."""
        self._socket.close()

    def _read(self, end: str) -> str:
        text = ""
        while end not in text:
            text += self._socket.recv(4096).decode(errors="replace")
        return text


def agree(vm: Instance) -> set[str]:
    """Document and QEMU have the same devices, and nothing else is left of others; the disks' and the cards' ids."""
    document = vm.show().document
    assert document.pending is None
    assert document.runtime is not None
    devices = document.runtime.devices
    known = {name for name, device in devices.items() if device.kind in ("disk", "nic")}
    for spec in (document.spec, document.runtime.spec):
        assert {disk.id for disk in spec.disks} | {nic.id for nic in spec.nics} == known
    with QmpConnection(vm.host.paths.instance(vm.name).socket("people")) as qmp:
        assert devices.keys() <= qmp.query_devices().keys()
        nodes = {it["node-name"] for it in qmp.query_block_nodes()}
        nodes = {name.replace("-next", "") for name in nodes}  # as the second medium of a CD drive is called
        assert nodes == {name for disk in document.spec.disks if disk.source for name in (disk.id, f"{disk.id}-file")}
        opaque = [fd["opaque"] for fdset in qmp.execute("query-fdsets") for fd in fdset["fds"]]
        assert [text for text in opaque if "console" not in text] == []
        assert qmp.query_memory().base_memory + qmp.query_memory().plugged_memory == document.spec.memory.size
        assert len(qmp.query_cpus()) == document.spec.cpu.count
        threads = {disk.iothread for disk in document.spec.disks if disk.iothread}
        assert {thread.id for thread in qmp.query_iothreads()} == threads
    taps = {device.tap for device in devices.values() if device.tap}
    names = {*known, "nic0", "nic1", "x"}
    possible = {tap_name(document.spec.uuid, name, mark) for name in names for mark in ("", "b")}
    assert possible & {name for _, name in socket.if_nameindex()} == taps
    return known
