"""What a machine has read, written and sent so far, by QEMU's own account."""

from typing import Any, Final

from msgspec import Struct, convert

from ..qmp.ready import ready
from .balloon import BalloonStats, told_by_guest
from .inventory import PERIPHERAL
from .migration import MigrationInfo
from .port import DEFAULT, Arguments, Port, Timeout

_NANO: Final = 1e9


class DiskCounters(Struct, frozen=True, kw_only=True):
    """What a guest has done with a disk since it was plugged in.

    :ivar id: of the device
    :ivar read_bytes: and what was written and discarded, in bytes
    :ivar read_ops: requests that have ended, and likewise
    :ivar read_seconds: that those took together, and likewise; two at a time count twice
    :ivar failed_ops: requests of any kind that failed, or made no sense
    """

    id: str
    read_bytes: int = 0
    written_bytes: int = 0
    discarded_bytes: int = 0
    read_ops: int = 0
    write_ops: int = 0
    flush_ops: int = 0
    discard_ops: int = 0
    failed_ops: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    flush_seconds: float = 0.0


class Counters(Struct, frozen=True, kw_only=True):
    """What one QEMU told at one moment.

    :ivar balloon: bytes that the guest has, the balloon taken off; None where there is no balloon
    :ivar migration: None where there was none in this run
    :ivar guest: what the guest tells of its memory; None where it was not asked for, or tells nothing
    """

    disks: list[DiskCounters]
    balloon: int | None = None
    migration: MigrationInfo | None = None
    guest: BalloonStats | None = None


class _Account(Struct, frozen=True):
    """``BlockDeviceStats``, as far as it is told on."""

    rd_bytes: int = 0
    wr_bytes: int = 0
    unmap_bytes: int = 0
    rd_operations: int = 0
    wr_operations: int = 0
    flush_operations: int = 0
    unmap_operations: int = 0
    rd_total_time_ns: int = 0
    wr_total_time_ns: int = 0
    flush_total_time_ns: int = 0
    failed_rd_operations: int = 0
    failed_wr_operations: int = 0
    failed_flush_operations: int = 0
    failed_unmap_operations: int = 0
    invalid_rd_operations: int = 0
    invalid_wr_operations: int = 0
    invalid_flush_operations: int = 0
    invalid_unmap_operations: int = 0


class _Device(Struct, frozen=True):
    stats: _Account
    qdev: str = ""
    device: str = ""


async def query_disk_counters(port: Port) -> list[DiskCounters]:
    """Return what the guest has done with each of its disks (``query-blockstats``)."""
    return _disks(await port.execute("query-blockstats"))


async def query_counters(
    port: Port, *, balloon: bool = True, guest_stats: bool = False, timeout: Timeout = DEFAULT
) -> Counters:
    """Return what this QEMU has counted, asked in one go and at once.

    :param balloon: ask for the balloon, too
    :param guest_stats: and for what the guest tells of its memory, by a device of the id ``balloon``; nothing is asked
        of the guest itself: that is QEMU's to do (``guest-stats-polling-interval``)
    :param timeout: seconds for each answer
    """
    questions: list[tuple[str, Arguments | None]] = [("query-blockstats", None), ("query-migrate", None)]
    if balloon:
        questions.append(("query-balloon", None))
    if guest_stats:
        questions.append(("qom-get", {"path": f"{PERIPHERAL}/balloon", "property": "guest-stats"}))
    disks, migration, *more = await port.ask_many(questions, timeout)
    size = more.pop(0) if balloon else None
    told = more.pop(0) if guest_stats else None
    return Counters(
        disks=_disks(disks or []),
        balloon=size["actual"] if size else None,
        migration=convert(migration, MigrationInfo) if migration and "status" in migration else None,
        guest=told_by_guest(told) if told and told["last-update"] else None,
    )


def _disks(answer: list[dict[str, Any]]) -> list[DiskCounters]:
    return [_disk(device) for device in convert(answer, list[_Device])]


def _disk(device: _Device) -> DiskCounters:
    of = device.stats
    failed = of.failed_rd_operations + of.failed_wr_operations + of.failed_flush_operations + of.failed_unmap_operations
    invalid = of.invalid_rd_operations + of.invalid_wr_operations + of.invalid_flush_operations
    return DiskCounters(
        id=device_id(device.qdev or device.device),
        read_bytes=of.rd_bytes,
        written_bytes=of.wr_bytes,
        discarded_bytes=of.unmap_bytes,
        read_ops=of.rd_operations,
        write_ops=of.wr_operations,
        flush_ops=of.flush_operations,
        discard_ops=of.unmap_operations,
        failed_ops=failed + invalid + of.invalid_unmap_operations,
        read_seconds=of.rd_total_time_ns / _NANO,
        write_seconds=of.wr_total_time_ns / _NANO,
        flush_seconds=of.flush_total_time_ns / _NANO,
    )


def device_id(path: str) -> str:
    """The id of a device, by what QEMU tells of it: its path in QOM, or that of a part of it, or the id itself."""
    return path.removeprefix(f"{PERIPHERAL}/").partition("/")[0]


ready(list[_Device])
