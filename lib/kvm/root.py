"""A root directory of a program's own: only what it needs of the host is in it, and hardly anything can be written to.

QEMU's own ``-chroot`` needs a capability, and ours has lost all of them before its first instruction. So its root is
made ahead, in a mount namespace (mount_namespaces(7)) that nobody else is in. A thread of ours has left the host's
for it, for good, mounts everything there, lets go of the host's own root, and ends; the program enters by its
descriptor, with nsenter(1), just before its rights are dropped. No other program is run for it, so it takes under 2 ms.

On the host nothing is ever mounted, and so nothing is ever left: the namespace goes with the last one that has it,
whoever is killed in between.
"""

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Final, NamedTuple

ROOT_TIMEOUT: Final = 10.0  # s; it takes under 2 ms: more is a file server that hangs, with something that is shown
NSENTER: Final = "nsenter"
_SIZE: Final = "size=1m,nr_inodes=1k,mode=755"  # only folders, and empty files to mount on
_PRIVATE_PROC: Final = "subset=pid,hidepid=invisible"  # its own processes alone, and nothing of the kernel's
# linux/sched.h, sys/mount.h
_CLONE_NEWNS: Final = 0x00020000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _REC, _UNBINDABLE, _PRIVATE = 1 << 12, 1 << 14, 1 << 17, 1 << 18
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")  # a blank in a path is \040
_KEPT: Final = {"nodev": _NODEV, "noexec": _NOEXEC}
_MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Shown(NamedTuple):
    """Something of the host that is to be seen in a root directory, at the same path.

    :ivar path: absolute; of a folder, everything in it is seen
    :ivar nested: also what is mounted in it
    :ivar writable: it may be written to, by who has the right to, and holds no program and no device
    :ivar link: it is a symbolic link in the host's root directory, and its target is seen or not by itself
    """

    path: str
    nested: bool = True
    writable: bool = False
    link: bool = False


@contextmanager
def own_root(folder: Path, shown: Iterable[Shown]) -> Iterator[int]:
    """Make a root directory; it is there as long as this, or somebody who is in it.

    :param folder: any one that is there; nothing in it is touched, or can be shown
    :param shown: all that there is in it, beside ``/proc`` with a program's own processes
    :returns: a descriptor of the mount namespace
    :raises OSError: it cannot be made; `filename` is what of it
    :raises TimeoutError: it was not there in time
    """
    every = list(shown)
    namespace = _in_thread(lambda: _make(os.path.realpath(folder), every))
    try:
        yield namespace
    finally:
        os.close(namespace)


def words_to_enter(namespace: int | None) -> list[str]:
    """What has to stand before the words of a program that is to run in it; our descriptor must be open until it does.

    It is not inherited: then the program would have it, too.
    """
    return [] if namespace is None else [NSENTER, f"--mount=/proc/{os.getpid()}/fd/{namespace}", "--"]


def sees(pid: int, path: str) -> bool:
    """Whether a process finds at a path what we find there."""
    try:
        return os.path.samefile(f"/proc/{pid}/root{path}", path)
    except OSError:
        return False


def _in_thread(make: Callable[[], int]) -> int:
    """What a thread of its own returns, in time; what it returns later is closed."""
    made: Future[int] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    Thread(target=run, name="root", daemon=True).start()
    try:
        return made.result(ROOT_TIMEOUT)
    except BaseException:
        made.add_done_callback(_close)
        raise


def _close(made: Future[int]) -> None:
    if made.exception() is None:
        os.close(made.result())


# -- in the thread ----------------------------------------------------------------------------------------------------


def _make(root: str, shown: Sequence[Shown]) -> int:
    _call("unshare", "", _CLONE_NEWNS)
    namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _mount("/", flags=_REC | _PRIVATE)  # or the host would see what follows
        _mount(root, "drover", "tmpfs", _NOSUID | _NODEV, _SIZE)
        _mount(root, flags=_UNBINDABLE)  # where the folder lies in one that is shown, the root is not in itself
        for one in (one for one in shown if one.link):
            os.symlink(os.readlink(one.path).lstrip("/"), root + one.path)
        # by where these links lead, what lies in a folder that is shown comes behind it
        for one in sorted((one for one in shown if not one.link), key=lambda one: os.path.realpath(root + one.path)):
            _show(root, one)
        _mount_proc(f"{root}/proc")
        _leave_host(root)
        _seal({one.path for one in shown if one.writable})
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _show(root: str, one: Shown) -> None:
    there = os.path.realpath(root + one.path)
    if not there.startswith(f"{root}/"):
        raise OSError(errno.ELOOP, "a symbolic link on the way to it leads out of the root directory", one.path)
    with suppress(FileNotFoundError):
        if os.path.samefile(there, one.path) and not one.writable:
            return
    _make_place(there, one.path)
    _mount(there, one.path, flags=_BIND | (_REC if one.nested else 0))


def _make_place(there: str, path: str) -> None:
    """Something to mount on, of the same kind."""
    with suppress(FileExistsError):
        if os.path.isdir(path):
            os.makedirs(there)
        else:
            os.makedirs(os.path.dirname(there), exist_ok=True)
            os.close(os.open(there, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _mount_proc(there: str) -> None:
    os.mkdir(there)
    flags = _NOSUID | _NODEV | _NOEXEC
    try:
        _mount(there, "proc", "proc", flags, _PRIVATE_PROC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # before Linux 5.8, where any option would be one of the host's /proc, too
        _mount(there, "proc", "proc", flags)


def _leave_host(root: str) -> None:
    """pivot_root(2), "." and ".": the old root comes to lie on the new one, and is taken away from there."""
    os.chdir(root)
    _call("pivot_root", root, b".", b".")
    _call("umount2", "/", b".", _MNT_DETACH)


def _seal(writable: set[str]) -> None:
    """Nothing that was mounted can be written to, or what can holds no program; flags of the host's mounts are kept."""
    with open("/proc/thread-self/mountinfo", "rb") as mounts:
        lines = [line.split(b" ", 6) for line in mounts]
    for fields in lines:
        path = os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), fields[4]))
        options = fields[5].decode().split(",")
        if path != "/proc":
            kept = sum(_KEPT[option] for option in options if option in _KEPT)
            flags = _NODEV | _NOEXEC if path in writable else kept | _RDONLY
            _mount(path, flags=_REMOUNT | _BIND | _NOSUID | flags)


def _mount(there: str, what: str = "", kind: str = "", flags: int = 0, options: str = "") -> None:
    encoded = [os.fsencode(text) or None for text in (what, there, kind)]
    _call("mount", what or there, *encoded, ctypes.c_ulong(flags), options.encode() or None)


def _call(function: str, about: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}", about or None)
