"""Dirty bitmaps: what was written to a disk since when. The ground that incremental backups stand on."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from msgspec import Struct, convert

from ..qmp.ready import ready
from . import actions
from .actions import Action, BitmapSource
from .inventory import query_block_nodes
from .port import Port

# What a bitmap is called while it is made anew; a name has at most 1023 bytes, of up to four for a character.
_SPARE: Final = ".-new"
_SPARE_LENGTH: Final = 250


class Bitmap(Struct, frozen=True, rename="kebab"):
    """A bitmap of a block node. Bytes, unless said otherwise.

    :ivar count: how much is noted as written, in whole grains
    :ivar granularity: size of a grain
    :ivar recording: whether writes are noted now
    :ivar busy: a job or an export works with it; it cannot be changed meanwhile
    :ivar persistent: it is stored in its qcow2 image
    :ivar inconsistent: QEMU ended without storing it: it is of no use but to be removed
    """

    name: str = ""
    count: int = 0
    granularity: int = 0
    recording: bool = False
    busy: bool = False
    persistent: bool = False
    inconsistent: bool = False


def bitmaps_of(node: Mapping[str, Any]) -> tuple[Bitmap, ...]:
    """The bitmaps in one entry of ``query-named-block-nodes``."""
    return convert(node.get("dirty-bitmaps", ()), tuple[Bitmap, ...])


async def query_bitmaps(port: Port) -> dict[str, dict[str, Bitmap]]:
    """Return all bitmaps: node, then name. Nodes without any are left out (``query-named-block-nodes``)."""
    found = {node["node-name"]: bitmaps_of(node) for node in await query_block_nodes(port)}
    return {node: {bitmap.name: bitmap for bitmap in bitmaps} for node, bitmaps in found.items() if bitmaps}


async def bitmap_add(
    port: Port,
    node: str,
    name: str,
    *,
    granularity: int | None = None,
    persistent: bool = False,
    disabled: bool = False,
) -> None:
    """Note from now on what is written to a node (``block-dirty-bitmap-add``).

    :param granularity: bytes in which it is noted, a power of two; None for the size of the image's clusters, within
        4 and 64 KiB, or 64 KiB where it has none
    :param persistent: keep it in the image over QEMU's end; qcow2 only
    :param disabled: note nothing until ``bitmap_enable``
    :raises CommandError: no such node, it has such a bitmap already, or its format keeps none
    """
    await _run(port, actions.bitmap_add(node, name, granularity=granularity, persistent=persistent, disabled=disabled))


async def bitmap_remove(port: Port, node: str, name: str) -> None:
    """Remove a bitmap, from its image as well (``block-dirty-bitmap-remove``).

    :raises CommandError: no such bitmap, or it is in use
    """
    await _run(port, actions.bitmap_remove(node, name))


async def bitmap_clear(port: Port, node: str, name: str) -> None:
    """Forget what a bitmap has noted (``block-dirty-bitmap-clear``).

    :raises CommandError: no such bitmap, or it is in use
    """
    await _run(port, actions.bitmap_clear(node, name))


async def bitmap_enable(port: Port, node: str, name: str) -> None:
    """Let a bitmap note again (``block-dirty-bitmap-enable``).

    :raises CommandError: no such bitmap, or it is in use
    """
    await _run(port, actions.bitmap_enable(node, name))


async def bitmap_disable(port: Port, node: str, name: str) -> None:
    """Let a bitmap stay as it is, whatever is written (``block-dirty-bitmap-disable``).

    :raises CommandError: no such bitmap, or it is in use
    """
    await _run(port, actions.bitmap_disable(node, name))


async def bitmap_merge(port: Port, node: str, target: str, sources: Collection[BitmapSource]) -> None:
    """Add to a bitmap what others have noted: of all of them or of none (``block-dirty-bitmap-merge``).

    :param target: a bitmap of `node`
    :param sources: names of bitmaps of the same node, or ``(node, name)``
    :raises CommandError: one is not there or in use, or the disks differ in size
    """
    await _run(port, actions.bitmap_merge(node, target, sources))


async def renew_bitmaps(port: Port, node: str, names: Collection[str]) -> None:
    """Make persistent bitmaps anew with what they hold, so that their image keeps them. May be repeated.

    After a migration with ``dirty-bitmaps`` that did not happen QEMU says that they are persistent, and does not store
    them any more (7.2 and 10.0: its skip_store). Nothing that is written meanwhile is missed.

    :raises CommandError: one is in use
    """
    for name in names:
        known = (await query_bitmaps(port)).get(node, {})
        spare = name[:_SPARE_LENGTH] + _SPARE
        if spare not in known and name in known:
            await _move(port, node, known[name], spare)
            known = (await query_bitmaps(port)).get(node, {})
        if spare in known and name not in known:
            await _move(port, node, known[spare], name)


async def _move(port: Port, node: str, old: Bitmap, new: str) -> None:
    """At one moment: the new bitmap has what the old one had, which is no more."""
    steps = [
        actions.bitmap_add(node, new, granularity=old.granularity, persistent=True, disabled=not old.recording),
        actions.bitmap_merge(node, new, [old.name]),
        actions.bitmap_remove(node, old.name),
    ]
    await port.execute("transaction", {"actions": [{"type": step.type, "data": step.data} for step in steps]})


async def _run(port: Port, action: Action) -> None:
    await port.execute(action.type, action.data)


ready(Bitmap)
