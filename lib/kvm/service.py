"""What systemd and a daemon of ours say to each other (``sd_notify(3)``, ``sd_listen_fds(3)``); without it, nothing."""

import asyncio
import os
import resource
import socket
from typing import Final

_FIRST_FD: Final = 3


def notify(state: str) -> None:
    """Tell systemd of our state, such as ``READY=1``; where nobody asked to be told, nothing is done."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """How long systemd waits for a sign of life; None: it waits for none of ours."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd has opened for us; ours to close."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + count)]


async def show_life() -> None:
    """Let systemd's watchdog know that the loop turns, until cancelled; at once done where it is not asked for."""
    while seconds := watchdog_seconds():
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 3)


def allow_many_files() -> None:
    """Have as many descriptors as we may: each machine takes some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
