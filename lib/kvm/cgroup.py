"""Control groups: one for each instance, to count, stop and limit all that is in it (Linux's ``cgroup-v2``).

Only version 2 is used. Where there is none that we may use, or a controller is in the hands of
version 1, an instance runs all the same, and a notice says what it lacks.
"""

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import GroupBusy

PROCS: Final = "cgroup.procs"
KEEPERS: Final = "keepers"
_PERIOD: Final = 100_000  # µs, the kernel's own default
FREEZE_TIMEOUT: Final = 5.0  # s; a vCPU under KVM leaves the guest at once, a thread in the middle of I/O does not
KILL_TIMEOUT: Final = 10.0  # s; as for a process
_KILL_PAUSE: Final = 0.01  # s, between two looks for processes born while we killed


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group may use at most; None is no limit.

    :ivar memory: bytes, QEMU's own beside the guest's
    :ivar cpus: whole CPUs' time, such as 1.5
    :ivar threads: processes and threads
    """

    memory: int | None = None
    cpus: float | None = None
    threads: int | None = None

    def files(self) -> dict[str, str]:
        """The interface file of each, and what it holds."""
        quota = "max" if self.cpus is None else str(max(1000, round(self.cpus * _PERIOD)))
        return {
            "memory.max": "max" if self.memory is None else str(self.memory),
            "cpu.max": f"{quota} {_PERIOD}",
            "pids.max": "max" if self.threads is None else str(self.threads),
        }


class Cgroup:
    """The control group of an instance.

    :ivar path: its directory
    :ivar keepers: the directory of the group of all keepers, which are not to be stopped with their charges
    :ivar notices: what it lacks, in words
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keepers = path.parent / KEEPERS
        self.notices: list[str] = []

    @property
    def entrances(self) -> tuple[str, str]:
        """The files by which a keeper moves itself, and its charge; empty: :meth:`take_in` moves both."""
        return os.fspath(self.keepers / PROCS), os.fspath(self.path / PROCS)

    @property
    def place(self) -> str:
        """Its directory in words; empty: there is none."""
        return os.fspath(self.path)

    def take_in(self, keeper: int, charge: int) -> None:
        """Move a keeper and its charge, unless they go in by the :attr:`entrances` themselves. Never an error.

        :param keeper: its process id
        :param charge: likewise, of what is not the program yet
        """

    @property
    def populated(self) -> bool:
        """Whether a process is in it that has not ended; zombies do not count."""
        return self._event("populated")

    @property
    def frozen(self) -> bool:
        """Whether all that is in it stands still."""
        return self._event("frozen")

    def pids(self) -> list[int]:
        """The processes in it, among them such as have ended and not been waited for."""
        try:
            return [int(pid) for pid in (self.path / PROCS).read_text(encoding="ascii").split()]
        except FileNotFoundError:
            return []

    def freeze(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Stop all that is in it, and see it stand still. SIGKILL still ends it.

        :param timeout: in seconds
        :raises GroupBusy: something in it has not stopped yet; what has stays so
        """
        self._write("cgroup.freeze", "1")
        self._wait("frozen", True, timeout)

    def thaw(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Let it go on."""
        self._write("cgroup.freeze", "0")
        self._wait("frozen", False, timeout)

    def kill(self, timeout: float = KILL_TIMEOUT) -> None:
        """Kill all that is in it, and see it end.

        :param timeout: in seconds
        :raises GroupBusy: something was killed and has not ended yet
        """
        deadline = time.monotonic() + timeout
        while self.populated:
            left = deadline - time.monotonic()
            if self._kill_all():
                self._wait("populated", False, left)
            elif left <= 0:
                raise GroupBusy(os.fspath(self.path), "populated", self.pids(), timeout)
            else:
                time.sleep(_KILL_PAUSE)

    def limit(self, limits: Limits) -> None:
        """Set all limits, or lift those that are None; there is a notice for each that cannot be set here."""
        for file, text in limits.files().items():
            try:
                self._write(file, text)
            except OSError as error:
                if not text.startswith("max"):
                    why = "no such controller here" if isinstance(error, FileNotFoundError) else error.strerror
                    self.notices.append(f"{file} is not limited to {text}: {why}")

    def remove(self) -> bool:
        """Remove it if it is empty.

        :returns: whether it is gone
        """
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # EBUSY; it may have filled again since anybody looked
            return False
        return True

    def _kill_all(self) -> bool:
        """Whether the kernel did it, for those as well that are being born."""
        try:
            self._write("cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14
            for pid in self.pids():
                self._kill_member(pid)
            return False
        return True

    def _kill_member(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in self.pids():  # if it was somebody else's since, it is not ours to kill
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)

    def _write(self, file: str, text: str) -> None:
        # not open(…, "w"), which would make a file that is not there, where the kernel lets it
        fd = os.open(self.path / file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _event(self, key: str) -> bool:
        try:
            text = (self.path / "cgroup.events").read_text(encoding="ascii")
        except FileNotFoundError:
            return False
        return f"{key} 1" in text.splitlines()

    def _wait(self, key: str, wanted: bool, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with open(self.path / "cgroup.events", "rb", buffering=0) as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)  # the kernel's sign that it changed since it was last read
            while (f"{key} 1".encode() in os.pread(events.fileno(), 256, 0).splitlines()) != wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GroupBusy(os.fspath(self.path), key, self.pids(), timeout)
                poll.poll(left * 1000)
