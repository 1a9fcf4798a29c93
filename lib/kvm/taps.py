"""Tap devices, one descriptor for each pair of queues (Linux's ``Documentation/networking/tuntap``).

The device lives as long as a descriptor of it is open, here or in a QEMU that it was
passed to; nothing has to be removed afterwards.
"""

import errno
import fcntl
import os
import struct
from typing import Final, Self

from ..errors import ArgumentError

_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_NAME_SIZE: Final = 16  # IFNAMSIZ, with the final NUL
MAX_QUEUES: Final = 256  # of the kernel's tun driver


class Tap:
    """An open tap device; a context manager that closes our descriptors.

    :ivar name: of the network interface
    :ivar fds: one for each pair of queues
    """

    def __init__(self, name: str, fds: list[int]) -> None:
        self.name = name
        self.fds = fds

    def close(self) -> None:
        """Close our descriptors. The device goes with the last descriptor, ours or QEMU's."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tap(name: str = "tap%d", *, queues: int = 1, vnet_hdr: bool = True) -> Tap:
    """Make a tap device, or attach to one that was made to stay.

    :param name: of the interface; ``%d`` in it lets the kernel count
    :param queues: pairs of queues
    :param vnet_hdr: pass virtio's packet headers, for offloads
    :raises ArgumentError: the name or the number of queues is not possible
    :raises OSError: no right to make it, or it is in use
    """
    if not 0 < len(os.fsencode(name)) < _NAME_SIZE or "/" in name:
        raise ArgumentError("name", name, f"1 to {_NAME_SIZE - 1} bytes without '/'")
    if not 1 <= queues <= MAX_QUEUES:
        raise ArgumentError("queues", queues, f"1 to {MAX_QUEUES}")
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    tap = Tap(name, [])
    try:
        for _ in range(queues):
            tap.fds.append(os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            tap.name = _attach(tap.fds[-1], tap.name, flags)
    except BaseException:
        tap.close()
        raise
    return tap


def _attach(fd: int, name: str, flags: int) -> str:
    request = struct.pack(f"{_NAME_SIZE}sH22x", os.fsencode(name), flags)
    try:
        answer = fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        if error.errno == errno.EBUSY:
            error.strerror = f"{name} is in use"
        raise
    return os.fsdecode(answer[:_NAME_SIZE].rstrip(b"\0"))
