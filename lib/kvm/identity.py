"""Whom a QEMU runs as: a user id of its own, out of a pool.

What breaks out of one QEMU can then neither touch another one nor its files. The ids are
nobody's: they are in no passwd, and no process has them but the one QEMU.
"""

import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ArgumentError, NoFreeUid

# Between what others hand out by themselves: systemd's dynamic users end at 65519, the id ranges of rootless
# containers (subuid) begin at 100000. Debian's packages and its people's accounts are below 65534.
FIRST_UID: Final = 70000
LAST_UID: Final = 70999
_PAGE: Final = 4096  # bytes: all of a process's status, or nearly so; what is wanted is in its first lines
_LAST_POSSIBLE: Final = 2**32 - 2  # the highest number of 32 bits means "leave it as it is"


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and the groups that a program runs under, numbers all.

    :ivar groups: supplementary groups, such as the one that may open ``/dev/kvm``
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class UidPool:
    """User ids that are lent to instances, one each; a directory holds a file for each id that is lent.

    Any number of processes may share the directory.

    :ivar first: the lowest id
    :ivar last: the highest one
    """

    def __init__(self, directory: Path, first: int = FIRST_UID, last: int = LAST_UID) -> None:
        """Nothing is touched yet.

        :param directory: durable; made when it is needed
        :raises ArgumentError: the range holds an id that nobody can be lent
        """
        if not 0 < first <= last <= _LAST_POSSIBLE:
            raise ArgumentError("uids", (first, last), f"a range within 1 to {_LAST_POSSIBLE}")
        self.first = first
        self.last = last
        self._directory = directory

    def lend(self, owner: str, groups: tuple[int, ...] = ()) -> Identity:
        """The identity of an owner: what it was lent before, else an id that nobody has. Durable on return.

        :param owner: what the instance is known by; best its uuid, which stays when it is renamed
        :param groups: supplementary groups to run in
        :raises ArgumentError: `owner` is empty or more than a line
        :raises NoFreeUid: all are lent, in passwd, or some process's
        """
        if not owner or "\n" in owner:
            raise ArgumentError("owner", owner, "a line of text")
        with self._locked():
            lent = self._lent()
            uid = next((uid for uid, name in lent.items() if name == owner), None)
            if uid is None:
                uid = self._free(lent)
                self._write(uid, owner)
        return Identity(uid, uid, groups)

    def give_back(self, owner: str) -> None:
        """Let others have the owner's id, once no process has it any more; nothing where it was lent none."""
        with self._locked():
            for uid, name in self._lent().items():
                if name == owner:
                    (self._directory / str(uid)).unlink()

    def lent(self) -> dict[int, str]:
        """Who has been lent which id."""
        with self._locked():
            return self._lent()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _lent(self) -> dict[int, str]:
        files = sorted((int(file.name), file) for file in self._directory.iterdir() if file.name.isdecimal())
        return {uid: file.read_text(encoding="utf-8").rstrip("\n") for uid, file in files}

    def _free(self, lent: dict[int, str]) -> int:
        running = uids_of_processes()
        for uid in range(self.first, self.last + 1):
            if uid not in lent and uid not in running and not _in_passwd(uid):
                return uid
        raise NoFreeUid(self.first, self.last, sum(self.first <= uid <= self.last for uid in lent))

    def _write(self, uid: int, owner: str) -> None:
        """Under its name it is either whole or not there."""
        new = self._directory / "new"
        with new.open("w", encoding="utf-8") as file:
            file.write(owner + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._directory / str(uid))
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def uids_of_processes() -> set[int]:
    """Every user id that some process has, be it the real, the effective or a saved one."""
    found: set[bytes] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # or it has ended
            found.update(_start_of(f"/proc/{pid}/status").partition(b"\nUid:")[2].partition(b"\n")[0].split())
    return set(map(int, found))


def _start_of(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PAGE)  # there are hundreds of them, and this is the fastest way
    finally:
        os.close(fd)


def _in_passwd(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
