"""The client's side of an NBD handshake, pure: is somebody there who serves this export?

It follows the NBD project's ``doc/proto.md``: the *fixed newstyle* negotiation, up to and without the
transmission of data. The export is asked for by ``NBD_OPT_INFO`` and left by ``NBD_OPT_ABORT``: a server
counts only clients that go on to transmission, so a ``qemu-nbd`` without ``--persistent`` does not end
after this one. A server that knows no INFO is asked for its LIST.

What comes is bounded: a reply by :data:`MAX_REPLY`, their number by :data:`MAX_REPLIES`, all of it in
time by whoever moves the bytes.
"""

import struct
from enum import IntEnum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import NbdError, NbdRefused
from .conversation import Conversation
from .framing import excerpt

_MAGIC: Final = b"NBDMAGIC"
_OPTION: Final = b"IHAVEOPT"
_OLD_STYLE: Final = b"\x00\x00\x42\x02\x81\x86\x12\x53"
_REPLY: Final = 0x0003E889045565A9

_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_READ_ONLY: Final = 2  # among an export's flags
_ERROR: Final = 1 << 31
_BLOCK_SIZE: Final = 3  # a kind of fact

# Names and texts are at most 4096 bytes by the specification, and a reply holds at most two.
MAX_REPLY: Final = 16 * 1024
# A server lists each of its exports in a reply; a storage host may have thousands.
MAX_REPLIES: Final = 10_000
MAX_NAME: Final = 4096

_GREETING: Final = struct.Struct(">8s8sH")
_REPLY_HEADER: Final = struct.Struct(">QIII")


class Option(IntEnum):
    """What a client asks for."""

    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6


class Reply(IntEnum):
    """What a server answers, if it does not refuse."""

    ACK = 1
    SERVER = 2
    INFO = 3


# Refusals by number, as the specification names them.
REFUSALS: Final = {
    1: "unsupported",
    2: "policy",
    3: "invalid",
    4: "platform",
    5: "tls-required",
    6: "unknown-export",
    7: "shutdown",
    8: "block-size-required",
    9: "too-big",
}
_UNSUPPORTED: Final = "unsupported"


class NbdExport(Struct, frozen=True, kw_only=True):
    """What an NBD server told of an export before anybody opened it.

    :ivar name: as it was asked for; empty means the server's default
    :ivar size: in bytes; None where the server does not tell before TLS is on, or at all
    :ivar read_only: None where it does not tell
    :ivar description: the server's own text
    :ivar min_block: smallest and alignment of requests, in bytes; 0 where it does not tell
    :ivar preferred_block: what it likes best, in bytes; 0 where it does not tell
    :ivar max_block: largest request, in bytes; 0 where it does not tell
    :ivar tls: the server agreed to TLS
    """

    name: str
    size: int | None = None
    read_only: bool | None = None
    description: str = ""
    min_block: int = 0
    preferred_block: int = 0
    max_block: int = 0
    tls: bool = False


