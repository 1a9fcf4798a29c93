"""What a disk stands on: block nodes over images that we open, or over an NBD server that answered us first.

The topmost node has the disk's id, as in Ganeti. QEMU never opens a path itself, so it
needs no right to any; and our own descriptors are closed as soon as QEMU has its
copies, for an open copy would keep the image locked after QEMU's death.

Nodes are named after the disk: ``ID`` on ``ID-file``, over a chain's ``ID-back1`` on
``ID-back1-file``, and so on; ``ID-next`` for ``ID`` in a CD drive at each second medium.
So they are found again when the device has gone, and a disk must not have an id that
looks like one of them.
"""

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError, CommandError, NotSupported
from ..qmp.life import Call
from . import image
from .chain import Chain, Layer, OpenImage, open_chain
from .fdset import send_fd
from .inventory import query_block_nodes
from .nbd import Nbd, check_source, nbd_node, parse_nbd, shake_hands
from .nic import check_id
from .nodes import BlockNode, BlockTree, query_block_tree, remove_chain
from .port import Port
from .undo import Revert, Undo

# BDRV's node_name[32], with its final NUL.
_NODE_LENGTH: Final = 31
_OURS: Final = re.compile(r"(-next)?(?:-back(\d+))?(-file)?")
_LOOKS_LIKE_OURS: Final = re.compile(r".*(-file|-back\d+|-next|\.-nbd|\.-raw|\.-new)")
# What the nodes of a CD drive's medium have behind the drive's id, at each second medium.
NEXT: Final = "-next"

Source = str | os.PathLike[str] | Nbd


class Storage(Struct, frozen=True, kw_only=True):
    """What a disk stands on and how it is opened; see :func:`drover.ops.disk.hot_add_disk` for each member."""

    source: Source
    format: str = "raw"
    backing: Sequence[Layer] = ()
    read_only: bool = False
    cache: str = "none"
    discard: str = "unmap"
    aio: str = "threads"
    detect_zeroes: str = "off"

    @property
    def nbd(self) -> Nbd | None:
        """The NBD server, where it is one."""
        if isinstance(self.source, Nbd):
            return self.source
        return parse_nbd(self.source) if isinstance(self.source, str) and "://" in self.source else None

    def check(self, id: str, suffix: str = "") -> None:
        """Look at all that can be judged by itself.

        :param suffix: what the names of the nodes may have behind `id`
        :raises ArgumentError: something is wrong, or `id` cannot be a disk's
        """
        check_disk_id(id, len(self.backing), suffix)
        image.check_choice("format", self.format, image.FORMATS)
        image.check_choice("cache", self.cache, image.CACHES)
        image.check_choice("discard", self.discard, image.DISCARDS)
        image.check_choice("aio", self.aio, image.AIOS)
        image.check_choice("detect_zeroes", self.detect_zeroes, image.DETECT_ZEROES)
        if self.aio == "native" and not image.CACHES[self.cache][0]:
            raise ArgumentError("aio", self.aio, "with cache none or directsync only: it needs O_DIRECT")
        if self.detect_zeroes == "unmap" and self.discard != "unmap":
            raise ArgumentError("detect_zeroes", self.detect_zeroes, "with discard unmap only")
        if self.backing and self.format == "raw":
            raise ArgumentError("backing", len(self.backing), "only under a qcow2 image")
        if (nbd := self.nbd) is not None:
            check_source(nbd)
            if self.format != "raw":
                raise ArgumentError("format", self.format, "raw on an NBD server, whose export holds a disk")


def check_disk_id(id: str, depth: int = 0, suffix: str = "") -> None:
    """Check that a disk can have this id.

    :param depth: how many images are beneath its topmost one
    :param suffix: what the names of its nodes may have behind `id`
    :raises ArgumentError: it cannot
    """
    check_id(id)
    if _LOOKS_LIKE_OURS.fullmatch(id):
        raise ArgumentError(
            "id", id, "not with -file, -next, -backN, .-nbd, .-raw or .-new at its end: nodes of other disks are so"
        )
    most = _NODE_LENGTH - len(image.file_node(image.backing_node(suffix, depth)))
    if len(id) > most:
        raise ArgumentError("id", id, f"at most {most} characters")


