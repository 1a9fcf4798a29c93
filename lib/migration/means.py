"""What can be done so that a migration comes to its end: one row for each means.

Capabilities cannot be changed once a migration has begun, but parameters can. So what may be needed is *armed* at the
beginning: switched on, and held back by its parameters until its time comes. Each means is a lever with notches; to
pull it is to go to its next notch.
"""

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from ..ops.migration_settings import Side
from .forecast import ENDLESS, Setting

# Of what the blackout leaves for memory: most migrations end at the first notch, so that most blackouts are short.
DOWNTIMES: Final = (0.25, 0.5, 1.0)
# Of the promised blackout: kept back for what QEMU cannot know when it decides. Memory that gets dirty until the vCPUs
# stand, and a bandwidth that is less in the next moment than in the last.
MARGIN: Final = 0.2
# Times: each notch of the bandwidth.
FASTER: Final = 1.5
# Percent of the vCPUs' time. QEMU's own default starts at 20 and goes on by 10.
THROTTLES: Final = (20, 40, 60, 80, 95)
# Percent: auto-converge that is armed. QEMU accepts no 0.
ARMED: Final = 1
# Percent: any notch is reached in one of QEMU's own steps.
AT_ONCE: Final = 99
# MB/s for each vCPU: a dirty limit that is armed holds nobody back.
UNLIMITED: Final = 1_000_000
MEBIBYTE: Final = 1 << 20


class Means(StrEnum):
    """What may be done to a migration that would not end in time. To give up comes last, always."""

    BLACKOUT = "blackout"
    """Let the guest stand still for longer, up to what was promised."""
    BANDWIDTH = "bandwidth"
    """Take more of the link, up to what the migration may."""
    AUTO_CONVERGE = "auto-converge"
    """Take time from all vCPUs."""
    DIRTY_LIMIT = "dirty-limit"
    """Take time from those vCPUs that make much dirty. Wants KVM with its dirty ring."""
    POSTCOPY = "postcopy"
    """Run on the target, and let memory follow. It always ends; but who loses a node before that loses the machine."""


MEANS: Final = (Means.BLACKOUT, Means.BANDWIDTH, Means.AUTO_CONVERGE)
"""What may be done without being asked for. Not postcopy: it stakes the machine on both nodes and the link."""

# Seconds, and seconds a GiB of memory and disks to be copied: six times over at 1 Gbit/s, once at 150 Mbit/s.
DEADLINE: Final = 60.0
DEADLINE_PER_GIB: Final = 60.0
GIBIBYTE: Final = 1 << 30


class Wishes(Struct, frozen=True, kw_only=True):
    """What an instance's owner says about its migrations.

    :ivar blackout: seconds that the guest may stand still at most
    :ivar deadline: seconds that the whole may take; None for :func:`deadline`
    :ivar means: what may be done, in this order
    :ivar throttle: percent of the vCPUs' time that auto-converge may take at most
    :ivar cap: bytes a second to start with
    :ivar ceiling: bytes a second up to which that may be raised
    """

    blackout: float = 0.3
    deadline: float | None = None
    means: tuple[Means, ...] = MEANS
    throttle: int = 80
    cap: float = ENDLESS
    ceiling: float = ENDLESS


class Terms(Struct, frozen=True, kw_only=True):
    """What holds for the whole of one migration: the wishes, and what they are met with.

    :ivar deadline: seconds that the whole may take
    :ivar means: those of the wished means that this pair of QEMUs has
    :ivar memory: bytes of the guest
    :ivar resident: bytes of that which have contents; as many as all, if nobody knows
    :ivar vcpus: their number
    :ivar overhead: seconds of the blackout that are not memory: the devices' state, and our own hand-over
    :ivar granted: bytes a second that the link's budget grants now: what is reckoned with until it is measured; 0 if
        nobody knows
    :ivar link: bytes a second of the whole link: what the budget could grant at best
    :ivar once: the source loses what is written in later rounds: there is to be one
    """

    wishes: Wishes = Wishes()
    deadline: float
    means: tuple[Means, ...] = ()
    memory: float
    resident: float = ENDLESS
    vcpus: int = 1
    overhead: float = 0.03
    granted: float = 0.0
    link: float = ENDLESS
    once: bool = False

    @property
    def downtime(self) -> float:
        """The seconds that QEMU may take at most for what is left of memory."""
        return max(0.0, self.wishes.blackout * (1 - MARGIN) - self.overhead)


def deadline(memory: float, to_copy: float = 0) -> float:
    """Return the seconds that a migration may take, unless its owner says otherwise.

    :param memory: bytes of the guest's memory
    :param to_copy: bytes of its disks that are not shared
    """
    return DEADLINE + DEADLINE_PER_GIB * (memory + to_copy) / GIBIBYTE


def _longer(terms: Terms, now: Setting, _: float) -> Setting | None:
    if now.once:
        return None
    notches = (share * terms.downtime for share in DOWNTIMES)
    return next((replace(now, downtime=notch) for notch in notches if notch > now.downtime), None)


def _faster(terms: Terms, now: Setting, _: float) -> Setting | None:
    cap = min(now.cap * FASTER, terms.wishes.ceiling)
    return replace(now, cap=cap) if cap > now.cap else None


