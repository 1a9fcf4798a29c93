"""Control groups: one for each instance, to count, stop and limit all that is in it (Linux's ``cgroup-v2``).

Only version 2 is used. Where there is none that we may use, or a controller is in the hands of
version 1, an instance runs all the same, and a notice says what it lacks.
"""

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import GroupBusy

PROCS: Final = "cgroup.procs"
_TREE: Final = "drover"  # the group above all instances'
_SUFFIX: Final = ".vm"  # an instance may be called `cgroup.procs`
_KEEPERS: Final = "keepers"
_SYSTEMD: Final = Path("/run/systemd/system")  # is there when systemd runs the host
_WHY_NOT: Final = {
    errno.ENOENT: "version 2 does not have it here",
    errno.EBUSY: "there are processes in the group itself, and not in one below it",
}
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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keepers = path.parent / _KEEPERS

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

    def limit(self, limits: Limits) -> list[str]:
        """Set all limits, or lift those that are None.

        :returns: a notice for each that is wanted and cannot be set here
        """
        notices = []
        for file, text in limits.files().items():
            try:
                self._write(file, text)
            except OSError as error:
                if not text.startswith("max"):
                    why = "no such controller here" if isinstance(error, FileNotFoundError) else error.strerror
                    notices.append(f"{file} is not limited to {text}: {why}")
        return notices

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


class Tree:
    """Where the groups of all instances are.

    :ivar path: the directory above them; None: there are none to be had, and every instance goes without
    :ivar notices: what they lack
    """

    def __init__(self, path: Path | None, notices: Sequence[str] = ()) -> None:
        self.path = path
        self.notices = tuple(notices)

    @classmethod
    def find(cls, above: Path | None = None) -> "Tree":
        """Make the tree, in the group that is ours to divide.

        That is the one that systemd or whoever started us has delegated to us; and the root, where
        we are root and no systemd claims it.

        :param above: the group to make it in, where that is somebody's decision
        """
        if above is None:
            above, why = _ours()
            if above is None:
                return cls(None, [f"no control groups: {why}"])
        try:
            (above / _TREE / _KEEPERS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return cls(None, [f"no control groups: {error.filename}: {error.strerror}"])
        return cls(above / _TREE, _hand_down(above, above / _TREE))

    def make(self, name: str) -> Cgroup | None:
        """The group of an instance, made where it is not there; None where there are no groups.

        :raises OSError: it cannot be made
        """
        if self.path is None:
            return None
        group = Cgroup(self.path / (name + _SUFFIX))
        group.path.mkdir(exist_ok=True)
        return group


def _ours() -> tuple[Path | None, str]:
    mount = _mount_point()
    if mount is None:
        return None, "version 2 is not mounted"
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = mount / next((line[4:] for line in lines if line.startswith("0::/")), "")
    if _SYSTEMD.is_dir() or os.geteuid():
        if _delegated(own):
            return own, ""
        return None, f"{own} is not delegated to us (in a unit of systemd's: Delegate=yes)"
    return mount, ""


def _mount_point() -> Path | None:
    """Of version 2, alone or beside version 1."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4].encode().decode("unicode_escape"))  # \040 is a blank
    return None


def _delegated(group: Path) -> bool:
    """Whether whoever made the group says so: by making it ours, or by systemd's mark."""
    with contextlib.suppress(OSError):
        marks = set(os.listxattr(group))
        return group.stat().st_uid == os.geteuid() != 0 or not marks.isdisjoint(("user.delegate", "trusted.delegate"))
    return False


def _hand_down(*groups: Path) -> list[str]:
    """Let the children of each group have the controllers that limits need.

    :returns: a notice for those that are not to be had
    """
    notices = []
    for controller in ("memory", "cpu", "pids"):
        try:
            for group in groups:
                (group / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
        except OSError as error:
            why = _WHY_NOT.get(error.errno or 0, error.strerror)
            notices.append(f"no limits of the controller '{controller}': {why} ({error.filename or groups[0]})")
    return notices
