"""Disks that another QEMU fills: what the one that waits for the machine exports, until it has arrived.

The other side is :mod:`.mirrors`. Each flow may be repeated, and does what is still to be done.

A QEMU that was started with ``-incoming`` leaves its images inactive, as if another one owned them. An export takes an
image over, and all that it stands on, on 7.2 and 10.0; the disk above does not until the machine has arrived, and
``late-block-activate`` keeps the other images as they are. So images beneath come first: they are filled *as files*,
while the disk's own nodes are inactive and will read them anew; only then the disks that stand on them are exported.

The server is to be closed by :func:`close_exports`, before the client leaves: on 7.2 a client that hangs up first on an
image that is served in an I/O thread kills QEMU (assertion ``nbd_blockdev_client_closed``).
"""

import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from ..errors import CommandError
from . import image
from .exports import block_export_add, block_export_del, nbd_server_start, nbd_server_stop, query_block_exports
from .fdset import Held, add_file
from .inventory import query_block_nodes
from .port import Port
from .undo import Undo


def export_of(name: str) -> str:
    """Id of the export of this name."""
    return f"move-{name}"


def blank_of(name: str) -> str:
    """The node of an image that is filled as a file."""
    return f"{name}.-new"


async def open_server(
    port: Port,
    address: str | None = None,
    *,
    fd: int | None = None,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: int | None = None,
) -> None:
    """Have QEMU listen as :func:`.exports.nbd_server_start` does; nothing where it gives something out already.

    What listens and has no export is one of an earlier try, and is closed.

    :raises CommandError: it cannot listen there
    """
    if any(export.type == "nbd" for export in await query_block_exports(port)):
        return
    try:
        await nbd_server_stop(port)
    except CommandError:
        pass  # the rule: it has none
    await nbd_server_start(
        port, address, fd=fd, tls_creds=tls_creds, tls_authz=tls_authz, max_connections=max_connections
    )


async def export_disks(port: Port, nodes: Iterable[str]) -> None:
    """Export disks to be written to, each by the name of its node. QEMU takes the images over with that.

    :raises CommandError: QEMU refuses one; those before it stay
    """
    there = await _exports(port)
    for node in nodes:
        if export_of(node) not in there:
            await block_export_add(port, export_of(node), node, name=node, writable=True)


async def open_blanks(port: Port, files: Mapping[str, str | os.PathLike[str]]) -> None:
    """Export files to be filled; the images in them are inactive, and nothing that stands on them is exported yet.

    :param files: path of each, as long as it is to become, by the name of the export
    :raises OSError: one cannot be opened
    :raises CommandError: QEMU refuses one; those before it stay
    """
    there = await _exports(port)
    for name, path in files.items():
        if export_of(name) not in there:
            await _open_blank(port, name, os.fspath(path))


async def _open_blank(port: Port, name: str, path: str) -> None:
    node = blank_of(name)
    await _remove_node(port, node)  # of one who died in between
    with await port.offload(partial(_open, path), Held.close) as held:
        async with Undo(port) as undo:
            await add_file(port, undo, held, node, name, read_only=False)
            await block_export_add(port, export_of(name), node, name=name, writable=True)
            undo.keep()


def _open(path: str) -> Held:
    return Held(image.open_image(path, read_only=False, direct=False))


async def close_blanks(port: Port, names: Collection[str]) -> None:
    """The files are filled: take their exports away, and what stood for them; a client is cut off.

    :raises CommandError: QEMU refuses
    :raises MonitorTimeout: an export has not gone yet
    """
    for name in names:
        await block_export_del(port, export_of(name), mode="hard")
        await _remove_node(port, blank_of(name))


async def close_exports(port: Port) -> None:
    """Close the server and all its exports: before the machine runs here, and nobody else may write to its disks."""
    try:
        await nbd_server_stop(port)
    except CommandError:
        if await query_block_exports(port):
            raise


async def is_exported(port: Port, name: str) -> bool:
    """Whether there is an export of this name."""
    return export_of(name) in await _exports(port)


async def _exports(port: Port) -> set[str]:
    return {export.id for export in await query_block_exports(port)}


async def _remove_node(port: Port, node: str) -> None:
    if any(found["node-name"] == node for found in await query_block_nodes(port)):
        await port.execute("blockdev-del", {"node-name": node})
