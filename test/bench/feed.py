"""What events cost on their way to readers: how many a second, and how long one takes from QEMU to who reads.

    python test/bench/feed.py [--seconds S]

Three measurements: changes of rows through the node's feed with its ring on disk, in a process of its own; a machine's
journal, which grows, through a real node daemon; and real events of a real QEMU through both
daemons. Readers are another process that counts what comes; the daemon has one core.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import selectors
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "build" / "py")]
sys.path.append(str(TOP / "test"))

from aiohttp import web  # noqa: E402

from drover import QmpConnection  # noqa: E402
from drover.events.journal import Journal  # noqa: E402
from drover.kvm.node import Node  # noqa: E402
from drover.kvm.paths import Paths  # noqa: E402
from drover.kvm.spec import parse  # noqa: E402
from drover.kvm.state import State  # noqa: E402
from drover.node.access import CALLER, Caller  # noqa: E402
from drover.node.feed import Feed  # noqa: E402
from drover.node.operations import Role  # noqa: E402
from drover.node.readers import Readers  # noqa: E402
from drover.node.summary import Summary  # noqa: E402
from drover.qmp.messages import Event  # noqa: E402
from instances import bare  # noqa: E402
from kvmd import running as kvmd_running  # noqa: E402
from noded import running as noded_running  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
ROUNDS = 100  # events whose way is timed


@contextlib.contextmanager
def place() -> Iterator[Paths]:
    """Folders of one's own."""
    top = Path(tempfile.mkdtemp(prefix="drover-"))
    top.chmod(0o711)
    try:
        yield Paths(top / "state", top / "run")
    finally:
        shutil.rmtree(top)


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# -- readers, in a process of their own --------------------------------------------------------------------------------


def count_events(path: str, target: str, readers: int, told: Connection) -> None:
    """Connect so many readers, say so, and tell how many events came, when asked."""
    selector = selectors.DefaultSelector()
    for _ in range(readers):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    told.send("ready")
    count = missed = 0
    while True:
        for key, _ in selector.select(0.05):
            with contextlib.suppress(BlockingIOError):
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                count += data.count(b"\nevent: ")
                missed += data.count(b"event: missed")
        if told.poll():
            if told.recv() == "end":
                return
            told.send((count, missed))


class Counting:
    """The process that counts."""

    def __init__(self, path: Path, target: str, readers: int) -> None:
        self.missed = 0
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=count_events, args=(str(path), target, readers, theirs))
        self._process.start()
        assert self._pipe.recv() == "ready"

    def count(self) -> int:
        """How many events all of them have got."""
        self._pipe.send("count")
        count, self.missed = self._pipe.recv()
        return int(count)

    def end(self) -> None:
        """No more."""
        self._pipe.send("end")
        self._process.join()


def measured(pid: int, counting: Counting, seconds: float, readers: int, what: str) -> None:
    """Print what comes in so many seconds, and what that takes of the daemon's core."""
    time.sleep(1)
    begun, count, used = time.monotonic(), counting.count(), cpu(pid)
    time.sleep(seconds)
    passed = time.monotonic() - begun
    got, share = counting.count() - count, (cpu(pid) - used) / passed
    rate = got / passed / readers
    each = share * 1e6 / (got / passed) if got else 0.0
    print(f"{what}, {readers} readers: {rate:,.0f} events/s to each, {rate * readers:,.0f} in all, "
          f"{share:.0%} of the core, {each:.1f} µs for each that arrives"
          + f"; {counting.missed} times something was missing" * bool(counting.missed))  # fmt: skip


# -- the node's feed ---------------------------------------------------------------------------------------------------


class Rows:
    """What tells of changes."""

    def __init__(self) -> None:
        self.tell: Callable[[Summary | None, str], None] = lambda row, name: None

    def on_change(self, listener: Callable[[Summary | None, str], None]) -> None:
        self.tell = listener


def serve_feed(top: str, rate: int, told: Connection) -> None:
    """A feed whose rows change so often a second."""
    os.sched_setaffinity(0, {0})
    asyncio.run(_serve_feed(Path(top), rate, told))


async def _serve_feed(top: Path, rate: int, told: Connection) -> None:
    rows, readers = Rows(), Readers()
    feed = Feed(rows, top / "ring", readers)  # type: ignore[arg-type]
    await feed.open()

    @web.middleware
    async def as_viewer(request: web.Request, handler: Any) -> Any:
        request[CALLER] = Caller(name="somebody", role=Role.VIEWER)
        return await handler(request)

    app = web.Application(middlewares=[as_viewer])
    app.router.add_get("/v1/events", feed.serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(top / "socket")).start()
    told.send("ready")
    row = Summary(name="web1", uuid="0" * 36, state=State.RUNNING, since=1.5, pid=1, version="10.0.2", machine="q35")
    begun, count = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - begun) * rate)
        for _ in range(due - count):
            rows.tell(row, "web1")
        count = due
        await asyncio.sleep(0.005)


