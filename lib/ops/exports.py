"""Giving a machine's disks to others: QEMU's NBD server, and the exports on it."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, CommandError, MonitorTimeout, NotSupported
from ..qmp.ready import ready
from . import image
from .actions import given
from .port import Port
from .undo import Revert, Undo

# An export goes when its last request is answered; those of a client that was cut off may hang on slow storage.
DELETE_TIMEOUT: Final = 60.0
MODES: Final = ("safe", "hard")
_NAME: Final = 4096  # bytes, by the NBD specification
_FD: Final = "drover-nbd"  # what a socket is called on its way to QEMU


class BlockExport(Struct, frozen=True, kw_only=True, rename={"node": "node-name", "shutting_down": "shutting-down"}):
    """A block node that QEMU gives out.

    :ivar id: of the export
    :ivar type: how: ``nbd``, ``vhost-user-blk``, ``fuse``, ``vduse-blk``
    :ivar node: the block node
    :ivar shutting_down: it is being deleted, and waits for its last requests
    """

    id: str
    type: str
    node: str
    shutting_down: bool


async def nbd_server_start(
    port: Port,
    address: str | None = None,
    *,
    fd: int | None = None,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: int | None = None,
    handshake_seconds: int | None = None,
) -> None:
    """Let QEMU listen as an NBD server (``nbd-server-start``); it has one at most. Then add exports to it.

    :param address: any address of :mod:`drover.monitor.address`, with its port: QEMU tells nobody which one it took
    :param fd: a socket that listens, instead; so its port may be one that the host has chosen
    :param tls_creds: id of a ``tls-creds-…`` object of QEMU, for the server's end; clients without TLS are refused then
    :param tls_authz: id of an ``authz-…`` object that says which clients may
    :param max_connections: clients at a time; 0 for any number; None leaves it to QEMU: any before 9.1, then 100
    :param handshake_seconds: how long a client may take over its handshake; 0 for ever; None leaves it to QEMU, which
        takes 10 from 10.0 on (this parameter: QEMU 10.0 and later)
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NotSupported: this QEMU cannot limit the handshake
    :raises CommandError: it has a server already, or the address is taken
    """
    if (address is None) == (fd is None):
        raise ArgumentError("address", address, "either an address, or a descriptor in `fd`")
    where = {"type": "fd", "str": _FD} if address is None else port.locate(address)
    if where.get("port") == "0":
        raise ArgumentError("address", address, "with a port: QEMU does not tell which one it took")
    for field, value in (("max_connections", max_connections), ("handshake_seconds", handshake_seconds)):
        if value is not None and not 0 <= value <= 0xFFFFFFFF:
            raise ArgumentError(field, value, "a number from 0 on")
    if tls_authz is not None and tls_creds is None:
        raise ArgumentError("tls_authz", tls_authz, "only together with tls_creds")
    arguments = given(
        addr={"type": where.pop("type"), "data": where},
        tls_creds=tls_creds,
        tls_authz=tls_authz,
        max_connections=max_connections,
        handshake_max_seconds=handshake_seconds,
    )
    await _require(port, "nbd-server-start", "handshake-max-seconds", arguments)
    async with Undo(port) as undo:
        if fd is not None:
            await undo.step("getfd", {"fdname": _FD}, fd=fd, undo=Revert("closefd", {"fdname": _FD}, may_be_gone=True))
        await port.execute("nbd-server-start", arguments)
        undo.keep()


async def nbd_server_stop(port: Port) -> None:
    """Stop QEMU's NBD server (``nbd-server-stop``): its clients are cut off and its exports deleted at the return.

    :raises CommandError: it has no server
    """
    await port.execute("nbd-server-stop", timeout=DELETE_TIMEOUT)


async def query_block_exports(port: Port) -> list[BlockExport]:
    """Return what QEMU gives out (``query-block-exports``)."""
    return convert(await port.execute("query-block-exports"), list[BlockExport])


async def block_export_add(
    port: Port,
    id: str,
    node: str,
    *,
    name: str | None = None,
    description: str | None = None,
    writable: bool = False,
    writethrough: bool = False,
    bitmaps: Iterable[str | tuple[str, str]] = (),
    allocation_depth: bool = False,
    iothread: str | None = None,
    fixed_iothread: bool = False,
    allow_inactive: bool = False,
) -> BlockExport:
    """Give out a block node on the NBD server (``block-export-add``).

    :param id: for the export
    :param node: the block node; a guest may go on using it
    :param name: how clients ask for it; None for the name of `node`
    :param description: for people who ask the server what it has
    :param writable: whether clients may write
    :param writethrough: whether each write is flushed before it is answered
    :param bitmaps: dirty bitmaps that clients may read, as ``qemu:dirty-bitmap:NAME``: names of ones on `node` or what
        it stands on, or pairs of node and name
    :param allocation_depth: whether clients may ask which image of a chain holds what
    :param iothread: id of the iothread that serves it; the node moves there
    :param fixed_iothread: fail rather than follow the node when it moves to another iothread
    :param allow_inactive: leave an image inactive that another QEMU owns, instead of taking it over (QEMU 10.0 and
        later)
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NotSupported: this QEMU cannot export an image and leave it inactive
    :raises CommandError: there is no server, no such node or bitmap, or the id or the name is taken
    """
    for field, text in (("name", name), ("description", description)):
        if text is not None and len(text.encode(errors="replace")) > _NAME:
            raise ArgumentError(field, text, f"at most {_NAME} bytes")
    marks = [mark if isinstance(mark, str) else {"node": mark[0], "name": mark[1]} for mark in bitmaps]
    arguments: dict[str, Any] = {"type": "nbd", "id": id, "node-name": node, "writable": writable}
    arguments |= given(
        name=name,
        description=description,
        writethrough=writethrough or None,
        bitmaps=marks or None,
        allocation_depth=allocation_depth or None,
        iothread=iothread,
        fixed_iothread=fixed_iothread or None,
        allow_inactive=allow_inactive or None,
    )
    await _require(port, "block-export-add", "allow-inactive", arguments)
    await port.execute("block-export-add", arguments)
    return BlockExport(id=id, type="nbd", node=node, shutting_down=False)


async def block_export_del(port: Port, id: str, *, mode: str = "safe", timeout: float = DELETE_TIMEOUT) -> bool:
    """Take an export away (``block-export-del``), and wait until it has gone: then its node can be removed.

    :param mode: ``safe``: only if no client is connected; ``hard``: cut them off
    :param timeout: seconds to wait for its end
    :returns: False if there was no such export
    :raises CommandError: a client uses it, and `mode` is ``safe``
    :raises MonitorTimeout: it is being deleted, and has not gone yet
    """
    image.check_choice("mode", mode, MODES)
    mark = port.event_mark()
    try:
        await port.execute("block-export-del", {"id": id, "mode": mode})
    except CommandError:
        if await _exists(port, id):
            raise
        return False
    try:
        await port.wait_event(
            ("BLOCK_EXPORT_DELETED",), since=mark, match=lambda event: event.data.get("id") == id, timeout=timeout
        )
    except MonitorTimeout:
        if await _exists(port, id):
            raise
    return True


async def _exists(port: Port, id: str) -> bool:
    return any(export.id == id for export in await query_block_exports(port))


async def _require(port: Port, command: str, argument: str, arguments: dict[str, Any]) -> None:
    if argument in arguments and not (await port.schema()).has_argument(command, argument):
        raise NotSupported(f"{command} with {argument}", "QEMU 10.0 or later")


ready(BlockExport)
