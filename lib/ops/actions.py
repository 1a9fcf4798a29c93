"""The actions of a transaction, and what each takes; pure.

::

    vm.transaction([
        actions.bitmap_add("disk1", "monday"),
        actions.backup("disk1", "target1", job_id="full1"),
    ])
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, NotSupported
from ..qmp.schema import Schema
from .image import check_choice
from .jobs import check_speed
from .nic import check_id

MIRROR_SYNCS: Final = ("full", "top", "none")
BACKUP_SYNCS: Final = (*MIRROR_SYNCS, "incremental", "bitmap")
BITMAP_MODES: Final = ("on-success", "never", "always")
ON_ERROR: Final = ("report", "ignore", "enospc", "stop")

# QEMU's BDRV_SECTOR_SIZE, and the largest granularity that its bitmaps take.
_MIN_GRANULARITY: Final = 512
_MAX_GRANULARITY: Final = 1 << 31
# BDRV_BITMAP_MAX_NAME_SIZE, which is that of a qcow2 image's directory of bitmaps.
_BITMAP_NAME_LENGTH: Final = 1023

# Arguments of block commands that QEMU 7.2 lacks.
SINCE: Final[Mapping[str, str]] = {
    "backing-mask-protocol": "QEMU 9.0 or later",
    "discard-source": "QEMU 9.1 or later",
}

BitmapSource = str | tuple[str, str]


class Action(Struct, frozen=True):
    """One action of a transaction.

    :ivar type: QEMU's name for it
    :ivar data: its arguments
    """

    type: str
    data: dict[str, Any]


def given(**arguments: Any) -> dict[str, Any]:
    """Arguments as QEMU spells them, without those that are None."""
    return {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}


def check_known(schema: Schema, command: str, arguments: Collection[str], path: str = "") -> None:
    """Raise :class:`NotSupported` if `command` lacks any of `arguments` in this QEMU.

    :param path: of the arguments within the command's own, with a dot at its end
    """
    for name in arguments:
        if name in SINCE and not schema.has_argument(command, path + name):
            raise NotSupported(f"{command} with {name}", SINCE[name])


def check_bitmap(name: str) -> str:
    """Raise :class:`ArgumentError` unless `name` can be a bitmap's; return it."""
    if not 0 < len(name.encode()) <= _BITMAP_NAME_LENGTH:
        raise ArgumentError("name", name, f"1 to {_BITMAP_NAME_LENGTH} bytes")
    return name


def check_granularity(granularity: int | None) -> int | None:
    """Raise :class:`ArgumentError` unless QEMU can divide a disk so; return it."""
    if granularity is not None:
        power = granularity > 0 and not granularity & (granularity - 1)
        if not power or not _MIN_GRANULARITY <= granularity <= _MAX_GRANULARITY:
            raise ArgumentError("granularity", granularity, "bytes: a power of two from 512 to 2 GiB")
    return granularity


# -- snapshots -------------------------------------------------------------------------------------------------------


def snapshot(node: str, overlay: str) -> Action:
    """From here on what is written to `node` goes to `overlay`, a node that was opened with ``backing: null``."""
    return Action("blockdev-snapshot", {"node": node, "overlay": overlay})


def snapshot_file(node: str, path: str, overlay: str, *, format: str = "qcow2", existing: bool = False) -> Action:
    """The same, with an image that QEMU itself makes and opens (``blockdev-snapshot-sync``).

    Only for what a device uses: over a node that nothing uses, the overlay is gone at once.

    :param overlay: name of the new node
    :param existing: the image is there, and names `node`'s image as its backing file
    """
    data = given(node_name=node, snapshot_file=path, snapshot_node_name=overlay, format=format)
    return Action("blockdev-snapshot-sync", data | {"mode": "existing" if existing else "absolute-paths"})


def internal_snapshot(node: str, name: str) -> Action:
    """Keep what is in the disk now inside of its qcow2 image (``blockdev-snapshot-internal-sync``).

    :param node: a device or the root node under it
    """
    return Action("blockdev-snapshot-internal-sync", {"device": node, "name": name})


