"""Disks that an NBD server keeps: never told to QEMU before the server has answered us.

QEMU opens an NBD server from its main loop. One that takes the call and stays silent (stopped, hung, or
cut off) blocks all of QEMU in ``blockdev-add``, where neither ``open-timeout`` nor ``yank`` helps (7.2 and
10.0). So we shake hands with it first, under a deadline. What it does after that nobody can promise: a
node that hangs later is freed by :func:`~drover.ops.rescue.yank`. A QEMU that dials its own server waits for
itself and is lost; that is seen over unix sockets alone.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from ..errors import ArgumentError, ConnectError, MonitorTimeout, NbdError, NbdRefused, NbdTimeout, NbdUnreachable
from ..qmp.nbd import MAX_NAME, NbdExport, NbdProbe
from . import image
from .inventory import query_block_nodes
from .nic import check_id
from .port import Port
from .undo import Revert, Undo

# A server answers within a round trip; a storage host under load may take seconds to accept.
HANDSHAKE_TIMEOUT: Final = 10.0
DEFAULT_PORT: Final = 10809  # IANA's for NBD
_ID_LENGTH: Final = 31  # BDRV's node_name[32]
_MAX_DELAY: Final = 0xFFFFFFFF  # a uint32 in QEMU


class Nbd(Struct, frozen=True, kw_only=True):
    """An export of an NBD server, for a node or a disk to stand on.

    :ivar address: any address of :mod:`drover.monitor.address`, such as ``unix:PATH`` or ``HOST:PORT``
    :ivar export: the export's name; empty for the server's default
    :ivar tls_creds: id of a ``tls-creds-…`` object of QEMU, for the client's end
    :ivar tls_hostname: whom the server's certificate must name, if not the host of `address` (QEMU 7.0 and later)
    :ivar reconnect_delay: seconds for which requests wait for a lost server to come back before they fail
    """

    address: str
    export: str = ""
    tls_creds: str | None = None
    tls_hostname: str | None = None
    reconnect_delay: int = 0


def parse_nbd(uri: str) -> Nbd:
    """Read an address as ``nbd://HOST:PORT/EXPORT`` or ``nbd+unix:///EXPORT?socket=PATH``.

    :raises ArgumentError: it is neither
    """
    try:
        parts = urlsplit(uri)
        export = unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd" and parts.hostname and not parts.query and not parts.fragment:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else f"tcp:{parts.hostname}"
            return Nbd(address=f"{host}:{parts.port or DEFAULT_PORT}", export=export)
        if parts.scheme == "nbd+unix" and not parts.netloc and not parts.fragment:
            ((name, path),) = parse_qsl(parts.query, strict_parsing=True)
            if name == "socket":
                return Nbd(address=f"unix:{path}", export=export)
    except ValueError:
        pass  # the host is no address, the port no number, or there are more words than the one
    raise ArgumentError("source", uri, "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")


class NbdNode(Struct, frozen=True, kw_only=True):
    """A block node on an NBD server.

    :ivar node: its name: what a device, a mirror, a backup and ``yank`` take
    :ivar size: in bytes
    :ivar export: what the server told in the handshake
    """

    node: str
    size: int
    export: NbdExport


async def check_nbd_server(
    port: Port, address: str, export: str = "", *, tls: bool = False, timeout: float = HANDSHAKE_TIMEOUT
) -> NbdExport:
    """Do an NBD server's handshake ourselves: is it there, does it answer, has it this export?

    It leaves before data would flow, so that the server does not count it as a client.

    :param address: any address of :mod:`drover.monitor.address`, such as ``unix:PATH`` or ``HOST:PORT``
    :param export: the export's name; empty for the server's default
    :param tls: whether it will be used over TLS; then only that the server has TLS is checked
    :param timeout: seconds for all of it
    :raises NbdUnreachable: nobody listens there
    :raises NbdTimeout: it is silent: QEMU would hang
    :raises NbdRefused: it has no such export, or asks for TLS, or has none
    :raises NbdError: it does not speak NBD, or hung up
    """
    return (await _probe(port, address, export, tls, timeout))[0]


async def _probe(port: Port, address: str, export: str, tls: bool, timeout: float) -> tuple[NbdExport, bool]:
    """The export, and whether it is this QEMU's own."""
    _check_export(export)
    probe = NbdProbe(address, export, tls)
    try:
        is_own = await port.converse(address, probe, timeout)
    except MonitorTimeout as error:
        raise NbdTimeout(address, timeout) from error
    except ConnectError as error:
        raise NbdUnreachable(address, error.reason) from error
    return probe.outcome(), is_own


async def _check_for_qemu(port: Port, address: str, export: str, tls: bool, timeout: float) -> NbdExport:
    found, is_own = await _probe(port, address, export, tls, timeout)
    if is_own:
        raise NbdError(address, "this QEMU's own server: it would wait for itself, for ever")
    return found


async def check_nbd_nodes(port: Port, options: Mapping[str, Any], timeout: float = HANDSHAKE_TIMEOUT) -> None:
    """Check each NBD server that ``blockdev-add`` with `options` would make QEMU dial.

    One that is given as a descriptor (``"type": "fd"``) is QEMU's already, and cannot be checked.

    :param timeout: seconds for each
    :raises NbdError: one is of no use
    """
    address = _address_of(options.get("server")) if options.get("driver") == "nbd" else None
    if address is not None:
        await _check_for_qemu(port, address, options.get("export", ""), "tls-creds" in options, timeout)
    for child in options.values():
        if isinstance(child, Mapping):
            await check_nbd_nodes(port, child, timeout)


