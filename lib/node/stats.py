"""What each machine has used so far, and how fast: pure, made of what the kernel and QEMU counted at two moments."""

from collections.abc import Iterable
from typing import Final, TypeVar

from msgspec import Struct, field
from msgspec.structs import asdict

from ..kvm.usage import LinkCounters
from ..ops.balloon import BalloonStats
from ..ops.counters import DiskCounters
from ..ops.migration import MigrationInfo
from ..qmp.ready import ready

_MEGABIT: Final = 1e6 / 8  # bytes
_MILLI: Final = 1e-3


class VcpuStats(Struct, frozen=True, kw_only=True):
    """:ivar index: its number; the others as of the machine"""

    index: int
    cpu_seconds: float
    cpu_percent: float | None = None


class DiskStats(DiskCounters, frozen=True, kw_only=True):
    """A disk, since it was plugged in.

    :ivar read_rate: bytes a second; None before there are two samples
    :ivar write_rate: likewise
    """

    read_rate: float | None = None
    write_rate: float | None = None


class NicStats(Struct, frozen=True, kw_only=True):
    """A network card that stands on an interface of the host's, as the guest sees it.

    :ivar id: of the device
    :ivar received_bytes: by the guest; and what it sent, since the interface was made
    :ivar receive_rate: bytes a second; None before there are two samples
    :ivar send_rate: likewise
    """

    id: str
    received_bytes: int
    received_packets: int
    received_errors: int
    received_dropped: int
    sent_bytes: int
    sent_packets: int
    sent_errors: int
    sent_dropped: int
    receive_rate: float | None = None
    send_rate: float | None = None


class MigrationStats(Struct, frozen=True, kw_only=True):
    """A migration, as this side of it tells. Bytes and seconds.

    :ivar status: of QEMU's, such as ``active``
    :ivar transferred: so far; and what is left, and what there is in all, of the guest's memory
    :ivar rate: bytes a second
    :ivar seconds: since it began
    :ivar downtime: for how long the guest stood still, or would if it switched over now
    """

    status: str
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    downtime: float = 0.0


class Stats(Struct, frozen=True, kw_only=True):
    """What a machine that runs has used. Bytes, seconds, and Unix times.

    :ivar at: when the kernel's figures were read: CPU and memory
    :ivar nics_at: when those of NICs were; 0: it has none that are counted
    :ivar told_at: when QEMU told its own: balloon, disks and migration; 0: not yet. One that hangs has old ones
    :ivar generation: counts its starts: all is counted from the last one on
    :ivar cpu_seconds: of the whole process
    :ivar cpu_percent: of one processor, between the last two samples; None before there are two
    :ivar resident: memory that the process has
    :ivar balloon: memory that the guest has, the balloon taken off; None where it has no balloon
    :ivar guest: what the guest tells of its memory, where the specification wants it
    :ivar migration: the last one of this run, going out or coming in
    """

    name: str
    generation: int
    at: float
    nics_at: float = 0.0
    told_at: float = 0.0
    cpu_seconds: float = 0.0
    cpu_percent: float | None = None
    resident: int = 0
    vcpus: list[VcpuStats] = field(default_factory=list)
    balloon: int | None = None
    guest: BalloonStats | None = None
    disks: list[DiskStats] = field(default_factory=list)
    nics: list[NicStats] = field(default_factory=list)
    migration: MigrationStats | None = None


class AllStats(Struct, frozen=True, kw_only=True):
    """:ivar now: Unix time of the answer
    :ivar stats: of each machine that runs, by name
    """

    now: float
    stats: list[Stats]


class OneStats(Struct, frozen=True, kw_only=True):
    """:ivar now: Unix time of the answer
    :ivar stats: None where it does not run, or was not looked at yet
    """

    now: float
    stats: Stats | None


def rate(now: float, before: float | None, seconds: float) -> float | None:
    """How fast something grew; None where it did not, or it is not known.

    :param before: what it was; None where it was not there
    :param seconds: that have passed
    """
    return None if before is None or seconds <= 0 or now < before else round((now - before) / seconds, 3)


def percent(now: float, before: float | None, seconds: float) -> float | None:
    """CPU seconds as a share of one processor."""
    share = rate(now, before, seconds)
    return None if share is None else round(100 * share, 1)


def vcpu_stats(times: Iterable[tuple[int, float]], base: Stats | None, at: float) -> list[VcpuStats]:
    """Each vCPU, of its number and CPU seconds.

    :param base: an earlier sample
    :param at: Unix time of these
    """
    old = {vcpu.index: vcpu.cpu_seconds for vcpu in base.vcpus} if base else {}
    passed = at - base.at if base else 0
    return [
        VcpuStats(index=index, cpu_seconds=used, cpu_percent=percent(used, old.get(index), passed))
        for index, used in times
    ]


def disk_stats(counters: Iterable[DiskCounters], base: Stats | None, told_at: float) -> list[DiskStats]:
    """Each disk.

    :param base: an earlier sample
    :param told_at: Unix time of these
    """
    old = _by_id(base.disks) if base else {}
    passed = told_at - base.told_at if base else 0
    stats = []
    for disk in counters:
        was = old.get(disk.id)
        read = rate(disk.read_bytes, was.read_bytes if was else None, passed)
        written = rate(disk.written_bytes, was.written_bytes if was else None, passed)
        stats.append(DiskStats(**asdict(disk), read_rate=read, write_rate=written))
    return stats


def nic_stats(links: Iterable[tuple[str, bool, LinkCounters]], base: Stats | None, nics_at: float) -> list[NicStats]:
    """Each network card, of its id, whether its interface is the guest's side of the cable, and its counters.

    :param base: an earlier sample
    :param nics_at: Unix time of these
    """
    old = _by_id(base.nics) if base else {}
    passed = nics_at - base.nics_at if base else 0
    stats = []
    for id_, guests, link in links:
        ours, theirs = ("rx", "tx") if guests else ("tx", "rx")
        figures = {
            f"{name}_{what}": getattr(link, f"{side}_{what}")
            for name, side in (("received", ours), ("sent", theirs))
            for what in ("bytes", "packets", "errors", "dropped")
        }
        was = old.get(id_)
        received = rate(figures["received_bytes"], was.received_bytes if was else None, passed)
        sent = rate(figures["sent_bytes"], was.sent_bytes if was else None, passed)
        stats.append(NicStats(id=id_, **figures, receive_rate=received, send_rate=sent))
    return stats


def migration_stats(info: MigrationInfo | None) -> MigrationStats | None:
    """A migration, in base units."""
    if info is None:
        return None
    return MigrationStats(
        status=info.status,
        transferred=info.ram.transferred,
        remaining=info.ram.remaining,
        total=info.ram.total,
        rate=info.ram.mbps * _MEGABIT,
        seconds=info.total_time * _MILLI,
        downtime=(info.downtime or info.expected_downtime) * _MILLI,
    )


T = TypeVar("T", DiskStats, NicStats)


def _by_id(devices: Iterable[T]) -> dict[str, T]:
    return {device.id: device for device in devices}


ready(AllStats, OneStats)
