"""The right to catch the faults of a guest's memory, which the QEMU needs that a machine comes to by postcopy.

Who has no rights may not, by the kernel's choice: unless ``vm.unprivileged_userfaultfd`` lets anybody, or by
``/dev/userfaultfd``, which QEMU knows since 8.0. A QEMU of ours, which has a user id of its own, is let open that for
as long as its machine arrives, by an entry in the device's access list. The sysctl is never changed: it is for all of
the host.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from ..errors import NotSupported

DEVICE: Final = "/dev/userfaultfd"
REMEDY: Final = "sysctl -w vm.unprivileged_userfaultfd=1, there; or a QEMU of 8.0 or later, which is let open it"
_ANYBODY: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
_SINCE: Final = (8, 0)  # QEMU that knows the device
_ACL: Final = "system.posix_acl_access"
# As in Linux's posix_acl_xattr.h: the version, and entries of a tag, permissions and an id.
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _OWNING, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_READ_WRITE: Final = 6
_NO_ID: Final = 0xFFFFFFFF

Entries = list[tuple[int, int, int]]


def lack(version: tuple[int, ...], *, rootless: bool) -> str:
    """Why a QEMU that waits for a machine could not catch its faults; empty where it can, or will be let.

    :param version: of QEMU
    :param rootless: we cannot let it
    """
    if _anybody():
        return ""
    if version < _SINCE:
        text = ".".join(map(str, version[:2]))
        return f"QEMU {text} does not know {DEVICE}, and vm.unprivileged_userfaultfd is 0"
    if not os.path.exists(DEVICE):
        return f"there is no {DEVICE}, and vm.unprivileged_userfaultfd is 0"
    if rootless and not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"this user may not open {DEVICE}, and vm.unprivileged_userfaultfd is 0"
    return ""


def check(version: tuple[int, ...], *, rootless: bool) -> None:
    """See that it can; see :func:`lack`.

    :raises NotSupported: it cannot; names what to do
    """
    if why := lack(version, rootless=rootless):
        raise NotSupported(f"postcopy: {why}", REMEDY, by="the node that it is to go to")


def grant(gid: int | None) -> None:
    """Let the QEMU of a machine that arrives catch faults; to be taken back. May be repeated.

    :param gid: its own group; None: it runs as we do
    :raises OSError: the access list cannot be written
    """
    if gid is not None and not _anybody() and os.path.exists(DEVICE):
        _change(gid, let=True)


def take_back(gid: int | None) -> None:
    """Let it no more. May be repeated, also where it never was."""
    if gid is not None and os.path.exists(DEVICE) and any(entry[::2] == (_GROUP, gid) for entry in _entries()):
        _change(gid, let=False)


def _anybody() -> bool:
    try:
        return _ANYBODY.read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:  # a kernel before 5.2: it knows no such choice
        return True


def _change(gid: int, *, let: bool) -> None:
    """Under a lock of the device itself, for all daemons of the host have one list."""
    fd = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        entries = [entry for entry in _entries() if entry[::2] != (_GROUP, gid) and entry[0] != _MASK]
        if let:
            entries.append((_GROUP, _READ_WRITE, gid))
        if any(tag not in (_OWNER, _OWNING, _OTHER) for tag, _, _ in entries):
            mask = 0
            for tag, rights, _ in entries:
                mask |= rights if tag not in (_OWNER, _OTHER) else 0
            entries.append((_MASK, mask, _NO_ID))
        packed = (_ENTRY.pack(*entry) for entry in sorted(entries, key=lambda entry: (entry[0], entry[2])))
        os.setxattr(DEVICE, _ACL, _VERSION + b"".join(packed))
    finally:
        os.close(fd)


def _entries() -> Entries:
    """The access list; that of the mode alone where there is no other."""
    try:
        return list(_ENTRY.iter_unpack(os.getxattr(DEVICE, _ACL)[len(_VERSION) :]))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
    mode = os.stat(DEVICE).st_mode
    rights = ((_OWNER, mode >> 6), (_OWNING, mode >> 3), (_OTHER, mode))
    return [(tag, bits & 7, _NO_ID) for tag, bits in rights]
