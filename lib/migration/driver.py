"""The two state machines driven over real ports: what they ask for is done, and what came of it is told to them.

One thing at a time is told to a state machine, in the order in which it happened. What waits for something does so in
a task of its own, so that nothing that hangs keeps anything else from being heard.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from ..errors import DroverError, MonitorError
from .arrival import Arrival
from .machine import Machine
from .ports import Incoming, Peer, Register, Side
from .states import State
from .words import (
    ArrivalDid,
    ArrivalVerb,
    Begin,
    Clear,
    End,
    OnArrival,
    OnSource,
    OnTarget,
    OwnerIs,
    Raise,
    Read,
    Silence,
    SourceDid,
    SourceVerb,
    Swap,
    TargetDid,
    TargetVerb,
    Tell,
    TellDid,
    Wait,
)

log = logging.getLogger("drover.migration")


class _Line:
    """Things that are done one after the other, each in its turn; then a question, however often it was wanted."""

    def __init__(self) -> None:
        self._waiting: deque[Coroutine[Any, Any, None]] = deque()
        self._question: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        self._waiting.append(work)
        self._go()

    def ask(self, question: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ask once all is done: what an order changes is of more use than how it was before."""
        self._question = question
        self._go()

    def _go(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting or self._question is not None:
            if self._waiting:
                await self._waiting.popleft()
            elif self._question is not None:
                question, self._question = self._question, None
                await question()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._question = None
        while self._waiting:
            self._waiting.popleft().close()


class Drive(ABC):
    """What both have in common: a register, a timer, alarms, an end.

    :ivar alarm: what people are told now; None: nothing
    :param register: where the owner record lies
    :param told: called when the alarm is another one, and with each state that is come to
    """

    def __init__(self, register: Register, told: Callable[[], None]) -> None:
        self.alarm: Raise | None = None
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._stopped = False
        self.register = register
        self._told = told
        self._timer: asyncio.TimerHandle | None = None
        self._records, self._orders = _Line(), _Line()
        self._tasks: set[asyncio.Task[None]] = set()
        self._does: Mapping[type, Callable[[Any], None]] = {
            Read: lambda _: self._records.add(self._read()),
            Swap: lambda action: self._records.add(self._swap(action)),
            Wait: self._wait,
            Raise: self._raise,
            Clear: lambda _: self._raise(None),
            End: self._end,
        }

    @abstractmethod
    def _step(self, event: Any) -> list[Any]:
        """Tell the state machine, and take what it asks for."""

    def hear(self, event: Any) -> None:
        """Something has happened."""
        if self._stopped:
            return
        try:
            for action in self._step(event):
                self._does[type(action)](action)
            self._told()
        except Exception as error:  # a fault of ours: all stays as it is
            log.exception("after %s", event)
            if not self.ended.done():
                self.ended.set_exception(error)

    async def run(self, *, again: bool) -> End:
        """Drive it to its end.

        :param again: somebody did before, and ended in the middle
        """
        self.hear(Begin(again))
        return await asyncio.shield(self.ended)

    def stop(self) -> None:
        """Drive it no further: all stays as it is, for whoever takes it up."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for line in (self._records, self._orders):
            line.stop()
        for task in self._tasks:
            task.cancel()
        self.ended.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the record, the timer, people ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            self.hear(OwnerIs(await self.register.read()))
        except (DroverError, OSError) as error:
            log.info("the owner record cannot be read: %s", error)  # the timer will say so

    async def _swap(self, action: Swap) -> None:
        try:
            self.hear(OwnerIs(await self.register.swap(action.expect, action.new)))
        except (DroverError, OSError) as error:
            log.info("it is not known whether the owner record was changed: %s", error)

    def _wait(self, action: Wait) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(action.seconds, self.hear, Silence())

    def _raise(self, action: Raise | None) -> None:
        self.alarm = action

    def _end(self, action: End) -> None:
        if not self.ended.done():
            self.ended.set_result(action)


class Driver(Drive):
    """One migration, driven by the node that the machine leaves.

    :param machine: its state
    :param side: the QEMU here
    :param peer: the other node; what it says is to be told to :meth:`hear`
    """

    def __init__(
        self, machine: Machine, register: Register, side: Side, peer: Peer, told: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(register, told)
        self.machine = machine
        self._side = side
        self._peer = peer
        self._asked: OnTarget | None = None  # in this state
        self._does = {**self._does, OnSource: self._on_source, OnTarget: self._on_target}
        self._do: Final[Mapping[SourceVerb, Callable[[], Coroutine[Any, Any, None]]]] = {
            SourceVerb.PREPARE: side.prepare,
            SourceVerb.MIRROR: side.mirror,
            SourceVerb.SEND: side.send,
            SourceVerb.POSTCOPY: side.postcopy,
            SourceVerb.SYNC: side.sync,
            SourceVerb.CONTINUE: side.go_on,
            SourceVerb.CANCEL: side.cancel,
            SourceVerb.CONT: side.cont,
            SourceVerb.REJOIN: side.rejoin,
            SourceVerb.QUIT: side.quit,
        }

    def linked(self) -> None:
        """The other node can be reached again. What it was asked in this state may be lost: it is asked once more.

        So may be what it says by itself while all is sent, which it is not asked for.
        """
        asked = self._asked
        if self.machine.state is State.SWITCH:
            asked = OnTarget(TargetVerb.ASK, self.machine.known.epoch)
        if asked is not None and not self._stopped:
            self._on_target(asked)

    def _step(self, event: Any) -> list[Any]:
        state, actions = self.machine.state, self.machine.hear(event)
        if self.machine.state is not state:
            self._asked = None
        return list(actions)

    def _on_source(self, action: OnSource) -> None:
        if action.verb is SourceVerb.ASK:
            self._orders.ask(self._ask)
        elif action.verb in _ALONE:
            self._spawn(self._tell(action.verb))
        else:
            self._orders.add(self._tell(action.verb))

    async def _tell(self, verb: SourceVerb) -> None:
        why = ""
        try:
            await self._do[verb]()
        except (DroverError, OSError) as error:
            why = str(error) or type(error).__name__
            log.info("%s: %s", verb, why)
        self.hear(SourceDid(verb, why))
        if not self._stopped and (why or verb is not SourceVerb.CONTINUE):
            self._orders.ask(self._ask)

    async def _ask(self) -> None:
        try:
            self.hear(await self._side.ask())
        except MonitorError as error:
            log.info("QEMU did not answer: %s", error)

    def _on_target(self, action: OnTarget) -> None:
        self._asked = action
        self._spawn(self._ask_peer(action))

    async def _ask_peer(self, action: OnTarget) -> None:
        try:
            await self._peer.ask(action.verb, action.epoch)
        except (DroverError, OSError) as error:
            log.info("the other node was not asked to %s: %s", action.verb, error)
            if action.verb is TargetVerb.REOPEN:
                self.hear(TargetDid(action.verb, str(error)))


# They take long, or are done by signals: nothing waits for them, nor they for what hangs.
_ALONE: Final = frozenset({SourceVerb.MIRROR, SourceVerb.QUIT})


class Host(Drive):
    """A machine that is to come, on the node that it comes to.

    :param arrival: its state
    :param incoming: the QEMU that waits for it
    :param answer: sends an answer to the other node
    """

    def __init__(
        self,
        arrival: Arrival,
        register: Register,
        incoming: Incoming,
        answer: Callable[[Tell | TellDid], None],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(register, told)
        self.arrival = arrival
        self._incoming = incoming
        self._does = {**self._does, OnArrival: self._on_arrival, Tell: answer, TellDid: answer}
        self._do: Final[Mapping[ArrivalVerb, Callable[[], Coroutine[Any, Any, None]]]] = {
            ArrivalVerb.LAUNCH: incoming.launch,
            ArrivalVerb.CONT: incoming.cont,
            ArrivalVerb.REOPEN: incoming.reopen,
            ArrivalVerb.KILL: incoming.kill,
        }

    def _step(self, event: Any) -> list[Any]:
        return list(self.arrival.hear(event))

    def _on_arrival(self, action: OnArrival) -> None:
        verb = action.verb
        if verb in (ArrivalVerb.REOPEN, ArrivalVerb.KILL):  # out of band, and by signals: whatever hangs
            self._spawn(self._tell(verb))
        elif verb is ArrivalVerb.ASK:
            self._orders.ask(self._ask)
        else:
            self._orders.add(self._tell(verb))

    async def _tell(self, verb: ArrivalVerb) -> None:
        why = ""
        try:
            await self._do[verb]()
        except (DroverError, OSError) as error:
            why = str(error) or type(error).__name__
            log.info("%s: %s", verb, why)
        self.hear(ArrivalDid(verb, why))
        self._spawn(self._ask())

    async def _ask(self) -> None:
        try:
            self.hear(await self._incoming.ask())
        except MonitorError as error:
            log.info("QEMU did not answer: %s", error)
