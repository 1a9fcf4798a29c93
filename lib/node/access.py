"""Who calls, and what they may do."""

import asyncio
import grp
import os
import pwd
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web
from msgspec import Struct

from .operations import Role
from .problems import Refused
from .tls import Listening, role_in

GROUP: Final = "drover"  # its members may operate the instances of a host
JOIN: Final = "/v1/join"  # the only path that takes no certificate
_CREDENTIALS: Final = struct.Struct("3i")


class Caller(Struct, frozen=True, kw_only=True):
    """Who calls.

    :ivar name: for the audit log
    :ivar role: what they may do
    """

    name: str
    role: Role


def caller_of(request: web.Request) -> Caller:
    """On the network, by the certificate; else by the kernel's word for whoever opened the connection.

    Of those, root and the user this daemon runs as may do anything. The socket's mode lets in its group alone, and who
    is in that may operate.

    :raises Refused: the certificate names nobody, or no role; or holds no longer
    """
    transport = request.transport
    if transport is None:
        raise Refused(400, "gone", "the connection is gone")
    if (certificate := transport.get_extra_info("peercert")) is not None:
        name, role = role_in(certificate)
        if not name or role is None:
            raise Refused(403, "no-role", "the certificate has no CN, or no OU that is viewer, operator, admin or node")
        _check_holds(certificate, transport)
        return Caller(name=name, role=role)
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        raise Refused(403, "no-certificate", "this takes a certificate")
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    name = str(uid)
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    return Caller(name=name, role=Role.ADMIN if uid in (0, os.geteuid()) else Role.OPERATOR)


def _check_holds(certificate: Mapping[str, Any], transport: asyncio.BaseTransport) -> None:
    """See that a certificate, which was good when its connection was made, has not expired or been revoked since."""
    serial, until = int(certificate["serialNumber"], 16), ssl.cert_time_to_seconds(certificate["notAfter"])
    if until < time.time():
        raise Refused(403, "expired", "the certificate has expired since: connect with a new one")
    context = transport.get_extra_info("sslcontext")
    if isinstance(context, Listening):
        if context.has_revoked(serial):
            raise Refused(403, "revoked", "the certificate was revoked")
        context.note(transport, serial, until)


def check_origin(request: web.Request) -> None:
    """See that no page of somebody else's uses what a browser has: that shows its user's certificate to whoever asks.

    :raises Refused: it is a page of another origin
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Refused(403, "other-origin", f"a page of {origin} may not call {request.host}")


CALLER: Final = web.RequestKey("caller", Caller)


def allow(caller: Caller, role: Role) -> None:
    """See that a caller may do what takes this role.

    :raises Refused: they may not
    """
    if caller.role < role:
        has, takes = caller.role.name.lower(), role.name.lower()
        raise Refused(403, "not-allowed", f"{caller.name} is {has}: this takes {takes}")


def require(request: web.Request, role: Role) -> None:
    """The same, of whoever sent a request."""
    allow(request[CALLER], role)


def give_to_group(path: str) -> None:
    """Let the group :data:`GROUP` open a socket, if there is one, and nobody else but its owner."""
    gid = -1
    if os.geteuid() == 0:
        with suppress(KeyError):
            gid = grp.getgrnam(GROUP).gr_gid
        os.chown(path, -1, gid)
    os.chmod(path, 0o660 if gid >= 0 else 0o600)
