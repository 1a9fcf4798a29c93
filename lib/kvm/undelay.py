"""What a QEMU answers where it listens goes out at once, however small it is (``TCP_NODELAY``).

QEMU leaves that off for the first connection of a migration. Then the kernel holds back what is small until what went
before is acknowledged, and the other side's kernel holds back that for 40 ms: of every handshake of TLS, by chance, and
of what a postcopy asks for. A connection has it from the socket that it was accepted by.
"""

import os
import socket
from contextlib import suppress
from typing import Final

from .borrow import borrow
from .process import Process

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def undelay(process: Process, port: int) -> bool:
    """Have connections that a process accepts from now on hold nothing back.

    :param port: where it listens
    :returns: whether it listens there
    :raises OSError: we may not
    """
    for number in sorted(map(int, os.listdir(f"/proc/{process.pid}/fd")), reverse=True):
        with suppress(FileNotFoundError):  # closed meanwhile
            if not os.readlink(f"/proc/{process.pid}/fd/{number}").startswith("socket:"):
                continue
            with socket.socket(fileno=borrow(process, number)) as found:
                if _listens_at(found, port):
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return True
    return False


def _listens_at(found: socket.socket, port: int) -> bool:
    if found.family not in _FAMILIES or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    return bool(found.getsockname()[1] == port)