def _address_of(server: object) -> str | None:
    """QEMU's type ``SocketAddress`` as an address of ours; None for a descriptor, or what QEMU will refuse itself."""
    match server:
        case {"type": "unix", "path": str(path), "abstract": True}:
            return f"@{path}"
        case {"type": "unix", "path": str(path)}:
            return f"unix:{path}"
        case {"type": "inet", "host": str(host), "port": port}:
            return f"[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        case {"type": "vsock", "cid": cid, "port": port}:
            return f"vsock:{cid}:{port}"
    return None


async def blockdev_add_nbd(
    port: Port,
    id: str,
    address: str,
    export: str = "",
    *,
    read_only: bool = False,
    cache: str = "none",
    discard: str = "unmap",
    tls_creds: str | None = None,
    tls_hostname: str | None = None,
    reconnect_delay: int = 0,
    timeout: float = HANDSHAKE_TIMEOUT,
) -> NbdNode:
    """Open an NBD server's export as a block node (``blockdev-add``), after :func:`check_nbd_server`.

    The node is raw: the export holds a disk, and not a format. Take it away by ``blockdev_del``.

    :param id: name of the node
    :param address: any address of :mod:`drover.monitor.address`; QEMU must reach it as well
    :param export: the export's name; empty for the server's default
    :param read_only: whether it is opened so; needed for an export that is
    :param cache: ``none``, ``writeback``, ``writethrough``, ``directsync`` or ``unsafe``
    :param discard: whether discards reach the server: ``unmap`` or ``ignore``
    :param tls_creds: id of a ``tls-creds-…`` object of QEMU, for the client's end
    :param tls_hostname: whom the server's certificate must name, if not the host of `address` (QEMU 7.0 and later)
    :param reconnect_delay: seconds for which requests wait for a lost server to come back before they fail
    :param timeout: seconds for the handshake
    :returns: the node, and what the server told of it
    :raises ArgumentError: an argument is wrong; nothing was touched
    :raises NbdError: the server is of no use; QEMU was not told of it
    :raises CommandError: QEMU refused
    """
    source = Nbd(
        address=address,
        export=export,
        tls_creds=tls_creds,
        tls_hostname=tls_hostname,
        reconnect_delay=reconnect_delay,
    )
    check_id(id)
    if len(id) > _ID_LENGTH:
        raise ArgumentError("id", id, f"at most {_ID_LENGTH} characters")
    image.check_choice("cache", cache, image.CACHES)
    image.check_choice("discard", discard, image.DISCARDS)
    check_source(source)
    common = image.common_options(read_only=read_only, cache=cache, discard=discard)
    node = nbd_node(port, id, source, common)
    found = await shake_hands(port, source, read_only=read_only, timeout=timeout)
    with port.reservations.name(id):
        async with Undo(port) as undo:
            await undo.step("blockdev-add", node, undo=Revert("blockdev-del", {"node-name": id}))
            size = await _size(port, id)
            undo.keep()
    return NbdNode(node=id, size=size, export=found)


async def shake_hands(port: Port, source: Nbd, *, read_only: bool, timeout: float = HANDSHAKE_TIMEOUT) -> NbdExport:
    """Ask the server whether QEMU may dial it, and open this export so.

    :param timeout: seconds for all of it
    :raises NbdError: the server is of no use; QEMU was not told of it
    """
    found = await _check_for_qemu(port, source.address, source.export, source.tls_creds is not None, timeout)
    if found.read_only and not read_only:
        raise NbdRefused(source.address, source.export, "read-only", "open it with read_only=True")
    return found


def nbd_node(port: Port, node: str, source: Nbd, common: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``blockdev-add`` for a node on the server; it may be dialled after :func:`shake_hands` only."""
    options: dict[str, Any] = {
        "driver": "nbd",
        "node-name": node,
        "server": port.locate(source.address),
        "export": source.export,
    }
    options |= {"reconnect-delay": source.reconnect_delay, **common}
    options |= {"tls-creds": source.tls_creds} if source.tls_creds is not None else {}
    options |= {"tls-hostname": source.tls_hostname} if source.tls_hostname is not None else {}
    return options


def check_source(source: Nbd) -> None:
    """Look at all but the server itself.

    :raises ArgumentError: something is wrong
    """
    _check_export(source.export)
    if source.tls_hostname is not None and source.tls_creds is None:
        raise ArgumentError("tls_hostname", source.tls_hostname, "only together with tls_creds")
    if not 0 <= source.reconnect_delay <= _MAX_DELAY:
        raise ArgumentError("reconnect_delay", source.reconnect_delay, f"seconds, from 0 to {_MAX_DELAY}")


def _check_export(export: str) -> None:
    try:
        fits = len(export.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ArgumentError("export", export, f"at most {MAX_NAME} bytes of UTF-8")


async def _size(port: Port, node: str) -> int:
    size: int = next(
        info["image"]["virtual-size"] for info in await query_block_nodes(port) if info["node-name"] == node
    )
    return size
