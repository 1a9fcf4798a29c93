"""From bytes, cut anywhere, to blocks of whole lines.

Goal: every byte is copied a constant number of times and searched once, however
the reads fall: a 10 MiB reply that arrives byte by byte costs as much per byte
as one that arrives at once. The usual case, a read that ends where a line ends,
is handed through without any copy.
"""

from ..errors import ProtocolError

# Replies may be large (query-qmp-schema is 207 kB, a big block graph several MB)
# but a peer that never ends its line must not eat the host's memory. libvirt
# gives up at 10 MiB; QEMU's own parser refuses a token above 64 MiB.
DEFAULT_LIMIT = 64 * 1024 * 1024


class LineFramer:
    """Collects bytes and hands out what is complete, up to the last line end.

    :param limit: longest line that is accepted, in bytes
    :ivar rest: what is held of a line whose end has not come yet
    :ivar before: once a line was too long, the whole lines in front of it that came with it
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.before = b""
        self.rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take `data` in and return all whole lines, with their ends; ``b""`` if there is none.

        :raises ProtocolError: a line is longer than the limit; :attr:`before` has those in front of it
        """
        if not self.rest and data.endswith(b"\n") and len(data) <= self.limit:
            return data
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return b""
        block = data if end == len(data) else data[:end]
        if self.rest:
            self.rest += block
            block = bytes(self.rest)
            self.rest.clear()
        if len(block) > self.limit:
            self._check_lines(block)
        if end < len(data):
            self.before = block
            self._keep(data[end:])
            self.before = b""
        return block

    def _keep(self, data: bytes) -> None:
        self.rest += data
        self._check(len(self.rest), self.rest)

    def _check_lines(self, block: bytes) -> None:
        start = 0
        for line in block.split(b"\n"):
            self.before = block[:start] if len(line) > self.limit else b""
            self._check(len(line), line)
            start += len(line) + 1

    def _check(self, length: int, line: bytes | bytearray) -> None:
        if length > self.limit:
            raise too_long(self.limit, line)


def too_long(limit: int, start: bytes | bytearray) -> ProtocolError:
    """The error for a message of more than `limit` bytes that begins with `start`."""
    return ProtocolError(f"a message is longer than the limit of {limit} bytes", excerpt(start))


# Enough to recognise what came; little enough for one line of a log.
EXCERPT = 80


def excerpt(line: bytes | bytearray) -> bytes:
    """The start of `line`, for an error message."""
    return bytes(line[:EXCERPT])
