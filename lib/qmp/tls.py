"""The first words of a TLS 1.3 handshake, pure: is somebody there who goes on with it?

Only as much of RFC 8446 as is needed to get an answer: a ClientHello with what every server of TLS 1.3 has, and a look
at the record that comes back. Then we hang up: no key is made, and nobody has shown who they are.
"""

import struct
from typing import Final

from .conversation import Conversation
from .framing import excerpt

RANDOM: Final = 64  # bytes: the hello's own 32, and 32 that pass for a key on X25519
_ALERT, _HANDSHAKE = 21, 22  # kinds of records
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_TLS_1_2: Final = b"\x03\x03"  # what 1.3 calls itself where one of 1.2 would look
_HEADER: Final = struct.Struct(">B2sH")
# AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305
_CIPHERS: Final = b"\x13\x01\x13\x02\x13\x03"
_EXTENSIONS: Final = {
    43: b"\x02\x03\x04",  # supported_versions: 1.3
    10: b"\x00\x04\x00\x1d\x00\x17",  # supported_groups: X25519, P-256
    13: b"\x00\x08\x04\x03\x08\x04\x08\x07\x08\x09",  # signature_algorithms: ECDSA on P-256, RSA-PSS, Ed25519
}
_KEY_SHARE, _X25519 = 51, b"\x00\x1d"


class TlsProbe(Conversation):
    """Says hello, and hears whether the other side says it, too.

    :param random: :data:`RANDOM` bytes that nobody can guess
    :ivar error: what was wrong with the answer; empty: nothing
    """

    def __init__(self, random: bytes) -> None:
        self.error = ""
        self._random = random
        self._buffer = bytearray()

    def begin(self) -> bytes:
        share = _X25519 + _long(self._random[32:])
        extensions = b"".join(
            struct.pack(">H", number) + _long(data)
            for number, data in {**_EXTENSIONS, _KEY_SHARE: _long(share)}.items()
        )
        body = _TLS_1_2 + self._random[:32] + b"\x00" + _long(_CIPHERS) + b"\x01\x00" + _long(extensions)
        hello = bytes([_CLIENT_HELLO]) + len(body).to_bytes(3, "big") + body
        return _HEADER.pack(_HANDSHAKE, b"\x03\x01", len(hello)) + hello

    def receive(self, data: bytes) -> bytes:
        """Take in what the server said; empty: it hung up. It ends once its answer can be told, good or bad."""
        self._buffer += data
        if not data:
            self._end("it hung up")
        elif self._buffer[0] not in (_ALERT, _HANDSHAKE):
            self._end(f"it does not speak TLS: {excerpt(self._buffer)!r}")
        elif len(self._buffer) > _HEADER.size + 1:
            first, second = self._buffer[_HEADER.size], self._buffer[_HEADER.size + 1]
            if self._buffer[0] == _ALERT:
                self._end(f"it refuses TLS 1.3: alert {second}")
            else:
                self._end("" if first == _SERVER_HELLO else f"it does not answer a hello, but says {first}")
        return b""

    def _end(self, error: str) -> None:
        self.done, self.error = True, error


def _long(data: bytes) -> bytes:
    """Behind its length."""
    return struct.pack(">H", len(data)) + data
