"""What a process and the host's network interfaces have used so far, by the kernel's account. Nobody is asked."""

import errno
import math
import os
import time
from typing import Final

from msgspec import Struct

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_DEVICES: Final = "/proc/thread-self/net/dev"
# What a file says that has gone, or goes while it is read.
_GONE: Final = (errno.ENOENT, errno.ESRCH)


class Usage(Struct, frozen=True, kw_only=True):
    """What a process has used.

    :ivar cpu_seconds: of all its threads, by user and system together
    :ivar resident: bytes of memory that it has
    :ivar start_time: in ticks since the host's boot: with the pid it names one process for ever
    """

    cpu_seconds: float
    resident: int
    start_time: int


class LinkCounters(Struct, frozen=True, kw_only=True):
    """What has come through an interface, as the host sees it: a tap receives what its guest sends."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def process_usage(pid: int) -> Usage | None:
    """What a process has used; None if it has ended."""
    fields = _fields(f"/proc/{pid}/stat")
    if fields is None:
        return None
    return Usage(cpu_seconds=_seconds(fields), resident=int(fields[21]) * _PAGE, start_time=int(fields[19]))


def thread_seconds(pid: int, thread: int) -> float | None:
    """CPU seconds that a thread of a process has had; None if it has ended."""
    fields = _fields(f"/proc/{pid}/task/{thread}/stat")
    return None if fields is None else _seconds(fields)


class Links:
    """The network interfaces, all read at once and looked at one by one: /sys has a file for each of their figures, of
    the network that it was mounted in.

    :param max_age: seconds that what was read may be old
    :ivar at: Unix time when they were read
    """

    def __init__(self, max_age: float = 0.5) -> None:
        self.at = 0.0
        self._max_age = max_age
        self._read_at = -math.inf
        self._lines: dict[str, str] = {}

    def counters(self, name: str) -> LinkCounters | None:
        """The counters of one; None if there is none of that name."""
        if time.monotonic() - self._read_at > self._max_age:
            self._read()
        line = self._lines.get(name)
        return None if line is None else _link(line)

    def _read(self) -> None:
        with open(_DEVICES, encoding="ascii", errors="replace") as lines:
            pairs = (line.partition(":") for line in lines)
            self._lines = {name.strip(): figures for name, colon, figures in pairs if colon}
        self._read_at, self.at = time.monotonic(), time.time()


def _link(line: str) -> LinkCounters:
    # received: bytes packets errs drop fifo frame compressed multicast; sent: the same four, and others
    fields = [int(field) for field in line.split()]
    received, sent = fields[0:4], fields[8:12]
    return LinkCounters(
        rx_bytes=received[0],
        rx_packets=received[1],
        rx_errors=received[2],
        rx_dropped=received[3],
        tx_bytes=sent[0],
        tx_packets=sent[1],
        tx_errors=sent[2],
        tx_dropped=sent[3],
    )


def _seconds(fields: list[bytes]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _fields(path: str) -> list[bytes] | None:
    """The fields of a ``stat`` from the third on, the state: the name before it may hold anything."""
    text = _read(path)
    return None if text is None else text.rpartition(b")")[2].split()


def _read(path: str) -> bytes | None:
    """A short file of the kernel's; None if it is not there, or no longer.

    Three calls to the kernel, and no layer above them: it is done for each vCPU of each machine.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
