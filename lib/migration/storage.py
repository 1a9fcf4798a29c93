"""What becomes of a machine's disks when it moves to another node: of each image, whether it is there, or has to go.

Pure: what the two nodes see goes in, what is to be done comes out, or all that is in the way. :mod:`.disks` does it.

An image to which nobody writes, as one beneath a disk, is copied as a file, once for all the disks that stand on it;
or not at all, if the other node has one with the same content. What the guest writes to is mirrored.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ..kvm.likeness import Seen
from ..kvm.spec import Spec
from ..ops.bitmaps import Bitmap
from ..ops.image import backing_node
from ..ops.mirrors import Mirror, StillFile

SECTOR: Final = 512


class How(StrEnum):
    """What becomes of an image."""

    SHARED = "shared"
    """Both nodes have it, on storage in common."""
    FOUND = "found"
    """The other node has one with the same content, and nobody writes to it."""
    COPY = "copy"
    """It is copied as a file: nobody writes to it."""
    MIRROR = "mirror"
    """It is mirrored: the guest writes to it."""


class DiskImage(Struct, frozen=True, kw_only=True):
    """An image of the machine's, as it is where the machine runs. Bytes, unless said otherwise.

    :ivar disk: the disk's id; of the first one, where several stand on it
    :ivar depth: how many images of the disk are above it
    :ivar node: its block node there
    :ivar path: there
    :ivar inode: by which its file is known there: the number of the file system, and its own
    :ivar size: as a guest sees it
    :ivar length: of the file or block device
    :ivar allocated: what it takes of its storage
    :ivar still: nobody writes to it
    :ivar device: it is a block device
    :ivar local: it is reached by a socket of the host, and so has no path
    :ivar options: how such an image is made, in qemu-img's words
    :ivar backing: what it records as its backing file, and as its format
    :ivar snapshots: names of the snapshots inside of it
    """

    disk: str
    depth: int
    node: str
    path: str
    inode: tuple[int, int]
    format: str
    size: int
    length: int
    allocated: int
    still: bool
    device: bool = False
    local: bool = False
    options: dict[str, str] = {}
    backing: tuple[str, str] | None = None
    snapshots: tuple[str, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()

    @property
    def name(self) -> str:
        """Its block node on the other node, and so of its export there."""
        return backing_node(self.disk, self.depth)


class Part(Struct, frozen=True, kw_only=True):
    """What becomes of one image.

    :ivar path: on the other node
    """

    image: DiskImage
    how: How
    path: str

    @property
    def is_made(self) -> bool:
        """Whether a file is made for it there. A block device is there already."""
        return self.how in (How.COPY, How.MIRROR) and not self.image.device


class Blocker(Struct, frozen=True):
    """Why a disk cannot go along.

    :ivar disk: its id
    :ivar text: what is in the way
    :ivar todo: what to do about it
    :ivar code: what kind of thing is in the way
    """

    disk: str
    text: str
    todo: str
    code: str = "disk"


class Plan(Struct, frozen=True, kw_only=True):
    """What becomes of all images.

    :ivar blockers: nothing may be done as long as there are any
    """

    parts: tuple[Part, ...] = ()
    blockers: tuple[Blocker, ...] = ()

    def of(self, how: How) -> list[Part]:
        """The images of which this becomes."""
        return [part for part in self.parts if part.how is how]

    @property
    def made(self) -> list[Part]:
        """The images that are made on the other node."""
        return [part for part in self.parts if part.is_made]

    @property
    def mirrors(self) -> list[Mirror]:
        """The disks that are mirrored."""
        return [Mirror(name=part.image.name, node=part.image.node) for part in self.of(How.MIRROR)]

    @property
    def copies(self) -> list[Mirror]:
        """The images that are copied as files, before the disks."""
        images = [part.image for part in self.of(How.COPY)]
        return [Mirror(name=image.name, file=StillFile(image.path, *image.inode)) for image in images]

    @property
    def size(self) -> int:
        """Bytes that go over, as far as known now."""
        return sum(part.image.allocated for part in self.parts if part.how in (How.COPY, How.MIRROR))


def to_compare(images: Iterable[DiskImage], seen: Mapping[str, Seen], paths: Mapping[str, str] = {}) -> dict[str, str]:
    """Which images the other node may have: of these both nodes take a digest (:func:`drover.kvm.likeness.digest`).

    :param seen: what that node sees, by its paths
    :param paths: where images are on the other node, where that is elsewhere
    :returns: the path there, by the path here
    """
    there = {image.path: paths.get(image.path, image.path) for image in images if image.still and not image.local}
    lengths = {image.path: image.length for image in images}
    return {
        here: path
        for here, path in there.items()
        if seen[path].kind in ("file", "device") and not seen[path].same and seen[path].length == lengths[here]
    }


def plan(
    images: Sequence[DiskImage],
    seen: Mapping[str, Seen],
    *,
    alike: Collection[str] = (),
    shared: Collection[str] = (),
    overwrite: Collection[str] = (),
    paths: Mapping[str, str] = {},
) -> Plan:
    """Decide what becomes of each image.

    :param images: those that have a place on the node where the machine runs
    :param seen: what the other node sees, by its paths
    :param alike: paths, here, of images of which the other node has one with the same digest
    :param shared: ids of disks that somebody says to be on storage in common, where it cannot be seen
    :param overwrite: ids of disks whose block devices, there, may be written over
    :param paths: where images are on the other node, where that is elsewhere
    """
    parts: list[Part] = []
    blockers: list[Blocker] = []
    for image in {image.path: image for image in reversed(images)}.values():
        path = paths.get(image.path, image.path)
        found = Seen() if image.local else seen[path]
        outcome = _decide(image, path, found, image.path in alike, image.disk in shared, image.disk in overwrite)
        if isinstance(outcome, Blocker):
            blockers.append(outcome)
            continue
        parts.append(Part(image=image, how=outcome, path=path))
        blockers += _obstacles(image, outcome)
    blockers += _no_room(parts, seen)
    return Plan(parts=tuple(reversed(parts)), blockers=tuple(blockers))


def _decide(image: DiskImage, path: str, found: Seen, alike: bool, shared: bool, overwrite: bool) -> How | Blocker:
    if found.trouble:
        text = f"{path} cannot be looked at on the other node ({found.trouble})"
        return Blocker(image.disk, text, "let the daemon there read it")
    if found.same and found.barred and not image.still:
        return Blocker(image.disk, f"{path} cannot be written to on the other node", "let the daemon there write to it")
    if shared or found.same:
        return How.SHARED
    if image.local:
        text = f"it is on an NBD server that is reached by a socket of this host, {image.path}"
        return Blocker(image.disk, text, "use an address that both nodes reach, or say that it is shared")
    if found.kind and image.still and alike:
        if found.written:
            text = f"a QEMU on the other node has {path} open to write to it"
            return Blocker(image.disk, text, "end it, or have it use another image", "lock")
        return How.FOUND
    if found.kind == "device" and image.device and not image.still and overwrite and image.format == "raw":
        if found.length == image.size:
            return How.MIRROR
        text = f"{path} has {found.length} bytes there, and {image.size} here"
        return Blocker(image.disk, text, "make it as large there as it is here")
    if image.device:
        text = f"{image.path} is a block device, and whether {path} is the same one there cannot be seen"
        return Blocker(image.disk, text, "say that it is shared, or, of a raw one, that it may be written over there")
    if found.kind:
        text = f"there is something under {path} on the other node, and it is not the same"
        return Blocker(image.disk, text, f"remove {path} there, or say that it is shared if it is")
    if not found.folder:
        return Blocker(image.disk, f"there is no folder for {path} on the other node", "make it there")
    if found.barred:
        text = f"no file can be made in the folder of {path} on the other node"
        return Blocker(image.disk, text, "let the daemon there write to it")
    return How.COPY if image.still else How.MIRROR


def _obstacles(image: DiskImage, how: How) -> list[Blocker]:
    """What an image has in it that cannot go along."""
    blockers = []
    if how is How.MIRROR and image.snapshots:
        names = ", ".join(image.snapshots)
        text = f"{image.path} has snapshots inside of it, which a mirror does not take along: {names}"
        blockers.append(Blocker(image.disk, text, "delete them, or have the image on storage in common", "snapshots"))
    busy = [bitmap.name for bitmap in image.bitmaps if bitmap.busy]
    if busy:
        text = f"a backup or an export works with bitmaps of {image.path}: {', '.join(busy)}"
        blockers.append(Blocker(image.disk, text, "wait for its end, or cancel it", "bitmaps"))
    return blockers


def _no_room(parts: Iterable[Part], seen: Mapping[str, Seen]) -> list[Blocker]:
    """File systems on which there is not enough room for what is made there: one blocker each."""
    needs: dict[int, list[Part]] = {}
    for part in parts:
        if part.is_made:
            needs.setdefault(seen[part.path].storage, []).append(part)
    blockers = []
    for made in needs.values():
        size, free = sum(part.image.allocated for part in made), seen[made[0].path].free
        if size > free:
            text = f"{made[0].path} and what else goes to its file system need {size} bytes there, and {free} are free"
            blockers.append(Blocker(made[0].image.disk, text, "make room there", "space"))
    return blockers


def internal_snapshots(images: Iterable[DiskImage]) -> dict[str, tuple[str, ...]]:
    """Names of the snapshots inside of what guests write to, by disk: a mirror does not take them along."""
    return {image.disk: image.snapshots for image in images if image.snapshots and not image.still}


def relocated(spec: Spec, plan: Plan) -> Spec:
    """The specification as it is on the other node: with the paths that its images have there."""
    paths = {part.image.path: part.path for part in plan.parts}
    disks = []
    for disk in spec.disks:
        backing = tuple(replace(image, source=paths.get(image.source, image.source)) for image in disk.backing)
        disks.append(replace(disk, source=paths.get(disk.source, disk.source), backing=backing))
    return replace(spec, disks=tuple(disks))


class Settings(Struct, frozen=True, kw_only=True):
    """What is set on one side before the migration.

    :ivar capabilities: of QEMU's, on or off
    :ivar parameters: of QEMU's
    """

    capabilities: dict[str, bool]
    parameters: dict[str, Any]


def bitmap_settings(plan: Plan) -> tuple[Settings, Settings]:
    """How the dirty bitmaps go along, in the stream of the migration: the settings of the source, and of the target.

    Those that lie in an image which both have, or which is copied as a file, are there. A migration that was begun with
    these settings and did not happen leaves bitmaps that QEMU does not store any more: see
    :func:`drover.ops.bitmaps.renew_bitmaps`.
    """
    source, target = [], []
    for part in plan.parts:
        names = [{"name": name, "alias": name} for name in streamed_bitmaps(part)]
        if names:
            alias = part.image.name
            source.append({"node-name": part.image.node, "alias": alias, "bitmaps": names})
            target.append({"node-name": alias, "alias": alias, "bitmaps": names})
    return _settings(source), _settings(target)


def streamed_bitmaps(part: Part) -> list[str]:
    """Names of an image's bitmaps that go along in the stream of the migration."""
    return [
        bitmap.name
        for bitmap in part.image.bitmaps
        if bitmap.name and not bitmap.inconsistent and (part.how is How.MIRROR or not bitmap.persistent)
    ]


def _settings(mapping: list[dict[str, Any]]) -> Settings:
    return Settings(
        capabilities={"dirty-bitmaps": bool(mapping)}, parameters={"block-bitmap-mapping": mapping} if mapping else {}
    )
