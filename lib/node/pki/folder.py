"""The folder of certificates and keys: nobody but its owner may enter it, and no file in it is ever half of one."""

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from ...errors import ArgumentError, RecordError
from ...kvm.lock import locked
from ...kvm.record import replace

T = TypeVar("T")

PORT: Final = 8443  # of a daemon, where none is said
DAYS: Final = 90.0  # that a node's certificate holds: it renews itself
_LOCK: Final = "pki"
_LOCK_TIMEOUT: Final = 30.0


class About(Struct, frozen=True, kw_only=True):
    """What a node knows of itself besides its certificate.

    :ivar name: of the node
    :ivar addresses: where others reach it, each a host and maybe a port
    :ivar issuer: where the node that has the authority is reached; empty on that node itself
    :ivar days: that its certificate is to hold
    """

    name: str
    addresses: list[str]
    issuer: list[str] = []
    days: float = DAYS


class Folder:
    """The folder of one node, or of one context.

    :ivar path: of it
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def trusted(self) -> Path:
        """The authority's certificate, which anybody may see."""
        return self.path / "ca.pem"

    @property
    def authority(self) -> Path:
        """The authority's key and certificate; on one node only."""
        return self.path / "authority.pem"

    @property
    def own(self) -> Path:
        """Our key and certificate, in one file: so one rename replaces both."""
        return self.path / "node.pem"

    @property
    def about(self) -> Path:
        """What :class:`About` has."""
        return self.path / "node.json"

    @property
    def issued(self) -> Path:
        """Who was given what; where the authority is."""
        return self.path / "issued.json"

    @property
    def revoked(self) -> Path:
        """Which certificates hold no longer."""
        return self.path / "revoked.json"

    @property
    def tokens(self) -> Path:
        """A file for each token."""
        return self.path / "tokens"

    @property
    def has_authority(self) -> bool:
        """Whether certificates are made here."""
        return self.authority.exists()

    @contextmanager
    def changed(self) -> Iterator[None]:
        """For the block, nobody else changes anything in here. It is there, and nobody else may enter it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        with locked(self.path, _LOCK, "a change of certificates", _LOCK_TIMEOUT):
            yield


def write(path: Path, data: bytes) -> None:
    """Put a file in its place, wholly and durably, for its owner's eyes alone."""
    replace(path, data)


def save(path: Path, data: Struct) -> None:
    """The same, of what is kept as JSON."""
    write(path, msgspec.json.format(msgspec.json.encode(data), indent=1))


def read(path: Path, kind: type[T]) -> T:
    """What was kept as JSON.

    :raises FileNotFoundError: nothing was
    :raises RecordError: it cannot be read
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise RecordError(str(path), f"it cannot be read: {error}") from error


def split_address(text: str) -> tuple[str, int]:
    """Host and port of an address; IPv6 stands in brackets where a port follows.

    :raises ArgumentError: it is none
    """
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.startswith("[")):
        host, port = text, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[^\s/]+", host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArgumentError("address", text, "a host name or IP address, and maybe ':' and a port")
    return host, int(port)


def hosts_of(addresses: Sequence[str]) -> list[str]:
    """The hosts among addresses, each once."""
    return list(dict.fromkeys(split_address(address)[0] for address in addresses))


def this_host() -> str:
    """The name of this host."""
    return socket.gethostname() or os.uname().nodename
