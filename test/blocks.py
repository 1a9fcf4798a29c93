"""A real QEMU without a guest whose disks are written through its monitor, and what an image holds in the end."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from faces import FACES
from machines import qemu_of

KIB = 1 << 10
MIB = 1 << 20
SIZE = 4 * MIB


class Lab:
    """A paused QEMU, its monitor on one of the faces, and a folder for images.

    :ivar vm: the monitor
    :ivar process: QEMU
    """

    def __init__(self, vm: Any, face: Any, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.vm = vm
        self.face = face
        self.process = process
        self.folder = folder
        self._images: dict[str, tuple[Path, str]] = {}
        self._plugged: set[str] = set()

    def image(self, name: str, *options: str, format: str = "raw", size: int = SIZE) -> Path:
        """Make an image."""
        path = self.folder / name
        subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, path, str(size)], check=True)
        return path

    def node(self, name: str, format: str = "raw", size: int = SIZE, **options: Any) -> Path:
        """Make an image and open it as a node."""
        path = self.image(name, format=format, size=size)
        self.open(name, path, format, **options)
        return path

    def open(self, node: str, path: Path, format: str = "raw", **options: Any) -> None:
        """Open an image as a node."""
        file = {"driver": "file", "node-name": f"{node}-file", "filename": str(path)}
        if format == "qcow2":
            options = {"backing": None} | options
        self.vm.execute("blockdev-add", {"driver": format, "node-name": node, "file": file} | options)
        self._images[node] = path, format

    def plug(self, device: str, node: str) -> None:
        """Give the machine a disk: from here on `device` names it, whatever node is under it."""
        arguments = {"driver": "scsi-hd", "bus": "scsi0.0", "id": device, "drive": node, "share-rw": True}
        self.vm.execute("device_add", arguments)
        self._plugged.add(device)

    def close(self, node: str) -> None:
        """Remove a node, so that all that was written to it is in its image."""
        self.vm.execute("blockdev-del", {"node-name": node})

    def write(self, node: str, pattern: int, offset: int, count: int) -> None:
        """Write to a device as its guest would, or to a node past all that stands on it."""
        self.io(node, f"write -P {pattern} {offset} {count}")

    def io(self, node: str, command: str) -> None:
        """One command of QEMU's own qemu-io; how it went is printed by QEMU, and nothing tells us."""
        where = f"-d {node}" if node in self._plugged else node
        said = self.vm.execute("human-monitor-command", {"command-line": f'qemu-io {where} "{command}"'})
        assert said == ""

    def content(self, node: str) -> bytes:
        """What the image of a node holds, once QEMU has written out what it keeps of it."""
        self.io(node, "flush")
        return content(*self._images[node])

    def names(self) -> set[str]:
        """The nodes that there are, without those that QEMU made for itself."""
        nodes = self.vm.execute("query-named-block-nodes", {"flat": True})
        return {node["node-name"] for node in nodes if not node["node-name"].startswith("#")}

    def statuses(self, job: str, since: int) -> list[str]:
        """The statuses that a job went through."""
        return [
            event.data["status"]
            for event in self.vm.event_log
            if event.number > since and event.name == "JOB_STATUS_CHANGE" and event.data["id"] == job
        ]


@contextmanager
def lab(kind: str | Path, face: str, folder: Path, *extra: str, machine: str = "none") -> Iterator[Lab]:
    """Start a QEMU of `kind`, such as ``7.2``, or this very one, and connect to it; it is killed at the end."""
    path = folder / "qmp"
    binary = qemu_of(kind) if isinstance(kind, str) else kind
    command = [
        binary, "-machine", machine, "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-m", "64",
        "-qmp", f"unix:{path},server=on,wait=off", *extra,
    ]  # fmt: skip
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        stack.callback(process.kill)
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        of_face = FACES[face]()
        stack.callback(of_face.close)
        yield Lab(stack.enter_context(of_face.open(path)), of_face, process, folder)


def machine(kind: str, face: str, folder: Path) -> "AbstractContextManager[Lab]":
    """The same with a controller for disks."""
    return lab(kind, face, folder, "-device", "virtio-scsi-pci,id=scsi0", machine="q35")


def content(path: Path, format: str = "raw") -> bytes:
    """What an image holds, its backing files' part included, as one who opens it now would find it."""
    raw = path.with_name(f"{path.name}.content")
    subprocess.run(["qemu-img", "convert", "-U", "-f", format, "-O", "raw", path, raw], check=True)
    data = raw.read_bytes()
    raw.unlink()
    return data


def disk(*pieces: tuple[int, int, int], size: int = SIZE) -> bytes:
    """What a disk holds after these writes: pattern, offset, count."""
    data = bytearray(size)
    for pattern, offset, count in pieces:
        data[offset : offset + count] = bytes([pattern]) * count
    return bytes(data)
