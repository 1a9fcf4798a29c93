"""Steps with their way back: all of a flow happens, or nothing of it stays.

::

    async with Undo(port) as undo:
        await undo.step("netdev_add", {...}, undo=Revert("netdev_del", {"id": name}))
        await undo.step("device_add", {...}, undo=lambda _: unplug(port, name))
        undo.keep()                       # the last line: from here on it stays

Whoever leaves the block before :meth:`Undo.keep` gets the steps undone, last first,
shielded from a second cancel. The error that was first is the one that is raised;
what goes wrong in the undo is noted on it.

A step whose outcome is not known (cancelled, or timed out) is asked for again
before it is undone: to undo what QEMU refused could hit a thing of the same name
that is not ours.
"""

import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..errors import CommandError, DroverError, HotplugError
from ..qmp.life import Call
from .port import DEFAULT, Arguments, Port, Timeout

log = logging.getLogger("drover.ops")

# How long the undo waits to learn what became of a step; QEMU has had the whole
# timeout of the command before that.
SETTLE_TIMEOUT: Final = 10.0


class Revert(NamedTuple):
    """The command that takes a step back.

    :ivar may_be_gone: a refusal only means that there is nothing left to take back
    """

    command: str
    arguments: dict[str, Any]
    may_be_gone: bool = False


Way = Revert | Callable[[Any], "Revert | Coroutine[Any, Any, object]"]


class Stays(DroverError):
    """Raised by a way back: what was done cannot be taken back, and what it stands on must stay with it."""


class _Step(NamedTuple):
    what: str
    way: Way | None
    call: Call | None = None


class Undo:
    """An ``async with`` block whose steps are undone unless :meth:`keep` was reached."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._steps: list[_Step] = []

    async def step(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        undo: Way,
        fd: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Any:
        """Run one command that changes something, and remember how to take it back.

        :param undo: a :class:`Revert`, or a function of the command's result that gives one or a flow
        :returns: what the command returned
        """
        return await self._port.result(self.send(command, arguments, undo=undo, fd=fd), timeout)

    def send(
        self, command: str, arguments: Arguments | None = None, *, undo: Way | None = None, fd: int | None = None
    ) -> Call:
        """The same, without waiting; see :meth:`results`. For what is refused, or does no harm, where one before is.

        :param undo: None: there is nothing to take back
        """
        call = self._port.submit(command, arguments, fd=fd)
        self._steps.append(_Step(command, undo, call))
        return call

    async def results(self, *calls: Call) -> list[Any]:
        """Wait for what was sent: all of it goes to QEMU and back once, and not each by itself.

        :returns: what each returned
        :raises CommandError: QEMU refused one: the first refusal
        """
        return [await self._port.result(call) for call in calls]

    def remember(self, what: str, way: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Something was done elsewhere than in QEMU: remember how to take it back.

        :param what: for the note, should that fail
        """
        self._steps.append(_Step(what, lambda _: way()))

    def keep(self) -> None:
        """All steps stay."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._steps:
            await self._port.shield(self._unwind(error))

    async def _unwind(self, error: BaseException | None) -> None:
        while self._steps:
            step = self._steps.pop()
            try:
                await self._revert(step)
            except (HotplugError, Stays) as failure:
                # The device still stands on what the earlier steps made: that must stay with it.
                kept = ", ".join(step.what for step in self._steps if step.way is not None)
                self._note(error, f"{failure}; kept: {kept or 'nothing'}")
                self._steps.clear()
            except (DroverError, OSError) as failure:
                self._note(error, f"undo of {step.what} failed: {failure}")

    async def _revert(self, step: _Step) -> None:
        value = None
        if step.way is None:
            if step.call is not None:
                self._port.abandon(step.call)
            return
        if step.call is not None:
            if not step.call.done and not step.call.sent:
                self._port.abandon(step.call)  # and so it never will be
                return
            try:
                value = await self._port.result(step.call, SETTLE_TIMEOUT)
            except CommandError:
                return
            finally:
                self._port.abandon(step.call)
        way = step.way if isinstance(step.way, Revert) else step.way(value)
        if not isinstance(way, Revert):
            await way
            return
        try:
            await self._port.execute(way.command, way.arguments)
        except CommandError:
            if not way.may_be_gone:
                raise

    def _note(self, error: BaseException | None, text: str) -> None:
        log.warning("%s", text)
        if error is not None:
            error.add_note(text)
