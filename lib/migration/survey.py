"""What the disks of a machine that runs are made of, and what of it another node has: two looks before :mod:`.storage`
plans."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ..errors import ArgumentError
from ..kvm.images import image_info
from ..kvm.likeness import Seen, see
from ..kvm.spec import Disk
from ..ops.nodes import BlockNode, query_block_tree
from ..ops.port import Port
from .storage import SECTOR, DiskImage

# What may be between a disk's device and its image, or between two images.
_FILTERS: Final = frozenset(
    {"throttle", "copy-on-read", "mirror_top", "copy-before-write", "commit_top", "preallocate"}
)
_SOCKET: Final = "nbd+unix:"

_File = tuple[int, int]


async def survey(port: Port, disks: Sequence[Disk], pid: int) -> list[DiskImage]:
    """Return the images of a machine's disks that have their place on this host, topmost first.

    :param port: of the QEMU that runs it
    :param disks: as the machine has them now
    :param pid: of the QEMU
    :raises ArgumentError: a disk is not as it is said to be, or under an image's name there is not what QEMU has open
    :raises OSError: an image cannot be looked at
    """
    if not any(disk.source for disk in disks):
        return []
    tree = await query_block_tree(port)
    opened = await port.offload(partial(_opened_by, pid))
    found: list[DiskImage] = []
    for number, disk in enumerate(disks):
        if not disk.source:
            continue
        said = [(disk.source, str(disk.format)), *((image.source, image.format) for image in disk.backing)]
        top = tree.of_device(disk.id)
        chain = _chain(top) if top is not None else []
        if disk.local and [node.driver for node in chain] != [name for _, name in said]:
            there = " on ".join(node.driver for node in chain) or "nothing"
            allowed = f"a disk that is as its specification says: in QEMU there is {there}"
            raise ArgumentError(f"disks[{number}].id", disk.id, allowed)
        for depth, (node, (path, _)) in enumerate(zip(chain, said, strict=False)):
            if path.startswith(("/", _SOCKET)):
                below = said[depth + 1][1] if depth + 1 < len(said) else None
                look = partial(_image, disk, depth, node, path, below, opened)
                found.append(await port.offload(look))
    return found


def _opened_by(pid: int) -> frozenset[_File]:
    """The files that a process has open."""
    found = set()
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found.add(_file_of(os.stat(f"{folder}/{name}")))
    return frozenset(found)


def _file_of(status: os.stat_result) -> _File:
    """By what a file is known; a block device, which has many names, by its number."""
    if stat.S_ISBLK(status.st_mode):
        return 0, status.st_rdev
    return status.st_dev, status.st_ino


def _chain(top: BlockNode) -> list[BlockNode]:
    """The images of a disk, topmost first, without what is between them."""
    chain = []
    node: BlockNode | None = top
    while node is not None:
        if node.driver in _FILTERS:
            node = node.children.get("file") or node.backing
        else:
            chain.append(node)
            node = node.backing
    return chain


def _image(
    disk: Disk,
    depth: int,
    node: BlockNode,
    path: str,
    below: str | None,
    opened: frozenset[_File],
) -> DiskImage:
    still = depth > 0 or disk.read_only or disk.cdrom
    if not path.startswith("/"):
        return DiskImage(
            disk=disk.id, depth=depth, node=node.name, path=path, inode=(0, 0), format="raw", size=node.size,
            length=node.size, allocated=0, still=still, local=True, bitmaps=node.bitmaps,
        )  # fmt: skip
    if (inode := _file_of(os.stat(path))) not in opened:
        raise ArgumentError("path", path, "the image that QEMU has open: another one was put in its place")
    info = image_info(path, node.driver)
    return DiskImage(
        disk=disk.id, depth=depth, node=node.name, path=path, inode=inode, format=info.format,
        size=-(-info.size // SECTOR) * SECTOR, length=info.length,
        allocated=info.length if info.allocated is None else info.allocated, still=still,
        device=info.allocated is None, options=info.options,
        backing=(info.backing_file, below) if info.backing_file is not None and below is not None else None,
        snapshots=node.snapshots, bitmaps=node.bitmaps,
    )  # fmt: skip


def look(images: Iterable[DiskImage], marks: Mapping[str, int], paths: Mapping[str, str] = {}) -> dict[str, Seen]:
    """Tell what is on this node, which is the other one, under the paths of these images.

    :param marks: as :func:`drover.kvm.likeness.marked` has them where the machine runs, by the paths there
    :param paths: where images are here, where that is elsewhere
    :returns: by the paths here
    """
    there = [image.path for image in images if not image.local]
    return {(path := paths.get(here, here)): _seen(path, marks.get(here)) for here in there}


def _seen(path: str, mark: int | None) -> Seen:
    try:
        return see(path, mark)
    except OSError as error:
        return Seen(kind="other", trouble=error.strerror or str(error))
