"""The keeper: a small shell that starts one program, outlives us, and writes down how the program ended.

A manager that starts QEMU as its own child learns its exit status, unless the manager ends
first. So a shell stands in between: init adopts it at once, it waits for QEMU, and it writes
the status to a file. It is bash and nothing smaller because it has to close descriptors above
9: QEMU's disks pass through it, and a copy of a disk's descriptor holds the image's lock.

How one start goes::

    we                           keeper                          its child
    start the shell       ->     closes all but two descriptors
    pidfd_open, start time  <-   says the child's pid            waits
    record it                    moves itself and the child
                            <-   to their control groups, unless systemd does
    "go"                  ->     waits                           executes: nsenter, where it has a root
                                                                  of its own; setpriv; the program
    look until it has executed   writes the status

Until "go" nothing has run, and if we die before it, nothing will. A move between control groups
takes 6 to 20 ms whenever there was none just before, for the kernel waits: time to write a record.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from ..errors import ProcessRuns, SpawnFailed

# All words come through standard input, in a memory file: nothing is quoted, and neither `ps` nor `pkill -f` takes
# the keeper for its QEMU. The lock on the status file lasts as long as its descriptor here: until the keeper ends.
# The program may open as many files as it is allowed to at all: the usual 1024 are there for users of select(2), which
# QEMU is not, and in its sandbox it cannot ask for more. The signals are those of a shutdown, and of our end.
_SCRIPT: Final = """\
mapfile -d '' -t words
channel=${words[0]} status=${words[1]} keepers=${words[2]} group=${words[3]}
become() {
  trap - INT QUIT
  read -r -u "$channel" _ || exit 125
  exec {channel}>&- {status}>&- </dev/null
  ulimit -S -n hard
  exec "${words[@]:4}"
}
keep() {
  become &
  trap '' HUP INT QUIT TERM PIPE
  for fd in /proc/$BASHPID/fd/*; do
    fd=${fd##*/}
    ((fd <= 2 || fd == channel || fd == status)) || exec {fd}>&-
  done
  printf '%s %s\\n' "$!" "$BASHPID" >&"$channel"
  if [[ -z $group ]] || { printf 0 >"$keepers" && printf '%s' "$!" >"$group"; }; then
    printf 'ready\\n' >&"$channel"
  else
    printf 'not moved\\n' >&"$channel"
  fi
  exec {channel}>&- </dev/null >/dev/null 2>&1
  cd /
  wait "$!"
  printf '%s\\n' "$?" >&"$status"
}
keep &
"""
# -p: no function and no start-up file comes out of the environment
_SHELL: Final = ("bash", "-p", "-c", _SCRIPT, "drover-keeper")
COMMAND_LINE: Final = b"bash\0-p\0-c\0"  # how the command line begins of what the shell has not yet replaced
_POLL: Final = 0.001  # s: how often we look whether a keeper is through; it takes about that long
_SIGNALLED: Final = 128  # what a shell adds to a signal's number


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    :ivar code: what it exited with, if it did
    :ivar signal: the number of what killed it, if a signal did
    """

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(self.signal).name}"
        return f"killed by signal {self.signal}"


def open_status(path: Path, timeout: float) -> int:
    """Make or empty the file that a keeper will write to, and lock it; the lock goes with the last descriptor.

    :param timeout: for the keeper of a process that just ended, in seconds
    :raises ProcessRuns: the process started before it with this file runs still
    :raises OSError: it cannot be made
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _lock(fd, fcntl.LOCK_EX, timeout):
            raise ProcessRuns(os.fspath(path))
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_status(path: Path, timeout: float) -> ExitStatus | None:
    """How the process ended, if its keeper lived to see it.

    :param timeout: how long a keeper may need that is there still, in seconds
    :returns: None where that is unknown: it runs, or its keeper was killed, or there never was one
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not (text := os.pread(fd, 16, 0)).endswith(b"\n"):
            _lock(fd, fcntl.LOCK_SH, timeout)
            text = os.pread(fd, 16, 0)
    finally:
        os.close(fd)
    if not text.endswith(b"\n"):
        return None
    number = int(text)
    return ExitStatus(signal=number - _SIGNALLED) if number > _SIGNALLED else ExitStatus(code=number)


def _lock(fd: int, kind: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)


class Held:
    """A child that a keeper holds before it becomes the program; a context manager that ends it, unless it was let go.

    :ivar pid: its process id, which stays the program's
    :ivar keeper: its keeper's
    """

    def __init__(self, channel: socket.socket, lines: BinaryIO) -> None:
        self.pid = 0
        self.keeper = 0
        self._channel = channel
        self._lines = lines

    def let_go(self) -> bool:
        """Let it execute the program.

        :returns: whether it was; if not, it could not be moved to its control group
        """
        try:
            if self._lines.readline() != b"ready\n":
                return False
            self._channel.sendall(b"go\n")
        except TimeoutError:
            return False
        except BrokenPipeError:  # somebody killed it, which is what the caller looks for next
            pass
        return True

    def close(self) -> None:
        """End it, unless it was let go: it waits for a line, and gets the end of all lines."""
        self._lines.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_keeper(
    words: Sequence[str],
    status: int,
    *,
    groups: tuple[str, str] = ("", ""),
    fds: Sequence[int] = (),
    log: int,
    cwd: str = "/",
    env: Mapping[str, str],
    timeout: float,
) -> Held:
    """Start the shell, with a child that is not the program yet.

    On return the keeper holds no disk's descriptor any more.

    :param words: the program and its arguments
    :param status: the open, empty and locked status file
    :param groups: the files ``cgroup.procs`` of the keeper's control group and of the program's
    :param fds: descriptors for the program, under the same numbers
    :param log: the program's standard output and error
    :param timeout: of each step, in seconds
    :raises SpawnFailed: there is no bash, or it does not work
    """
    ours, theirs = socket.socketpair()
    held = Held(ours, ours.makefile("rb"))
    try:
        with theirs, _memory([str(theirs.fileno()), str(status), *groups, *words]) as stdin:
            _launch(stdin, log, (theirs.fileno(), status, *fds), cwd, env, timeout)
        ours.settimeout(timeout)
        held.pid, held.keeper = map(int, held._lines.readline().split())
    except (ValueError, TimeoutError) as error:
        held.close()
        raise SpawnFailed(_SHELL[0], "it did not start the program") from error
    except BaseException:
        held.close()
        raise
    return held


def _launch(stdin: int, log: int, fds: Sequence[int], cwd: str, env: Mapping[str, str], timeout: float) -> None:
    try:
        starter = subprocess.Popen(
            _SHELL, stdin=stdin, stdout=log, stderr=log, pass_fds=fds, start_new_session=True, cwd=cwd, env=env
        )
    except OSError as error:
        raise SpawnFailed(_SHELL[0], f"{error.filename}: {error.strerror}") from error
    try:
        starter.wait(timeout)  # it only has to fork
    except subprocess.TimeoutExpired as error:
        raise SpawnFailed(_SHELL[0], f"did not start within {timeout:g} s") from error
    finally:
        if starter.poll() is None:
            starter.kill()
            starter.wait()


@contextlib.contextmanager
def _memory(words: Sequence[str]) -> Iterator[int]:
    fd = os.memfd_create("drover-keeper")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(b"".join(os.fsencode(word) + b"\0" for word in words))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
