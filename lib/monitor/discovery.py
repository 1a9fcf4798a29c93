"""What a QEMU build can do, asked once for the build and not once for each connection.

Two QEMUs are the same build if they say the same version and package and run the
same file. The file is that of the process which listens at the other end of a unix
socket, or of whom the caller says to be there: who connects before QEMU listens
at a socket that was passed to it sees whoever made it. Where it cannot be told
(another host, no permission), nothing is cached.
"""

import os
from typing import Final, NamedTuple

from ..qmp.messages import Greeting
from ..qmp.schema import Schema

# As many builds as a host has installed side by side, with room for upgrades while we run.
MAX_BUILDS: Final = 32


class Build(NamedTuple):
    """What makes a build of QEMU the same as another."""

    version: tuple[int, int, int]
    package: str
    device: int
    inode: int
    modified: int
    size: int


class Knowledge:
    """What was asked so far; None is not asked yet."""

    __slots__ = ("commands", "schema")

    def __init__(self) -> None:
        self.commands: frozenset[str] | None = None
        self.schema: Schema | None = None


_known: dict[Build, Knowledge] = {}


def executable_of(pid: int | None) -> os.stat_result | None:
    """The file that the process at the other end runs; None if that cannot be told. Ask while QEMU has yet to greet."""
    if pid is None or pid == os.getpid():
        return None
    try:
        return os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None


def knowledge_of(greeting: Greeting, file: os.stat_result | None) -> Knowledge:
    """What is known of the QEMU that greeted so and runs `file`; empty, and shared by nobody, if none is told."""
    if file is None:
        return Knowledge()
    build = _build(greeting, file)
    if (known := _known.get(build)) is not None:
        return known
    while build not in _known and len(_known) >= MAX_BUILDS:
        _known.pop(next(iter(_known)), None)
    return _known.setdefault(build, Knowledge())


def _build(greeting: Greeting, file: os.stat_result) -> Build:
    qemu = greeting.version.qemu
    version = (qemu.major, qemu.minor, qemu.micro)
    return Build(version, greeting.version.package, file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size)
