"""The port: everything a flow may wait for, so that a flow needs no event loop and no thread.

Two real ports live in :mod:`drover.monitor`; a scripted one is in :mod:`drover.testing`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypeVar

from ..errors import CommandError
from ..qmp.conversation import Conversation
from ..qmp.events import Match
from ..qmp.life import Call
from ..qmp.messages import Event
from ..qmp.schema import Schema
from .reservations import Reservations

T = TypeVar("T")
Arguments = Mapping[str, Any]


class Default(Enum):
    """The type of :data:`DEFAULT`."""

    DEFAULT = "the timeout of the command's class"


# None already means "wait for ever".
DEFAULT: Final = Default.DEFAULT
Timeout = float | None | Default


class Port(ABC):
    """One QMP monitor as a flow sees it. Times are seconds on a clock that only this port knows."""

    reservations: Reservations

    @property
    @abstractmethod
    def version(self) -> tuple[int, int, int]:
        """QEMU's version."""

    @abstractmethod
    def now(self) -> float:
        """The port's clock, in seconds; only differences mean anything."""

    @abstractmethod
    def event_mark(self) -> int:
        """Number of the newest event: take it before you act, wait `since` it afterwards."""

    @abstractmethod
    def submit(
        self, command: str, arguments: Arguments | None = None, *, fd: int | None = None, oob: bool = False
    ) -> Call:
        """Send a command without waiting; `fd` must stay open until :meth:`result` or :meth:`abandon` returned."""

    @abstractmethod
    def abandon(self, call: Call) -> None:
        """Nobody will ask for the result of `call`; it is not sent if it was not yet."""

    @abstractmethod
    async def result(self, call: Call, timeout: Timeout = DEFAULT) -> Any:
        """Wait for the outcome of `call`; may be called again after a timeout.

        :raises CommandError: QEMU refused
        :raises MonitorTimeout: no answer yet; the command may still take effect
        :raises ConnectionClosed: the connection ended first
        """

    @abstractmethod
    async def wait_event(
        self, names: Collection[str], *, since: int, match: Match | None = None, timeout: float | None
    ) -> Event:
        """Wait for the first event of these names, numbered after `since`, that `match` accepts.

        :raises MonitorTimeout: it did not come in time
        """

    @abstractmethod
    async def wait_closed(self, timeout: float | None) -> None:
        """Wait until QEMU has closed the connection.

        :raises MonitorTimeout: it did not
        """

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    async def offload(self, function: Callable[[], T], dispose: Callable[[T], None] | None = None) -> T:
        """Run a function that may block on the file system.

        :param dispose: what to do with a result that comes after nobody waits for it any more
        """

    @abstractmethod
    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        """Run `flow` to its end, even when the caller is cancelled meanwhile."""

    @abstractmethod
    async def converse(self, address: str, conversation: Conversation, timeout: float) -> bool:
        """Dial `address` once, which is no monitor, and let `conversation` come to its end.

        :param timeout: seconds for all of it
        :returns: whether it is this very QEMU that listens there, as far as can be told: over unix sockets
        :raises ArgumentError: it is no address
        :raises ConnectError: nobody listens there; :class:`~drover.errors.ConnectTimeout`: the call was not taken
        :raises MonitorTimeout: the call was taken, and the peer is silent or slow
        """

    @abstractmethod
    def locate(self, address: str) -> dict[str, Any]:
        """`address` in QEMU's words: its type ``SocketAddress``.

        :raises ArgumentError: it is no address
        """

    @abstractmethod
    async def supported_commands(self) -> frozenset[str]:
        """Names of all commands that this QEMU has."""

    @abstractmethod
    async def schema(self) -> Schema:
        """What this QEMU understands, by ``query-qmp-schema``."""

    async def execute(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        timeout: Timeout = DEFAULT,
        fd: int | None = None,
        oob: bool = False,
    ) -> Any:
        """Run one command and return what QEMU returned. See :meth:`result` for what is raised."""
        call = self.submit(command, arguments, fd=fd, oob=oob)
        try:
            return await self.result(call, timeout)
        finally:
            if not call.done:
                self.abandon(call)

    async def execute_many(
        self, commands: Iterable[tuple[str, Arguments | None]], timeout: Timeout = DEFAULT
    ) -> list[Any]:
        """Run commands without waiting in between, and return their results in order.

        They run in this order in QEMU. The first refusal is raised after all have been answered.
        """
        return [call.outcome() for call in await self._run_all(commands, timeout)]

    async def ask_many(
        self, commands: Iterable[tuple[str, Arguments | None]], timeout: Timeout = DEFAULT
    ) -> list[Any | None]:
        """The same for questions that QEMU may refuse: of those the result is None."""
        calls = await self._run_all(commands, timeout)
        return [None if isinstance(call.error, CommandError) else call.outcome() for call in calls]

    async def _run_all(self, commands: Iterable[tuple[str, Arguments | None]], timeout: Timeout) -> list[Call]:
        calls = [self.submit(command, arguments) for command, arguments in commands]
        try:
            for call in calls:
                await self._settled(call, timeout)
        finally:
            for call in calls:
                self.abandon(call)
        return calls

    async def _settled(self, call: Call, timeout: Timeout) -> None:
        try:
            await self.result(call, timeout)
        except Exception:
            if not call.done:
                raise
