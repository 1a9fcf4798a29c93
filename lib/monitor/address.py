"""Where a monitor is: one parser for every address, as text.

================== ============================================= ==========================
text               what                                          type
================== ============================================= ==========================
``unix:PATH``      a unix socket, whatever is in its path        :class:`UnixAddress`
``@NAME``          an abstract unix socket                       :class:`AbstractAddress`
``…/…``, ``WORD``  a unix socket                                 :class:`UnixAddress`
``HOST:PORT``      TCP                                           :class:`TcpAddress`
``[IPV6]:PORT``    TCP                                           :class:`TcpAddress`
``tcp:HOST:PORT``  TCP, to a host named ``unix`` or ``vsock``    :class:`TcpAddress`
``vsock:CID:PORT`` a socket to or from a virtual machine         :class:`VsockAddress`
================== ============================================= ==========================

The first rule that fits decides: ``unix:`` and then anything is a path, ``@`` and then
anything a name, anything with a ``/`` a path (``./a:b``, ``vsock:/x``), anything without a
``:`` a path in the working directory. What is left has a ``:`` and is TCP or vsock, or an
error: ``localhost:4444`` is TCP even where a file of that name exists, and an IPv6 address
needs its brackets. ``str()`` of a parsed address parses to the same address.
"""

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..errors import ArgumentError

ACCEPTED: Final = (
    "accepted are a path ('/run/vm.qmp', 'unix:PATH'), '@NAME' (abstract), 'HOST:PORT', '[IPV6]:PORT', "
    "'vsock:CID:PORT', a (host, port) tuple, a connected socket or its descriptor"
)
MAX_PORT: Final = 0xFFFF
MAX_VSOCK: Final = 0xFFFFFFFF
# Words that begin an explicit form, and so cannot stand for a host.
_WORDS: Final = frozenset({"unix", "tcp", "vsock"})
_NOT_IN_HOST: Final = frozenset("/[]@")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket in the file system.

    :param path: relative ones start in the working directory
    :raises ArgumentError: no path can be like this
    """

    path: str

    def __post_init__(self) -> None:
        _check_name(self.path, f"unix:{self.path}")

    def __str__(self) -> str:
        explicit = self.path.startswith(("unix:", "@")) or ("/" not in self.path and ":" in self.path)
        return f"unix:{self.path}" if explicit else self.path


@dataclass(frozen=True, slots=True)
class AbstractAddress:
    """An abstract unix socket: it has a name and no file, and any user of the host may connect to it.

    :param name: without the ``@``
    :raises ArgumentError: no name can be like this
    """

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name, f"@{self.name}")

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port.

    :param host: a name or an IP address, an IPv6 one without brackets; may have a scope (``fe80::1%eth0``)
    :param port: 0 only to listen on: the system chooses one
    :raises ArgumentError: no host, or no port, can be like this
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        _check_number(self.port, MAX_PORT, f"{self.host}:{self.port}")
        host = self.host
        if not host or not host.isprintable() or " " in host or not _NOT_IN_HOST.isdisjoint(host):
            raise _wrong(f"{host}:{self.port}", "no host can be named like this")
        if ":" in host and not _is_ipv6(host):
            raise _wrong(f"{host}:{self.port}", "this is no IPv6 address")

    def __str__(self) -> str:
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"tcp:{self.host}:{self.port}" if self.host in _WORDS else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A port of a virtual machine, or of its host.

    :param cid: whose: 2 is the host, 4294967295 stands for any, to listen on
    :param port: 32 bits wide
    :raises ArgumentError: a number is out of its range
    """

    cid: int
    port: int

    def __post_init__(self) -> None:
        for number in (self.cid, self.port):
            _check_number(number, MAX_VSOCK, str(self))

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


Endpoint = UnixAddress | AbstractAddress | TcpAddress | VsockAddress
# What a connection takes for its address; an int is a descriptor.
Address = str | os.PathLike[str] | tuple[str, int] | Endpoint | int | socket.socket


@lru_cache(1024)  # what is parsed is frozen; connections that come and go are to the same few
def parse_address(text: str) -> Endpoint:
    """Parse an address; this module says how.

    :raises ArgumentError: it has none of the accepted forms, which the error shows
    """
    if text.startswith("unix:"):
        return UnixAddress(text[len("unix:") :])
    if text.startswith("@"):
        return AbstractAddress(text[1:])
    if "/" in text or ":" not in text:
        return UnixAddress(text)
    word, _, rest = text.partition(":")
    if word == "vsock":
        cid, _, port = rest.partition(":")
        return VsockAddress(_number(cid, text), _number(port, text))
    return _parse_tcp(rest if word == "tcp" else text, text)


def endpoint_of(address: Address) -> Endpoint | socket.socket | int:
    """Work out what `address` means; a socket or a descriptor is itself already.

    A path object is a path whatever it looks like; text is parsed.

    :raises ArgumentError: it is no address
    """
    if isinstance(address, str):
        return parse_address(address)
    if isinstance(address, (Endpoint, socket.socket)):
        return address
    if isinstance(address, int) and not isinstance(address, bool):
        return address
    if isinstance(address, os.PathLike):
        path = os.fspath(address)
        if isinstance(path, str):
            return UnixAddress(path)
    if isinstance(address, tuple) and [type(part) for part in address] == [str, int]:
        return TcpAddress(*address)
    raise _wrong(address)


def describe(address: Address) -> str:
    """`address` as text, for messages."""
    place = endpoint_of(address)
    if isinstance(place, int):
        return f"descriptor {place}"
    if isinstance(place, socket.socket):
        return f"socket {place.fileno()}"
    return str(place)


def _parse_tcp(text: str, whole: str) -> TcpAddress:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]:")
        if not bracket or not _is_ipv6(host):
            raise _wrong(whole, "between the brackets belongs an IPv6 address, behind them ':PORT'")
        return TcpAddress(host, _number(port, whole))
    host, _, port = text.partition(":")
    if ":" in port:
        raise _wrong(whole, "an IPv6 address needs brackets, a path with ':' a '/' or 'unix:'")
    return TcpAddress(host, _number(port, whole))


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, UnicodeError, ValueError):
        return False
    return True


def _number(text: str, whole: str) -> int:
    # isdecimal alone would take other scripts' digits, and int() refuses to convert thousands of them
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(MAX_VSOCK)):
        raise _wrong(whole, "a port is a number, and a path with ':' needs a '/' or 'unix:'")
    return int(text)


def _check_number(number: int, highest: int, whole: str) -> None:
    if not 0 <= number <= highest:
        raise _wrong(whole, f"{number} is not between 0 and {highest}")


def _check_name(name: str, whole: str) -> None:
    if not name or "\0" in name:
        raise _wrong(whole, "a name with a NUL in it is none" if name else "the name is missing")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise _wrong(whole, "no file can be named like this") from None


def _wrong(value: object, why: str = "") -> ArgumentError:
    return ArgumentError("address", value, f"{why}; {ACCEPTED}" if why else ACCEPTED)
