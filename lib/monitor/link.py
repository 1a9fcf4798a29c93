"""One connection of a QMP monitor, whichever face it serves: what moves bytes between the wire and the session."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

from ..errors import ArgumentError, ConnectionClosed, MonitorError
from ..ops.port import Arguments
from ..qmp.events import EventStream, EventWatch, Match, Waitable
from ..qmp.life import Call
from ..qmp.session import QmpSession
from .discovery import Knowledge
from .socket import Wire


class Session(Protocol):
    """What a link asks of the protocol that is spoken on it."""

    fault: MonitorError | None
    outbox: deque[tuple[bytes, Call]]
    ended: Waitable

    @property
    def busy(self) -> bool:
        """Whether more than one command waits for its answer, those counted that are about to be sent."""

    def submit(self, command: str, arguments: Any, fd: int | None, oob: bool, /) -> Call:
        """Queue a command."""

    def abandon(self, call: Call, /) -> None:
        """Nobody waits for `call` any more."""

    def refuse(self, call: Call, error: Exception, /) -> None:
        """`call` cannot be sent: it fails with `error`, and those behind it go on."""

    def sent(self, count: int, /) -> None:
        """The first `count` bytes of the outbox's first item have left."""

    def receive(self, data: bytes, /) -> None:
        """Take in what was read."""

    def close(self, reason: MonitorError, /) -> None:
        """The connection ended."""


S = TypeVar("S", bound=Session)

# Bytes that are put together for one system call: most commands have less than a hundred.
_TOGETHER: Final = 4096


class Link(ABC, Generic[S]):
    """One connection: a wire and the session on it. A face has at most one, and a new one for each connect."""

    def __init__(self, wire: Wire, session: S) -> None:
        self.wire = wire
        self.session = session
        self.knowledge = Knowledge()
        self.peer_pid: int | None = None  # the process at the other end, where that was asked for and is known
        self._lock = threading.Lock()  # of the session; nobody contends for it where one event loop has it all
        self._closed = False

    def submit(self, command: str, arguments: Arguments | None, fd: int | None, oob: bool) -> Call:
        """Send a command, or as much of it as goes without waiting."""
        with self._lock:
            call = self.session.submit(command, arguments, fd, oob)
            if self.session.outbox:
                self._send_some()
        return call

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more."""
        with self._lock:
            self.session.abandon(call)

    def watch(self: "Link[QmpSession]", names: Collection[str], since: int | None, match: Match | None) -> EventWatch:
        """Wait for one event, with :meth:`wait`."""
        with self._lock:
            return self.session.watch(names, since, match)

    def stream(self: "Link[QmpSession]", names: Collection[str], since: int | None) -> EventStream:
        """Collect events, to be taken after :meth:`wait`."""
        with self._lock:
            return self.session.stream(names, since)

    def forget(self: "Link[QmpSession]", waiter: EventWatch | EventStream) -> None:
        """Nobody waits for `waiter` any more."""
        with self._lock:
            self.session.events.forget(waiter)

    @abstractmethod
    async def wait(self, awaited: Waitable | EventStream, timeout: float | None) -> bool:
        """Wait until `awaited` is done; False if it is not after `timeout` seconds."""

    def rest(self) -> None:
        """It is connected, and may be used by nobody for long: leave nothing that would wake the process."""

    @abstractmethod
    def notice(self) -> None:
        """Learn of the peer's end if it has come and nobody has read so far; what it said before counts."""

    @abstractmethod
    def close(self, reason: ConnectionClosed) -> None:
        """End it: everybody who waits gets `reason`."""

    def _send_some(self) -> None:
        """Send what the socket takes now; the rest stays in the outbox."""
        outbox = self.session.outbox
        while outbox and not self._closed:
            data, call = outbox[0]
            fd = None if call.sent else call.fd
            if fd is None and len(outbox) > 1:
                data = _together(outbox)
            try:
                count = self.wire.send(data, fd)
            except OSError as error:
                if fd is None:
                    raise
                allowed = f"an open descriptor, on a monitor that takes one ({error.strerror or error})"
                self.session.refuse(call, ArgumentError("fd", fd, allowed))
                outbox = self.session.outbox
                continue
            if not count:
                return
            if len(outbox) == 1:
                self.session.sent(count)
                continue
            while count:
                part = min(count, len(outbox[0][0]))
                self.session.sent(part)
                count -= part

    def _take_in(self, data: bytes | None) -> None:
        """Let the session say what it means that `data` was read."""
        if data:
            self.session.receive(data)
        elif data is not None:
            self.session.close(ConnectionClosed(self.wire.fault or "QEMU closed the connection"))


def _together(outbox: "deque[tuple[bytes, Call]]") -> bytes:
    """The first piece, and as much of what follows it as can go along."""
    pieces, size = [outbox[0][0]], len(outbox[0][0])
    for data, call in islice(outbox, 1, None):
        size += len(data)
        if size > _TOGETHER or call.fd is not None:
            break
        pieces.append(data)
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]
