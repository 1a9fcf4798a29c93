"""Snapshots, of several disks at one moment: transactions, overlays, and snapshots inside of qcow2 images."""

import fcntl
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, MonitorTimeout, NotSupported
from ..qmp.ready import ready
from . import actions, image
from .actions import Action, check_known, job_name
from .blockjobs import blockdev_create
from .fdset import Held, add_fd
from .inventory import query_block_nodes
from .jobs import Job, wait_job
from .nic import check_id
from .nodes import COW_FORMATS
from .port import Port
from .undo import Revert, Stays, Undo

# A node name is shorter than this (BDRV's node_name[32]), and the overlay's file node has "-file" more.
_NAME_LENGTH: Final = 26
# QEMU keeps no more of a tag (QEMUSnapshotInfo.name).
_TAG_LENGTH: Final = 255
_FDSET: Final = "/dev/fdset/"


async def transaction(port: Port, *steps: Action, grouped: bool = False) -> None:
    """Do several things to the block nodes at one moment, all of them or none (``transaction``).

    Jobs that it begins go on after it, and each is waited for by ``wait_job``.

    :param steps: made by the functions of :mod:`drover.ops.actions`
    :param grouped: if one of the jobs fails or is cancelled, so are the others, and none of them counts
    :raises CommandError: QEMU refuses one; none happened
    :raises NotSupported: this QEMU lacks one, or an option of it
    """
    if not steps:
        raise ArgumentError("steps", steps, "one action or more")
    schema = await port.schema()
    known = schema.values("transaction", "actions.type")
    for step in steps:
        if step.type not in known:
            raise NotSupported(f"{step.type} in a transaction")
        check_known(schema, step.type, step.data)
    arguments: dict[str, Any] = {"actions": [{"type": step.type, "data": step.data} for step in steps]}
    if grouped:
        arguments["properties"] = {"completion-mode": "grouped"}
    await port.execute("transaction", arguments)


# -- overlays --------------------------------------------------------------------------------------------------------


class Overlay(Struct, frozen=True, kw_only=True):
    """A new image that takes what is written to a disk from a snapshot on.

    :ivar node: the disk's topmost node now
    :ivar name: of the overlay's node
    :ivar path: of the new image, a qcow2 file; nothing may be there
    :ivar backing_file: what the new image records as its backing file; None for the file name that QEMU knows, which
        it does not where the image came as a descriptor (as from ``hot_add_disk``)
    :ivar backing_format: the same for the format; None for that of the node
    """

    node: str
    name: str
    path: str
    backing_file: str | None = None
    backing_format: str | None = None


async def snapshot_disks(port: Port, *overlays: Overlay, timeout: float | None = None) -> None:
    """Keep disks as they are at one moment: what is written from then on goes to new images.

    Of all of the disks or of none. The images are made here, and QEMU gets them as
    descriptors, so it needs no right to their paths. They are opened as the disks'
    own are: cached or not. If it fails, or is cancelled before the moment of the
    snapshot, the images are removed again; after it, all stays, and the error's notes
    say so. When the connection ends meanwhile, nobody knows, and the images stay.

    ``block_commit`` of the overlay takes the snapshot back and keeps what was written since.

    :param overlays: one for each disk
    :param timeout: seconds to make each image
    :raises ArgumentError: a disk is not there, or its image's name is not known; nothing was touched
    :raises OSError: an image cannot be made, as where there is a file already
    :raises CommandError: QEMU refuses a step
    """
    if not overlays:
        raise ArgumentError("overlays", overlays, "one disk or more")
    nodes = {node["node-name"]: node for node in await query_block_nodes(port)}
    backings = [_backing(overlay, nodes) for overlay in overlays]
    _check_names([name for overlay in overlays for name in (overlay.name, image.file_node(overlay.name))], nodes)
    steps = [actions.snapshot(overlay.node, overlay.name) for overlay in overlays]
    async with Undo(port) as undo:
        for overlay, backing in zip(overlays, backings, strict=True):
            await _open_overlay(port, undo, overlay, nodes[overlay.node], backing, timeout)
        arguments = {"actions": [{"type": step.type, "data": step.data} for step in steps]}
        try:
            await undo.step("transaction", arguments, undo=lambda _: _stays(overlays))
        except MonitorTimeout:
            if not await _taken(port, overlays):
                raise
        undo.keep()


