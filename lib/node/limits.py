"""What a caller may take of the daemon: one table, told by ``GET /v1/node``, and the count of what is taken.

Three modules hold to it: :mod:`.door` accepts connections, :mod:`.gate` lets requests through, and here is counted.
"""

import math
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct, structs

from ..errors import ArgumentError


class Limits(Struct, frozen=True, kw_only=True):
    """The table. A *caller* is a user of this host, a certificate's name, or, before it has shown one, an address.

    :ivar body_bytes: of a request: a specification with its cloud-init data
    :ivar header_bytes: of the request line, and of each header; aiohttp's own default
    :ivar headers: of a request
    :ivar handshake_seconds: for TLS, from the connection on
    :ivar head_seconds: for a request's line and headers, from its first byte, or for the first one from the connection
    :ivar body_seconds: for a request's body, from the end of its head
    :ivar answer_seconds: that a caller may let an answer lie: longer, and it has gone
    :ivar idle_seconds: of a connection, between two requests
    :ivar read_seconds: for a call that changes nothing, beyond `wait` of a job
    :ivar change_seconds: for the answer to a change; what was asked goes on
    :ivar connections: in all: half of the files that the process may have open, if that is less
    :ivar connections_per_caller: each command of the command line takes one: 200 at once, and 200 that end
    :ivar requests_per_second: of one caller, in the long run; so many connections, too
    :ivar requests_at_once: of one caller that has been quiet
    :ivar streams_per_caller: consoles, VNC and events, which last
    :ivar migration_bandwidth: bytes a second that all migrations from here share, and all to here; 0: no limit
    """

    body_bytes: int = 1 << 20
    header_bytes: int = 8190
    headers: int = 64
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 30.0
    idle_seconds: float = 75.0
    read_seconds: float = 60.0
    change_seconds: float = 3600.0
    connections: int = 1024
    connections_per_caller: int = 512
    requests_per_second: float = 1000.0
    requests_at_once: float = 2000.0
    streams_per_caller: int = 128
    migration_bandwidth: int = 0


# Fewer would not even let a few people in; what is left of the descriptors then is up to whoever set their limit.
_LEAST: Final = 16
# Callers who are remembered though they have nothing open.
_REMEMBERED: Final = 1024


def limits_here(changes: Iterable[str] = ()) -> Limits:
    """The table, as far as this process may have files open.

    :param changes: `NAME=VALUE`, of what is to be otherwise
    :raises ArgumentError: there is no such limit, or it cannot be so
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = structs.replace(Limits(), **dict(map(_change, changes)))
    if files == resource.RLIM_INFINITY:
        return limits
    connections = max(_LEAST, min(limits.connections, files // 2))
    each = min(limits.connections_per_caller, connections * 3 // 4)  # one caller alone does not keep others out
    return structs.replace(limits, connections=connections, connections_per_caller=each)


def _change(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    kind = {field.name: field.type for field in structs.fields(Limits)}.get(name)
    try:
        if kind is None or not 0 < (number := kind(value)) < math.inf:
            raise ValueError
    except ValueError:
        allowed = ", ".join(field.name for field in structs.fields(Limits))
        raise ArgumentError("--limit", text, f"NAME=NUMBER above 0; NAME is one of {allowed}") from None
    return name, number


class Bucket:
    """So many at once, and so many a second in the long run.

    :param rate: how many come back in a second
    :param size: how many there are at most
    """

    def __init__(self, rate: float, size: float) -> None:
        self._rate = rate
        self._size = self._left = size
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one, if there is one.

        :param now: monotonic time
        """
        self._fill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_full(self, now: float) -> bool:
        """Nobody would notice if it were a new one."""
        self._fill(now)
        return self._left >= self._size

    def _fill(self, now: float) -> None:
        self._left = min(self._size, self._left + max(now - self._at, 0.0) * self._rate)
        self._at = now


