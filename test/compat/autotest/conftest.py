"""A QEMU with two QMP and two human monitors: one pair for the peer, one for us."""

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.testing.machine import qemu_binaries
from waiting import wait_for

BARE = ["-machine", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-device", "virtio-balloon"]


class Machine:
    """What both sides are given as their machine, and where its monitors are.

    :ivar path: of the directory of its sockets
    """

    name = "vm1"
    instance = "i1"
    qemu_version = "x"

    def __init__(self, path: Path, binary: Path) -> None:
        self.path = path
        self.qemu_binary = shlex.quote(str(binary))  # it is shell text

    def check_capability(self, flag: Any) -> bool:
        return False

    def get_pid(self) -> int | None:
        return None

    def params(self, kind: str, side: str) -> dict[str, str]:
        return {"monitor_type": kind, "monitor_filename": str(self.path / f"{kind}-{side}")}


def listening(folder: Path) -> int:
    """How many sockets are listened on there; a moment before that, each is there already, and refuses."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return sum(line[3] == "00010000" and line[-1].startswith(f"{folder}/") for line in lines)


@pytest.fixture(params=["7.2", "10.0"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    binary = qemu_binaries().get(request.param)
    if binary is None:
        pytest.fail(f"no QEMU {request.param} here: run ./bootstrap")
    monitors = []
    for side in ("theirs", "mine"):
        monitors += ["-qmp", f"unix:{tmp_path}/qmp-{side},server=on,wait=off"]
        monitors += ["-monitor", f"unix:{tmp_path}/human-{side},server=on,wait=off"]
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\0" * 1048576)
    drive = ["-drive", f"if=none,id=drive0,file={image},format=raw", "-drive", "if=none,id=empty"]
    with subprocess.Popen([str(binary), *BARE, *drive, "-device", "ide-cd,drive=empty", *monitors]) as process:
        try:
            wait_for(lambda: process.poll() is not None or listening(tmp_path) == 4, every=0.01)
            assert process.poll() is None
            yield Machine(tmp_path, binary)
        finally:
            process.kill()
