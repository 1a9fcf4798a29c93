"""A QEMU, or another program of ours, as a process: started, found again, ended.

A process is known by its pid, its start time and the boot that it was started in: the pid
alone is soon somebody else's. We hold it by a pidfd, which no other process ever inherits.
"""

import errno
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Self

from ..errors import ArgumentError, ProcessGone, ProcessStuck, SpawnFailed
from .cgroup import Cgroup
from .identity import Identity
from .keeper import COMMAND_LINE, ExitStatus, open_status, read_status, start_keeper
from .root import NSENTER, words_to_enter

START_TIMEOUT: Final = 10.0  # s; it takes some 5 ms: more is a host that swaps, or a binary on a file server that hangs
KILL_TIMEOUT: Final = 10.0  # s; freeing a big guest's memory takes about 0.1 s a GiB
STATUS_TIMEOUT: Final = 1.0  # s, from the process's end to its status; it takes a few ms
LOG_TAIL: Final = 4096  # bytes of a log that an error may quote
_FIRST_LOOK: Final = 0.0003  # s: about what one exec takes
_LAST_LOOK: Final = 0.01  # s
ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_CAP_SYS_RESOURCE: Final = 24
_UNLIMITED: Final = 1 << 63  # bytes
_SETPRIV: Final = "setpriv"
_NOT_MOVED: Final = "it could not be moved to its control group"
_NOT_EXECUTED: Final = (125, 126, 127)  # exit statuses of the keeper, the shell and setpriv for what did not execute


class Process:
    """A process that is not our child; a context manager that closes the pidfd, and leaves the process alone.

    :ivar pid: its number
    :ivar start_time: in the kernel's ticks since boot
    :ivar boot_id: the boot that both are of
    :ivar status_path: where its keeper writes how it ended
    """

    def __init__(self, pid: int, pidfd: int, start_time: int, boot_id: str, status_path: Path) -> None:
        self.pid = pid
        self.start_time = start_time
        self.boot_id = boot_id
        self.status_path = status_path
        self._pidfd = pidfd

    @classmethod
    def attach(cls, pid: int, start_time: int, boot_id: str, status_path: Path) -> Self:
        """Find a process again that this or another manager started.

        :param start_time: what it was, in ticks
        :param boot_id: what it was
        :raises ProcessGone: it has ended; what it ended with: :func:`.keeper.read_status`
        """
        if boot_id != current_boot():
            raise ProcessGone(pid)
        process = cls._open(pid, status_path)
        # The pidfd is of whoever had the pid when it was opened, the start time of whoever has it now. If that is
        # ours, it was ours then.
        if process.start_time != start_time or not process.alive:
            process.close()
            raise ProcessGone(pid)
        return process

    @classmethod
    def _open(cls, pid: int, status_path: Path) -> Self:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the last two: it is a thread's number now
                raise ProcessGone(pid) from None
            raise
        try:
            return cls(pid, pidfd, int(_stat(pid)[19]), current_boot(), status_path)
        except BaseException:
            os.close(pidfd)
            raise

    @property
    def alive(self) -> bool:
        """Whether it has not ended. One that ended and was not waited for yet, a zombie, has."""
        return not self.wait(0)

    def fileno(self) -> int:
        """The pidfd, for a selector: it turns readable when the process ends."""
        return self._pidfd

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end.

        :param timeout: in seconds
        :returns: whether it has ended
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def send_signal(self, number: int) -> bool:
        """Send a signal, to this process and never to a later one of its pid.

        :returns: whether it was there to get it
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self, timeout: float = KILL_TIMEOUT) -> None:
        """Kill it and see it end. On return all that it held is free; where it ended before, nothing is done.

        :param timeout: in seconds
        :raises ProcessStuck: it is killed, and has not ended yet
        """
        self.send_signal(signal.SIGKILL)
        if self.wait(timeout):
            return
        try:
            raise stuck(self.pid, timeout)
        except ProcessGone:
            return

    def let_lock(self, size: int) -> None:
        """Let it lock so much of its memory, if it may not yet (``RLIMIT_MEMLOCK``).

        :param size: in bytes
        :raises OSError: we may not allow that; see :func:`may_lock`
        """
        if locks(self.pid) < size:
            resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK, (size, size))

    def exit_status(self, timeout: float = STATUS_TIMEOUT) -> ExitStatus | None:
        """How it ended; None while it runs, or where its keeper did not live to see it.

        :param timeout: how long its keeper may take to write it down, in seconds
        """
        return None if self.alive else read_status(self.status_path, timeout)

    def close(self) -> None:
        """Close the pidfd; the process goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spawn(
    words: Sequence[str],
    *,
    status_path: Path,
    log_fd: int,
    fds: Sequence[int] = (),
    identity: Identity | None = None,
    cgroup: Cgroup | None = None,
    root: int | None = None,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    before: Callable[[Process], None] | None = None,
    timeout: float = START_TIMEOUT,
) -> Process:
    """Start a program that outlives us, under a keeper.

    It gets the descriptors 0 (nothing), 1 and 2 (the log) and `fds`, and can never gain rights by
    executing something. On return it has executed, and may have ended already. The descriptors are
    still open here, and are best closed at once: an open disk holds the image's lock.

    :param words: the program and its arguments
    :param status_path: file for its exit status; locked while it runs, so that no second one starts with it
    :param log_fd: its standard output and error; a regular file, opened for appending
    :param fds: what it inherits, under the same numbers
    :param identity: run it as this user, in these groups alone, without any capability; None: as us
    :param cgroup: where it is before its first instruction
    :param root: descriptor of the namespace with its root directory (:mod:`.root`); None: it has the host's
    :param env: all its environment; None: a plain path and locale
    :param before: called with the process that is about to become the program. If it raises, the
        program does not run: the place to record the pid
    :param timeout: from here to the program's start, in seconds
    :raises SpawnFailed: it did not execute, and nothing of it runs
    :raises ProcessRuns: the process started with that `status_path` runs still
    """
    _check(words, fds, status_path)
    written = os.fstat(log_fd).st_size
    deadline = time.monotonic() + timeout
    status = open_status(status_path, STATUS_TIMEOUT)
    try:
        held = start_keeper(
            [*words_to_enter(root), *_privileges(identity), *words],
            status,
            groups=cgroup.entrances if cgroup else ("", ""),
            fds=fds,
            log=log_fd,
            cwd=cwd,
            env=ENVIRONMENT if env is None else env,
            timeout=timeout,
        )
    finally:
        os.close(status)
    with held:
        process = Process._open(held.pid, status_path)
        try:
            if cgroup:
                cgroup.take_in(held.keeper, held.pid)
            if before:
                before(process)
            problem = _see_it_execute(process, deadline) if held.let_go() else _NOT_MOVED
            if problem:
                raise SpawnFailed(words[0], _since(log_fd, written) or problem)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.close()
            raise
    return process


