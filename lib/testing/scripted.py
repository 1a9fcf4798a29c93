"""A port without a QEMU: flows run on a model, with a clock that only moves when somebody waits.

Every await of a flow is a step. A first run counts the steps; then the flow is run
again once for each step and each :class:`Fault`, and what is left in the model shows
whether the undo held. No test needs to know which steps a flow has.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from enum import Enum
from typing import Any, TypeVar

from drover.errors import CommandError, ConnectError, ConnectionClosed, MonitorTimeout
from drover.monitor.address import parse_address
from drover.monitor.converse import socket_address
from drover.ops.port import DEFAULT, Arguments, Port, Timeout
from drover.ops.reservations import Reservations
from drover.qmp.conversation import Conversation
from drover.qmp.events import EventLog, Match
from drover.qmp.life import Call
from drover.qmp.messages import Event
from drover.qmp.schema import Schema
from drover.testing.model import VERSIONS, QemuModel, Refused
from drover.testing.recorded import recorded_schema

T = TypeVar("T")


class Fault(Enum):
    """What goes wrong at a step."""

    REFUSED = "QEMU refuses the command"
    LOST = "the command takes effect, its reply comes after the timeout"
    LATE = "the command takes effect only after the timeout"
    CANCELLED = "the caller is cancelled while the command runs"
    CANCELLED_EARLY = "the caller is cancelled before the command was sent"
    CLOSED = "the connection ends"


class ScriptedPort(Port):
    """A port on a :class:`~drover.testing.model.QemuModel`.

    :param fault: what goes wrong, and `at` which step, counted from 0
    :ivar steps: what was awaited, in order
    :ivar struck: whether the fault happened: not each one can at each kind of step
    """

    def __init__(self, model: QemuModel, fault: Fault | None = None, at: int = -1) -> None:
        self.model = model
        self.reservations = Reservations()
        self.events = EventLog()
        self.steps: list[str] = []
        self.clock = 0.0
        self.closed = False
        self.struck = False
        self._fault = fault
        self._at = at
        self._queue: list[tuple[Call, Arguments | None]] = []
        self._slow: set[Call] = set()
        model.emit = lambda name, data: self.events.add(name, data, self.clock)

    @property
    def version(self) -> tuple[int, int, int]:
        return VERSIONS[self.model.version]

    def now(self) -> float:
        return self.clock

    def event_mark(self) -> int:
        return self.events.mark()

    def submit(
        self, command: str, arguments: Arguments | None = None, *, fd: int | None = None, oob: bool = False
    ) -> Call:
        if self.closed:
            raise ConnectionClosed("scripted")
        call = Call(command, 0, b"", fd, oob)
        call.sent = True
        self._queue.append((call, arguments))
        return call

    def abandon(self, call: Call) -> None:
        if not call.done and call.sent and not self.closed:
            self._run_to(call)

    async def result(self, call: Call, timeout: Timeout = DEFAULT) -> Any:
        if call in self._slow:
            self._slow.remove(call)
            self._run_to(call)
        elif not call.done:
            self._step(call.command, call)
            self._run_to(call)
        return call.outcome()

    async def wait_event(
        self, names: Collection[str], *, since: int, match: Match | None = None, timeout: float | None
    ) -> Event:
        self._step(f"event {' '.join(names)}")
        watch = self.events.watch(names, since, match)
        self.events.forget(watch)
        if not watch.done:
            assert timeout is not None, "this would wait for ever"
            self.clock += timeout
            raise MonitorTimeout("event", timeout)
        return watch.outcome()

    async def wait_closed(self, timeout: float | None) -> None:
        self._step("end")
        if self.model.status != "shutdown":
            raise MonitorTimeout("end", timeout)

    async def sleep(self, seconds: float) -> None:
        self._step("sleep")
        self.clock += seconds

    async def offload(self, function: Callable[[], T], dispose: Callable[[T], None] | None = None) -> T:
        result = function()
        try:
            self._step("offload")
        except BaseException:
            if dispose is not None:
                dispose(result)
            raise
        return result

    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        return await flow

    async def converse(self, address: str, conversation: Conversation, timeout: float) -> bool:
        self._step("dial")
        server = self.model.nbd_servers.get(address)
        if server is None:
            raise ConnectError(address, "Connection refused")
        said = server.greeting()
        while not conversation.done:
            said = server.receive(conversation.receive(said))
        return False

    def locate(self, address: str) -> dict[str, Any]:
        return socket_address(parse_address(address))

    async def supported_commands(self) -> frozenset[str]:
        return Schema(recorded_schema(self.model.version)).commands

    async def schema(self) -> Schema:
        return Schema(recorded_schema(self.model.version))

    def _step(self, what: str, call: Call | None = None) -> None:
        self.steps.append(what)
        if len(self.steps) - 1 != self._at or self._fault is None:
            return
        self.struck = True
        if self._fault is Fault.CLOSED:
            self.closed = True
            raise ConnectionClosed("scripted", [what])
        if self._fault in (Fault.CANCELLED, Fault.CANCELLED_EARLY):
            if call is not None and self._fault is Fault.CANCELLED_EARLY:
                call.sent = False
                self._queue = [item for item in self._queue if item[0] is not call]
            raise asyncio.CancelledError
        if call is None:
            self._fail_other(what)
            return
        if self._fault is Fault.REFUSED:
            self._queue = [item for item in self._queue if item[0] is not call]
            call.fail(CommandError(call.command, "GenericError", "scripted refusal"))
            return
        self._slow.add(call)
        if self._fault is Fault.LOST:
            self._apply(call)
        raise MonitorTimeout(call.command, 1.0)

    def _fail_other(self, what: str) -> None:
        if what == "offload" and self._fault is Fault.REFUSED:
            raise PermissionError("scripted")
        if what == "dial" and self._fault is Fault.REFUSED:
            raise ConnectError("scripted", "Connection refused")
        if what.startswith(("event", "dial")) and self._fault in (Fault.LOST, Fault.LATE):
            self.clock += 1.0
            raise MonitorTimeout(what, 1.0)
        self.struck = False

    def _run_to(self, call: Call) -> None:
        """QEMU works in order: everything up to `call`."""
        while not call.done and self._queue:
            self._apply(self._queue[0][0])

    def _apply(self, call: Call) -> None:
        position = next(n for n, item in enumerate(self._queue) if item[0] is call)
        _, arguments = self._queue.pop(position)
        try:
            call.succeed(self.model.execute(call.command, dict(arguments or {}), call.fd is not None))
        except Refused as refusal:
            call.fail(CommandError(call.command, refusal.error_class, refusal.desc))
