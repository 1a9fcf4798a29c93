"""Machines that come to this node: each one's QEMU that waits, held until it runs here or is gone."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from ..errors import DroverError, InstanceBusy, MonitorError
from ..kvm.ending import running
from ..kvm.ledger import Ledger
from ..kvm.record import Passage, load
from ..kvm.state import State
from ..migration.arrival import Arrival, Arrived, Newcomer
from ..migration.driver import Host
from ..migration.forecast import ENDLESS
from ..migration.letters import MAX_LETTER, Answer, Did, GoOver, Invitation, Question, Said, WentOver, asked, encode
from ..migration.target import Target
from ..migration.words import Asked, End, Result, TargetDid, TargetSaid, TargetVerb, Tell, TellDid
from ..store.owner import Owner, Phase
from .access import CALLER
from .books import Books
from .link import Callers
from .model import Model
from .owner_calls import FarRegister, for_nodes
from .shares import Shares
from .soon import LATER, Soon
from .streams import endless
from .work import Worker

_SIGN: Final = 5.0  # s between two signs of life
_ASK_AGAIN: Final = (0.2, 5.0)  # s until the record is asked again whose machine it is; twice as long each time
_KILLED: Final = 60.0  # s that the kernel may take
log = logging.getLogger("drover.migration")

Links = set[web.WebSocketResponse]
Name = Callable[[], str]


class Coming:
    """One machine that comes.

    :ivar links: who is to hear of it
    :ivar show: has the list say how it is
    """

    def __init__(
        self, it: Newcomer, target: Target, register: FarRegister, order: Callable[[], int], model: Model
    ) -> None:
        self.it = it
        self.target = target
        self.links: Links = set()
        self.register = register
        self._order = order
        self._model = model
        self._granted = ENDLESS
        self.show = Soon(self._show)
        self.host = Host(Arrival(it), register, target, self._answer, self._told)
        target.hear = self.host.hear

    def said(self, refused: str = "") -> TargetSaid:
        """How it is, as far as is known."""
        known = self.host.arrival.known
        qemu = known.qemu
        return TargetSaid(
            self.it.process.incarnation, self._order(), qemu.status, qemu.run, qemu.gone, known.ran, refused
        )

    def view(self) -> dict[str, Any]:
        """How it is, for people and programs."""
        known, alarm, ledger = self.host.arrival.known, self.host.alarm, self.target.ledger
        passage = ledger.document.passage if ledger is not None else None
        return {
            "way": "in",
            "other": passage.other if passage is not None else "",
            "epoch": self.it.epoch,
            "alarm": None if alarm is None else {"text": alarm.text, "command": alarm.command},
            "run_state": known.qemu.run,
            "tls": passage is not None and passage.tls,
            "migration": {"status": known.qemu.status},
        }

    def _told(self) -> None:
        self.show(0.0 if self.host.arrival.known.runs() else LATER)

    def _show(self) -> None:
        """Say in the list how it is."""
        ledger, known = self.target.ledger, self.host.arrival.known
        if ledger is None or ledger.document.runtime is None:
            return
        if known.runs():
            self._model.show(self.it.machine, ledger.document, State.RUNNING)
        else:
            alarm, passage = self.host.alarm, ledger.document.passage
            detail = f"it comes from {passage.other}" if passage is not None else ""
            self._model.show(self.it.machine, ledger.document, State.MIGRATING, alarm.text if alarm else detail)

    def _answer(self, action: Tell | TellDid) -> None:
        listens = self.target.listens
        if isinstance(action, Tell):
            letter: Answer = Said(
                said=self.said(action.refused), listens=listens, disks=self.target.exports, granted=self._granted
            )
        else:
            letter = Did(did=TargetDid(action.verb, action.why), listens=listens)
        for link in tuple(self.links):
            _send(link, letter)

    def grant(self, rate: float) -> None:
        """So much of this node's link is its."""
        self._granted = rate
        if self.host.arrival.state not in (Arrived.CHECK, Arrived.LAUNCH):
            self._answer(Tell())


