"""The connection by which a node asks another one whose machine it is: kept, made anew, let go of."""

import asyncio
import json
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from msgspec import to_builtins

from drover.errors import CallFailed
from drover.node import kept as module
from drover.node.client import Daemon
from drover.node.kept import Kept
from drover.node.owner_calls import FarRegister
from drover.store.owner import Owner
from waiting import wait_for

OWNER = Owner(node="a", boot_id="b", incarnation="u/1", epoch=3)


class Answering(socketserver.ThreadingUnixStreamServer):
    """Tells of one record.

    :ivar made: connections
    :ivar left: those that have ended
    :ivar wait: for whom, before an answer
    :ivar asked: requests
    :ivar lets_go: of each connection after an answer, unsaid
    """

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.made = self.asked = self.left = 0
        self.wait: threading.Barrier | None = None
        self.lets_go = False
        self.status = 200
        super().__init__(str(path), Answer)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Answering

    def setup(self) -> None:
        super().setup()
        self.server.made += 1

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        if self.server.wait is not None:
            with suppress(threading.BrokenBarrierError):
                self.server.wait.wait(10)
        body = json.dumps({"owner": to_builtins(OWNER), "code": "no", "detail": "so"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.server.lets_go

    do_POST = do_GET

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server.left += 1

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Answering]:
    with Answering(tmp_path / "s") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.close()


@pytest.fixture
def register(server: Answering, kept: Kept) -> Iterator[FarRegister]:
    register = FarRegister(daemon(server), "vm", kept)
    yield register
    register.close()


def daemon(server: Answering) -> Daemon:
    return Daemon(Path(str(server.server_address)))


def test_one_connection_for_all(server: Answering, register: FarRegister) -> None:
    for _ in range(3):
        assert asyncio.run(register.read()) == OWNER
    assert asyncio.run(register.swap(OWNER, OWNER)) == OWNER
    assert (server.made, server.asked) == (1, 4)


def test_a_no_is_an_answer(server: Answering, register: FarRegister) -> None:
    server.status = 403
    for _ in range(2):
        with pytest.raises(CallFailed, match="so"):
            asyncio.run(register.read())
    assert (server.made, server.asked) == (1, 2)


def test_what_was_let_go_of_is_made_anew(server: Answering, register: FarRegister) -> None:
    server.lets_go = True
    for _ in range(3):
        assert asyncio.run(register.swap(OWNER, OWNER)) == OWNER
    assert (server.made, server.asked) == (3, 3)


def test_nobody_there_is_said(server: Answering, register: FarRegister) -> None:
    server.lets_go = True
    assert asyncio.run(register.read()) == OWNER
    server.shutdown()
    server.server_close()
    Path(str(server.server_address)).unlink()
    with pytest.raises(CallFailed, match="nothing|went away"):
        asyncio.run(register.read())


def test_it_is_used_before_it_ends(
    server: Answering, register: FarRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stay() -> None:
        await register.read()
        register.stay()
        await asyncio.sleep(0.1)
        assert server.asked == 1
        monkeypatch.setattr("drover.node.owner_calls._STAY", 0.0)
        register.stay()
        register.stay()
        while server.asked == 1:
            await asyncio.sleep(0.01)

    asyncio.run(stay())
    assert server.made == 1
    assert server.asked == 2


def test_the_next_one_has_it(server: Answering, register: FarRegister, kept: Kept) -> None:
    assert asyncio.run(register.read()) == OWNER
    register.close()
    assert asyncio.run(FarRegister(daemon(server), "other", kept).read()) == OWNER
    kept.call(daemon(server), "GET", "/", timeout=5)
    assert (server.made, server.asked) == (1, 3)


def test_each_is_used_by_one_at_a_time(server: Answering, kept: Kept) -> None:
    server.wait = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            list(pool.map(lambda _: kept.call(daemon(server), "GET", "/", timeout=5), range(2)))
    assert (server.made, server.asked) == (2, 4)


def test_idle_ones_are_let_go_of(server: Answering, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.1)
    kept.call(daemon(server), "GET", "/", timeout=5)
    wait_for(lambda: server.left == 1)
    kept.call(daemon(server), "GET", "/", timeout=5)
    assert server.made == 2
    kept.close()
    wait_for(lambda: server.left == 2)


def test_a_silent_one_is_not_asked_again(server: Answering, kept: Kept) -> None:
    kept.call(daemon(server), "GET", "/", timeout=5)
    server.wait = threading.Barrier(2)
    with pytest.raises(CallFailed, match="does not answer"):
        kept.call(daemon(server), "GET", "/", timeout=0.1)
    assert (server.made, server.asked) == (1, 2)
    server.wait.abort()