def _check(words: Sequence[str], fds: Sequence[int], status_path: Path) -> None:
    if not words or any("\0" in word for word in words):
        raise ArgumentError("words", words, "a program and its arguments, without NUL")
    if any(fd <= 2 for fd in fds):
        raise ArgumentError("fds", fds, "only numbers above 2, the first ones being taken")
    if not status_path.is_absolute():
        raise ArgumentError("status_path", status_path, "an absolute path")


def _privileges(identity: Identity | None) -> list[str]:
    if identity is None:
        return [_SETPRIV, "--no-new-privs", "--"]
    groups = f"--groups={','.join(map(str, identity.groups))}" if identity.groups else "--clear-groups"
    return [
        _SETPRIV, f"--reuid={identity.uid}", f"--regid={identity.gid}", groups,
        "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--",
    ]  # fmt: skip


def _see_it_execute(process: Process, deadline: float) -> str:
    """Nothing tells us of an exec, so look at the command line until it is none of those before the program's.

    :returns: what went wrong, if something did
    """
    pause = _FIRST_LOOK
    before = (COMMAND_LINE, f"{NSENTER}\0--".encode(), f"{_SETPRIV}\0--".encode())
    while True:
        line = _command_line(process.pid)  # empty in the middle of an exec, and at the end
        if not process.alive:
            status = process.exit_status()
            return (
                f"it ended at once ({status or 'nobody knows how'})"
                if status is None or status.code in _NOT_EXECUTED
                else ""
            )
        if line and not line.startswith(before):
            return ""
        if time.monotonic() > deadline:
            return "it did not execute in time"
        time.sleep(pause)
        pause = min(pause * 1.5, _LAST_LOOK)


def stuck(pid: int, timeout: float) -> ProcessStuck:
    """The error of a process that was killed and has not ended.

    :param timeout: how long it had, in seconds
    :raises ProcessGone: it has, meanwhile
    """
    return ProcessStuck(pid, timeout, _stat(pid)[0], _waits_in(pid))


def locks(pid: int) -> int:
    """Return the bytes of its memory that a process may lock.

    :raises OSError: there is none
    """
    # prlimit(2) lets nobody but root with all rights even look
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max locked memory"):
            soft = line.split()[3]
            return int(soft) if soft.isdecimal() else _UNLIMITED
    return 0


def may_lock(pid: int, size: int) -> bool:
    """Tell whether a process may lock so much of its memory, or we may let it. Nothing is done."""
    with suppress(OSError):
        if locks(pid) >= size:
            return True
    status = Path("/proc/self/status").read_text()
    rights = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(rights, 16) >> _CAP_SYS_RESOURCE & 1)


@cache
def current_boot() -> str:
    """The kernel's name for the time since it was started, which no process outlives."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state: the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def _waits_in(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text(encoding="ascii").strip("0")
    except OSError:
        return ""


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _since(log_fd: int, start: int) -> str:
    """What was written to the log from there on, the end of it."""
    try:
        with open(f"/proc/self/fd/{log_fd}", "rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - LOG_TAIL))
            return log.read(LOG_TAIL).decode(errors="replace").strip()
    except OSError:  # not a file, or not one that we may read
        return ""
