"""A QEMU on a command line of :mod:`drover.kvm.argv`, with all that it is given made for it: no instance, no keeper."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from drover.kvm.argv import Launch
from drover.kvm.argv.board import MONITORS
from drover.kvm.argv.devices import CONSOLE_LOG
from drover.kvm.taps import open_tap

LISTENERS: Final = (*MONITORS, "serial", "agent")
_SIZE: Final = "1M"


@contextmanager
def launched(launch: Launch, qemu: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start it; it is killed at the end of the block, if it runs on.

    Sockets are in `folder`, by their names, and so is the log of the console. An image that is not there is made,
    empty. Our copies of descriptors are closed at once: while we listen as well, nobody sees QEMU's end.
    """
    with ExitStack() as beside:
        with ExitStack() as ours:
            fds = dict(_descriptors(launch, folder, ours, beside))
            command = [qemu, *launch.resolve(fds)]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=list(fds.values()))
        with process:
            beside.callback(process.kill)
            try:
                yield process
            finally:
                process.kill()


def _descriptors(launch: Launch, folder: Path, ours: ExitStack, beside: ExitStack) -> Iterator[tuple[str, int]]:
    """All that it is given, as open files: pairs of name and number.

    :param ours: closes our copies
    :param beside: ends what has to live as long as the machine
    """
    for need in launch.disks:
        for depth, (name, layer) in enumerate(zip(need.fds, need.layers, strict=True)):
            path = Path(layer.path) if Path(layer.path).exists() else make_image(folder / name, layer.format)
            flags = os.O_RDONLY if need.read_only or depth else os.O_RDWR
            direct = os.O_DIRECT if need.cache in ("none", "directsync") else 0
            yield name, _opened(ours, path, flags | direct)
    for name in launch.fds:
        kind, _, rest = name.partition(".")
        if name in LISTENERS:
            yield name, _listener(ours, folder / name)
        elif name == CONSOLE_LOG:
            yield name, _opened(ours, folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        elif name == "tpm":
            yield name, _tpm(ours, beside, folder / name)
        elif kind == "nic" and rest.endswith(".0"):
            pairs = [other for other in launch.fds if other.startswith(name[:-1])]
            tap = ours.enter_context(open_tap(queues=len(pairs)))
            yield from zip(pairs, tap.fds, strict=True)


def make_image(path: Path, format: str) -> Path:
    """An empty one."""
    subprocess.run(["qemu-img", "create", "-q", "-f", format, path, _SIZE], check=True)
    return path


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


def _listener(stack: ExitStack, path: Path) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    sock.listen(1)
    return sock.fileno()


def _tpm(ours: ExitStack, beside: ExitStack, folder: Path) -> int:
    """Our end of a connection to a TPM's emulator of its own."""
    folder.mkdir()
    end, its = map(ours.enter_context, socket.socketpair())
    with its:
        control = ["--ctrl", f"type=unixio,clientfd={its.fileno()}"]
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", *control, "--terminate"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = beside.enter_context(subprocess.Popen(command, pass_fds=[its.fileno()], **quiet))
    beside.callback(process.kill)
    return end.fileno()
