"""A node of one's own for a test, and specifications of instances that boot the test guest."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drover.kvm.instance import Instance
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
        text = b""
        while b"guest# " not in text:
            text += console.recv(4096)


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
