"""Event listeners: bounded, and ended when the server goes.

A listener keeps the newest :data:`QUEUE_SIZE` events that nobody has taken and the newest
:data:`HISTORY_SIZE` that it ever accepted; what had to go is counted. When the session ends,
:meth:`EventListener.get` hands out what is left and then raises :class:`ListenerEndedError`,
and ``async for`` ends. The next session opens the listener again, empty.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from ...qmp.events import DEFAULT_LOG_SIZE, DEFAULT_STREAM_SIZE
from .error import QMPError
from .message import Message

EventNames = str | Iterable[str] | None
EventFilter = Callable[[Message], bool]

QUEUE_SIZE: Final = DEFAULT_STREAM_SIZE
HISTORY_SIZE: Final = DEFAULT_LOG_SIZE

log = logging.getLogger(__name__)


class ListenerError(QMPError):
    """A listener was used wrongly: registered twice, or removed without being registered."""


class ListenerEndedError(ListenerError, EOFError):
    """No more events will come: the session has ended. ``__cause__`` says why, where it was not closed by us."""


class EventListener:
    """Collects the events that it accepts, in order, for one consumer or several that share them.

    :param names: one event name or several; none means all
    :param event_filter: asked about each event whose name fits: keep it?
    :ivar lost: how many events were dropped because nobody took them in time
    :ivar history_lost: how many have left :attr:`history` to make room
    """

    def __init__(self, names: EventNames = None, event_filter: EventFilter | None = None) -> None:
        self.names: set[str] = {names} if isinstance(names, str) else set(names or ())
        self.event_filter = event_filter
        self.lost = 0
        self.history_lost = 0
        self._queue: deque[Message] = deque()
        self._history: deque[Message] = deque(maxlen=HISTORY_SIZE)
        self._waiters: list[asyncio.Future[None]] = []
        self._ended = False
        self._cause: BaseException | None = None

    def __repr__(self) -> str:
        known = [f"{key}={value!r}" for key in ("names", "event_filter") if (value := getattr(self, key))]
        pending = f"<pending={len(self._queue)}>" if self._queue else ""
        return f"{type(self).__name__}{pending}({', '.join(known)})"

    @property
    def history(self) -> tuple[Message, ...]:
        """The newest events that were accepted, oldest first, whether taken or not; :meth:`clear` leaves them."""
        return tuple(self._history)

    def accept(self, event: Message) -> bool:
        """Whether this listener wants `event`; override it for more than names and a filter can say."""
        if self.names and event["event"] not in self.names:
            return False
        return self.event_filter is None or self.event_filter(event)

    async def put(self, event: Message) -> None:
        """Append `event` if it is accepted; the client does this, and never waits for it."""
        self._offer(event)

    async def get(self) -> Message:
        """Take the oldest event, or wait for one.

        :raises ListenerEndedError: the session has ended, and all of its events were taken
        """
        while not self._queue:
            if self._ended:
                raise ListenerEndedError("the session has ended, no more events will come") from self._cause
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._queue.popleft()

    def empty(self) -> bool:
        """Whether there is no event to take right now."""
        return not self._queue

    def clear(self) -> list[Message]:
        """Take all events that are there, and return them."""
        events = list(self._queue)
        self._queue.clear()
        return events

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.get()
        except ListenerEndedError as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, EOFError):
                raise
            raise StopAsyncIteration from None

    def _offer(self, event: Message) -> None:
        if not self.accept(event):
            return
        if len(self._history) == HISTORY_SIZE:
            self.history_lost += 1
        self._history.append(event)
        self._queue.append(event)
        if len(self._queue) > QUEUE_SIZE:
            self._queue.popleft()
            self.lost += 1
            if self.lost & (self.lost - 1) == 0:  # at 1, 2, 4, 8 …: a flood must not flood the log
                log.warning("%s events that nobody takes: %d lost so far", type(self).__name__, self.lost)
        self._wake()

    def _end(self, cause: BaseException | None) -> None:
        if not self._ended:
            self._ended, self._cause = True, cause
            self._wake()

    def _reopen(self) -> None:
        """A new session begins: what an earlier one left is stale."""
        if self._ended:
            self._ended, self._cause = False, None
            self._queue.clear()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Events:
    """What a client does with its listeners; a mix-in.

    :ivar events: the listener that hears everything
    """

    logger: logging.Logger

    def __init__(self) -> None:
        self._listeners: list[EventListener] = []
        self._puts: set[asyncio.Task[None]] = set()
        self.events = EventListener()
        self.register_listener(self.events)

    def register_listener(self, listener: EventListener) -> None:
        """Let `listener` hear events from now on.

        :raises ListenerError: it does already
        """
        if listener in self._listeners:
            raise ListenerError("Attempted to re-register existing listener")
        listener._reopen()
        self.logger.debug("Registering %s.", listener)
        self._listeners.append(listener)

    def remove_listener(self, listener: EventListener) -> None:
        """Let `listener` hear no more, and clear it.

        :raises ListenerError: it is the default one, or is not registered
        """
        if listener is self.events:
            raise ListenerError("Cannot remove the default listener.")
        if listener not in self._listeners:
            raise ListenerError("Attempted to remove a listener that is not registered")
        self.logger.debug("Removing %s.", listener)
        listener.clear()
        self._listeners.remove(listener)

    @contextmanager
    def listen(self, *listeners: EventListener) -> Iterator[None]:
        """Let listeners hear events inside of the block, at whose end they are cleared.

        :raises ListenerError: one of them does already; then none of them will
        """
        added: list[EventListener] = []
        try:
            for listener in listeners:
                self.register_listener(listener)
                added.append(listener)
            yield
        finally:
            for listener in added:
                if listener in self._listeners:  # the block may have removed it
                    self.remove_listener(listener)

    @contextmanager
    def listener(self, names: EventNames = (), event_filter: EventFilter | None = None) -> Iterator[EventListener]:
        """A new listener that hears events inside of the block.

        :param names: one event name or several; none means all
        :param event_filter: asked about each event whose name fits: keep it?
        """
        listener = EventListener(names, event_filter)
        with self.listen(listener):
            yield listener

    def _dispatch(self, event: Message) -> None:
        """Offer `event` to every listener. What a listener's own code raises ends that listener only."""
        for listener in tuple(self._listeners):
            try:
                if type(listener).put is EventListener.put:
                    listener._offer(event)
                else:  # somebody's own coroutine, which may wait: the reader must not
                    task = asyncio.get_running_loop().create_task(listener.put(event))
                    self._puts.add(task)
                    task.add_done_callback(self._puts.discard)
            except Exception as error:
                self.logger.exception("%r failed on an event", listener)
                listener._end(error)
