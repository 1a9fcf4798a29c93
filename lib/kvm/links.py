"""Network interfaces by ioctl (Linux's ``netdevice(7)``): all that a tap on a bridge takes.

Netlink can do it as well, but the library for it takes 150 ms to load, three times what the
start of an instance may add to QEMU's own.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from array import array
from typing import Final

_GET_FLAGS: Final = 0x8913
_SET_FLAGS: Final = 0x8914
_GET_MTU: Final = 0x8921
_SET_MTU: Final = 0x8922
_SET_MAC: Final = 0x8924
_GET_INDEX: Final = 0x8933
_ETHTOOL: Final = 0x8946
_GET_DRIVER: Final = 0x3  # of ethtool's calls
_DRIVER_INFO: Final = "I32s160x"  # struct ethtool_drvinfo: which call, the driver, and more
_BRIDGE_ADD: Final = 0x89A2
_BRIDGE_DELETE: Final = 0x89A3
_PRIVATE: Final = 0x89F0
_BRIDGE_INFO: Final = 6  # BRCTL_GET_BRIDGE_INFO, with a `struct __bridge_info` of so many bytes at most
_BRIDGE_INFO_SIZE: Final = 128
_BRIDGE_INFO_STP: Final = 47  # the byte there that says so
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


def is_bridge(name: str) -> bool:
    """Whether an interface is a bridge of the kernel's own.

    :raises OSError: there is none of that name (ENODEV)
    """
    told = ctypes.create_string_buffer(struct.pack(_DRIVER_INFO, _GET_DRIVER, b""))
    try:
        _call(_ETHTOOL, name, struct.pack("P", ctypes.addressof(told)))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # of a kind that has no driver to speak of
            return False
        raise
    driver: bytes = struct.unpack_from(_DRIVER_INFO, told)[1]
    return driver.rstrip(b"\0") == b"bridge"


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


def spans_tree(bridge: str) -> bool:
    """Whether a bridge takes part in a spanning tree: it lets a new port wait then.

    :raises OSError: `bridge` is none
    """
    # not by sysfs: what is mounted there may be of another network namespace
    info = array("B", bytes(_BRIDGE_INFO_SIZE))
    words = array("L", [_BRIDGE_INFO, info.buffer_info()[0], 0, 0])
    _call(_PRIVATE, bridge, struct.pack("L", words.buffer_info()[0]))
    return bool(info[_BRIDGE_INFO_STP])


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
