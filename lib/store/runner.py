"""The process that runs a job, known again for certain: a pid alone is soon somebody else's."""

import os
from pathlib import Path
from typing import Self

from msgspec import Struct

_GONE = "ZXx"  # the kernel's letters for a process that has ended, and was perhaps not waited for


class Runner(Struct, frozen=True, kw_only=True):
    """A process of this host.

    :ivar pid: its number
    :ivar start_time: in the kernel's ticks since the boot
    :ivar boot_id: the boot that both are of
    """

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def me(cls) -> Self:
        """The process that asks."""
        pid = os.getpid()
        return cls(pid=pid, start_time=int(_stat(pid)[19]), boot_id=_boot_id())

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        if self.boot_id != _boot_id():
            return False
        try:
            fields = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(fields[19]) == self.start_time and fields[0] not in _GONE

    def __str__(self) -> str:
        return f"process {self.pid}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state: the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
