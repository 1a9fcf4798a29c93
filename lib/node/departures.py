"""Machines that leave this node: each a job, driven to its end whatever happens, and taken up after a restart."""

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, Final

from msgspec import Struct, structs, to_builtins

from ..errors import (
    ArgumentError,
    Blocker,
    InstanceBusy,
    MigrationBlocked,
    MigrationError,
    NotJoined,
    OperationCancelled,
    StoreError,
)
from ..kvm.handover import Settings
from ..kvm.parcel import Parcel
from ..kvm.process import may_lock
from ..kvm.record import runtime_of
from ..kvm.witness import witness
from ..migration import storage
from ..migration.account import tell
from ..migration.checks import Manner, Need, There, compare, goes_along, losing
from ..migration.combinations import Feature, Have
from ..migration.credentials import Halves, issue
from ..migration.forecast import Setting
from ..migration.knowledge import Plan
from ..migration.letters import Invitation
from ..migration.means import MEANS, Means, Terms, Wishes, agree, arming
from ..migration.source import Departure, to_lock
from ..migration.states import State
from ..migration.words import Begin, Confirmed, End, Result
from ..ops.migration_settings import capabilities_of, loses_writes
from ..store.owner import Owner
from .along import agreed
from .arrivals import run_of
from .books import Books, Journey, OwnRegister
from .checking import ask
from .going import Going
from .known import Here
from .link import Callers
from .model import Model
from .parameters import Move
from .peer import Link
from .shares import Shares
from .work import Worker

_LOOK: Final = 0.1  # s between two looks whether somebody wants it to end
_WRITE_AGAIN: Final = 1.0  # s until an end that could not be written is written again
_MENDABLE: Final = 30 * 86400.0  # s for which a postcopy that was cut can be mended: certificates hold so long
_LONG: Final = 10.0  # s: who may stand still for longer is not asked why so soon
# From which QEMU on a postcopy by two connections is taken to be mended after a cut, whatever it goes over.
_PREEMPTS: Final = (8, 0, 0)
_KILLED: Final = 30.0  # s until a machine that was killed in doubt is seen to have ended
log = logging.getLogger("drover.migration")


class _Look(Struct, frozen=True, kw_only=True):
    """What was found out before anything is done.

    :ivar there: what the other node says
    :ivar disks: what becomes of them
    :ivar terms: what may be done so that it comes to its end
    :ivar manner: how it is to go over
    :ivar blockers: what is in the way
    :ivar notices: what is not as it was asked for, in words
    """

    there: There
    disks: storage.Plan
    terms: Terms
    manner: Manner
    blockers: tuple[Blocker, ...]
    notices: tuple[str, ...]


