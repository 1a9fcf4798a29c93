"""The node daemon under those who ask for too much: they are refused or cut off, others are served, nothing leaks."""

import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drover.kvm.node import Node
from instances import bare
from noded import Noded
from remote import Remote
from waiting import wait_for

NOBODY = 65534
# Quick ones, so that the tests need not wait for the real ones.
QUICK = ("handshake_seconds=1", "head_seconds=1", "body_seconds=1", "answer_seconds=1", "idle_seconds=2")
HEAD = b"GET /v1/node HTTP/1.1\r\nHost: localhost\r\n"
LIST = b"GET /v1/instances HTTP/1.1\r\nHost: localhost\r\n\r\n"
MANY = 1000
EACH = 512  # of one caller
# Another user's program, which asks for lists and reads none of what comes then, by 20 connections again and again.
FLOOD = f"""
import socket, sys
while True:
    socks = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for sock in socks:
        try:
            sock.connect(sys.argv[1])
            sock.sendall({LIST!r} * 30)
        except OSError:
            pass
    for sock in socks:
        sock.close()
"""


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """A thousand connections, and more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def limited(node: Node, log: Path, *limits: str) -> Iterator[Noded]:
    """A daemon with limits of its own; when the block is over, all is as it was."""
    daemon = Noded(node.host.paths, log, [word for limit in limits for word in ("--limit", limit)])
    daemon.start()
    try:
        yield daemon
    finally:
        assert daemon.end() == 0


@contextlib.contextmanager
def unharmed(daemon: Noded) -> Iterator[None]:
    """When the block is over, the daemon has no more files open than before, and little more memory."""
    before, files = resident(daemon), open_files(daemon)
    yield
    wait_for(lambda: open_files(daemon) <= files + 1)  # one for who asks
    print(f"it took {(after := resident(daemon)) - before:.1f} MiB")
    assert after < before + 64
    status, told = daemon.call("GET", "/v1/node")
    assert (status, told["connections"]["open"], told["connections"]["streams"]) == (200, 1, 0)


def open_files(daemon: Noded) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def resident(daemon: Noded) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def connected(daemon: Noded, uid: int = 0) -> socket.socket:
    """A connection, of another user if need be."""
    sock = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        sock.connect(str(daemon.socket))  # waits in line, as it would not with a time-out of Python's
    except BaseException:
        sock.close()
        raise
    finally:
        os.seteuid(0)
    sock.settimeout(60)
    return sock


def open_to_all(daemon: Noded) -> None:
    """As its group's members may, anybody may call."""
    os.chmod(daemon.socket, 0o666)


def answered(sock: socket.socket) -> tuple[int, Any, http.client.HTTPMessage]:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, json.loads(response.read()), response.headers


