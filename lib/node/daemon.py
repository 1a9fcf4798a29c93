"""drover-noded: serves the instances of one host."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

from aiohttp import web
from msgspec import Struct

from ..errors import ArgumentError, DroverError, InstanceBusy
from ..kvm import service_log
from ..kvm.lock import locked
from ..kvm.node import Node
from ..kvm.paths import default_paths
from ..kvm.service import allow_many_files, notify, passed_sockets, show_life
from ..version import __version__
from .access import give_to_group
from .feed import Feed
from .model import Model
from .server import Server
from .tls import Certificates
from .work import Worker

SOCKET: Final = "noded.sock"  # in the folder of what runs
_LOCK: Final = ".noded"  # no instance's name begins so
# Seconds that calls have to come to their end when it is stopped; what is cut off is completed or undone later.
_LAST_CALLS: Final = 10.0
log = logging.getLogger("drover.node")


class Remote(Struct, frozen=True, kw_only=True):
    """Where a daemon listens on the network, and with what.

    :ivar address: host, or empty for all of them, and port
    """

    address: tuple[str, int]
    certificates: Certificates
    context: ssl.SSLContext


async def serve(node: Node, listener: socket.socket, stopping: asyncio.Event, remote: Remote | None = None) -> None:
    """Serve a node's instances until told to stop. They run on.

    :param listener: a listening unix socket; closed at the end
    :param remote: on the network, too
    """
    async with AsyncExitStack() as stack:
        worker = Worker(node)
        stack.callback(worker.close)
        for report in await worker.do("", node.adopt):
            for text in (*report.notices, *([str(report.error)] if report.error else [])):
                log.info("%s: %s", report.name, text, extra={"instance": report.name})
        model = Model(node, worker.tend)
        server = Server(worker, model, Feed(model))
        stack.push_async_callback(model.stop)
        await model.start()
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_LAST_CALLS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener).start()
        if remote is not None:
            host, port = remote.address
            await web.TCPSite(runner, host or None, port, ssl_context=remote.context).start()
        log.info("%d instances", len(model.summaries))
        notify("READY=1")
        life = asyncio.create_task(show_life())
        stack.callback(life.cancel)
        await stopping.wait()
        notify("STOPPING=1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon, in the foreground."""
    parser = argparse.ArgumentParser("drover-noded", description="Serves the instances of this host.")
    parser.add_argument("--socket", type=Path, help=f"by default RUN/{SOCKET}, or what systemd passes")
    parser.add_argument("--listen", metavar="[HOST]:PORT", help="on the network, too: by TLS 1.3")
    parser.add_argument("--cert", type=Path, help="the daemon's certificate, in PEM; read again at SIGHUP")
    parser.add_argument("--key", type=Path, help="its key, which nobody else may read")
    parser.add_argument("--ca", type=Path, help="who signs for those who may call; OU is their role, CN their name")
    parser.add_argument("--log-level", choices=("debug", "info", "warning"), default="info")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    chosen = parser.parse_args(arguments)
    service_log.begin(chosen.log_level)
    allow_many_files()
    node = Node(default_paths())
    try:
        with ExitStack() as stack:
            stack.enter_context(locked(node.host.paths.locks, _LOCK, "drover-noded", 0))
            remote = _remote(chosen)
            asyncio.run(_until_signal(node, _listen(chosen.socket or node.host.paths.run / SOCKET), remote))
    except InstanceBusy as busy:
        sys.exit(f"drover-noded: it runs already ({busy.holder})")
    except (DroverError, OSError) as error:
        sys.exit(f"drover-noded: {error}")


def _remote(chosen: argparse.Namespace) -> Remote | None:
    """Where to listen on the network.

    :raises ArgumentError: some of what that takes is missing or wrong
    """
    if chosen.listen is None:
        return None
    host, _, port = chosen.listen.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArgumentError("--listen", chosen.listen, "a host, which may be empty, ':' and a port")
    if None in (chosen.cert, chosen.key, chosen.ca):
        raise ArgumentError("--listen", chosen.listen, "with --cert, --key and --ca")
    certificates = Certificates(certificate=chosen.cert, key=chosen.key, authority=chosen.ca)
    return Remote(address=(host.strip("[]"), int(port)), certificates=certificates, context=certificates.context())


def _reload(remote: Remote | None) -> None:
    """Take the certificate that is there now; if it is of no use, the old one stays."""
    if remote is not None:
        try:
            remote.certificates.load(remote.context)
            log.info("the certificate was read again")
        except ArgumentError as error:
            log.error("the certificate stays as it was: %s", error)


async def _until_signal(node: Node, listener: socket.socket, remote: Remote | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, remote)
    await serve(node, listener, stopping, remote)


def _listen(path: Path) -> socket.socket:
    """The socket that systemd passed, else one of our own, in the place of one that was left."""
    if passed := passed_sockets():
        return passed[0]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(old)
    give_to_group(os.fspath(path))
    listener.listen(128)
    return listener
