"""What all sessions share: moves that a table allows, and an end that everybody who waits gets to know."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from ..errors import ConnectionClosed, MonitorError
from .events import Waitable

StateT = TypeVar("StateT", bound=Enum)


class Call(Waitable, eq=False):
    """A command from its submission to its outcome: :attr:`value`, or :attr:`error`.

    :ivar sent: its first byte has left, so QEMU will run it
    :ivar abandoned: nobody waits for it any more; its reply will be dropped
    """

    command: str
    id: int
    payload: bytes
    fd: int | None = None
    oob: bool = False
    sent: bool = False
    abandoned: bool = False
    value: Any = None

    def succeed(self, value: Any) -> None:
        """QEMU did it and returned `value`."""
        self.value = value
        self.finish()

    def outcome(self) -> Any:
        """The value that QEMU returned.

        :raises CommandError: QEMU refused
        :raises MonitorError: the session ended first
        """
        if self.error is not None:
            raise self.error
        return self.value


class SessionLife(ABC, Generic[StateT]):
    """A session, before it is said what is spoken.

    :ivar state: where it is
    :ivar fault: why it has ended, once it has
    :ivar ended: done when it has ended
    :ivar outbox: what is to be sent, each piece with its call
    """

    _kind: ClassVar[str]  # for errors
    _moves: ClassVar[Mapping[Any, frozenset[Any]]]
    _closed: ClassVar[Any]

    def __init__(self, state: StateT) -> None:
        self.state = state
        self.fault: MonitorError | None = None
        self.ended = Waitable()
        self.outbox: deque[tuple[bytes, Call]] = deque()

    @property
    @abstractmethod
    def in_flight(self) -> tuple[str, ...]:
        """Names of the commands that were sent and not answered."""

    @property
    def busy(self) -> bool:
        """Whether more than one command waits for its answer, those counted that are about to be sent."""
        return False

    @abstractmethod
    def _let_go(self) -> list[Call]:
        """Forget all calls, and return those that somebody waits for."""

    def close(self, reason: MonitorError) -> None:
        """The connection ended: everybody who waits gets to know. Only the first reason counts."""
        if self.fault is not None:
            return
        if isinstance(reason, ConnectionClosed):
            reason = ConnectionClosed(reason.reason, self.in_flight)
        self.fault = reason
        self._move(self._closed)
        calls = self._let_go()
        self.outbox.clear()
        for call in calls:
            call.fail(reason)
        self._on_close(reason)
        self.ended.finish()

    def _on_close(self, reason: MonitorError) -> None:
        """Tell who waits for something else than a call."""

    def closed(self) -> ConnectionClosed:
        """The error for whoever comes after the end of the session."""
        error = ConnectionClosed(self.fault.reason if isinstance(self.fault, ConnectionClosed) else str(self.fault))
        error.__cause__ = self.fault
        return error

    def sent(self, count: int) -> None:
        """The first `count` bytes of the outbox's first item have left."""
        data, call = self.outbox.popleft()
        call.sent = True
        if count < len(data):
            self.outbox.appendleft((data[count:], call))

    def _move(self, to: StateT) -> None:
        if to not in self._moves[self.state]:
            raise RuntimeError(f"{self._kind} session cannot go from '{self.state.value}' to '{to.value}'")
        self.state = to