class Departures:
    """All of them.

    :param worker: does what blocks
    :param model: says that they are on their way
    :param books: the owner records
    :param here: this node
    :param caller: a way to another daemon, by its addresses
    :param shares: of this node's link
    """

    def __init__(
        self,
        worker: Worker,
        model: Model,
        books: Books,
        here: Callable[[], Here],
        caller: Callers,
        shares: Shares,
    ) -> None:
        self._shares = shares
        self._worker = worker
        self._model = model
        self._books = books
        self._here = here
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._going: dict[str, tuple[Going, asyncio.Task[Any]]] = {}
        self._leaving = False

    def leave(self) -> None:
        """Drive none any further: they go on, and the next daemon takes them up."""
        self._leaving = True
        for _, driving in tuple(self._going.values()):
            driving.cancel()

    def get(self, name: str) -> Going | None:
        """One that is under way."""
        found = self._going.get(name)
        return None if found is None else found[0]

    def check_settled(self, name: str) -> None:
        """See that a machine is not on its way from here.

        :raises InstanceBusy: it is
        """
        if (going := self.get(name)) is not None:
            raise InstanceBusy(name, f"its migration to {going.journey.plan.target.node}", 0)

    # -- what people do when it cannot go on by itself -----------------------------------------------------------------

    def recover(self, name: str, *, target_is_dead: bool) -> bool:
        """Look again now how things are.

        :param target_is_dead: a person says so of the QEMU on the other node, or of that whole node
        :returns: whether one is under way
        """
        if (going := self.get(name)) is None:
            return False
        going.driver.hear(Confirmed() if target_is_dead else Begin(again=True))
        return True

    def kill(self, name: str) -> dict[str, Any] | None:
        """End a machine of which nobody can tell whether it may run on. Blocks.

        :returns: None where it is on no way
        :raises InstanceBusy: it is on its way, and in no doubt
        """
        if (going := self.get(name)) is None:
            return None
        if going.driver.machine.state is not State.DOUBT:
            self.check_settled(name)
        if self._names_other(name, going):
            told: dict[str, Any] = self._caller(going.journey.to).call("POST", f"/v1/instances/{name}/kill", {})
            return told
        asyncio.run_coroutine_threadsafe(going.source.kill(), self._loop).result(_KILLED)
        return {"stop": None}

    # -- as a job, in a thread of its own ------------------------------------------------------------------------------

    def move(self, name: str, params: Move, *, again: bool) -> dict[str, Any]:
        """Move a machine. Blocks until it is over.

        :param again: somebody began, and ended in the middle
        :returns: what became of it
        :raises MigrationError: it is where it was, and why
        """
        departure = Departure(self._worker.node.host, name)
        if params.check:
            return self._check(params, departure)
        again = again or params.recover
        link = None if again else self._dial(name, [params.node])
        try:
            departure.begin(again=again)
            journey = self._books.journey(name) if again else self._plan(name, params, departure)
            if journey is None:  # it was cut off before anything was done, or when all was
                return self._of_none(name, departure)
            link = link or self._dial(name, journey.to)
            driven = self._drive(name, departure, journey, link, again=again, unwanted=self._is_unwanted())
            return self._follow(name, asyncio.run_coroutine_threadsafe(driven, self._loop))
        finally:
            departure.close()
            if link is not None:
                with suppress(RuntimeError):  # the loop has ended, and the link with it
                    self._loop.call_soon_threadsafe(link.stop)

    def _dial(self, name: str, addresses: Sequence[str]) -> Link:
        """Begin to make a link to another node. What that takes goes on beside what is asked meanwhile."""
        link = Link(self._caller(addresses), name)
        self._loop.call_soon_threadsafe(link.start)
        return link

    def _check(self, params: Move, departure: Departure) -> dict[str, Any]:
        departure.begin(again=False)
        try:
            found = self._look(params, departure)
        finally:
            departure.close()
        return {
            "node": found.there.node, "blockers": to_builtins(found.blockers), "notices": list(found.notices)
        }  # fmt: skip

    def _plan(self, name: str, params: Move, departure: Departure) -> Journey:
        found = self._look(params, departure)
        there, here, need = found.there, self._here(), departure.need
        assert need is not None
        if found.blockers:
            raise MigrationBlocked(name, there.node, found.blockers)
        parcel = need.parcel
        run = Owner(
            node=here.name, boot_id=self._worker.node.host.boot_id,
            incarnation=run_of(parcel.spec.uuid, parcel.generation), epoch=departure.ledger.document.epoch + 1,
        )  # fmt: skip
        record = self._books.claimable(name, run)
        plan = Plan(
            machine=name,
            source=record,
            target=Owner(
                node=there.node,
                boot_id=there.boot_id,
                incarnation=f"{run_of(parcel.spec.uuid, parcel.generation + 1)}/{record.epoch + 1}",
            ),
            storage=goes_along(found.disks),
            postcopy=Means.POSTCOPY in found.terms.means,
            slow=found.terms.once or found.terms.wishes.blackout > _LONG,
            paused=need.paused,
        )
        for notice in found.notices:
            log.warning("%s: %s", name, notice, extra={"instance": name})
        halves = _keys(params, parcel, record.epoch + 1, found.terms)
        journey = Journey(
            plan=plan, to=[params.node], source=found.manner.source, target=found.manner.target, disks=found.disks,
            emulator=params.emulator, terms=found.terms, began=time.time(),
            peer=halves.source.peer if halves is not None else "", notices=found.notices,
        )  # fmt: skip
        if halves is not None:
            departure.place(halves.source)
            departure.theirs = halves.target
        self._books.keep(name, journey)
        departure.set_out(record.epoch + 1, there.node)
        return journey

    def _look(self, params: Move, departure: Departure) -> "_Look":
        """What the other node says, what comes of it, and what is in the way; nothing is done."""
        here, need = self._here(), departure.need
        assert need is not None
        if not here.addresses:
            raise NotJoined("this node has no certificate that others trust: drover node init, or drover node join")
        daemon = self._caller([params.node])
        postcopy = Means.POSTCOPY in _means(params, need)
        there = ask(daemon, need, self._caller.kept, emulator=params.emulator, postcopy=postcopy)
        if there.node == here.name:
            raise ArgumentError("node", params.node, f"another node than {here.name}, where it runs")
        disks = agreed(need.images, there.seen, daemon, shared=params.shared_disks)
        terms = _terms(params, departure, need, disks.size, there.fit.version)
        source, target = _with_bitmaps(disks, *_settings(params, terms, need.parcel.version, there.fit.version))
        manner = Manner(
            source=source, target=target, tls=params.tls, copy=params.copy_disks, deadline=terms.deadline,
            once=terms.once, have=_have(departure),
        )  # fmt: skip
        blockers = compare(structs.replace(need, until=here.until), there, disks, manner)
        notices = tuple(_notices(params, need, terms))
        return _Look(
            there=there, disks=disks, terms=terms, manner=manner, blockers=tuple(blockers), notices=notices
        )  # fmt: skip

    def _of_none(self, name: str, departure: Departure) -> dict[str, Any]:
        passage = departure.ledger.document.passage
        if passage is not None and passage.way == "gone":
            return {"node": passage.other}
        departure.end(End(Result.FAILED), dead=False, elsewhere=False)
        raise MigrationError(f"{name} is on no way: its migration had not begun, or had ended without success")

    def _follow(self, name: str, future: "Future[tuple[Going, End]]") -> dict[str, Any]:
        """Tell how far it is, until it is over; in the job's own thread."""
        while not wait([future], _LOOK).done:  # nor is this thread woken by each step: it would take the loop's time
            if (going := self.get(name)) is None:
                continue
            _tell(going)
            if self._is_unwanted() and not going.cancelled:
                self._loop.call_soon_threadsafe(going.cancel)
                going.cancelled = True
        try:
            going, end = future.result()
        except CancelledError:  # the daemon ends
            raise OperationCancelled(name, "migrate") from None
        _tell(going)
        return self._conclude(name, going, end)

    def _is_unwanted(self) -> bool:
        """Whether somebody wants it to end; that this daemon does is no reason."""
        return witness().wants_end() and not self._leaving

    def _conclude(self, name: str, going: Going, end: End) -> dict[str, Any]:
        departure, dead = going.departure, going.source.dead
        self._write(name, lambda: departure.end(end, dead=dead, elsewhere=self._names_other(name, going)))
        self._write(name, lambda: self._books.forget(name))
        if end.result is Result.DONE:
            return going.report()
        if going.cancelled and end.result is Result.FAILED:
            raise OperationCancelled(name, "migrate")
        why = going.pace.gave_up or end.why
        raise MigrationError(f"{name} {_BECAME[end.result]}: {why}", str(end.result))

    def _write(self, name: str, write: Callable[[], None]) -> None:
        """Write down an end; where that cannot be done now, as on a full disk, again and again: it has ended."""
        while True:
            try:
                return write()
            except (StoreError, OSError) as error:
                log.warning("%s: how its migration ended cannot be written, and will be: %s", name, error)
            if self._leaving:
                raise OperationCancelled(name, "migrate")
            time.sleep(_WRITE_AGAIN)

    def _names_other(self, name: str, going: Going) -> bool:
        return not self._books.owners.read(name).same_process(going.journey.plan.source)

    # -- on the loop ---------------------------------------------------------------------------------------------------

    async def _drive(
        self, name: str, departure: Departure, journey: Journey, link: Link, *, again: bool, unwanted: bool
    ) -> tuple[Going, End]:
        driving = asyncio.current_task()
        assert driving is not None
        register = OwnRegister(self._worker, self._books, name)
        keep = partial(self._keep, name, journey)
        going = Going(departure, journey, self._model, register, link, self._invite, self._shares, keep)
        self._going[name] = going, driving
        if unwanted:  # as was said to an earlier daemon: once it has begun, and before anything comes of that
            self._loop.call_soon(going.cancel)
        try:
            return going, await going.run(again=again)
        finally:
            del self._going[name]

    async def _keep(self, name: str, journey: Journey, setting: Setting) -> None:
        """Have whoever takes it up after a crash know what was done so that it ends."""
        try:
            await self._worker.do("", partial(self._books.keep_setting, name, journey.plan.source.epoch, setting))
        except (StoreError, OSError) as error:  # it is worth nothing to whoever drives it now
            log.warning("%s: what speeds it up cannot be written down: %s", name, error)

    def _invite(self, going: Going, epoch: int) -> Invitation | None:
        need, here = going.departure.need, self._here()
        if need is None:
            return None  # taken up after a restart: where nobody has accepted it yet, it is not begun again
        return Invitation(
            parcel=need.parcel, process=going.journey.plan.target, epoch=epoch, other=here.name, home=here.addresses,
            settings=going.journey.target, emulator=going.journey.emulator,
            disks=going.journey.disks, keys=going.departure.theirs, paused=going.journey.plan.paused,
        )  # fmt: skip


