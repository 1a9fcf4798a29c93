"""Displays: a picture of the screen, and who may look at it by VNC or SPICE."""

import os
import re
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, NotSupported, ProtocolError
from ..qmp.ready import ready
from ..qmp.redact import HIDDEN
from .fdset import Held, add_fd
from .image import check_choice
from .port import Port
from .undo import Revert, Undo

PROTOCOLS: Final = ("vnc", "spice")
FORMATS: Final = ("png", "ppm")
CONNECTED: Final = ("keep", "fail", "disconnect")
# Bytes: the key of the DES that VNC's own authentication is; what is beyond is not even compared.
VNC_PASSWORD: Final = 8
_FDNAME: Final = "drover-client"
_READ: Final = 1 << 20
_PPM: Final = re.compile(rb"P6\n(\d+) (\d+)\n255\n")
_EFFORT: Final = 3  # of zlib, from 1 to 9: a screen shrinks well at once


class VncClient(Struct, frozen=True, kw_only=True):
    """Somebody who looks, or may.

    :ivar host: address, or empty for a unix socket; `service`: port, or the socket's path
    :ivar x509_dname: whose certificate was shown; `sasl_username`: who logged in
    """

    host: str
    service: str
    family: str
    websocket: bool = False
    x509_dname: str = ""
    sasl_username: str = ""


class VncSocket(Struct, frozen=True, kw_only=True):
    """Where a VNC server listens; `auth` is how a client there must show who it is."""

    host: str
    service: str
    family: str
    auth: str
    websocket: bool = False
    vencrypt: str = ""


class VncServer(Struct, frozen=True, kw_only=True):
    """A VNC server of the machine; `display` is the device whose picture it shows, if it is not the first one."""

    id: str
    auth: str
    server: tuple[VncSocket, ...] = ()
    clients: tuple[VncClient, ...] = ()
    vencrypt: str = ""
    display: str = ""


class SpiceInfo(Struct, frozen=True, kw_only=True, rename="kebab"):
    """The SPICE server; ports are None where it does not listen on one."""

    enabled: bool
    migrated: bool = False
    host: str = ""
    port: int | None = None
    tls_port: int | None = None
    auth: str = ""
    compiled_version: str = ""
    mouse_mode: str = ""
    channels: tuple[dict[str, Any], ...] = ()


async def query_vnc(port: Port) -> list[VncServer]:
    """Return the VNC servers and who is connected (``query-vnc-servers``)."""
    await _require(port, "query-vnc-servers", "VNC")
    return convert(await port.execute("query-vnc-servers"), list[VncServer])


async def query_spice(port: Port) -> SpiceInfo:
    """Return the SPICE server and its channels (``query-spice``).

    :raises NotSupported: this QEMU was built without SPICE, or its module is not installed
    """
    await _require(port, "query-spice", "SPICE")
    return convert(await port.execute("query-spice"), SpiceInfo)


async def _require(port: Port, command: str, what: str) -> None:
    if command not in await port.supported_commands():
        raise NotSupported(what, f"a QEMU built with {what}")


# -- passwords -------------------------------------------------------------------------------------------------------


async def set_password(
    port: Port, protocol: str, password: str, *, connected: str = "keep", display: str | None = None
) -> None:
    """Set the password that new clients must give (``set_password``). It never reaches a log.

    It stays until it is set anew, or its time runs out: :func:`expire_password`. A VNC server takes one only where it
    was started with ``password=on``.

    :param protocol: ``vnc`` or ``spice``
    :param password: for VNC, 8 bytes at most: it looks at no more
    :param connected: what to do with who is connected: ``keep``, and for SPICE ``disconnect``, or ``fail`` to refuse
    :param display: id of the VNC server, where there are several
    :raises CommandError: there is no such server, or it asks for no password
    """
    check_choice("protocol", protocol, PROTOCOLS)
    check_choice("connected", connected, CONNECTED if protocol == "spice" else CONNECTED[:1])
    if protocol == "vnc" and len(password.encode()) > VNC_PASSWORD:
        raise ArgumentError("password", HIDDEN, f"{VNC_PASSWORD} bytes at most: VNC looks at no more")
    arguments = {"protocol": protocol, "password": password, "connected": connected}
    await port.execute("set_password", arguments | _display(protocol, display))


async def expire_password(
    port: Port, protocol: str, when: str | float | datetime, *, display: str | None = None
) -> None:
    """Say from when on the password is not taken any more (``expire_password``); who is connected stays.

    :param when: ``now``, ``never``, seconds from now, or a point in time with its zone
    :param display: id of the VNC server, where there are several
    :raises CommandError: there is no such server
    """
    check_choice("protocol", protocol, PROTOCOLS)
    await port.execute("expire_password", {"protocol": protocol, "time": _time(when)} | _display(protocol, display))


