"""One machine that leaves: what drives it, what is told of it, and what is reported at its end."""

import asyncio
import queue
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from ..kvm.state import State
from ..migration.account import Account, Begun
from ..migration.driver import Driver
from ..migration.forecast import Setting
from ..migration.letters import Did, Invitation, Said
from ..migration.machine import Machine
from ..migration.pace import Pace, View
from ..migration.ports import Register
from ..migration.source import Departure, Source
from ..migration.states import Step
from ..migration.words import Cancel, End, Result, SourceDid, SourceVerb
from .books import Journey
from .model import Model
from .peer import Link, LinkPeer
from .shares import Shares
from .soon import LATER, Soon

# Steps that take their time, and in which a question more does no harm.
_IDLE: Final = (Step.STORAGE, Step.MEMORY)
# Steps in which the guest stands still.
_STANDING: Final = (Step.SWITCHOVER, Step.COMMIT)


class Going:
    """One migration that is under way.

    :ivar news: the steps and the views that are to be told, for the thread of its job
    :ivar cancelled: somebody wanted it to end
    :param link: to the other node
    :param invite: what is sent to the other node, for an epoch; None: it is only asked whether it has been
    :param shares: of this node's link
    :param keep: writes down where the levers stand that are pulled so that it ends
    """

    def __init__(
        self,
        departure: Departure,
        journey: Journey,
        model: Model,
        register: Register,
        link: Link,
        invite: Callable[["Going", int], Invitation | None],
        shares: Shares,
        keep: Callable[[Setting], Awaitable[None]],
    ) -> None:
        plan = journey.plan
        self.departure = departure
        self.journey = journey
        self.news: queue.SimpleQueue[Begun | View] = queue.SimpleQueue()
        self.cancelled = False
        self.source = Source(
            departure.host, departure, journey.source, journey.disks, journey.peer, paused=plan.paused
        )  # fmt: skip
        self._model = model
        self._account = Account(time.monotonic() - max(0.0, time.time() - journey.began), self.news.put)
        self._peer = LinkPeer(
            link, plan.target.incarnation, partial(invite, self), departure.console, self._says, self._linked
        )  # fmt: skip
        self.driver = Driver(Machine(plan), register, self.source, self._peer, self._told)
        self.source.hear = self.driver.hear
        self.source.broke = lambda why: self.driver.hear(SourceDid(SourceVerb.SEND, why))
        asked_of = journey.terms, self._account.at, self._seen, self._uses, keep
        self.pace = Pace(self.driver, self.source, *asked_of, journey.setting)
        self.source.levers = self.pace.levers
        self.source.go_over = self._peer.go_over
        self._shares, self._share = shares, plan.machine
        self._telling: set[asyncio.Future[None]] = set()
        self._show_soon = Soon(self._show)

    async def run(self, *, again: bool) -> End:
        """Drive it to its end. Where this is cancelled all goes on as it is, for whoever takes it up."""
        self.source.start()
        if not again:
            self.source.get_ready()
        self._shares.join(self._share, partial(self.pace.grant, "ours"))
        pace = asyncio.create_task(self._keep_pace(again=again))
        try:
            end = await self.driver.run(again=again)
            if end.result is Result.FAILED:
                await self.source.tidy()
            return end
        finally:
            pace.cancel()
            self._show_soon.cancel()
            self._lend(Step.END)
            self._shares.leave(self._share)
            self.driver.stop()
            self._peer.close()
            await self.source.close()

    def cancel(self) -> None:
        """Somebody wants it to end."""
        self.cancelled = True
        self.driver.hear(Cancel())

    def view(self) -> dict[str, Any]:
        """How it is, for people and programs."""
        from msgspec import to_builtins

        alarm = self.driver.alarm
        told = {
            "way": "out",
            "other": self.journey.plan.target.node,
            "epoch": self.driver.machine.known.epoch,
            "alarm": None if alarm is None else {"text": alarm.text, "command": alarm.command},
            "run_state": self.driver.machine.known.source.run,
            "tls": bool(self.journey.peer),
            "migration": to_builtins(self.source.qemu.info) if self.source.qemu is not None else {},
        }
        return told | {"progress": to_builtins(self.pace.view) | {"step": str(self.driver.machine.step)}}

    def report(self) -> dict[str, Any]:
        """What is told at the end."""
        journey = self.journey
        told = {
            "node": journey.plan.target.node,
            "notices": list(journey.notices),
            "tls": bool(journey.peer),
            "paused": journey.plan.paused,
            "capabilities": sorted(name for name, on in journey.source.capabilities.items() if on),
        }
        return told | self._account.report(self.pace, self.source.qemu)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _keep_pace(self, *, again: bool) -> None:
        if again:
            await self.pace.set_again()
        await self.pace.run()

    def _says(self, letter: Said | Did) -> None:
        """The other node says something."""
        self.source.where = letter.listens or self.source.where
        if isinstance(letter, Did):
            self.driver.hear(letter.did)
            return
        self.source.exports = letter.disks or self.source.exports
        if letter.said.run == "running":
            self._account.runs()
        self.driver.hear(letter.said)
        self.pace.grant("theirs", letter.granted)

    def _uses(self, rate: float, limit: float) -> None:
        self._shares.uses(self._share, rate, limit)
        task = asyncio.ensure_future(self._peer.tell_usage(rate, limit))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _linked(self) -> None:
        """The other node can be reached again."""
        self.driver.linked()

    def _seen(self, view: View) -> None:
        if self._account.seen(view):
            self._show_soon()

    def _lend(self, step: Step) -> None:
        """Let its figures be asked for while that holds nothing up."""
        member, qemu = self._model.member(self.journey.plan.machine), self.source.qemu
        if member is not None and qemu is not None:
            member.lend(qemu.vm if step in _IDLE else None)

    def _told(self) -> None:
        """Take note of the step that it is at, and say in the list how it is."""
        step = self.driver.machine.step
        if step is Step.MEMORY:
            self.source.watch_over()
        if self._account.comes_to(step):
            self._lend(step)
        self._show_soon(LATER if step in _STANDING else 0.0)

    def _show(self) -> None:
        machine, alarm, document = self.driver.machine, self.driver.alarm, self.departure.ledger.document
        if document.runtime is None:
            return
        text = f"it goes to {self.journey.plan.target.node}: {machine.step}"
        if alarm is not None:
            text = f"{alarm.text}: {alarm.command}"
            if text not in self._account.alarms:
                self._account.alarms.append(text)
        elif machine.step in _IDLE and self.pace.view.total:
            text += f", {self.pace.view.percent:.0f} %"
        self._model.show(self.journey.plan.machine, document, State.MIGRATING, text)
