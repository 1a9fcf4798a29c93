"""The balloon: memory that a guest is asked to do without, and what the guest tells of its memory."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, HotplugError, MonitorTimeout
from .port import Port
from .qom import find_objects, qom_get, qom_set

BALLOON_TIMEOUT: Final = 30.0
# Seconds that the guest has to answer the first time it is asked for its figures.
STATS_TIMEOUT: Final = 10.0
_STATS_POLL: Final = 0.1
_TYPES: Final = ("virtio-balloon-pci", "virtio-balloon-pci-transitional", "virtio-balloon-pci-non-transitional",
                 "virtio-balloon-ccw", "virtio-balloon-device")  # fmt: skip
_INTERVAL: Final = "guest-stats-polling-interval"
_UNKNOWN: Final = frozenset({-1, (1 << 64) - 1})


class BalloonStats(Struct, frozen=True, kw_only=True):
    """What the guest tells of its memory; None where it does not tell. Sizes in bytes, the others are counts.

    :ivar last_update: when it told, seconds since the epoch by QEMU's clock
    :ivar available_memory: what programs could get without swapping
    :ivar disk_caches: what the guest could free at once
    """

    last_update: int
    free_memory: int | None = None
    total_memory: int | None = None
    available_memory: int | None = None
    disk_caches: int | None = None
    swap_in: int | None = None
    swap_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    hugetlb_allocations: int | None = None
    hugetlb_failures: int | None = None


_NAMES: Final = {
    "stat-free-memory": "free_memory",
    "stat-total-memory": "total_memory",
    "stat-available-memory": "available_memory",
    "stat-disk-caches": "disk_caches",
    "stat-swap-in": "swap_in",
    "stat-swap-out": "swap_out",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
}


async def query_balloon(port: Port) -> int:
    """Return how much memory the guest has, the balloon taken off, in bytes (``query-balloon``).

    :raises CommandError: the machine has no balloon (class ``DeviceNotActive``)
    """
    size: int = (await port.execute("query-balloon"))["actual"]
    return size


async def balloon(port: Port, size: int, *, timeout: float = BALLOON_TIMEOUT) -> int:
    """Ask the guest to have so much memory, and wait until it has (``balloon``, event ``BALLOON_CHANGE``).

    A request, which stays: what the guest has not done in time it may do later, or never.

    :param size: bytes; more than the machine has means all of it
    :param timeout: seconds for the guest to act
    :returns: what the guest has now, in bytes: `size`, or something else where it did not follow in time
    :raises CommandError: the machine has no balloon
    """
    if size <= 0:
        raise ArgumentError("size", size, "more than 0 bytes")
    mark, deadline = port.event_mark(), port.now() + timeout
    await port.execute("balloon", {"value": size})
    while (actual := await query_balloon(port)) != size:
        try:
            # QEMU tells at most once a second
            wait = max(0.0, deadline - port.now())
            mark = (await port.wait_event(("BALLOON_CHANGE",), since=mark, timeout=wait)).number
        except MonitorTimeout:
            return await query_balloon(port)
    return actual


async def balloon_stats(port: Port, *, interval: int = 2, timeout: float = STATS_TIMEOUT) -> BalloonStats:
    """Return what the guest tells of its memory.

    The first time QEMU is told to ask the guest from then on (``guest-stats-polling-interval``), and the first answer
    is waited for.

    :param interval: seconds between two questions of QEMU's, where it asks none yet
    :param timeout: seconds for the guest's first answer
    :raises HotplugError: the machine has no balloon
    :raises MonitorTimeout: the guest has no driver that answers
    """
    if not 0 < interval < 1 << 31:
        raise ArgumentError("interval", interval, "seconds, more than 0")
    path = await _find(port)
    if not await qom_get(port, path, _INTERVAL):
        await qom_set(port, path, _INTERVAL, interval)
    deadline = port.now() + timeout
    while not (answer := await qom_get(port, path, "guest-stats"))["last-update"]:
        if port.now() >= deadline:
            raise MonitorTimeout("the guest's figures of its memory", timeout)
        await port.sleep(_STATS_POLL)
    return told_by_guest(answer)


def told_by_guest(answer: Mapping[str, Any]) -> BalloonStats:
    """What a guest told, by the property ``guest-stats`` of its balloon."""
    told = {name: answer["stats"].get(key) for key, name in _NAMES.items()}
    known = {name: value for name, value in told.items() if value is not None and value not in _UNKNOWN}
    return BalloonStats(last_update=answer["last-update"], **known)


async def _find(port: Port) -> str:
    found = await find_objects(port, _TYPES)
    if not found:
        raise HotplugError("balloon", "this machine has none: start it with virtio-balloon-pci")
    return found[0]
