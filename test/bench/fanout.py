"""The figure of many machines asked at once: how long until all of them have answered."""

import asyncio
import json
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from byhand import READ_SIZE, Plain
from contenders import ASYNC, GANETI, PLAIN, QEMU_QMP, SYNC, UVLOOP, contenders
from figures import binaries
from frame import CPU_MS, WALL, WALL_MS, BenchError, Clock, Result, Side, Versus, measure
from limits import IN_C, InC, compiler
from servers import fitting, qemus

COMMAND: Final = "query-status"
THREADS: Final = 32  # more of them only wait for the interpreter's lock
VERSION: Final = "10.0"


class Gathered(Side):
    """All of them on one event loop."""

    def __init__(self, name: str, make: Callable[[str], Any], new_loop: Callable[[], Any], paths: list[str]) -> None:
        super().__init__(name)
        self._make, self._new_loop, self._paths = make, new_loop, paths

    def setup(self) -> None:
        """Connect."""
        self._runner = asyncio.Runner(loop_factory=self._new_loop)
        self._runner.run(self._connect())
        self._runner.run(self._ask(1))

    async def _connect(self) -> None:
        self._clients = [self._make(path) for path in self._paths]
        for client in self._clients:
            await client.connect()

    async def _ask(self, count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*[client.execute(COMMAND) for client in self._clients])

    def run(self, clock: Clock, count: int) -> None:
        """Ask all of them, so often."""
        self._runner.run(self._timed(clock, count))

    async def _timed(self, clock: Clock, count: int) -> None:
        with clock:
            await self._ask(count)

    async def _leave(self) -> None:
        for client in self._clients:
            await client.close()

    def teardown(self) -> None:
        """Disconnect."""
        with self._runner:
            self._runner.run(self._leave())


class Threaded(Side):
    """A blocking client for each, and some threads."""

    def __init__(self, name: str, make: Callable[[str], Any], paths: list[str]) -> None:
        super().__init__(f"{name}, {THREADS} threads")
        self._make, self._paths = make, paths

    def setup(self) -> None:
        """Connect."""
        self._clients = [self._make(path) for path in self._paths]
        for client in self._clients:
            client.connect()
        self._pool = ThreadPoolExecutor(THREADS)
        self._ask()

    def _ask(self) -> None:
        for _ in self._pool.map(_status, self._clients):
            pass

    def run(self, clock: Clock, count: int) -> None:
        """Ask all of them, so often."""
        with clock:
            for _ in range(count):
                self._ask()

    def teardown(self) -> None:
        """Disconnect."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()


def _status(client: Any) -> None:
    client.execute(COMMAND)


class Selected(Side):
    """Plain sockets and the standard library's json, by epoll."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(PLAIN)
        self._paths = paths

    def setup(self) -> None:
        """Connect."""
        self._clients = [Plain(path) for path in self._paths]
        self._selector = selectors.EpollSelector()
        for client in self._clients:
            client.connect()
            self._selector.register(client.socket, selectors.EVENT_READ)
        self._ask()

    def _ask(self) -> None:
        for client in self._clients:
            client.socket.sendall(json.dumps({"execute": COMMAND}).encode())
        left = len(self._clients)
        while left:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if "return" not in json.loads(sock.recv(READ_SIZE)):
                    raise BenchError(f"{self.name}: was not answered")
                left -= 1

    def run(self, clock: Clock, count: int) -> None:
        """Ask all of them, so often."""
        with clock:
            for _ in range(count):
                self._ask()

    def teardown(self) -> None:
        """Disconnect."""
        self._selector.close()
        for client in self._clients:
            client.close()


def sides(paths: list[str]) -> list[Side]:
    """Everybody."""
    found: list[Side] = []
    for it in contenders():
        if it.name in (ASYNC, UVLOOP, QEMU_QMP) and it.new_loop is not None:
            found.append(Gathered(it.name, it.make, it.new_loop, paths))
        elif it.name in (SYNC, GANETI):
            found.append(Threaded(it.name, it.make, paths))
    found.append(Selected(paths))
    if compiler():
        found.append(InC("fan", COMMAND, paths, warm_up=1))
    return found


@dataclass(frozen=True)
class Fanout:
    """The figure, at several sizes."""

    name: str = "fanout"
    row: int = 6
    sizes: Sequence[int] = (1, 10, 100, 500, 1000)
    quick: Sequence[int] = (1, 10, 50)
    budget: float = 60.0  # seconds for each size

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        binary = binaries().get(VERSION) or next(iter(binaries().values()))
        for size in self.quick if quick else self.sizes:
            if size > fitting():
                print(f"{self.name}: there is no memory for {size} QEMUs, only for {fitting()}")
                continue
            with ExitStack() as stack:
                progress(f"{size} QEMUs are started")
                paths = stack.enter_context(qemus(binary, size))
                title = f"query-status of {size} QEMUs at once, until all have answered, QEMU {binary_version(binary)}"
                bars = (Versus(ASYNC, 1.5, WALL, IN_C), Versus(ASYNC, 1.0, WALL, QEMU_QMP)) if size >= 10 else ()
                count = max(2, min(100, 1000 // size))
                result = Result(self.row, self.name, title, "round", count, False, bars, (CPU_MS, WALL_MS), size)
                yield measure(result, sides(paths), 3 if quick else 9, self.budget, progress)


def binary_version(binary: Any) -> str:
    """Of a QEMU."""
    return next(version for version, path in binaries().items() if path == binary)


FIGURES: Final = (Fanout(),)