class Ready:
    """Storage that was looked at and opened; nothing of it is in QEMU yet."""

    def __init__(self, port: Port, storage: Storage, chain: Chain | None) -> None:
        self._port = port
        self._storage = storage
        self._chain = chain
        self._sets: list[int] = []

    async def add(self, undo: Undo, id: str) -> None:
        """Make the nodes in QEMU, lowest first. Afterwards we hold no descriptor, and QEMU no set of them."""
        await self.make(undo, id)
        await undo.results(*self.release(undo))

    def release(self, undo: Undo) -> list[Call]:
        """Have QEMU close the sets of descriptors; what is sent is to be waited for.

        Each node has a copy of its own by now, and a set would only keep the image open. This may go behind the
        device, which the guest waits for: QEMU reads byte by byte.
        """
        calls = [undo.send("remove-fd", {"fdset-id": fdset}) for fdset in self._sets]
        self._sets.clear()
        return calls

    async def make(self, undo: Undo, id: str) -> None:
        """Make the nodes in QEMU, lowest first. Afterwards we hold no descriptor; :meth:`release` is due."""
        storage = self._storage
        common = image.common_options(read_only=storage.read_only, cache=storage.cache, discard=storage.discard)
        if (nbd := storage.nbd) is not None:
            await _add_node(undo, nbd_node(self._port, image.file_node(id), nbd, common))
            await _add_node(undo, image.format_node(id, storage.format, common, storage.detect_zeroes))
            return
        assert self._chain is not None
        for depth, opened in reversed(list(enumerate(self._chain.images))):
            await self._add_image(undo, id, depth, opened)

    async def _add_image(self, undo: Undo, id: str, depth: int, opened: OpenImage) -> None:
        storage = self._storage
        added, fdset = send_fd(undo, opened.held, id)
        protocol, node = image.block_nodes(
            image.backing_node(id, depth),
            opened.format,
            opened.driver,
            f"/dev/fdset/{fdset}",
            read_only=storage.read_only or depth > 0,
            cache=storage.cache,
            discard=storage.discard,
            aio=storage.aio,
            detect_zeroes="off" if depth else storage.detect_zeroes,
            backing=image.backing_node(id, depth + 1) if depth < len(storage.backing) else None,
        )
        if opened.held.fd >= 0:  # it waits for its turn, and must be closed before QEMU uses its own
            await undo.results(added)
            opened.held.close()
        self._sets.append(fdset)
        # each is refused where the one before it was
        await undo.results(added, _send_node(undo, protocol), _send_node(undo, node))


@asynccontextmanager
async def opened(port: Port, storage: Storage) -> AsyncIterator[Ready]:
    """Open the files, or ask the server; what is still open of ours at the end of the block is closed.

    :raises ArgumentError: an image is of no use
    :raises OSError: an image cannot be opened
    :raises NbdError: the server is of no use
    """
    if (nbd := storage.nbd) is not None:
        await shake_hands(port, nbd, read_only=storage.read_only)
        yield Ready(port, storage, None)
        return
    assert not isinstance(storage.source, Nbd)
    layers = [Layer(storage.source, storage.format), *storage.backing]
    opening = partial(open_chain, layers, read_only=storage.read_only, cache=storage.cache)
    with await port.offload(opening, Chain.close) as chain:
        yield Ready(port, storage, chain)


async def _add_node(undo: Undo, node: dict[str, Any]) -> None:
    await undo.results(_send_node(undo, node))


def _send_node(undo: Undo, node: dict[str, Any]) -> Call:
    return undo.send("blockdev-add", node, undo=Revert("blockdev-del", {"node-name": node["node-name"]}))


# -- away again ------------------------------------------------------------------------------------------------------


def own_nodes(id: str, nodes: Sequence[str]) -> list[str]:
    """Which of `nodes` are named after the disk, topmost first."""
    found = {name: _OURS.fullmatch(name[len(id) :]) for name in nodes if name.startswith(id)}
    ranks = {name: (bool(match[1]), int(match[2] or 0), bool(match[3])) for name, match in found.items() if match}
    return sorted(ranks, key=ranks.__getitem__)


async def find_top(port: Port, id: str) -> str | None:
    """The topmost node of a disk whose device has gone: the nodes are all that is left of it."""
    ours = own_nodes(id, await _names(port))
    if not ours:
        return None
    try:
        tree = await query_block_tree(port)
    except NotSupported:
        return ours[0]
    return _climb(tree, tree.nodes[ours[0]]).name if ours[0] in tree.nodes else None


def _climb(tree: BlockTree, node: BlockNode) -> BlockNode:
    """To the snapshots that were taken of it; not to what is used, or not by it alone."""
    while len(above := tree.parents(node.name)) == 1 and not (above[0].devices or above[0].exports):
        node = above[0]
    return node


async def remove_nodes(port: Port, id: str, top: str | None) -> bool:
    """Remove the nodes of a disk that no device uses any more. May be repeated until it goes well.

    :param top: the topmost one; after a snapshot it is not named after the disk
    :returns: whether there were any
    :raises CommandError: one is in use
    """
    names = await _names(port)
    ours = own_nodes(id, names)
    foreign = top is not None and top in names and top not in ours
    if foreign:
        await remove_chain(port, str(top))
        ours = own_nodes(id, await _names(port))
    for node in ours:
        await _remove_node(port, node)
    return foreign or bool(ours)


async def remove_medium(port: Port, name: str) -> None:
    """Remove the nodes of a CD drive's medium that nothing uses, if there are any.

    :param name: the drive's id, or that with :data:`NEXT` behind it; only these nodes, not those of the other one
    """
    for node in own_nodes(name, await _names(port)):
        if not node.startswith(name + NEXT):
            await _remove_node(port, node)


async def _remove_node(port: Port, node: str) -> None:
    try:
        await port.execute("blockdev-del", {"node-name": node})
    except CommandError:
        # a file's node that was made within the disk's goes with it
        if node in await _names(port):
            raise


async def _names(port: Port) -> list[str]:
    return [node["node-name"] for node in await query_block_nodes(port)]
