"""Where connections come in: accepted one by one, counted from their first moment, TLS handshake and all.

aiohttp's own sites leave that to asyncio, which takes in as many as come, and tells nobody before TLS is through.
"""

import asyncio
import logging
import socket
import ssl
import struct
import time
from asyncio import sslproto
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from aiohttp import web

from .gate import Guarded
from .limits import Crowd, Held

_AT_ONCE: Final = 64  # connections that are accepted before others have their turn
# Seconds until it is tried again to accept where there were no descriptors left.
_PAUSE: Final = 0.2
_TELL: Final = 60.0  # s: how often the log says that there are none
_SHUTDOWN: Final = 5.0  # s, for the end of TLS
# Who knocks while nobody looks waits, as far as the kernel lets so many; on a unix socket others would be turned away.
BACKLOG: Final = 4096
# Bytes for what comes by TLS on one connection; a record has 16 KiB. asyncio keeps 256 KiB for each, idle or half open.
_TLS_BUFFER: Final = 32 << 10
_CREDENTIALS: Final = struct.Struct("3i")
log = logging.getLogger("drover.node")


class Door(web.BaseSite):
    """Listening sockets of one kind.

    :param runner: aiohttp's, which is set up
    :param listeners: that listen; closed at the end
    :param crowd: counts all connections, of other doors too
    :param context: for TLS; None: there is none
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        listeners: Sequence[socket.socket],
        crowd: Crowd,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=context)
        assert runner.server is not None
        self._http = runner.server
        self._listeners = list(listeners)
        self._crowd = crowd
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[None]] = set()
        self._told = -_TELL
        if context is not None:
            sslproto.SSLProtocol.max_size = _TLS_BUFFER

    @property
    def name(self) -> str:
        """Where it is."""
        return ", ".join(str(listener.getsockname()) for listener in self._listeners)

    async def start(self) -> None:
        """Let them in."""
        await super().start()
        for listener in self._listeners:
            listener.setblocking(False)
            self._listen(listener)

    async def stop(self) -> None:
        """Let nobody in any more."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for task in self._coming:
            task.cancel()
        await super().stop()

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it was not closed meanwhile
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or no memory: whoever waits in line goes on waiting
                self._loop.remove_reader(listener)
                self._loop.call_later(_PAUSE, self._listen, listener)
                self._crowd.make_room()
                if (now := time.monotonic()) - self._told >= _TELL:
                    self._told = now
                    log.warning("nobody can be let in for now: %s", error)
                return
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            held = self._crowd.enter(caller_at(sock), partial(_cut, sock))
        except OSError:  # gone already
            held = None
        if held is None:
            sock.close()
            return
        task = self._loop.create_task(self._connect(sock, held))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _connect(self, sock: socket.socket, held: Held) -> None:
        """See it through TLS, and hand it over."""
        tls = {} if self._context is None else {
            "ssl_handshake_timeout": self._crowd.limits.handshake_seconds, "ssl_shutdown_timeout": _SHUTDOWN,
        }  # fmt: skip
        try:
            await self._loop.connect_accepted_socket(
                lambda: Guarded(self._http, self._crowd, held, self._loop), sock, ssl=self._context, **tls
            )
        except OSError as error:  # what speaks no TLS, or not in time
            self._crowd.leave(held)
            log.debug("%s: %s", held.caller, error)
            error.__traceback__ = None  # it leads in a circle to all that was kept for TLS, which would wait for the gc


def caller_at(sock: socket.socket) -> str:
    """Who is at the other end of a socket: a user of this host, or an address."""
    if sock.family != socket.AF_UNIX:
        return f"address {sock.getpeername()[0]}"
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"uid {uid}"


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on the network.

    :param host: empty: all addresses
    :raises OSError: there is no such host, or the port is taken
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            if family == socket.AF_INET6 and not socket.has_ipv6:
                continue
            listeners.append(socket.create_server(address[:2], family=family, backlog=BACKLOG))
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _cut(sock: socket.socket) -> None:
    """Have both ends of a socket see its end; whoever has it closes it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