def node_feed(seconds: float, readers: int, rate: int) -> None:
    """Changes of rows, so many a second."""
    with place() as paths:
        paths.state.mkdir(parents=True)
        pipe, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve_feed, args=(str(paths.state), rate, theirs))
        server.start()
        assert pipe.recv() == "ready"
        counting = Counting(paths.state / "socket", "/v1/events", readers)
        measured(int(server.pid or 0), counting, seconds, readers, f"{rate:,} rows/s through the node's feed")
        counting.end()
        server.kill()
        server.join()


# -- a machine's events ------------------------------------------------------------------------------------------------


def fill(folder: str, rate: int, stop: Any) -> None:
    """Write a journal as the event daemon does, so many events a second."""
    journal = Journal(Path(folder))
    number = 0
    while not stop.is_set():
        for _ in range(max(1, rate // 25)):
            number += 1
            journal.extend([Event("BLOCK_IO_ERROR", {"device": "disk0", "operation": "write"}, 1.5, 0)], 1, time.time())
        journal.commit(journal.take())
        time.sleep(0.04)


def machine_events(seconds: float, readers: int, rate: int) -> None:
    """A journal that grows, through a real daemon."""
    with place() as paths, tempfile.TemporaryDirectory() as folder:
        node = Node(paths)
        uuid = node.create(parse(bare("10.0", "a"))).show().document.spec.uuid
        with noded_running(paths, Path(folder) / "log", "--limit", "streams_per_caller=1000") as noded:
            os.sched_setaffinity(noded.pid, {0})
            counting = Counting(noded.socket, "/v1/instances/a/events", readers)
            stop = multiprocessing.Event()
            writer = multiprocessing.Process(target=fill, args=(str(paths.events(uuid)), rate, stop))
            writer.start()
            measured(noded.pid, counting, seconds, readers, f"a machine's {rate:,} events/s")
            stop.set()
            writer.join()
            counting.end()


# -- how long one takes ------------------------------------------------------------------------------------------------


def delays() -> None:
    """From QEMU's own stamp to who reads: through kvmd's journal, and as a change of the row."""
    with place() as paths, tempfile.TemporaryDirectory() as folder:
        node = Node(paths)
        node.create(parse(bare("10.0", "a")))
        with noded_running(paths, Path(folder) / "log") as noded, kvmd_running(paths, Path(folder) / "kvmd"):
            noded.do("start", "a")
            try:
                found = asyncio.run(_delays(noded.socket, paths))
            finally:
                noded.do("kill", "a")
    for what, times in found.items():
        times.sort()
        middle, most = statistics.median(times) * 1e3, times[len(times) * 99 // 100] * 1e3
        print(f"{what}: {middle:.1f} ms from QEMU's event, 99 % within {most:.1f} ms")


async def _delays(path: Path, paths: Paths) -> dict[str, list[float]]:
    stamps: list[float] = []
    found: dict[str, list[float]] = {"a machine's event": [], "a change of its row": []}

    async def read(target: str, what: str, wanted: bytes) -> None:
        stream, writer = await asyncio.open_unix_connection(path)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async for line in stream:
            if line.startswith(b"data: ") and wanted in line:
                found[what].append(time.time())
                if wanted == b'"STOP"':
                    stamps.append(json.loads(line[6:])["stamp"])
                if len(found[what]) == ROUNDS:
                    break
        writer.close()

    readers = [
        asyncio.create_task(read("/v1/instances/a/events", "a machine's event", b'"STOP"')),
        asyncio.create_task(read("/v1/events", "a change of its row", b'"paused"')),
    ]
    await asyncio.sleep(0.5)
    with QmpConnection(paths.instance("a").socket("people")) as people:
        for number in range(ROUNDS):
            people.stop()
            await asyncio.sleep(0.05)
            people.cont()
            await asyncio.sleep(0.1 + number % 7 * 0.01)  # in no step with whoever flushes
    await asyncio.gather(*readers)
    return {what: [at - stamp for at, stamp in zip(times, stamps, strict=True)] for what, times in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5)
    chosen = parser.parse_args()
    for way in (node_feed, machine_events):
        for readers, rates in (1, (10_000, 100_000)), (10, (10_000, 30_000)), (100, (1000, 5000)), (200, (1000, 2500)):
            for rate in rates:
                way(chosen.seconds, readers, rate)
    delays()


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
