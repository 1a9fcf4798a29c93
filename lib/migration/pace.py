"""How fast a machine goes over: looked at ten times a second, and helped on by what its owner allows.

What to do is :mod:`.policy`'s to say. Here QEMU is asked, and the levers are pulled.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct, structs

from ..errors import DroverError, MonitorError
from ..ops.migration import MigrationInfo
from .course import Course, Look, Phase, begin
from .driver import Driver
from .forecast import ENDLESS, Setting
from .means import Terms, parameters
from .policy import Act, Advice, look
from .source import Source
from .states import State
from .words import Cancel, GoPostcopy

NO_LIMIT: Final = 0  # bytes a second, in QEMU's words; its default is 128 MiB/s
USED_EVERY: Final = 1.0  # s between two words of what it uses of the link
EVERY: Final = 0.1  # s between two looks: each is a question to QEMU
# In which the machine is under way; in others there is nothing to look at.
_MOVING: Final = frozenset({State.MIRROR, State.SEND, State.FENCE, State.SYNC, State.SWITCH, State.RUN, State.DRAIN})
log = logging.getLogger("drover.migration")


class View(Struct, frozen=True, kw_only=True):
    """How far a migration is. Bytes; seconds.

    :ivar step: which it is at
    :ivar percent: of the time that it takes; it never goes back
    :ivar eta: until it is over; None where nobody knows
    :ivar blackout: that is to be expected
    :ivar transferred: over the wire, so far
    :ivar remaining: of memory, as far as is known
    :ivar total: of memory
    :ivar copied: of the disks, and `to_copy` of so much
    :ivar rounds: in which memory was gone through
    :ivar dirty_rate: that the guest makes dirty in a second
    :ivar bandwidth: bytes a second, as averaged
    :ivar converges: it is expected to end well as it is
    :ivar overdue: a postcopy takes longer than it was to
    """

    step: str
    percent: float = 0.0
    eta: float | None = None
    blackout: float | None = None
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    copied: int = 0
    to_copy: int = 0
    rounds: int = 0
    dirty_rate: float = 0.0
    bandwidth: float = 0.0
    converges: bool = True
    overdue: bool = False


class Pace:
    """Of one migration.

    :ivar view: how far it is
    :ivar gave_up: why it was given up; empty: it was not
    :ivar pulled: what was done so that it ends, in words
    :param terms: what may be done
    :param at: how long it has been under way, in seconds
    :param told: called with each look
    :param uses: called each second with the bytes a second that it uses, and with those that it uses at most
    :param keep: writes down where the levers are to stand, before they are pulled
    :param setting: where they stand, where it is taken up
    """

    def __init__(
        self,
        driver: Driver,
        source: Source,
        terms: Terms,
        at: Callable[[], float],
        told: Callable[[View], object],
        uses: Callable[[float, float], None],
        keep: Callable[[Setting], Awaitable[None]],
        setting: Setting | None = None,
    ) -> None:
        self.view = View(step="")
        self.gave_up = ""
        self.pulled: list[str] = []
        self._driver = driver
        self._source = source
        self._terms = terms
        self._at = at
        self._told = told
        self._uses = uses
        self._keep = keep
        self._used_at = 0.0
        self._grants: dict[str, float] = {}
        self._setting: set[asyncio.Future[None]] = set()
        self._course: Course = begin(terms, at(), setting)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            machine = self._driver.machine
            if machine.state not in _MOVING or self._source.qemu is None:
                continue
            try:
                said = await self._source.ask()
                self._driver.hear(said)
                await self._look(self._source.qemu.info)
            except MonitorError as error:
                log.info("QEMU did not answer: %s", error)

    async def set_again(self) -> None:
        """Set the levers as they are to stand: what another process has set may be otherwise."""
        await self._set(self.levers())

    def levers(self) -> dict[str, int]:
        """How they are to stand, as parameters of QEMU's."""
        bandwidth = NO_LIMIT if self.cap >= ENDLESS else int(self.cap)
        return parameters(self._course.setting) | {"max-bandwidth": bandwidth}

    @property
    def cap(self) -> float:
        """Bytes a second that it may use now."""
        return min(self._course.setting.cap, *self._grants.values(), ENDLESS)

    def grant(self, link: str, rate: float) -> None:
        """One of the two links grants it so much.

        :param link: which
        :param rate: bytes a second
        """
        before = self.cap
        self._grants[link] = rate
        self._terms = structs.replace(self._terms, granted=0.0 if self.cap >= ENDLESS else self.cap)
        if self.cap != before:
            self._setting.add(task := asyncio.ensure_future(self.set_again()))
            task.add_done_callback(self._setting.discard)

    async def _look(self, info: MigrationInfo) -> None:
        copied = self._source.copied
        done = sum(job.current for job in copied.jobs) if copied is not None else 0
        whole = sum(job.total for job in copied.jobs) if copied is not None else 0
        if self._driver.machine.state is State.MIRROR:
            seen = Look(at=self._at(), phase=Phase.STORAGE, copied=done, to_copy=whole)
        else:
            seen = Look.of(info, self._at(), copied=done, to_copy=whole)
        self._course, advice = look(self._terms, self._course, seen)
        if self._at() >= self._used_at + USED_EVERY:
            self._used_at = self._at()
            self._uses(self._course.bandwidth, self._course.setting.cap)
        view = _view(str(self._driver.machine.step), info, advice, self._course)
        self.view = structs.replace(view, copied=done, to_copy=whole)
        self._told(self.view)
        if advice.act is Act.SET:
            self.pulled.append(f"{advice.means}: {advice.parameters}")
            await self._keep(self._course.setting)
            await self.set_again()
        elif advice.act is Act.POSTCOPY:
            if not self._driver.machine.known.postcopy:
                self.pulled.append("postcopy")
            self._driver.hear(GoPostcopy())
        elif advice.act is Act.GIVE_UP and not self.gave_up:
            self._give_up(str(advice.why))

    def _give_up(self, why: str) -> None:
        self.gave_up = why
        self._driver.hear(Cancel())

    async def _set(self, wanted: dict[str, int]) -> None:
        if self._source.qemu is None:
            return
        try:
            await self._source.qemu.tell(lambda vm: vm.execute("migrate-set-parameters", wanted))
            await self._source.set_speed(wanted.get("max-bandwidth", NO_LIMIT))
        except DroverError as error:
            log.warning("what is to speed it up cannot be set: %s", error)


def _view(step: str, info: MigrationInfo, advice: Advice, course: Course) -> View:
    ram = info.ram
    known = course.bandwidth > 0
    return View(
        step=step,
        percent=round(advice.percent, 1),
        eta=round(advice.eta, 2) if known else None,
        blackout=round(advice.blackout, 3) if known else None,
        transferred=ram.transferred,
        remaining=ram.remaining,
        total=ram.total,
        rounds=ram.dirty_sync_count,
        dirty_rate=ram.dirty_pages_rate * ram.page_size,
        bandwidth=round(course.bandwidth),
        converges=advice.converges,
        overdue=advice.overdue,
    )
