"""A model of an NBD server, pure and strict, and of the exports of a QEMU that is one."""

import struct
from collections.abc import Mapping
from typing import Any, Final

from drover.testing.block_model import Machine, Refusal

Arguments = dict[str, Any]

_OPTION: Final = b"IHAVEOPT"
_ABORT, _LIST, _STARTTLS, _INFO = 2, 3, 5, 6
_ACK, _SERVER, _FACTS = 1, 2, 3
_UNSUPPORTED, _TLS_REQUIRED, _UNKNOWN = ((1 << 31) + number for number in (1, 5, 6))


class NbdServerModel:
    """The server's side of a handshake with one client.

    :param exports: name to size in bytes and whether it is read-only
    :param knows: options that it knows, by number
    :param tls: ``none``, ``offered`` or ``required``
    :ivar asked: options that came, by number
    """

    def __init__(
        self,
        exports: Mapping[str, tuple[int, bool]],
        knows: frozenset[int] = frozenset({_ABORT, _LIST, _STARTTLS, _INFO}),
        tls: str = "none",
    ) -> None:
        self.exports = exports
        self.knows = knows
        self.tls = tls
        self.asked: list[int] = []
        self._buffer = b""
        self._greeted = False

    def greeting(self) -> bytes:
        """What it says first."""
        self._buffer, self._greeted = b"", False
        return b"NBDMAGIC" + _OPTION + struct.pack(">H", 3)

    def receive(self, data: bytes) -> bytes:
        """Take in what the client says, and answer; ``b""`` when it has left."""
        self._buffer += data
        if not self._greeted and len(self._buffer) >= 4:
            assert self._buffer[:4] == struct.pack(">I", 3), "not the flags of a client"
            self._buffer, self._greeted = self._buffer[4:], True
        out = b""
        while len(self._buffer) >= 16:
            magic, option, length = struct.unpack_from(">8sII", self._buffer)
            assert magic == _OPTION, "not an option"
            body, self._buffer = self._buffer[16 : 16 + length], self._buffer[16 + length :]
            self.asked.append(option)
            out += self._answer(option, body)
        return out

    def _answer(self, option: int, body: bytes) -> bytes:
        if option == _ABORT:
            return b""
        if option not in self.knows or (option == _STARTTLS and self.tls == "none"):
            return _reply(option, _UNSUPPORTED)
        if option == _STARTTLS:
            return _reply(option, _ACK)
        if self.tls == "required":
            return _reply(option, _TLS_REQUIRED, b"Option unavailable without TLS")
        if option == _LIST:
            names = [name.encode() for name in self.exports]
            listed = [_reply(option, _SERVER, struct.pack(">I", len(name)) + name) for name in names]
            return b"".join(listed) + _reply(option, _ACK)
        (length,) = struct.unpack_from(">I", body)
        name, rest = body[4 : 4 + length].decode(), body[4 + length :]
        assert rest == b"\0\1\0\3", "an INFO that asks for the sizes of blocks, and nothing else"
        if name not in self.exports:
            return _reply(option, _UNKNOWN, f"export '{name}' not present".encode())
        size, read_only = self.exports[name]
        facts = _reply(option, _FACTS, struct.pack(">HQH", 0, size, 1 | read_only << 1))
        facts += _reply(option, _FACTS, struct.pack(">H", 2) + b"a disk")
        facts += _reply(option, _FACTS, struct.pack(">HIII", 3, 1, 4096, 1 << 25))
        return facts + _reply(option, _ACK)


def _reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(body)) + body


class ExportModel:
    """The exports of a machine, and whether it listens.

    :ivar exports: id to what ``query-block-exports`` says
    :ivar used: ids of those that have a client
    """

    def __init__(self, qemu: Machine, refused: Refusal) -> None:
        self.listens = False
        self.exports: dict[str, Arguments] = {}
        self.used: set[str] = set()
        self._qemu = qemu
        self._refused = refused

    def _do_nbd_server_start(self, given: Arguments) -> Arguments:
        if given["addr"]["type"] == "fd":  # it is taken, whatever becomes of it
            self._qemu.fds.remove(given["addr"]["data"]["str"])
        if self.listens:
            raise self._refused("NBD server already running")
        self.listens = True
        return {}

    def _do_nbd_server_stop(self, _: Arguments) -> Arguments:
        if not self.listens:
            raise self._refused("NBD server not running")
        self.listens = False
        for name in list(self.exports):
            self._delete(name)
        return {}

    def _do_block_export_add(self, given: Arguments) -> Arguments:
        if not self.listens:
            raise self._refused("NBD server not running")
        if given["id"] in self.exports:
            raise self._refused(f"Block export id '{given['id']}' is already in use")
        if given["node-name"] not in self._qemu.nodes:
            raise self._refused(f"Failed to find node with node-name='{given['node-name']}'")
        shown = {name: given[name] for name in ("id", "type", "node-name")}
        self.exports[given["id"]] = shown | {"shutting-down": False}
        return {}

    def _do_block_export_del(self, given: Arguments) -> Arguments:
        name = given["id"]
        if name not in self.exports:
            raise self._refused(f"Export '{name}' is not found")
        if name in self.used and given.get("mode") != "hard":
            raise self._refused(f"export '{name}' still in use")
        self._delete(name)
        return {}

    def _delete(self, name: str) -> None:
        del self.exports[name]
        self.used.discard(name)
        self._qemu.emit("BLOCK_EXPORT_DELETED", {"id": name})

    def _do_query_block_exports(self, _: Arguments) -> list[Arguments]:
        return list(self.exports.values())
