"""The event log: numbered, bounded, and nobody who waits on it can miss or hang.

An event may come before the reply of the command that caused it. So a wait names
the number from which it starts: take :meth:`EventLog.mark`, act, then wait for an
event after that mark. What a wait looks for is checked when an event arrives, so
that a flood which pushes it out of the log does not hide it from who waits already.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import UNSET, Struct

from ..errors import DroverError
from .messages import Event, Message

# As many events as an instance sends in hours of normal life; about 1 MB at worst.
DEFAULT_LOG_SIZE = 1_000
# A reader takes a stream's events between two reads of the socket; one read brings
# at most about a thousand events, so a stream only overflows when nobody reads it.
DEFAULT_STREAM_SIZE = 10_000

# The event of ours that stands where the connection was lost and made anew: from the last event before it to the first
# one after it, some may be missing. QEMU's own names are in capitals.
RECONNECTED: Final = "reconnected"

Match = Callable[[Event], bool]


class Waitable(Struct, kw_only=True, eq=False):
    """Something that a port waits for: done when its value or its error is there."""

    done: bool = False
    error: BaseException | None = None
    notify: Callable[[], None] | None = None

    def fail(self, error: BaseException) -> None:
        """End the wait with `error`; nothing happens when it already ended."""
        if not self.done:
            self.error = error
            self.finish()

    def finish(self) -> None:
        """It is done: wake who waits."""
        self.done = True
        if self.notify is not None:
            self.notify()


class EventWatch(Waitable, eq=False):
    """Waits for the first event that fits; :attr:`event` holds it when done."""

    _names: frozenset[str]
    _match: Match | None
    event: Event | None = None

    def offer(self, event: Event) -> None:
        """Take `event` if it is the one that is waited for."""
        if self.done or (self._names and event.name not in self._names):
            return
        try:
            if self._match is not None and not self._match(event):
                return
        except Exception as error:  # the caller's own function: its error is the caller's, not the reader's
            self.fail(error)
            return
        self.event = event
        self.finish()

    def outcome(self) -> Event:
        """The event, once it is there.

        :raises ConnectionClosed: the connection ended first
        """
        if self.event is None:
            raise self.error or AssertionError("asked before it was done")
        return self.event


class EventStream:
    """All events of some names, in order, for one consumer.

    :ivar lost: how many events were dropped because the consumer did not take them in time
    :ivar closed: why no more events will come, once that is so
    :ivar end: number of the last event that was offered to it, once it is closed
    """

    __slots__ = ("_names", "_queue", "_size", "closed", "end", "lost", "notify")

    def __init__(self, names: frozenset[str], size: int) -> None:
        self.lost = 0
        self.closed: DroverError | None = None
        self.end = 0
        self.notify: Callable[[], None] | None = None
        self._names = names
        self._size = size
        self._queue: deque[Event] = deque()

    def offer(self, events: list[Event]) -> None:
        """Append the events that this stream wants; the oldest ones go when the queue is full."""
        if self._names:
            events = [event for event in events if event.name in self._names]
            if not events:
                return
        queue = self._queue
        queue.extend(events)
        while len(queue) > self._size:
            queue.popleft()
            self.lost += 1
        if self.notify is not None:
            self.notify()

    def take(self) -> Event | None:
        """The oldest event that was not taken yet, or None."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    @property
    def done(self) -> bool:
        """Whether a consumer need not wait: an event is there, or none will come."""
        return bool(self._queue) or self.closed is not None

    def close(self, reason: DroverError, end: int) -> None:
        """No more events will come after the one of number `end`."""
        self.closed, self.end = reason, end
        if self.notify is not None:
            self.notify()


class EventLog:
    """The last events of a monitor, numbered from 1, and who waits for the next ones.

    It outlives a session, so that numbers go on over a reconnect.

    :param size: how many events are kept
    :ivar on_events: called with all events of each read, before anybody else sees them; must not fail, nor block
    """

    def __init__(self, size: int = DEFAULT_LOG_SIZE) -> None:
        self.on_events: Callable[[list[Event]], None] | None = None
        self._log: deque[Event] = deque(maxlen=size)
        self._watches: set[EventWatch] = set()
        self._streams: tuple[EventStream, ...] = ()
        self._number = 0

    def __len__(self) -> int:
        return len(self._log)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._log))

    def mark(self) -> int:
        """The number of the newest event; 0 before the first. Wait `since` it for later ones."""
        return self._number

    @property
    def dropped(self) -> int:
        """How many events have left the log to make room."""
        return self._number - len(self._log)

    def add(self, name: str, data: dict[str, object], timestamp: float) -> None:
        """Number an event, keep it, and offer it to everybody who waits."""
        self._publish([Event(name, data, timestamp, self._number + 1)])

    def extend(self, messages: Iterable[Message]) -> None:
        """The same for all events of one read, at once: they come in floods."""
        number = self._number
        events = []
        for message in messages:
            number += 1
            name, stamp, data = message.event, message.timestamp, message.data
            assert name is not UNSET
            when = -1.0 if stamp is UNSET else stamp.seconds + stamp.microseconds / 1e6
            events.append(Event(name, {} if data is UNSET else data, when, number))
        self._publish(events)

    def _publish(self, events: list[Event]) -> None:
        self._number = events[-1].number
        self._log.extend(events)
        if self.on_events is not None:
            self.on_events(events)
        for stream in self._streams:
            stream.offer(events)
        if self._watches:
            for event in events:
                for watch in tuple(self._watches):
                    watch.offer(event)

    def watch(self, names: Iterable[str], since: int | None, match: Match | None = None) -> EventWatch:
        """Wait for the first event that fits; :meth:`forget` it when you are through with it.

        :param names: event names; none means any
        :param since: only events numbered after this one; None means from now on
        :param match: more to ask of the event
        """
        watch = EventWatch(frozenset(names), match)
        if since is not None:
            for event in self._after(since):
                watch.offer(event)
                if watch.done:
                    return watch
        self._watches.add(watch)
        return watch

    def stream(self, names: Iterable[str], since: int | None, size: int = DEFAULT_STREAM_SIZE) -> EventStream:
        """All events of these names from a number on; :meth:`forget` it when you are through with it.

        Events after `since` that the log has already dropped are counted in ``stream.lost``.
        """
        stream = EventStream(frozenset(names), size)
        if since is not None:
            stream.lost = max(0, self.dropped - since)
            stream.offer(self._after(since))
        self._streams += (stream,)
        return stream

    def forget(self, waiter: EventWatch | EventStream) -> None:
        """No longer offer events to `waiter`."""
        if isinstance(waiter, EventWatch):
            self._watches.discard(waiter)
        else:
            self._streams = tuple(stream for stream in self._streams if stream is not waiter)

    def close(self, reason: DroverError) -> None:
        """Wake everybody who waits: the connection that events come from has ended."""
        watches, self._watches = self._watches, set()
        for watch in watches:
            watch.fail(reason)
        streams, self._streams = self._streams, ()
        for stream in streams:
            stream.close(reason, self._number)

    def _after(self, since: int) -> list[Event]:
        newer = self._number - since
        if newer <= 0:
            return []
        if newer >= len(self._log):
            return list(self._log)
        return list(self._log)[-newer:]
