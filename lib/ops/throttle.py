"""I/O limits: of a throttle group, which block nodes of driver ``throttle`` share, and of a disk's device."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct, convert, to_builtins

from ..errors import ArgumentError
from ..qmp.ready import ready
from .inventory import PERIPHERAL, query_block
from .nic import check_id
from .port import Port

# THROTTLE_VALUE_MAX of QEMU: the largest rate, and the largest product of a burst and its length.
MAX_RATE: Final = 10**15
MAX_LENGTH: Final = 2**32 - 1  # seconds: that of a burst has 32 bits
_OBJECTS: Final = "/objects"
_WHAT: Final = ("bps", "iops")
# Direction, and how block_set_io_throttle and query-block spell it.
_DIRECTIONS: Final = {"total": "", "read": "_rd", "write": "_wr"}


class Limits(Struct, frozen=True, kw_only=True, rename="kebab"):
    """Limits of bytes and of requests a second; 0 is none. Either ``total``, or ``read`` and ``write``.

    ``…_max`` is the rate of a burst, and ``…_max_length`` for how many seconds it may last
    before the plain limit holds again.

    :ivar iops_size: a request of more bytes than this counts as several; 0: each counts as one
    """

    bps_total: int = 0
    bps_read: int = 0
    bps_write: int = 0
    iops_total: int = 0
    iops_read: int = 0
    iops_write: int = 0
    bps_total_max: int = 0
    bps_read_max: int = 0
    bps_write_max: int = 0
    iops_total_max: int = 0
    iops_read_max: int = 0
    iops_write_max: int = 0
    bps_total_max_length: int = 1
    bps_read_max_length: int = 1
    bps_write_max_length: int = 1
    iops_total_max_length: int = 1
    iops_read_max_length: int = 1
    iops_write_max_length: int = 1
    iops_size: int = 0

    def check(self) -> None:
        """Raise :class:`ArgumentError` unless QEMU takes these."""
        for what in _WHAT:
            for field in (what + "_{}", what + "_{}_max"):
                total, read, write = (getattr(self, field.format(direction)) for direction in _DIRECTIONS)
                if total and (read or write):
                    raise ArgumentError(field.format("total"), total, "a total, or limits for reading and writing")
        for name in _rates():
            _check_rate(name, getattr(self, name), getattr(self, f"{name}_max"), getattr(self, f"{name}_max_length"))
        if self.iops_size and not (self.iops_total or self.iops_read or self.iops_write):
            raise ArgumentError("iops_size", self.iops_size, "only with a limit of requests a second")
        if not 0 <= self.iops_size <= MAX_RATE:
            raise ArgumentError("iops_size", self.iops_size, "bytes")


def _rates() -> Iterator[str]:
    for what in _WHAT:
        for direction in _DIRECTIONS:
            yield f"{what}_{direction}"


def _check_rate(name: str, rate: int, burst: int, length: int) -> None:
    if not 0 <= rate <= MAX_RATE:
        raise ArgumentError(name, rate, f"0 to {MAX_RATE} a second")
    if burst and not 0 < rate <= burst:
        raise ArgumentError(f"{name}_max", burst, f"at least {name}, which must be given")
    if not 1 <= length <= MAX_LENGTH or burst * length > MAX_RATE:
        allowed = f"1 to {MAX_LENGTH} seconds, whose burst comes to {MAX_RATE} at most"
        raise ArgumentError(f"{name}_max_length", length, allowed)
    if length > 1 and not burst:
        raise ArgumentError(f"{name}_max_length", length, f"only with {name}_max")


# -- groups ----------------------------------------------------------------------------------------------------------


async def throttle_group_add(port: Port, id: str, limits: Limits) -> None:
    """Make a throttle group (``object-add`` of ``throttle-group``).

    A node of driver ``throttle`` with ``throttle-group`` `id` is limited by it, together with all others of the group.

    :raises CommandError: there is such an object
    """
    check_id(id)
    limits.check()
    await port.execute("object-add", {"qom-type": "throttle-group", "id": id, "limits": to_builtins(limits)})


async def throttle_group_set(port: Port, id: str, limits: Limits) -> None:
    """Give a throttle group other limits, at once (``qom-set``). All of them: what is not said is no limit.

    :raises CommandError: there is no such group
    """
    limits.check()
    path = f"{_OBJECTS}/{id}"
    await port.execute("qom-set", {"path": path, "property": "limits", "value": to_builtins(limits)})


async def query_throttle_group(port: Port, id: str) -> Limits:
    """Return the limits of a throttle group (``qom-get``).

    :raises CommandError: there is no such group
    """
    return convert(await port.execute("qom-get", {"path": f"{_OBJECTS}/{id}", "property": "limits"}), Limits)


async def throttle_group_del(port: Port, id: str) -> None:
    """Remove a throttle group (``object-del``).

    :raises CommandError: there is none, or a node is in it
    """
    await port.execute("object-del", {"id": id})


# -- devices ---------------------------------------------------------------------------------------------------------


async def set_disk_throttle(port: Port, id: str, limits: Limits, *, group: str | None = None) -> None:
    """Limit a disk, at once (``block_set_io_throttle``). ``Limits()`` takes all limits away.

    These limits stay with the device, whatever node is under it.

    :param id: the device's, or its QOM path
    :param group: name of a group of devices that share these limits; None for a group of its own
    :raises ArgumentError: no disk has this id
    :raises CommandError: QEMU refuses, as for an empty drive
    """
    limits.check()
    device = await _find(port, id)
    arguments: dict[str, Any] = {"id": device["qdev"]}
    for theirs, ours in _spellings():
        value = getattr(limits, ours)
        # A burst's length is refused without a burst.
        if not ours.endswith("_length") or getattr(limits, ours.removesuffix("_length")):
            arguments[theirs] = value
    if limits.iops_size:
        arguments["iops_size"] = limits.iops_size
    if group is not None:
        arguments["group"] = check_id(group)
    await port.execute("block_set_io_throttle", arguments)


async def query_disk_throttle(port: Port, id: str) -> Limits:
    """Return the limits of a disk's device (``query-block``).

    :param id: the device's, or its QOM path
    :raises ArgumentError: no disk has this id
    """
    inserted = (await _find(port, id)).get("inserted", {})
    found = {ours: inserted[theirs] for theirs, ours in _spellings() if theirs in inserted}
    return Limits(**found, iops_size=inserted.get("iops_size", 0))


def _spellings() -> Iterator[tuple[str, str]]:
    """Names in ``block_set_io_throttle`` and ``query-block``, and ours."""
    for what in _WHAT:
        for direction, short in _DIRECTIONS.items():
            for suffix in ("", "_max", "_max_length"):
                yield f"{what}{short}{suffix}", f"{what}_{direction}{suffix}"


async def _find(port: Port, id: str) -> dict[str, Any]:
    """The entry of a disk. QEMU knows a virtio-blk device here only by the path of its backend, not by its id."""
    for entry in await query_block(port):
        name = entry.get("qdev")
        if name in (id, f"{PERIPHERAL}/{id}", f"{PERIPHERAL}/{id}/virtio-backend"):
            return entry
    raise ArgumentError("id", id, "the id of a disk that is plugged")


ready(Limits)