def _backing(overlay: Overlay, nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the new image records of the one beneath it."""
    check_id(overlay.name)
    if len(overlay.name) > _NAME_LENGTH:
        raise ArgumentError("name", overlay.name, f"at most {_NAME_LENGTH} characters")
    if overlay.node not in nodes:
        raise ArgumentError("node", overlay.node, "the name of a block node")
    node = nodes[overlay.node]
    file = overlay.backing_file or node["file"]
    if overlay.backing_file is None and (file.startswith(_FDSET) or not file.startswith("/")):
        raise ArgumentError("backing_file", None, f"the path of the image of '{overlay.node}': QEMU has it as '{file}'")
    backing_format = overlay.backing_format or node["drv"]
    if backing_format not in (*image.FORMATS, *COW_FORMATS):
        raise ArgumentError("backing_format", overlay.backing_format, f"a format: '{backing_format}' is none")
    return {"backing-file": file, "backing-fmt": backing_format}


def _check_names(names: Sequence[str], nodes: Collection[str]) -> None:
    """None may be there yet: at an undo, a node of such a name must be ours."""
    for position, name in enumerate(names):
        if name in nodes or name in names[:position]:
            raise ArgumentError("name", name, "a name that no node has")


async def _open_overlay(
    port: Port,
    undo: Undo,
    overlay: Overlay,
    disk: Mapping[str, Any],
    backing: dict[str, str],
    timeout: float | None,
) -> None:
    file, cache = image.file_node(overlay.name), {name: disk["cache"][name] for name in ("direct", "no-flush")}
    held = await port.offload(partial(_make, overlay.path, cache["direct"]), partial(_discard, overlay.path))
    try:
        undo.remember(f"making {overlay.path}", lambda: _remove(port, overlay.path, file))
        fdset = await add_fd(undo, held, overlay.name)
    finally:
        held.close()
    common = {"cache": cache, "discard": "unmap"}
    protocol = {"driver": "file", "node-name": file, "filename": f"{_FDSET}{fdset}", **common}
    await undo.step("blockdev-add", protocol, undo=Revert("blockdev-del", {"node-name": file}))
    await port.execute("remove-fd", {"fdset-id": fdset})
    options = {"driver": "qcow2", "file": file, "size": disk["image"]["virtual-size"], **backing}
    job = job_name("create", overlay.name, None)
    await blockdev_create(port, options, job_id=job, timeout=timeout, cancel_on_leave=True)
    node = {"driver": "qcow2", "node-name": overlay.name, "file": file, "backing": None, **common}
    await undo.step("blockdev-add", node, undo=Revert("blockdev-del", {"node-name": overlay.name}))


def _make(path: str, direct: bool) -> Held:
    held = Held(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        if direct:  # only now: where O_DIRECT is refused, a file would be made all the same
            fcntl.fcntl(held.fd, fcntl.F_SETFL, fcntl.fcntl(held.fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        _discard(path, held)
        raise ArgumentError("path", path, "on a file system with O_DIRECT, as the disk is opened so") from error
    return held


def _discard(path: str, held: Held) -> None:
    held.close()
    os.unlink(path)


async def _remove(port: Port, path: str, node: str) -> None:
    """Remove an image that QEMU does not have open; as long as nobody can say that, it may be in use."""
    if any(it["node-name"] == node for it in await query_block_nodes(port)):
        raise Stays(f"'{node}' has {path} open")
    await port.offload(partial(os.unlink, path))


async def _taken(port: Port, overlays: Sequence[Overlay]) -> bool:
    """Whether the overlays stand on something. QEMU works in order: as it answers this, the transaction is through."""
    nodes = {node["node-name"]: node for node in await query_block_nodes(port)}
    return all("backing_file" in nodes.get(overlay.name, ()) for overlay in overlays)


async def _stays(overlays: Sequence[Overlay]) -> None:
    raise Stays(f"the snapshot was taken: the disks now write to {', '.join(it.name for it in overlays)}")


# -- inside of images ------------------------------------------------------------------------------------------------


class SnapshotInfo(Struct, frozen=True, rename="kebab"):
    """A snapshot inside of an image.

    :ivar name: its tag
    :ivar vm_state_size: bytes of the machine's state with it; 0 where only the disk was kept
    :ivar date_sec: when it was taken, in seconds since 1970
    :ivar vm_clock_sec: how long the guest had run then
    """

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int


async def query_snapshots(port: Port) -> dict[str, list[SnapshotInfo]]:
    """Return the snapshots inside of images, by node (``query-named-block-nodes``)."""
    found = {node["node-name"]: node["image"].get("snapshots", ()) for node in await query_block_nodes(port)}
    return {node: convert(infos, list[SnapshotInfo]) for node, infos in found.items() if infos}


async def internal_snapshot(port: Port, device: str, name: str) -> None:
    """Keep what a disk holds now inside of its qcow2 image (``blockdev-snapshot-internal-sync``).

    :param device: the disk's device, or the root node under it
    :raises CommandError: it is no such image, or has a snapshot of this name
    """
    await port.execute("blockdev-snapshot-internal-sync", {"device": device, "name": _check_tag(name)})


async def delete_internal_snapshot(port: Port, device: str, name: str) -> SnapshotInfo:
    """Remove a snapshot from inside of one image (``blockdev-snapshot-delete-internal-sync``).

    :param device: the disk's device, or the root node under it
    :raises CommandError: there is no such snapshot
    """
    info = await port.execute("blockdev-snapshot-delete-internal-sync", {"device": device, "name": name})
    return convert(info, SnapshotInfo)


async def snapshot_save(
    port: Port, tag: str, devices: Collection[str], *, vmstate: str | None = None, timeout: float | None = None
) -> Job:
    """Keep the whole machine, memory and disks, inside of its qcow2 images (``snapshot-save``, QEMU 6.0 and later).

    The guest stands still meanwhile, and QEMU's monitor does not answer.

    :param devices: nodes of the disks
    :param vmstate: node of the image that takes the machine's state; None for the first of `devices`
    :param timeout: seconds; the job goes on after it, and ``wait_job("snapshot-save")`` tells its end
    :raises JobFailed: it failed; ``desc`` says why
    """
    return await _whole_machine(port, "snapshot-save", tag, devices, vmstate, timeout)


async def snapshot_load(
    port: Port, tag: str, devices: Collection[str], *, vmstate: str | None = None, timeout: float | None = None
) -> Job:
    """Take the whole machine back to what it was (``snapshot-load``, QEMU 6.0 and later). It runs on if it ran.

    :param devices: nodes of the disks
    :param vmstate: node of the image that has the machine's state; None for the first of `devices`
    :param timeout: seconds; the job goes on after it
    :raises ArgumentError: a disk has no such snapshot; nothing was touched. QEMU itself would stop the machine first
    :raises JobFailed: it failed; the machine may be stopped
    """
    known = await query_snapshots(port)
    for node in dict.fromkeys([*devices, *([vmstate] if vmstate else [])]):
        if not any(info.name == tag for info in known.get(node, ())):
            raise ArgumentError("tag", tag, f"a snapshot that '{node}' has")
    return await _whole_machine(port, "snapshot-load", tag, devices, vmstate, timeout)


async def snapshot_delete(port: Port, tag: str, devices: Collection[str], *, timeout: float | None = None) -> Job:
    """Remove a snapshot from inside of several images (``snapshot-delete``, QEMU 6.0 and later).

    May be repeated: an image without it is left as it is.

    :param devices: nodes of the disks
    :param timeout: seconds; the job goes on after it
    :raises JobFailed: it failed; ``desc`` says why
    """
    return await _whole_machine(port, "snapshot-delete", tag, devices, None, timeout)


async def _whole_machine(
    port: Port, command: str, tag: str, devices: Collection[str], vmstate: str | None, timeout: float | None
) -> Job:
    if not devices or isinstance(devices, str):
        raise ArgumentError("devices", devices, "names of one node or more")
    if command not in await port.supported_commands():
        raise NotSupported(command, "QEMU 6.0 or later")
    nodes = list(devices)
    arguments: dict[str, Any] = {"job-id": command, "tag": _check_tag(tag), "devices": nodes}
    if command != "snapshot-delete":
        arguments["vmstate"] = vmstate or nodes[0]
    mark = port.event_mark()
    deadline = None if timeout is None else port.now() + timeout
    # QEMU does the work before it answers, and nothing else meanwhile.
    await port.execute(command, arguments, timeout=timeout)
    left = None if deadline is None else max(0.0, deadline - port.now())
    return await wait_job(port, command, since=mark, timeout=left)


def _check_tag(tag: str) -> str:
    if not 0 < len(tag.encode()) <= _TAG_LENGTH:
        raise ArgumentError("tag", tag, f"1 to {_TAG_LENGTH} bytes")
    return tag


ready(SnapshotInfo)
