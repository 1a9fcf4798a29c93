"""The sockets that QEMU serves: bound and listened on by us before QEMU exists, and passed to it.

So nobody can come between bind and listen, QEMU needs no right to the folder, and whoever connects early waits in
the queue for a QEMU that is still starting.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from ..errors import ConnectError
from ..monitor.connection import QmpConnection

# A monitor serves one client; a second one waits here until the first has gone.
_BACKLOG: Final = 8


class Listeners:
    """Listening sockets in a folder; a context manager that closes our descriptors.

    :ivar fds: by name
    """

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    @property
    def fds(self) -> Mapping[str, int]:
        """Their descriptors, by name."""
        return {name: sock.fileno() for name, sock in self._sockets.items()}

    def bind(self, name: str, path: Path) -> None:
        """Listen at `path`, where only this user may connect; what was there is replaced.

        :raises OSError: it cannot be bound
        """
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        try:
            # the file gets the mode that the socket has: never, for no moment, is it open to others
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(str(path))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        self._sockets[name] = sock

    def close(self) -> None:
        """Close our descriptors; QEMU's stay."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dial(path: Path, timeout: float, pid: int | None = None) -> QmpConnection:
    """A connection to a QEMU that was seen running, not yet greeted.

    :param timeout: seconds for each answer
    :param pid: its process, as far as it is known
    :raises ConnectError: nobody listens
    """
    return QmpConnection(reach(path), timeout=timeout, pid=pid)


def reach(path: Path) -> socket.socket | Path:
    """The address of the monitor of a QEMU that was seen running: a socket that is connected, where that takes no wait.

    Where nobody listens any more it is on its way out: unlike that of a QEMU that is still to come, this is not waited
    for.

    :raises ConnectError: nobody listens
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.connect(str(path))
    except BlockingIOError:  # others wait in the queue: QEMU is busy, or hangs
        sock.close()
        return path
    except OSError as error:
        sock.close()
        raise ConnectError(str(path), f"QEMU does not listen any more ({error.strerror})") from error
    return sock