# -- bitmaps ---------------------------------------------------------------------------------------------------------


def bitmap_add(
    node: str, name: str, *, granularity: int | None = None, persistent: bool = False, disabled: bool = False
) -> Action:
    """Note from now on what is written to `node`. See ``bitmap_add`` of a monitor."""
    data = given(node=node, name=check_bitmap(name), granularity=check_granularity(granularity))
    return Action("block-dirty-bitmap-add", data | {"persistent": persistent, "disabled": disabled})


def bitmap_remove(node: str, name: str) -> Action:
    """Remove a bitmap, from its image as well."""
    return Action("block-dirty-bitmap-remove", {"node": node, "name": name})


def bitmap_clear(node: str, name: str) -> Action:
    """Forget what a bitmap has noted."""
    return Action("block-dirty-bitmap-clear", {"node": node, "name": name})


def bitmap_enable(node: str, name: str) -> Action:
    """Let a bitmap note again."""
    return Action("block-dirty-bitmap-enable", {"node": node, "name": name})


def bitmap_disable(node: str, name: str) -> Action:
    """Let a bitmap stay as it is."""
    return Action("block-dirty-bitmap-disable", {"node": node, "name": name})


def bitmap_merge(node: str, target: str, sources: Collection[BitmapSource]) -> Action:
    """Add to bitmap `target` what others have noted.

    :param sources: names on the same node, or ``(node, name)``
    """
    if not sources or isinstance(sources, str):
        raise ArgumentError("sources", sources, "one bitmap or more: a name, or (node, name)")
    bitmaps = [source if isinstance(source, str) else {"node": source[0], "name": source[1]} for source in sources]
    return Action("block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": bitmaps})


# -- jobs ------------------------------------------------------------------------------------------------------------


def backup(
    node: str,
    target: str,
    *,
    job_id: str | None = None,
    sync: str = "full",
    bitmap: str | None = None,
    bitmap_mode: str | None = None,
    compress: bool = False,
    discard_source: bool = False,
    speed: int = 0,
    on_source_error: str = "report",
    on_target_error: str = "report",
) -> Action:
    """Begin to copy `node`, as it is at this moment, to `target`. See ``blockdev_backup`` of a monitor.

    The job stays ``concluded`` until ``wait_job`` has read how it ended.
    """
    check_choice("sync", sync, BACKUP_SYNCS)
    check_choice("on_source_error", on_source_error, ON_ERROR)
    check_choice("on_target_error", on_target_error, ON_ERROR)
    check_speed(speed)
    data = given(job_id=job_name("backup", node, job_id), device=node, target=target, sync=sync, bitmap=bitmap)
    if sync in ("incremental", "bitmap") and bitmap is None:
        raise ArgumentError("bitmap", bitmap, f"the name of one: sync '{sync}' goes by it")
    if bitmap is not None:
        bitmap_mode = bitmap_mode or "on-success"
        check_choice("bitmap_mode", bitmap_mode, BITMAP_MODES)
        if sync == "incremental" and bitmap_mode != "on-success":
            raise ArgumentError("bitmap_mode", bitmap_mode, "on-success; for others, sync 'bitmap'")
        data["bitmap-mode"] = bitmap_mode
    elif bitmap_mode is not None:
        raise ArgumentError("bitmap_mode", bitmap_mode, "only with a bitmap")
    if discard_source:
        data["discard-source"] = True
    errors = given(on_source_error=on_source_error, on_target_error=on_target_error)
    return Action("blockdev-backup", data | errors | {"compress": compress, "speed": speed, "auto-dismiss": False})


def job_name(kind: str, node: str, job_id: str | None) -> str:
    """The id of a job: the one that was given, or else made of its kind and its node."""
    if job_id is None:
        job_id = f"{kind}-{node}"
        try:
            return check_id(job_id)
        except ArgumentError as error:
            raise ArgumentError("job_id", None, f"one that you choose: '{job_id}' cannot be an id") from error
    return check_id(job_id)