class Arrivals:
    """All of them.

    :param worker: does what blocks
    :param model: is true again when one has come
    :param books: this node's own owner records
    :param name: of this node
    :param caller: a way to the daemon that has the record, by its addresses
    :param shares: of this node's link
    """

    def __init__(
        self,
        worker: Worker,
        model: Model,
        books: Books,
        name: Name,
        caller: Callers,
        shares: Shares,
    ) -> None:
        self._shares = shares
        self._worker = worker
        self._model = model
        self._books = books
        self._name = name
        self._caller = caller
        self._coming: dict[str, Coming] = {}
        self._next: dict[str, tuple[Question, web.WebSocketResponse, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/v1/instances/{name}/arrival", endless(self._serve), allow_head=False)

    async def start(self) -> None:
        """Take up what an earlier daemon has left."""
        node = self._worker.node
        for name in node.names:
            try:
                document = await self._worker.do("", partial(load, node.host.paths.instance(name).document))
            except (DroverError, OSError):
                continue
            passage = document.passage
            if passage is not None and passage.way == "in" and passage.home:
                self._begin(self._left(name, passage), again=True)

    async def stop(self) -> None:
        """Let go of all; they go on, and the next daemon takes them up."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def get(self, name: str) -> Coming | None:
        """One that comes."""
        return self._coming.get(name)

    def check_settled(self, name: str) -> None:
        """See that a machine is not on its way to here.

        :raises InstanceBusy: it is
        """
        if (coming := self.get(name)) is not None and not coming.host.arrival.known.runs():
            raise InstanceBusy(name, "its arrival", 0)

    def kill(self, name: str) -> dict[str, Any] | None:
        """End a machine that was handed over to here, and is not done yet. Blocks.

        :returns: None where none comes
        :raises InstanceBusy: it is not this node's yet
        """
        if (coming := self.get(name)) is None:
            return None
        if not coming.host.arrival.known.named:
            raise InstanceBusy(name, "its arrival", 0)
        asyncio.run_coroutine_threadsafe(coming.target.kill(), self._loop).result(_KILLED)
        return {"stop": None}

    # -- what the other node asks --------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """A WebSocket, by which the node that a machine leaves asks, and is told."""
        for_nodes(request)
        link = web.WebSocketResponse(compress=False, max_msg_size=MAX_LETTER, heartbeat=_SIGN)
        await link.prepare(request)
        name = request.match_info["name"]
        log.info("%s speaks of a machine that is to come", request[CALLER].name, extra={"instance": name})
        try:
            async for message in link:
                if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                    break
                try:
                    letter = asked(message.data)
                except msgspec.MsgspecError as error:
                    await link.close(code=1008, message=str(error).encode()[:120])
                    break
                if isinstance(letter, Question):
                    await self._take(name, letter, link, _local_address(request))
                elif isinstance(letter, GoOver):
                    await self._go_over(name, letter, link)
                else:
                    self._shares.uses(name, letter.rate, letter.limit)
                    if (coming := self._coming.get(name)) is not None:
                        coming.register.stay()
        finally:
            for coming in self._coming.values():
                coming.links.discard(link)
        return link

    async def _go_over(self, name: str, letter: GoOver, link: web.WebSocketResponse) -> None:
        coming = self._coming.get(name)
        if coming is None or coming.it.process.incarnation != letter.incarnation:
            _send(link, WentOver(why="nobody waits for it here"))
            return
        try:
            await coming.target.go_over()
            _send(link, WentOver())
        except (DroverError, OSError) as error:
            _send(link, WentOver(why=str(error)))

    async def _take(self, name: str, it: Question, link: web.WebSocketResponse, at: str) -> None:
        coming = self._coming.get(name)
        if coming is not None and coming.it.process.incarnation == it.incarnation:
            coming.links.add(link)
            coming.target.at = at
            coming.target.console = it.console or coming.target.console
            coming.host.hear(Asked(it.verb, it.epoch))
        elif it.verb is TargetVerb.ACCEPT and it.invitation is not None:
            if coming is None:
                self._accept(name, it.invitation, link, at)
            else:  # an earlier one, which has been overtaken: it looks, and ends
                self._next[name] = (it, link, at)
                coming.host.hear(Asked(TargetVerb.DISCARD, coming.it.epoch))
        else:
            said = await self._worker.do("", partial(self._told_by_document, name, it.incarnation))
            _send(link, Said(said=said))

    def _accept(self, name: str, invitation: Invitation, link: web.WebSocketResponse, at: str) -> None:
        parcel = invitation.parcel
        if parcel.spec.name != name or invitation.process.node != self._name():
            why = f"it is for {parcel.spec.name} on {invitation.process.node}, and was sent to {name} on {self._name()}"
            _send(link, Said(said=TargetSaid(invitation.process.incarnation, self._order(), gone=True, refused=why)))
            return
        register = FarRegister(self._caller(invitation.home), name, self._caller.kept)
        target = Target(self._worker.node, name, at, invitation)
        coming = Coming(invitation.newcomer, target, register, self._order, self._model)
        coming.links.add(link)
        self._begin(coming, again=False)

    def _left(self, name: str, passage: Passage) -> Coming:
        """One that an earlier daemon held."""
        register = FarRegister(self._caller(passage.home), name, self._caller.kept)
        process = Owner(node=self._name(), boot_id=self._worker.node.host.boot_id, incarnation=passage.process)
        newcomer = Newcomer(machine=name, process=process, epoch=passage.epoch, paused=passage.paused)
        return Coming(newcomer, Target(self._worker.node, name, ""), register, self._order, self._model)

    def _told_by_document(self, name: str, incarnation: str) -> TargetSaid:
        """Of one that is held no longer, or never was: how it is, by what is kept of it."""
        host = self._worker.node.host
        paths = host.paths.instance(name)
        try:
            document = load(paths.document)
        except FileNotFoundError:
            return TargetSaid(incarnation, self._order(), gone=True)
        if run_of(document.spec.uuid, document.generation) != run_of(*_parts(incarnation)):
            return TargetSaid(incarnation, self._order(), gone=True)
        process = running(host, Ledger(paths, document))
        if process is None:
            return TargetSaid(incarnation, self._order(), gone=True, ran=True)
        process.close()
        return TargetSaid(incarnation, self._order(), "completed", "running", ran=True)

    # -- one of them ---------------------------------------------------------------------------------------------------

    def _begin(self, coming: Coming, *, again: bool) -> None:
        name = coming.it.machine
        self._coming[name] = coming
        self._shares.join(name, coming.grant)
        task = asyncio.create_task(self._host(coming, again=again), name=f"arrival of {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _host(self, coming: Coming, *, again: bool) -> None:
        name = coming.it.machine
        try:
            if again:
                await coming.target.hold()
            end = await coming.host.run(again=again)
            log.info("%s %s", end.result, end.why, extra={"instance": name})
            await self._see_out(coming, end)
        except (DroverError, OSError) as error:
            log.exception("%s stays as it is: %s", name, error, extra={"instance": name})
        finally:
            coming.host.stop()
            coming.show.cancel()
            coming.register.close()
            await coming.target.close()
            self._shares.leave(name)
            del self._coming[name]
            if (waiting := self._next.pop(name, None)) is not None and waiting[0].invitation is not None:
                self._accept(name, waiting[0].invitation, *waiting[1:])
            else:
                await self._model.refreshed(name)

    async def _see_out(self, coming: Coming, end: End) -> None:
        """Keep what has come; remove what has not."""
        name, target = coming.it.machine, coming.target
        known = coming.host.arrival.known
        if end.result is Result.DONE:
            if known.owner is not None:
                await self._worker.do("", partial(self._books.learn, name, known.owner))
            if coming.it.paused:
                with suppress(MonitorError):  # it has ended meanwhile
                    await target.take_over()
            await self._worker.do("", target.arrived)
            await target.has_all()  # what it still fetches may have to be mended
            await target.disarm()
            return
        await self._worker.do("", target.ended)
        if target.ledger is None:
            await self._worker.do("", target.forget)
            return
        if (owner := await self._ours(coming)) is not None:
            await self._worker.do("", partial(self._books.learn, name, owner))
            await self._worker.do("", target.arrived)
            return
        await target.close()
        await self._worker.do(name, partial(self._worker.node.delete, name))
        await self._worker.do("", target.forget)

    async def _ours(self, coming: Coming) -> Owner | None:
        """The record of a machine whose QEMU has ended here, and that belongs here all the same: it was handed over."""
        known, process, pause = coming.host.arrival.known, coming.it.process, _ASK_AGAIN[0]
        while True:
            if not known.named and known.ran is False:
                return None
            try:
                owner = await coming.host.register.read()
                if owner is None or not owner.same_process(process):
                    return None
                if owner.phase is Phase.RUNNING:
                    return owner
            except (DroverError, OSError) as error:
                log.info("whose it is cannot be read: %s", error, extra={"instance": coming.it.machine})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _ASK_AGAIN[1])

    def _order(self) -> int:
        """A number that grows for ever."""
        return (self._books.life << 40) + next(self._count)


def run_of(uuid: str, generation: int) -> str:
    """The name of a run that began on its node."""
    return f"{uuid}/{generation}"


def _parts(incarnation: str) -> tuple[str, int]:
    uuid, _, rest = incarnation.partition("/")
    generation = rest.partition("/")[0]
    return uuid, int(generation) if generation.isdecimal() else 0


def _send(link: web.WebSocketResponse, letter: Answer) -> None:
    """Say it, unless nobody listens any more: then it is asked again."""
    if not link.closed:
        task: asyncio.Task[Any] = asyncio.ensure_future(link.send_bytes(encode(letter)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _local_address(request: web.Request) -> str:
    """The address of this host that the caller has reached."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else "127.0.0.1"