class Held(Struct, eq=False):
    """A connection that is open.

    :ivar caller: whose
    :ivar drop: ends it at once
    :ivar over: its caller has as many as it may: its first request is refused
    """

    caller: str
    drop: Callable[[], None]
    over: bool = False


class Crowd:
    """All connections that are open, whose they are, and what their callers have taken.

    :ivar limits: the table
    :ivar dropped: idle connections that were ended for others
    :ivar refused: connections and requests that were
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.dropped = self.refused = 0
        self._open: dict[Held, None] = {}
        self._count: Counter[str] = Counter()
        self._idle: defaultdict[str, dict[Held, None]] = defaultdict(dict)  # in the order in which they became so
        self._streams: Counter[str] = Counter()
        self._requests: dict[str, Bucket] = {}
        self._connections: dict[str, Bucket] = {}

    def enter(self, caller: str, drop: Callable[[], None]) -> Held | None:
        """A connection has come: idle ones may have to go for it. None: it is one too many."""
        may = self._may(self._connections, caller)
        if not may or (len(self._open) >= self.limits.connections and not self.make_room()):
            self.refused += 1
            return None
        held = Held(caller, drop)
        self._open[held] = None
        self._come(held)
        return held

    def known(self, held: Held, caller: str, drop: Callable[[], None]) -> None:
        """It is known now whose a connection is."""
        held.drop = drop
        if held in self._open and caller != held.caller:
            self._go(held)
            held.caller = caller
            self._come(held)

    def leave(self, held: Held) -> None:
        """A connection has ended. What has left already may leave again."""
        if held in self._open:
            del self._open[held]
            self._go(held)

    def begin(self, held: Held) -> None:
        """It has a request."""
        self._idle[held.caller].pop(held, None)

    def end(self, held: Held) -> None:
        """It has none any more."""
        if held in self._open:
            self._idle[held.caller][held] = None

    def make_room(self) -> bool:
        """End the oldest idle connection of whoever has the most; False: none is idle."""
        callers = [caller for caller, idle in self._idle.items() if idle]
        return bool(callers) and self._drop_of(max(callers, key=self._count.__getitem__))

    def may_ask(self, caller: str) -> bool:
        """Whether a caller may send a request now, which is counted."""
        return self._may(self._requests, caller)

    def may_stream(self, caller: str) -> bool:
        """Whether a caller may have one stream more, which is counted until :meth:`streamed`."""
        if self._streams[caller] >= self.limits.streams_per_caller:
            return False
        self._streams[caller] += 1
        return True

    def streamed(self, caller: str) -> None:
        """A stream has ended."""
        self._streams[caller] -= 1
        if not self._streams[caller]:
            del self._streams[caller]

    def told(self) -> dict[str, int]:
        """How much is taken, for people."""
        streams = sum(self._streams.values())
        return {"open": len(self._open), "streams": streams, "dropped": self.dropped, "refused": self.refused}

    # -- how ----------------------------------------------------------------------------------------------------------

    def _may(self, buckets: dict[str, Bucket], caller: str) -> bool:
        now, bucket = time.monotonic(), buckets.get(caller)
        if bucket is None:
            if len(buckets) >= _REMEMBERED:
                for name in [name for name, it in buckets.items() if it.is_full(now)]:
                    del buckets[name]
            bucket = buckets[caller] = Bucket(self.limits.requests_per_second, self.limits.requests_at_once)
        return bucket.take(now)

    def _come(self, held: Held) -> None:
        full = self._count[held.caller] >= self.limits.connections_per_caller
        held.over = full and not self._drop_of(held.caller)
        self._count[held.caller] += 1
        self._idle[held.caller][held] = None

    def _go(self, held: Held) -> None:
        self._idle[held.caller].pop(held, None)
        self._count[held.caller] -= 1
        if not self._count[held.caller]:
            del self._count[held.caller], self._idle[held.caller]

    def _drop_of(self, caller: str) -> bool:
        held = next(iter(self._idle[caller]), None)
        if held is None:
            return False
        self.leave(held)
        self.dropped += 1
        held.drop()
        return True