def is_closed(sock: socket.socket) -> bool:
    """The other end has closed it; what it has said is passed over."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True


def seconds_open(sock: socket.socket) -> float:
    """How long it takes until the other end closes it."""
    since = time.monotonic()
    with sock, contextlib.suppress(ConnectionError):
        while sock.recv(1 << 20):
            pass
    return time.monotonic() - since


def test_what_is_too_large_or_no_http(node: Node, tmp_path: Path) -> None:
    with limited(node, tmp_path / "log") as noded, unharmed(noded):
        body = b"x" * ((1 << 20) + 1)
        post = b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        chunks = b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for sent, status, code in (
            (post + body, 413, "body-too-large"),
            (chunks + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), 413, "body-too-large"),
            (HEAD + b"X: " + b"x" * 9000 + b"\r\n\r\n", 431, "header-too-large"),
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 431, "header-too-large"),
            (HEAD + b"".join(b"X%d: 1\r\n" % number for number in range(70)) + b"\r\n", 400, "bad-request"),
            (os.urandom(5000), 400, "bad-request"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad-request"),  # TLS, where there is none
            (b"GET /v1/node SPDY/9\r\n\r\n", 400, "bad-request"),
        ):
            with connected(noded) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(sent)
                found, told, _ = answered(sock)
                assert (found, told["status"], told["code"]) == (status, status, code), sent[:100]
                assert sock.recv(1) == b""
    assert not [line for line in noded.log if "traceback" in line]


def test_whoever_takes_too_long_is_cut_off(node: Node, tmp_path: Path) -> None:
    """A head, a body, an answer: each has its time, however it goes on; and so has who does nothing."""

    def dripping(sock: socket.socket, begin: bytes) -> float:
        since = time.monotonic()
        with sock, contextlib.suppress(ConnectionError):
            sock.sendall(begin)
            sock.settimeout(0.1)
            while time.monotonic() < since + 30:
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1000).startswith(b"HTTP/1.1 408"):
                        break
                sock.sendall(b"x")
        return time.monotonic() - since

    def unread(sock: socket.socket) -> float:
        """Many lists are asked for, and none is read."""
        since = time.monotonic()
        with sock:
            for _ in range(100):
                sock.sendall(LIST)
            wait_for(lambda: not noded.call("GET", "/v1/node")[1]["connections"]["open"] > 1)
        return time.monotonic() - since

    with limited(node, tmp_path / "log", *QUICK) as noded, unharmed(noded):
        for number in range(200):
            noded.create(bare("7.2", f"m{number}"))
        post = b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        with ThreadPoolExecutor() as threads:
            took = {
                "nothing": threads.submit(seconds_open, connected(noded)),
                "head": threads.submit(dripping, connected(noded), HEAD + b"X: "),
                "body": threads.submit(dripping, connected(noded), post + b"{"),
            }
            idle = connected(noded)
            idle.sendall(HEAD + b"\r\n")
            assert answered(idle)[0] == 200
            took["idle"] = threads.submit(seconds_open, idle)
            times = {what: seconds.result() for what, seconds in took.items()}
            print({what: round(seconds, 2) for what, seconds in times.items()})
        for what, least in {"nothing": 0.9, "head": 0.9, "body": 0.9, "idle": 1.8}.items():
            assert least < times[what] < 10, what
        assert 0.9 < unread(connected(noded)) < 10


def test_a_thousand_idle_connections(node: Node, tmp_path: Path) -> None:
    """They keep nobody out, neither those of the same user nor others: the oldest one goes for each that comes."""
    with limited(node, tmp_path / "log") as noded, unharmed(noded):
        open_to_all(noded)
        kept = connected(noded, NOBODY)
        idle = [connected(noded) for _ in range(MANY)]
        assert noded.call("GET", "/v1/instances")[0] == 200
        told = noded.call("GET", "/v1/node")[1]
        assert told["connections"]["open"] <= told["limits"]["connections_per_caller"] + 1
        assert told["connections"]["dropped"] >= MANY - told["limits"]["connections_per_caller"]
        gone = [is_closed(sock) for sock in idle]
        assert (gone[0], gone[-1]) == (True, False)  # the oldest, and the newest
        kept.sendall(HEAD + b"\r\n")
        assert answered(kept)[0] == 200
        for sock in (*idle, kept):
            sock.close()


def test_connections_in_all(node: Node, tmp_path: Path) -> None:
    """Where many callers together have too many, an idle one goes of who has most."""
    few = ("connections=100", "connections_per_caller=80")
    with limited(node, tmp_path / "log", *few) as noded, unharmed(noded):
        open_to_all(noded)
        mine = [connected(noded, uid) for uid in range(1, 11)]
        theirs = [connected(noded, NOBODY) for _ in range(MANY)]
        more = [connected(noded, uid) for uid in range(11, 51)]
        for sock in mine + more:
            sock.sendall(HEAD + b"\r\n")
            assert answered(sock)[0] == 200
        assert noded.call("GET", "/v1/node")[1]["connections"]["open"] <= 100
        for sock in mine + theirs + more:
            sock.close()


def test_all_of_a_callers_connections_in_use(node: Node, tmp_path: Path) -> None:
    """One that comes then is told so; others get in."""
    with limited(node, tmp_path / "log", "connections_per_caller=3") as noded, unharmed(noded):
        open_to_all(noded)
        readers = [connected(noded, NOBODY) for _ in range(3)]
        for reader in readers:
            reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert reader.recv(1000).startswith(b"HTTP/1.1 200")
        with connected(noded, NOBODY) as late:
            late.sendall(LIST)
            status, told, headers = answered(late)
            assert (status, told["code"], headers["Retry-After"]) == (429, "too-many-connections", "1")
        assert noded.call("GET", "/v1/instances")[0] == 200
        readers.pop().close()
        noded.create(bare("7.2", "a"))  # an event, by which it is noticed that the reader is gone

        def gets_in() -> bool:
            with connected(noded, NOBODY) as again:
                again.sendall(LIST)
                return answered(again)[0] == 200

        wait_for(gets_in)
        for reader in readers:
            reader.close()
        noded.call("DELETE", "/v1/instances/a")
        wait_for(lambda: noded.call("GET", "/v1/node")[1]["connections"]["streams"] == 0)


def test_a_flood_of_requests(node: Node, tmp_path: Path) -> None:
    """Whoever sends too many is held back and refused; another one is not."""
    with limited(node, tmp_path / "log", "requests_per_second=10", "requests_at_once=50") as noded, unharmed(noded):
        open_to_all(noded)
        found: list[tuple[int, str, str | None]] = []

        def flood() -> None:
            with flooders.pop() as sock:
                while not found or found[-1][0] != 429:
                    sock.sendall(LIST)
                    status, told, headers = answered(sock)
                    found.append((status, told.get("code", ""), headers["Retry-After"]))

        flooders = [connected(noded, NOBODY) for _ in range(20)]
        threads = [threading.Thread(target=flood) for _ in flooders]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert noded.call("GET", "/v1/instances")[0] == 200
        for thread in threads:
            thread.join()
        assert set(found) == {(200, "", None), (429, "too-many-requests", "1")}
        assert 50 <= found.count((200, "", None)) < 150
        time.sleep(1)
        with connected(noded, NOBODY) as sock:  # and in one stroke, behind each other
            sock.sendall(LIST * 200)
            statuses = []
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                while True:
                    statuses.append(answered(sock)[0])
            assert statuses[-1] == 429
        time.sleep(0.5)  # it is over, for so few
        with connected(noded, NOBODY) as sock:
            sock.sendall(LIST)
            assert answered(sock)[0] == 200


def test_a_flood_of_connections(node: Node, tmp_path: Path) -> None:
    """Whoever opens too many a second is let in to so many; another one gets in."""
    with limited(node, tmp_path / "log", "requests_per_second=10", "requests_at_once=50") as noded, unharmed(noded):
        open_to_all(noded)
        socks = [connected(noded, NOBODY) for _ in range(200)]
        assert noded.call("GET", "/v1/instances")[0] == 200
        assert 100 <= sum(map(is_closed, socks)) <= 150
        for sock in socks:
            sock.close()


def test_a_flood_of_streams(node: Node, tmp_path: Path) -> None:
    """Readers of events and consoles, by the hundred: so many of each caller, and calls go on beside them."""
    with limited(node, tmp_path / "log", "streams_per_caller=20") as noded:
        noded.create(bare("7.2", "a"))
        noded.do("start", "a")
        with unharmed(noded):
            open_to_all(noded)
            upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            paths = [b"/v1/events", b"/v1/instances/a/console", b"/v1/instances/a/vnc"]
            heads = [b"GET %s HTTP/1.1\r\nHost: x\r\n%s" % (paths[number % 3], upgrade) for number in range(60)]
            socks = [connected(noded, NOBODY) for _ in heads]
            for sock, head in zip(socks, heads, strict=True):
                sock.sendall(head)
            firsts = [sock.recv(12).removeprefix(b"HTTP/1.1 ") for sock in socks]
            print({status: firsts.count(status) for status in set(firsts)})
            assert firsts.count(b"429") >= 60 - 20 - firsts.count(b"409")
            assert set(firsts) <= {b"200", b"101", b"409", b"429"}
            assert noded.call("GET", "/v1/node")[1]["connections"]["streams"] <= 20
            begun = time.monotonic()
            noded.do("pause", "a")
            assert time.monotonic() - begun < 5
            for sock in socks:
                sock.close()
            noded.do("resume", "a")
            wait_for(lambda: noded.call("GET", "/v1/node")[1]["connections"]["streams"] == 0, 60)
        noded.do("kill", "a")


# -- on the network ----------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(node: Node, tmp_path: Path) -> Iterator[Remote]:
    """A daemon on the network, which is quick to end what takes too long."""
    remote = Remote(node, tmp_path)
    remote.local.options = [*remote.local.options, "--limit", "handshake_seconds=3"]
    remote.local.start()
    yield remote
    assert remote.local.end() == 0


def dial(remote: Remote) -> socket.socket:
    return socket.create_connection(("127.0.0.1", remote.port), timeout=60)


def test_what_is_no_tls(remote: Remote) -> None:
    noded = remote.local
    with unharmed(noded):
        for sent in (LIST, os.urandom(5000), b"\x16\x03\x01\xff\xff" + os.urandom(100), b"\x16\x03\x01\x00\x05hello"):
            with dial(remote) as sock:
                sock.sendall(sent)
                assert seconds_open(sock) < 10, sent[:20]
        with dial(remote) as sock:
            pass  # nothing at all
        assert remote.call(remote.ours.sign("me", "/OU=viewer/CN=me"), "GET", "/v1/instances")[0] == 200
    assert not [line for line in noded.log if "traceback" in line]


def test_half_open_handshakes(remote: Remote) -> None:
    """A thousand who connect and begin no TLS, or begin and do not go on: others get in at once, and they go."""
    noded, me = remote.local, remote.ours.sign("me", "/OU=viewer/CN=me")
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with unharmed(noded):
        half: list[socket.socket] = []
        for number in range(MANY):
            half.append(dial(remote))
            if number % 2:
                half[-1].sendall(hello)
        begun = time.monotonic()
        assert remote.call(me, "GET", "/v1/instances")[0] == 200
        assert noded.call("GET", "/v1/instances")[0] == 200
        print(f"served beside them in {time.monotonic() - begun:.3f} s")
        assert noded.call("GET", "/v1/node")[1]["connections"]["open"] <= EACH + 1
        wait_for(lambda: all(map(is_closed, half)), 15)
        for sock in half:
            sock.close()


def test_a_thousand_idle_ones_by_tls(remote: Remote) -> None:
    """They are counted by certificate: another one from the same address is not theirs."""
    noded, me = remote.local, remote.ours.sign("me", "/OU=viewer/CN=me")
    context = ssl.create_default_context(cafile=str(remote.ours.certificate))
    context.load_cert_chain(*remote.ours.sign("many", "/OU=viewer/CN=many"))
    with unharmed(noded):
        idle = [context.wrap_socket(dial(remote), server_hostname="localhost") for _ in range(MANY)]
        assert remote.call(me, "GET", "/v1/instances")[0] == 200
        told = noded.call("GET", "/v1/node")[1]["connections"]
        assert told["open"] <= EACH + 1
        assert told["dropped"] >= MANY - EACH
        idle[-1].sendall(LIST)
        assert answered(idle[-1])[0] == 200
        for sock in idle:
            sock.close()


@contextlib.contextmanager
def flooded(noded: Noded) -> Iterator[None]:
    """Another user's program floods it."""
    drop = ["setpriv", f"--reuid={NOBODY}", "--clear-groups"]
    flood = subprocess.Popen([*drop, sys.executable, "-c", FLOOD, str(noded.socket)])
    try:
        yield
    finally:
        flood.kill()
        flood.wait()