class NbdProbe(Conversation):
    """Asks an NBD server for one export, up to the point where data would flow, and takes its leave.

    :param address: whom we talk to, for messages
    :param export: name of the export; empty for the server's default
    :param tls: the export will be used over TLS: ask whether the server has it. What is behind TLS stays unknown
    """

    def __init__(self, address: str, export: str = "", tls: bool = False) -> None:
        self.address = address
        self.export = export
        self.tls = tls
        self.error: NbdError | None = None
        self._buffer = bytearray()
        self._asked: Option | None = None
        self._found = NbdExport(name=export)
        self._listed: set[str] = set()
        self._replies = 0

    def outcome(self) -> NbdExport:
        """What the server told.

        :raises NbdRefused: it has no such export, or does not give it to us
        :raises NbdError: it does not speak NBD, or hung up
        """
        if self.error is not None:
            raise self.error
        return self._found

    def receive(self, data: bytes) -> bytes:
        if not data:
            self._fail(f"hung up after {len(self._buffer)} bytes of an answer" if self._buffer else "hung up")
            return b""
        self._buffer += data
        out = b""
        while not self.done:
            before = len(self._buffer)
            out += self._on_greeting() if self._asked is None else self._on_reply()
            if len(self._buffer) == before:
                break
        return out

    # -- greeting --------------------------------------------------------

    def _on_greeting(self) -> bytes:
        start = bytes(self._buffer[: _GREETING.size])
        expected = _MAGIC + _OPTION
        if start[8:] and _OLD_STYLE.startswith(start[8:16]):
            return self._fail("speaks NBD's old style, which cannot be asked for an export")
        if not expected.startswith(start[: len(expected)]):
            return self._fail(f"does not speak NBD: {excerpt(start)!r}")
        if len(start) < _GREETING.size:
            return b""
        flags = _GREETING.unpack(start)[2]
        if not flags & _FIXED_NEWSTYLE:
            return self._fail("speaks NBD's new style before it was fixed, which cannot be asked for an export")
        del self._buffer[: _GREETING.size]
        ours = struct.pack(">I", _FIXED_NEWSTYLE | flags & _NO_ZEROES)
        return ours + (self._ask(Option.STARTTLS) if self.tls else self._ask(Option.INFO, self._info()))

    def _info(self) -> bytes:
        name = self.export.encode()
        # as QEMU asks: who does not is refused an export that wants whole blocks, as that of a file without a cache
        return struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _BLOCK_SIZE)

    def _ask(self, option: Option, data: bytes = b"") -> bytes:
        self._asked = option
        return _OPTION + struct.pack(">II", option, len(data)) + data

    # -- replies ---------------------------------------------------------

    def _on_reply(self) -> bytes:
        if len(self._buffer) < _REPLY_HEADER.size:
            return b""
        magic, option, kind, length = _REPLY_HEADER.unpack_from(self._buffer)
        if magic != _REPLY or option != self._asked or length > MAX_REPLY:
            return self._fail(f"answers with something else than a reply: {excerpt(self._buffer[:20])!r}")
        end = _REPLY_HEADER.size + length
        if len(self._buffer) < end:
            return b""
        data = bytes(self._buffer[_REPLY_HEADER.size : end])
        del self._buffer[:end]
        self._replies += 1
        if self._replies > MAX_REPLIES:
            return self._fail(f"does not come to an end within {MAX_REPLIES} replies")
        if kind & _ERROR:
            return self._on_refusal(REFUSALS.get(kind ^ _ERROR, f"error {kind ^ _ERROR}"), data)
        return self._on_answer(kind, data)

    def _on_answer(self, kind: int, data: bytes) -> bytes:
        if kind == Reply.INFO and self._asked is Option.INFO:
            return self._on_info(data)
        if kind == Reply.SERVER and self._asked is Option.LIST:
            length = int.from_bytes(data[:4], "big")
            self._listed.add(data[4 : 4 + length].decode(errors="replace"))
            return b""
        if kind != Reply.ACK:
            return self._fail(f"answers {self._asked!r} by a reply of type {kind}")
        if self._asked is Option.STARTTLS:
            self._found = replace(self._found, tls=True)  # from here on it speaks TLS
            self.done = True
            return b""
        if self._asked is Option.LIST and self.export and self.export not in self._listed:
            return self._refused("unknown-export", "it is not among those that the server lists")
        return self._leave()

    def _on_info(self, data: bytes) -> bytes:
        kind, body = int.from_bytes(data[:2], "big"), data[2:]
        try:
            if kind == 0:
                size, flags = struct.unpack(">QH", body)
                self._found = replace(self._found, size=size, read_only=bool(flags & _READ_ONLY))
            elif kind == 2:
                self._found = replace(self._found, description=body.decode(errors="replace"))
            elif kind == _BLOCK_SIZE:
                least, best, most = struct.unpack(">III", body)
                self._found = replace(self._found, min_block=least, preferred_block=best, max_block=most)
        except struct.error:
            return self._fail(f"tells facts of the wrong length: {excerpt(data)!r}")
        return b""

    def _on_refusal(self, code: str, data: bytes) -> bytes:
        if code == _UNSUPPORTED and self._asked is Option.INFO:
            return self._ask(Option.LIST)
        if code == _UNSUPPORTED and self._asked is Option.LIST:
            return self._leave()  # it speaks, and more it cannot tell
        return self._refused(code, data.decode(errors="replace"))

    # -- the end ---------------------------------------------------------

    def _leave(self) -> bytes:
        self.done = True
        return _OPTION + struct.pack(">II", Option.ABORT, 0)

    def _refused(self, code: str, text: str) -> bytes:
        if self._asked is Option.STARTTLS:
            code = "no-tls"
        self.error = NbdRefused(self.address, self.export, code, text)
        return self._leave()

    def _fail(self, problem: str) -> bytes:
        self.error = NbdError(self.address, problem)
        self.done = True
        return b""
