"""A descriptor of another process, lent to us by the kernel (pidfd_getfd(2), Linux 5.6): both mean the same socket."""

import ctypes
import os
from typing import Final

from .process import Process

_PIDFD_GETFD: Final = 438  # on all that are not Alpha
_libc: Final = ctypes.CDLL(None, use_errno=True)


def borrow(process: Process, fd: int) -> int:
    """Our own descriptor of what a process has open; to be closed.

    :param fd: the process's
    :raises OSError: we may not (``EPERM``), it is not open (``EBADF``), or the process has ended (``ESRCH``)
    """
    mine: int = _libc.syscall(_PIDFD_GETFD, process.fileno(), fd, 0)
    if mine < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"descriptor {fd} of {process.pid}")
    return mine