def test_two_hundred_who_list_while_others_attack(remote: Remote) -> None:
    """As the command line does: a connection for each list. The attackers are other callers, by socket and by TLS."""
    noded = remote.local
    for number in range(50):
        noded.create(bare("7.2", f"m{number}"))
    open_to_all(noded)
    over = threading.Event()

    def attack(act: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    act()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def half_open() -> None:
        with dial(remote) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            over.wait(0.2)

    def garbage() -> None:
        with dial(remote) as sock:
            sock.sendall(os.urandom(1000))
            sock.recv(100)

    def lists() -> list[float]:
        times = []
        for _ in range(3):
            begun = time.monotonic()
            assert noded.call("GET", "/v1/instances")[0] == 200
            times.append(time.monotonic() - begun)
        return times

    with unharmed(noded), flooded(noded), contextlib.ExitStack() as opened:
        # those who only hold connections; the others come and go
        held = [opened.enter_context(connected(noded, NOBODY)) for _ in range(300)]
        held += [opened.enter_context(dial(remote)) for _ in range(300)]
        for sock in held[:300:3]:
            with contextlib.suppress(ConnectionError):
                sock.sendall(HEAD)
        attackers = [attack(act) for act in (half_open, garbage) for _ in range(2)]
        try:
            with ThreadPoolExecutor(200) as threads:
                found = sorted(it for client in [threads.submit(lists) for _ in range(200)] for it in client.result())
        finally:
            over.set()
            for thread in attackers:
                thread.join()
        cuts = statistics.quantiles(found, n=100)
        print(f"{len(found)} lists by 200 clients under attack: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s")
        assert cuts[98] < 15
