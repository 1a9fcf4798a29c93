"""Where the control groups of all instances are: in scopes of systemd's, or in a group that is ours to divide.

Where systemd runs the host, all control groups are its own, and who wants one asks for it. A group made
behind its back it may remove, or empty when the service is stopped that it lies in.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import ScopeFailed
from .cgroup import KEEPERS, PROCS, Cgroup
from .scope import Scope, Systemd

_TREE: Final = "drover"  # the group above all instances'
_SUFFIX: Final = ".vm"  # an instance may be called `cgroup.procs`
_SYSTEMD: Final = Path("/run/systemd/system")  # is there when systemd runs the host
_WHY_NOT: Final = {
    errno.ENOENT: "version 2 does not have it here",
    errno.EBUSY: "there are processes in the group itself, and not in one below it",
}


class Tree:
    """Where the groups of all instances are.

    :ivar path: the directory above them; None: there are none to be had, and every instance goes without
    :ivar systemd: has a scope for each instance, below `path`
    :ivar notices: what they lack
    """

    def __init__(self, path: Path | None, notices: Sequence[str] = (), systemd: Systemd | None = None) -> None:
        self.path = path
        self.notices = tuple(notices)
        self.systemd = systemd

    @classmethod
    def find(cls, above: Path | None = None) -> "Tree":
        """Where systemd runs, it is asked for each group; else make the tree, in the group that is ours to divide.

        That is the one that whoever started us has delegated to us; and the root, where we are root and no systemd
        claims it.

        :param above: the group to make it in, where that is somebody's decision
        """
        if above is None:
            mount = _mount_point()
            if mount and _SYSTEMD.is_dir():
                with contextlib.suppress(ScopeFailed):
                    return cls(mount, (), Systemd.find())
            above, why = _ours(mount)
            if above is None:
                return cls(None, [f"no control groups: {why}"])
        try:
            (above / _TREE / KEEPERS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return cls(None, [f"no control groups: {error.filename}: {error.strerror}"])
        return cls(above / _TREE, _hand_down(above, above / _TREE))

    def expect(self) -> None:
        """Processes are to be moved into a group soon. Returns at once.

        The kernel lets the first move after a while wait for all its processors, 6 to 20 ms, and those for free that
        come within some 15 ms of it. So one is made ahead, which changes nothing: ours, to where we are.
        """
        if self.path is not None and self.systemd is None:
            threading.Thread(target=_move_ourselves, name="control groups", daemon=True).start()

    def make(self, name: str) -> Cgroup | None:
        """The group of an instance, made where it is not there; None where there are no groups.

        :raises OSError: it cannot be made
        """
        if self.path is None:
            return None
        if self.systemd is not None:
            return Scope(self.systemd, self.path, name, name + _SUFFIX)
        group = Cgroup(self.path / (name + _SUFFIX))
        group.path.mkdir(exist_ok=True)
        return group


def _ours(mount: Path | None) -> tuple[Path | None, str]:
    if mount is None:
        return None, "version 2 is not mounted"
    own = _own(mount)
    if _SYSTEMD.is_dir() or os.geteuid():
        if _delegated(own):
            return own, ""
        return None, f"{own} is not delegated to us (in a unit of systemd's: Delegate=yes), nor does systemd answer"
    return mount, ""


def _move_ourselves() -> None:
    with contextlib.suppress(OSError):  # it is worth some time, and no more
        if mount := _mount_point():
            (_own(mount) / PROCS).write_text("0", encoding="ascii")


def _own(mount: Path) -> Path:
    """The group that we are in."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    return mount / next((line[4:] for line in lines if line.startswith("0::/")), "")


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
