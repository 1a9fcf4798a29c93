"""Networks of our own, in which tests make what they like."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace for this thread, and for whatever it starts; gone afterwards with all that is in it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            ip("link set lo up")
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def ip(words: str) -> str:
    """Run iproute2's `ip` with these words."""
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


def traces() -> list[str]:
    """All that somebody may leave behind in a network: devices, rules, and routes in whatever table."""
    devices = [line.split()[0] for line in ip("-brief link").splitlines()]
    routes = [ip(f"{family} route show table all").splitlines() for family in ("-4", "-6")]
    rules = [ip(f"{family} rule").splitlines() for family in ("-4", "-6")]
    # what the kernel makes by itself comes and goes
    kept = [line for lines in routes for line in lines if "proto kernel" not in line and "multicast" not in line]
    return sorted([*devices, *kept, *(line for lines in rules for line in lines)])


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