def _time(when: str | float | datetime) -> str:
    if isinstance(when, datetime) and when.tzinfo is not None:
        return str(int(when.timestamp()))
    if isinstance(when, int | float) and not isinstance(when, bool) and 0 <= when < 1 << 31:
        return f"+{int(when)}"
    if when in ("now", "never"):
        return str(when)
    raise ArgumentError("when", when, "now, never, seconds from now, or a datetime with its zone")


def _display(protocol: str, display: str | None) -> dict[str, Any]:
    if display is None:
        return {}
    if protocol != "vnc":
        raise ArgumentError("display", display, "only with protocol vnc")
    return {"display": display}


async def reload_vnc_certificates(port: Port) -> None:
    """Read the TLS certificates of the VNC servers anew (``display-reload``, QEMU 6.0); who is connected stays.

    :raises CommandError: they cannot be read, or VNC is not secured
    """
    await port.execute("display-reload", {"type": "vnc", "tls-certs": True})


async def add_client(port: Port, protocol: str, fd: int, *, skip_auth: bool = False, tls: bool | None = None) -> None:
    """Hand a connected client over to a display server (``add_client``).

    :param protocol: ``vnc``, ``spice`` or ``@dbus-display``
    :param fd: its socket; a copy goes to QEMU, yours stays yours to close
    :param skip_auth: it need not show who it is
    :param tls: for SPICE: whether it speaks TLS
    """
    arguments = {"protocol": protocol, "fdname": _FDNAME, "skipauth": skip_auth} | ({} if tls is None else {"tls": tls})
    async with Undo(port) as undo:
        await undo.step("getfd", {"fdname": _FDNAME}, fd=fd, undo=Revert("closefd", {"fdname": _FDNAME}, True))
        await port.execute("add_client", arguments)
        undo.keep()


# -- the picture -----------------------------------------------------------------------------------------------------


async def screendump(
    port: Port,
    path: str | os.PathLike[str],
    *,
    format: str = "png",
    device: str | None = None,
    head: int | None = None,
) -> None:
    """Write a picture of the screen to a file (``screendump``). QEMU needs no right to it: we write it.

    :param path: what is there is replaced when the picture is whole, and not before
    :param format: ``png`` or ``ppm``
    :param device: id of the graphics device; None for the first
    :param head: which of its screens
    :raises OSError: the file cannot be written
    :raises CommandError: there is no such device, or no screen at all
    """
    picture = await screenshot(port, format=format, device=device, head=head)
    await port.offload(partial(_replace, os.fspath(path), picture))


async def screenshot(port: Port, *, format: str = "png", device: str | None = None, head: int | None = None) -> bytes:
    """Return a picture of the screen (``screendump`` into a file in memory). Parameters are those of `screendump`.

    QEMU is always asked for PPM, which each version writes: what its own PNG (7.1) leaves behind of a descriptor's
    set cannot be removed (tried on 10.0).
    """
    check_choice("format", format, FORMATS)
    if head is not None and device is None:
        raise ArgumentError("head", head, "only with a device")
    arguments: dict[str, Any] = {} if device is None else {"device": device}
    if head is not None:
        arguments["head"] = head
    async with _memory() as (memory, held), Undo(port) as undo:  # nothing of it is to stay, so nothing is kept
        fdset = await add_fd(undo, held, "screendump")
        await port.execute("screendump", {"filename": f"/dev/fdset/{fdset}"} | arguments)
        return await port.offload(partial(_picture, memory, format))


@asynccontextmanager
async def _memory() -> AsyncIterator[tuple[int, Held]]:
    memory = os.memfd_create("drover-screendump")
    try:
        # QEMU takes of a set only what was opened just as it would open it
        held = Held(os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC))
        try:
            yield memory, held
        finally:
            held.close()
    finally:
        os.close(memory)


def _picture(fd: int, format: str) -> bytes:
    size = os.fstat(fd).st_size
    ppm = b"".join(os.pread(fd, _READ, start) for start in range(0, size, _READ))
    return ppm if format == "ppm" else _png(ppm)


def _png(ppm: bytes) -> bytes:
    """The same picture as PNG (its specification, 5.3 and 11.2): 8 bits for each of red, green and blue."""
    head = _PPM.match(ppm)
    if head is None:
        raise ProtocolError("screendump wrote something else than a picture", ppm[:40])
    width, height = int(head[1]), int(head[2])
    lines = (ppm[start : start + 3 * width] for start in range(head.end(), len(ppm), 3 * width))
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines), _EFFORT)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _replace(path: str, data: bytes) -> None:
    aside = f"{path}.new"
    try:
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


ready(SpiceInfo, VncServer)
