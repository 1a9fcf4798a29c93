"""A root directory of its own for a QEMU: what breaks out of the guest sees no file of the host but what QEMU needs.

QEMU's own ``-chroot`` needs root at a time when ours has no rights any more. So the root is made in a mount namespace
of the process, between fork and exec: a small file system in memory, into which is bound, to be read only, what a QEMU
reads. It ends with the process; the host never has any of these mounts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from .spec import Spec

# $1 the empty directory, $2 directories, $3 files, $4 mounts as in fstab(5): three lists of lines. Their file is
# covered by the last mount, /proc. What does not work says so, and ends as what has not been executed does.
_SCRIPT: Final = """\
root=$1 mounts=$4
mapfile -t folders <<<"$2"
mapfile -t files <<<"$3"
shift 4
make() {
  mount -t tmpfs -o mode=0755,size=1m,nosuid,nodev drover "$root" && cd "$root" && mkdir -p -- "${folders[@]}" || return
  for file in "${files[@]}"; do : >"$file" || return; done
  printf '%s\\n' "$mounts" >proc/mounts && mount --all --fstab proc/mounts
}
make && exec chroot "$root" "$@" || exit 125
"""
UNSHARE: Final = ("unshare", "--mount", "--propagation", "private", "--")
_SHELL: Final = ("bash", "-p", "-c", _SCRIPT, "drover-root")
CHROOT: Final = "chroot"
# Folders of the system, some of them links into others; then what names of servers are looked up with; and Ceph's own.
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_CONFIGURATION: Final = (
    "/etc/ld.so.cache", "/etc/alternatives", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/services",
    "/etc/ceph",
)  # fmt: skip
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm", "/dev/userfaultfd")
_PASSED_THROUGH: Final = ("/dev/bus/usb", "/dev/vfio", "/sys")  # what a device of the host's needs
_PROC: Final = "subset=pid,hidepid=invisible"  # nothing of the host, and no other process
_SINCE: Final = (5, 8)  # the first Linux that can


class Jail:
    """The root of one QEMU.

    :ivar root: an empty directory, over which it is made
    """

    def __init__(self, root: Path, *, emulator: str, private: Path, spec: Spec) -> None:
        """Nothing is made yet.

        :param emulator: the program, by its path
        :param private: the one folder that it may write to
        :param spec: of the instance
        """
        self.root = root
        self._private = os.fspath(private)
        wanted = [*_SYSTEM, *_CONFIGURATION, *_DEVICES, *_of_emulator(emulator), *_of_spec(spec)]
        self._seen = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]

    def words(self) -> list[str]:
        """What to put before the words of a program, to have it executed in there."""
        folders, files = [self._at("/proc"), self._at(self._private)], []
        mounts = [_line(self._private, self._at(self._private), "bind,nosuid,nodev,noexec")]
        for path in self._seen:
            if os.path.isdir(path):
                folders.append(self._at(path))
            else:
                files.append(self._at(path))
                folders.append(os.path.dirname(self._at(path)))
            mounts.append(_line(path, self._at(path), "bind,nosuid" if path in _DEVICES else "rbind,ro,nosuid"))
        proc = _PROC if _release() >= _SINCE else "hidepid=2"
        mounts.append(_line("proc", self._at("/proc"), f"{proc},nosuid,nodev,noexec", "proc"))
        lists = ("\n".join(dict.fromkeys(part)) for part in (folders, files, mounts))
        return [*UNSHARE, *_SHELL, os.fspath(self.root), *lists]

    def _at(self, path: str) -> str:
        return f"{self.root}{path}"


def rooted_elsewhere(pid: int) -> bool:
    """Whether a process has another root directory than we.

    :raises FileNotFoundError: it has ended
    """
    theirs, ours = os.stat(f"/proc/{pid}/root/."), os.stat("/")
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)


def _of_emulator(emulator: str) -> Iterator[str]:
    """Where it is installed, if that is not with the system: its folder, or what that is the ``bin`` of."""
    folder = Path(os.path.realpath(emulator)).parent
    if folder.name == "bin":
        folder = folder.parent
    if not folder.is_relative_to("/usr"):
        yield os.fspath(folder)


def _of_spec(spec: Spec) -> Iterator[str]:
    """What QEMU opens by a path; disks, logs and listening sockets it has by descriptors."""
    for screen in (spec.vnc, spec.spice):
        if screen is not None and screen.tls_dir:
            yield screen.tls_dir
    if spec.firmware.type == "bios" and spec.firmware.code:
        yield spec.firmware.code
    for disk in spec.disks:
        for source in (disk.source, *(layer.source for layer in disk.backing)):
            if source.startswith("nbd+unix:"):
                yield from parse_qs(urlsplit(source).query).get("socket", ())
    if spec.vfio or any(device.type == "host" for device in spec.usb):
        yield from _PASSED_THROUGH


def _line(source: str, target: str, options: str, kind: str = "none") -> str:
    """As in fstab(5)."""
    return f"{_escaped(source)} {_escaped(target)} {kind} {options} 0 0"


def _escaped(path: str) -> str:
    return "".join(f"\\{ord(sign):03o}" if sign in " \t\n\\#" else sign for sign in path)


def _release() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor.partition("-")[0])