def _throttle(terms: Terms, now: Setting, _: float) -> Setting | None:
    notches = (min(notch, terms.wishes.throttle) for notch in THROTTLES)
    return next((replace(now, throttle=notch) for notch in notches if notch > now.throttle), None)


def _dirty_limit(terms: Terms, now: Setting, bandwidth: float) -> Setting | None:
    limit = min(now.dirty_limit, bandwidth / terms.vcpus) / 2
    return replace(now, dirty_limit=limit) if limit >= MEBIBYTE else None


def _postcopy(_: Terms, now: Setting, __: float) -> Setting | None:
    return None if now.postcopy else replace(now, postcopy=True)


class Lever(NamedTuple):
    """One means.

    :ivar pull: from where the levers stand, and the bandwidth, to the next notch; None if it has come to its end
    :ivar capability: that must be on from the beginning
    :ivar side: on which of the two QEMUs
    :ivar armed: the parameters that hold it back until then
    :ivar settles: seconds until it shows, at least
    :ivar rounds: and ends of rounds until then. QEMU throttles at the second that is too much, and one is under way
    """

    pull: Callable[[Terms, Setting, float], Setting | None]
    capability: str = ""
    side: Side = Side.SOURCE
    armed: Mapping[str, int] = {}
    settles: float = 1.0
    rounds: int = 1


LEVERS: Final[Mapping[Means, Lever]] = {
    Means.BLACKOUT: Lever(_longer),
    Means.BANDWIDTH: Lever(_faster),
    Means.AUTO_CONVERGE: Lever(
        _throttle,
        "auto-converge",
        armed={"cpu-throttle-initial": ARMED, "cpu-throttle-increment": AT_ONCE, "max-cpu-throttle": ARMED},
        settles=3.0,
        rounds=3,
    ),
    Means.DIRTY_LIMIT: Lever(_dirty_limit, "dirty-limit", armed={"vcpu-dirty-limit": UNLIMITED}, settles=3.0, rounds=3),
    Means.POSTCOPY: Lever(_postcopy, "postcopy-ram", Side.BOTH),
}
# Of use where there is but one round.
_IN_ONE_ROUND: Final = (Means.BANDWIDTH, Means.POSTCOPY)
# QEMU has one or the other.
EXCLUSIVE: Final = (Means.AUTO_CONVERGE, Means.DIRTY_LIMIT)


def usable(wanted: Collection[Means], source: Collection[str], target: Collection[str]) -> tuple[Means, ...]:
    """Return those of the wanted means that this pair of QEMUs can be armed for, in the wanted order.

    :param source: the capabilities that may be switched on there
    :param target: likewise
    """
    found: list[Means] = []
    for means in wanted:
        lever = LEVERS[means]
        sides = (source, target) if lever.side is Side.BOTH else (source,)
        able = not lever.capability or all(lever.capability in side for side in sides)
        if able and not (means in EXCLUSIVE and any(other in EXCLUSIVE for other in found)):
            found.append(means)
    return tuple(found)


def agree(
    wishes: Wishes,
    source: Collection[str],
    target: Collection[str],
    *,
    memory: float,
    to_copy: float = 0,
    once: bool = False,
) -> Terms:
    """Return the terms of a migration between two QEMUs; what else is known of it can be put in.

    :param source: the capabilities that may be switched on there, as the table of allowed combinations has them
    :param target: likewise
    :param memory: bytes of the guest's memory
    :param to_copy: bytes of its disks that are not shared
    :param once: all of the memory has to go in one round
    """
    until = deadline(memory, to_copy) if wishes.deadline is None else wishes.deadline
    wanted = [means for means in wishes.means if not once or means in _IN_ONE_ROUND]
    return Terms(wishes=wishes, deadline=until, means=usable(wanted, source, target), memory=memory, once=once)


def first(terms: Terms) -> Setting:
    """Return where the levers stand at the beginning."""
    notch = DOWNTIMES[0] if Means.BLACKOUT in terms.means else 1.0
    return Setting(notch * terms.downtime, terms.wishes.cap, once=terms.once)


def pull(terms: Terms, now: Setting, bandwidth: float) -> tuple[Means, Setting] | None:
    """Return the means whose turn it is, and where the levers stand after it; None if all are at their end."""
    for means in terms.means:
        after = LEVERS[means].pull(terms, now, bandwidth)
        if after is not None:
            return means, after
    return None


def arming(terms: Terms) -> tuple[dict[str, bool], dict[str, bool], dict[str, Any]]:
    """Return what is to be set before the migration begins: the source's capabilities, the target's, and parameters."""
    levers = [LEVERS[means] for means in terms.means]
    source = {lever.capability: True for lever in levers if lever.capability}
    target = {lever.capability: True for lever in levers if lever.capability and lever.side is Side.BOTH}
    held = {name: value for lever in levers for name, value in lever.armed.items()}
    return source, target, held | parameters(first(terms))


def parameters(setting: Setting) -> dict[str, Any]:
    """Return the parameters that QEMU has with the levers so."""
    told: dict[str, Any] = {"downtime-limit": 0 if setting.once else int(setting.downtime * 1000)}
    if setting.cap < ENDLESS:
        told["max-bandwidth"] = int(setting.cap)
    if setting.throttle:
        told["max-cpu-throttle"] = setting.throttle
    if setting.dirty_limit < ENDLESS:
        told["vcpu-dirty-limit"] = max(1, int(setting.dirty_limit / MEBIBYTE))
    return told
