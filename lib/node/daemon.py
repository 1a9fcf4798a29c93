"""drover-noded: serves the instances of one host."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Final

from aiohttp import web
from msgspec import Struct

from ..errors import ArgumentError, DroverError, InstanceBusy
from ..kvm import service_log
from ..kvm.lock import Alone
from ..kvm.node import Node
from ..kvm.paths import default_paths
from ..kvm.service import allow_many_files, notify, passed_sockets, show_life
from ..version import __version__
from .access import give_to_group
from .admission import Admission
from .desk import Desk
from .door import BACKLOG, Door, listening
from .feed import Feed
from .gate import Gate
from .job_calls import view
from .known import known_as
from .limits import Crowd, Limits, limits_here
from .metrics import Metrics
from .model import Model
from .pki.folder import Folder
from .readers import Readers
from .sampler import Sampler
from .server import Server
from .tails import Tails
from .tending import Tending
from .tls import Certificates, Listening
from .traffic import Traffic
from .work import Worker

SOCKET: Final = "noded.sock"  # in the folder of what runs
_LOCK: Final = ".noded"  # no instance's name begins so
# Seconds that calls have to come to their end when it is stopped; what is cut off is completed or undone later.
_RENEW: Final = 1.0  # s between two looks whether our lock is where others look for it
_LAST_CALLS: Final = 10.0
log = logging.getLogger("drover.node")


class Remote(Struct, frozen=True, kw_only=True):
    """Where a daemon listens on the network, and with what.

    :ivar address: host, or empty for all of them, and port
    """

    address: tuple[str, int]
    certificates: Certificates
    context: Listening


async def serve(
    node: Node,
    listener: socket.socket,
    stopping: asyncio.Event,
    remote: Remote | None = None,
    limits: Limits | None = None,
) -> int:
    """Serve a node's instances until told to stop. They run on.

    :param listener: a listening unix socket; closed at the end
    :param remote: on the network, too
    :param limits: what callers may take; None: what they may by default
    :returns: how many threads are at something still
    """
    worker = Worker(node)
    async with AsyncExitStack() as stack:
        stack.callback(worker.close)
        await _adopt(worker)
        model = Model(node, worker.tend)
        sampler, crowd, readers = Sampler(model), Crowd(limits or limits_here()), Readers()
        feed, metrics = Feed(model, node.host.paths.feed, readers), Metrics(worker, model, sampler)
        tails = Tails(worker, model, readers)
        folder = Folder(node.host.paths.pki)
        traffic = Traffic(worker, model, folder, crowd.limits.migration_bandwidth or None)
        stack.push_async_callback(traffic.stop)
        desk = Desk(worker, model, metrics, lambda job: feed.tell("job", view(job)), traffic)
        _watch(metrics, feed, readers)
        metrics.watch("drover_open_jobs", "Jobs that wait or run.", lambda: desk.waiting)
        server = Server(known_as(folder).name, worker, model, feed, tails, sampler, desk, metrics, Gate(crowd))
        stack.callback(tails.close)
        stack.push_async_callback(feed.close)
        stack.push_async_callback(model.stop)
        stack.push_async_callback(sampler.stop)
        await feed.open()
        await model.start()
        feed.began([row.name for row in model.summaries])
        sampler.start()
        stack.push_async_callback(desk.stop, _LAST_CALLS)
        await traffic.start()
        await desk.start()
        application = server.application()
        traffic.add_to(application.router)
        if remote is not None:
            _admit(stack, worker, application.router, remote)
        runner = web.AppRunner(application, shutdown_timeout=_LAST_CALLS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await Door(runner, [listener], crowd).start()
        if remote is not None:
            await Door(runner, listening(*remote.address), crowd, remote.context).start()
        _say_ready(len(model.summaries))
        stack.callback(asyncio.create_task(show_life()).cancel)
        await stopping.wait()
        notify("STOPPING=1")
        desk.let_go()
    return worker.at_work


async def _adopt(worker: Worker) -> None:
    """Find what runs, and say what was left unfinished."""
    for report in await worker.do("", lambda: worker.node.adopt(look=False)):
        for text in (*report.notices, *([str(report.error)] if report.error else [])):
            log.info("%s: %s", report.name, text, extra={"instance": report.name})


def _say_ready(count: int) -> None:
    """Say that it serves, once what there is by now is set aside as what stays.

    A collector that looks it through at times would stop all that we do for 20 ms.
    """
    gc.collect()
    gc.freeze()
    log.info("%d instances", count)
    notify("READY=1")


def _admit(stack: AsyncExitStack, worker: Worker, router: web.UrlDispatcher, remote: Remote) -> None:
    """Let others join, and look after the certificates, where they are Drover's own."""
    if (folder := remote.certificates.folder) is not None:
        Admission(worker, folder).add_to(router)
        tending = asyncio.create_task(Tending(worker, folder, remote.context).run())
        stack.callback(tending.cancel)


