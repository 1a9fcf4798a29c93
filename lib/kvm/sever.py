"""The connection that a QEMU hangs on is cut, from without.

Where QEMU shakes hands for a migration it waits in its main loop for the other side's word, and no command gets
through, nor does `yank`: it knows only what has come further. The kernel says which descriptor its main thread waits on
(``/proc/PID/syscall``), and lends us that (pidfd_getfd(2)): to end the connection in it ends it for QEMU, which fails
as if the other side had hung up, and goes on. For the connections of multifd other threads of QEMU's wait; the guest
runs, but a cancel does not come to its end before theirs. So it is while a connection is still being made.
"""

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from typing import Final

from .borrow import borrow
from .process import Process

_LOOK: Final = 0.05  # s between two looks: who waits on the same connection at both hangs there
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def sever(process: Process, *, others: bool = False) -> list[str]:
    """Cut the TCP connection that a process's main thread waits on, if it does.

    :param others: likewise for all its threads: where it is to give up all of them, and does not
    :returns: whom what was cut led to
    :raises OSError: we may not
    """
    first = _waiting(process, others)
    time.sleep(_LOOK)
    descriptors = {fd for thread, fd in _waiting(process, others).items() if first.get(thread) == fd}
    return [whom for fd in sorted(descriptors) if (whom := _cut(process, fd))]


def _cut(process: Process, number: int) -> str:
    """Whom it led to; empty: it is no TCP connection, or none any more."""
    try:
        fd = borrow(process, number)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ESRCH):  # it goes on, or has ended
            return ""
        raise
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):  # an image on a slow disk
        os.close(fd)
        return ""
    with socket.socket(fileno=fd) as connection:
        if connection.family not in _FAMILIES or connection.type != socket.SOCK_STREAM:
            return ""
        whom = "the other side"
        try:
            with suppress(OSError):  # it is still being made, which takes the kernel two minutes to give up
                whom = "{}:{}".format(*connection.getpeername())
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return ""
    return whom


def _waiting(process: Process, others: bool) -> dict[int, int]:
    """The descriptors that threads wait on: what they have called begins with one, as reading does."""
    found: dict[int, int] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        threads = map(int, os.listdir(f"/proc/{process.pid}/task")) if others else (process.pid,)
        for thread in threads:
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                with open(f"/proc/{process.pid}/task/{thread}/syscall", encoding="ascii") as file:
                    words = file.read().split()
                if len(words) > 2 and os.path.exists(f"/proc/{process.pid}/fd/{int(words[1], 16)}"):
                    found[thread] = int(words[1], 16)
    return found