def _tell(going: Going) -> None:
    """Tell what there is to be told of it."""
    with suppress(queue.Empty):
        while True:
            tell(going.news.get_nowait())


def _with_bitmaps(disks: storage.Plan, source: Settings, target: Settings) -> tuple[Settings, Settings]:
    """Both, with the dirty bitmaps that go along in the stream."""
    ours, theirs = storage.bitmap_settings(disks)
    found = []
    for settings, more in ((source, ours), (target, theirs)):
        capabilities = settings.capabilities | {name: on for name, on in more.capabilities.items() if on}
        found.append(Settings(capabilities=capabilities, parameters=settings.parameters | more.parameters))
    return found[0], found[1]


def _wants_postcopy(params: Move) -> bool:
    return params.postcopy or (params.means is not None and Means.POSTCOPY in params.means)


def _means(params: Move, need: Need) -> tuple[Means, ...]:
    """What may be done so that it comes to its end, in this order."""
    means = MEANS if params.means is None else tuple(map(Means, params.means))
    if need.paused:  # it makes nothing dirty, so postcopy would only stake it on both nodes
        return tuple(each for each in means if each is not Means.POSTCOPY)
    return (*means, Means.POSTCOPY) if params.postcopy and Means.POSTCOPY not in means else means


def _terms(
    params: Move, departure: Departure, need: Need, to_copy: int, there: tuple[int, int, int] | None
) -> Terms:
    """What may be done so that it comes to its end.

    :param there: the version of the QEMU there, as far as it is known
    """
    unlimited = Wishes()
    wishes = Wishes(
        blackout=params.blackout, deadline=params.deadline, means=_means(params, need), throttle=params.throttle,
        cap=params.bandwidth or unlimited.cap, ceiling=params.ceiling or params.bandwidth or unlimited.ceiling,
    )  # fmt: skip
    able = departure.capabilities
    theirs = able if there is None else able & capabilities_of(there[:2])
    once = loses_writes(need.parcel.accelerator, need.parcel.version)
    return agree(wishes, able, theirs, memory=need.parcel.spec.memory.size, to_copy=to_copy, once=once)


