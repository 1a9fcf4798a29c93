"""Network interfaces by ioctl (Linux's ``netdevice(7)``): all that a tap on a bridge takes.

Netlink can do it as well, but the library for it takes 150 ms to load, three times what the
start of an instance may add to QEMU's own.
"""

import errno
import fcntl
import os
import socket
import struct
from typing import Final

_GET_FLAGS: Final = 0x8913
_SET_FLAGS: Final = 0x8914
_GET_MTU: Final = 0x8921
_SET_MTU: Final = 0x8922
_SET_MAC: Final = 0x8924
_GET_INDEX: Final = 0x8933
_BRIDGE_ADD: Final = 0x89A2
_BRIDGE_DELETE: Final = 0x89A3
_UP: Final = 0x1
_ETHERNET: Final = 1
_NAME_LIMIT: Final = 15  # IFNAMSIZ, without the final NUL
_REQUEST: Final = "16s24s"  # struct ifreq: the name, and what the call is about


def get_index(name: str) -> int:
    """The kernel's number of an interface.

    :raises OSError: there is none of that name (ENODEV)
    """
    index: int = struct.unpack_from("i", _call(_GET_INDEX, name))[0]
    return index


def get_mtu(name: str) -> int:
    """The MTU of an interface, in bytes.

    :raises OSError: there is none of that name (ENODEV)
    """
    mtu: int = struct.unpack_from("i", _call(_GET_MTU, name))[0]
    return mtu


def set_mtu(name: str, mtu: int) -> None:
    """Set it.

    :raises OSError: not a number that it can have (EINVAL)
    """
    _call(_SET_MTU, name, struct.pack("i", mtu))


def set_mac(name: str, mac: str) -> None:
    """Set its own address."""
    _call(_SET_MAC, name, struct.pack("H6s", _ETHERNET, bytes.fromhex(mac.replace(":", ""))))


def set_up(name: str) -> None:
    """Switch it on."""
    flags: int = struct.unpack_from("H", _call(_GET_FLAGS, name))[0]
    _call(_SET_FLAGS, name, struct.pack("H", flags | _UP))


def join_bridge(bridge: str, name: str) -> None:
    """Make it a port of a bridge.

    :raises OSError: `bridge` is none (EOPNOTSUPP), or has no room (EXFULL)
    """
    _call(_BRIDGE_ADD, bridge, struct.pack("i", get_index(name)))


def leave_bridge(bridge: str, name: str) -> None:
    """Make it a port of this bridge no more, if it is one."""
    try:
        _call(_BRIDGE_DELETE, bridge, struct.pack("i", get_index(name)))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENODEV):  # it is none of its ports; there is no such bridge
            raise


def _call(request: int, name: str, argument: bytes = b"") -> bytes:
    if len(os.fsencode(name)) > _NAME_LIMIT:  # it would be cut, and then be another's
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:  # of this thread's network namespace
        try:
            return fcntl.ioctl(any_socket, request, struct.pack(_REQUEST, os.fsencode(name), argument))[16:]
        except OSError as error:
            error.filename = name
            raise
