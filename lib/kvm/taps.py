"""Tap devices, one descriptor for each pair of queues (Linux's ``Documentation/networking/tuntap``).

A tap device lives as long as a descriptor of it is open, here or in a QEMU that it was
passed to; nothing has to be removed afterwards. A macvtap device has to be deleted.
"""

import errno
import fcntl
import os
import struct
from typing import Final, Self

from ..errors import ArgumentError
from .links import get_index

_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000
_NAME_SIZE: Final = 16  # IFNAMSIZ, with the final NUL
_REQUEST_SIZE: Final = 40  # of struct ifreq
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


def open_tap(name: str = "tap%d", *, queues: int = 1, vnet_hdr: bool = True, new: bool = False) -> Tap:
    """Make a tap device, or attach to one that was made to stay.

    :param name: of the interface; ``%d`` in it lets the kernel count
    :param queues: pairs of queues
    :param vnet_hdr: pass virtio's packet headers, for offloads
    :param new: never attach to one that is there: else it would be lent queues of another guest's that has several
    :raises ArgumentError: the name or the number of queues is not possible
    :raises OSError: no right to make it, or it is in use
    """
    _check(name, queues)
    flags = _flags(queues, vnet_hdr)
    tap = Tap(name, [])
    try:
        for first in (True, *[False] * (queues - 1)):
            tap.fds.append(os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            tap.name = _attach(tap.fds[-1], tap.name, flags | (_IFF_TUN_EXCL if new and first else 0))
    except BaseException:
        tap.close()
        raise
    return tap


def open_macvtap(name: str, *, queues: int = 1) -> Tap:
    """Open a macvtap device that is there: its file is ``/dev/tap`` with the interface's number.

    :param queues: pairs of queues
    :raises ArgumentError: the name or the number of queues is not possible
    :raises OSError: no right to open it, or the file is not there, or another device's
    """
    _check(name, queues)
    path = f"/dev/tap{get_index(name)}"
    tap = Tap(name, [])
    try:
        for _ in range(queues):
            tap.fds.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            # Interfaces of another network namespace may have the same number, and there is one /dev for all.
            if name_of(tap.fds[-1]) != name:
                raise OSError(errno.ENODEV, f"belongs to another interface than {name}", path)
            _attach(tap.fds[-1], "", _flags(queues, vnet_hdr=True))
    except BaseException:
        tap.close()
        raise
    return tap


def name_of(fd: int) -> str:
    """The interface of an open tap or macvtap descriptor.

    :raises OSError: it is none
    """
    return _interface(fcntl.ioctl(fd, _TUNGETIFF, bytes(_REQUEST_SIZE)))


def _check(name: str, queues: int) -> None:
    if not 0 < len(os.fsencode(name)) < _NAME_SIZE or "/" in name:
        raise ArgumentError("name", name, f"1 to {_NAME_SIZE - 1} bytes without '/'")
    if not 1 <= queues <= MAX_QUEUES:
        raise ArgumentError("queues", queues, f"1 to {MAX_QUEUES}")


def _flags(queues: int, vnet_hdr: bool) -> int:
    return _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)


def _attach(fd: int, name: str, flags: int) -> str:
    request = struct.pack(f"{_NAME_SIZE}sH", os.fsencode(name), flags).ljust(_REQUEST_SIZE, b"\0")
    try:
        return _interface(fcntl.ioctl(fd, _TUNSETIFF, request))
    except OSError as error:
        if error.errno == errno.EBUSY:
            error.strerror = f"{name} is in use"
        raise


def _interface(request: bytes) -> str:
    return os.fsdecode(request[:_NAME_SIZE].rstrip(b"\0"))