def _notices(params: Move, need: Need, terms: Terms) -> Iterator[str]:
    """What is not as it was asked for."""
    if need.paused and _wants_postcopy(params):
        yield "its guest is paused, so it goes without postcopy, which is for guests that run"
    if terms.once:
        yield (
            f"{losing(need.parcel.version)}: so there is but one, and the guest stands still for all that it makes "
            f"dirty in it, be that for longer than {terms.wishes.blackout * 1000:.0f} ms"
        ) + ("; postcopy, which is allowed, begins at once" if Means.POSTCOPY in terms.means else "")


def _keys(params: Move, parcel: Parcel, epoch: int, terms: Terms) -> Halves | None:
    """What both sides show; None: all is to go over in the clear."""
    return issue(parcel.spec.uuid, epoch, terms.deadline + _MENDABLE) if params.tls else None


def _have(departure: Departure) -> tuple[Have, ...]:
    """What is known of the source beyond its version."""
    runtime = runtime_of(departure.ledger.document)
    return (Have.LOCKED_MEMORY,) if may_lock(runtime.pid, to_lock(runtime)) else ()


def _preempts(params: Move, here: tuple[int, int, int], there: tuple[int, int, int] | None) -> bool:
    """Whether pages that the guest waits for are to overtake the others in a postcopy."""
    if params.postcopy_preempt is not None:
        return params.postcopy_preempt
    return here >= _PREEMPTS and (there or here) >= _PREEMPTS


def _settings(
    params: Move, terms: Terms, here: tuple[int, int, int], there: tuple[int, int, int] | None
) -> tuple[Settings, Settings]:
    """What is set at the source, and at the target.

    :param here: the version of the QEMU here
    :param there: of the one there, as far as it is known
    """
    ours, theirs, parameters = arming(terms)
    both: dict[str, bool] = {}
    shared: dict[str, Any] = {}
    if params.multifd:
        both["multifd"] = True
        shared["multifd-channels"] = params.multifd
    if params.compression:
        shared["multifd-compression"] = params.compression
    elif params.zero_copy:
        shared["multifd-compression"] = "none"  # whatever one before has left
    if Means.POSTCOPY in terms.means and _preempts(params, here, there):
        both |= {Feature.PREEMPT: True}
    if params.zero_copy:
        ours |= {Feature.ZERO_COPY: True}
    source = Settings(capabilities=both | ours, parameters=shared | parameters)
    announced = {f"announce-{name}": value for name, value in structs.asdict(params.announce).items()}
    return source, Settings(capabilities=both | theirs, parameters=shared | announced)


_BECAME: Final = {Result.FAILED: "stays where it was", Result.LOST: "is lost, and can be started"}