def _watch(metrics: Metrics, feed: Feed, readers: Readers) -> None:
    metrics.watch("drover_event_readers", "Who reads events.", lambda: readers.count)
    metrics.watch("drover_event_readers_cut", "Who was too slow, so far.", lambda: readers.cut)
    metrics.watch("drover_feed_events_not_kept", "What found no room on disk, so far.", lambda: feed.dropped)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon, in the foreground."""
    parser = argparse.ArgumentParser("drover-noded", description="Serves the instances of this host.")
    parser.add_argument("--socket", type=Path, help=f"by default RUN/{SOCKET}, or what systemd passes")
    parser.add_argument("--listen", metavar="[HOST]:PORT", help="on the network, too: by TLS 1.3")
    parser.add_argument("--cert", type=Path, help="the daemon's certificate, in PEM; that of `drover node` by default")
    parser.add_argument("--key", type=Path, help="its key, which nobody else may read")
    parser.add_argument("--ca", type=Path, help="who signs for those who may call; OU is their role, CN their name")
    limit = "let callers take more or less: a name of doc/node-daemon.md's table and a number; may be repeated"
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help=limit)
    parser.add_argument("--log-level", choices=("debug", "info", "warning"), default="info")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    chosen = parser.parse_args(arguments)
    service_log.begin(chosen.log_level)
    allow_many_files()
    node = Node(default_paths())
    try:
        with ExitStack() as stack:
            alone = stack.enter_context(closing(Alone(node.host.paths.locks, _LOCK, "drover-noded")))
            remote, limits = _remote(chosen, Folder(node.host.paths.pki)), limits_here(chosen.limit)
            listener = _listen(chosen.socket or node.host.paths.run / SOCKET)
            if left := asyncio.run(_until_signal(node, alone, listener, remote, limits)):
                log.warning("%d calls are cut off: the next daemon takes them up", left)
                os._exit(0)  # Python would wait for their threads, which wait for a guest
    except InstanceBusy as busy:
        sys.exit(f"drover-noded: it runs already ({busy.holder})")
    except (DroverError, OSError) as error:
        sys.exit(f"drover-noded: {error}")


def _remote(chosen: argparse.Namespace, folder: Folder) -> Remote | None:
    """Where to listen on the network.

    :param folder: of this node's own certificates
    :raises ArgumentError: some of what that takes is missing or wrong
    """
    if chosen.listen is None:
        return None
    host, _, port = chosen.listen.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArgumentError("--listen", chosen.listen, "a host, which may be empty, ':' and a port")
    files = (chosen.cert, chosen.key, chosen.ca)
    if files == (None, None, None) and folder.own.exists():
        certificates = Certificates.of(folder)
    elif None in files:
        raise ArgumentError("--listen", chosen.listen, "with --cert, --key and --ca, or after `drover node init`")
    else:
        certificates = Certificates(certificate=chosen.cert, key=chosen.key, authority=chosen.ca)
    return Remote(address=(host.strip("[]"), int(port)), certificates=certificates, context=certificates.context())


def _reload(remote: Remote | None) -> None:
    """Take the certificate that is there now; if it is of no use, the old one stays."""
    if remote is not None:
        try:
            remote.context.read_own()
            log.info("the certificate was read again")
        except ArgumentError as error:
            log.error("the certificate stays as it was: %s", error)


async def _until_signal(
    node: Node, alone: Alone, listener: socket.socket, remote: Remote | None, limits: Limits
) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, remote)
    renewing = asyncio.create_task(_renew(alone))
    try:
        return await serve(node, listener, stopping, remote, limits)
    finally:
        renewing.cancel()


async def _renew(alone: Alone) -> None:
    """Stay the only one where the folder of locks is another one."""
    while True:
        await asyncio.sleep(_RENEW)
        try:
            alone.renew()
        except (InstanceBusy, OSError) as error:
            log.error("another drover-noded can run beside this one: %s", error)


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
    listener.listen(BACKLOG)
    return listener
