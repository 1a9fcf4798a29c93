"""The guest agent on both faces, against a scripted agent that is away, slow, or says what it should not."""

import asyncio
import inspect
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncGuestAgent, GuestAgent
from drover.errors import (
    AgentFrozen,
    AgentNotThere,
    AgentSlow,
    CommandError,
    ConnectError,
    ConnectionClosed,
    MonitorTimeout,
    ProtocolError,
)
from drover.monitor import agent as module
from drover.monitor.agent import AgentVerbs
from drover.monitor.life import Reconnect
from drover.monitor.verbs import verb

STRAY = b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray \'x\'"}}\n'


class Hold:
    """As a reply: none, until :attr:`FakeAgent.go_on` is set."""


class FakeAgent(threading.Thread):
    """An agent behind QEMU's socket.

    :ivar replies: what a command returns: a value, an exception (refused), bytes (sent as they are), a tuple of them
        (sent 0.1 s from one another), `Hold`, or a function of the arguments that gives one of these
    :ivar commands: what reached it, syncs left out
    :ivar deaf: how many syncs it reads and never answers
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.replies: dict[str, Any] = {"guest-ping": {}}
        self.commands: list[str] = []
        self.syncs = 0
        self.deaf = 0
        self.go_on = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._peer: socket.socket | None = None

    def run(self) -> None:
        while True:
            try:
                self._peer, _ = self._listener.accept()
            except OSError:
                return
            with self._peer as peer:
                try:
                    for line in peer.makefile("rb"):
                        self._on_line(peer, line)
                except OSError:
                    pass  # the client left

    def hang_up(self) -> None:
        """The machine ends."""
        assert self._peer is not None
        self._peer.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.go_on.set()
        if self._peer is not None:
            self._peer.close()
        self.join(10)

    def _on_line(self, peer: socket.socket, line: bytes) -> None:
        _, sentinel, command = line.rpartition(b"\xff")
        message = json.loads(command)
        name, arguments = message["execute"], message.get("arguments", {})
        if name == "guest-sync-delimited":
            self.syncs += 1
            if self.deaf:
                self.deaf -= 1
                return
            peer.sendall((STRAY if sentinel else b"") + b'\xff{"return": %d}\n' % arguments["id"])
            return
        self.commands.append(name)
        reply = self.replies[name]
        if callable(reply) and reply is not Hold:
            reply = reply(arguments)
        if reply is Hold:
            self.go_on.wait(30)
            reply = "late"
        if isinstance(reply, tuple):
            for part in reply:
                peer.sendall(part)
                time.sleep(0.1)
        elif isinstance(reply, bytes):
            peer.sendall(reply)
        elif isinstance(reply, Exception):
            peer.sendall(b'{"error": {"class": "GenericError", "desc": "%s"}}\n' % str(reply).encode())
        else:
            peer.sendall(json.dumps({"return": reply}).encode() + b"\n")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


Open = Callable[..., Any]


class Awaited:
    """An asyncio agent whose coroutines are run to their end where they are called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, agent: AsyncGuestAgent) -> None:
        self.loop, self.agent = loop, agent

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.agent, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.loop.run_until_complete(value(*args, **kwargs))


@pytest.fixture(params=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest, fake: FakeAgent) -> Iterator[Open]:
    """Makes an agent object of either face, not connected."""
    loop = asyncio.new_event_loop()
    made: list[Any] = []

    def make(**options: Any) -> Any:
        if request.param == "blocking":
            made.append(GuestAgent(fake.path, **options))
        else:
            made.append(Awaited(loop, AsyncGuestAgent(fake.path, **options)))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
    loop.close()


def test_verbs_are_documented() -> None:
    verbs = {name: value for name, value in vars(AgentVerbs).items() if isinstance(value, verb)}
    assert len(verbs) > 30
    for name, value in verbs.items():
        blocking, asynchronous = getattr(GuestAgent, name), getattr(AsyncGuestAgent, name)
        assert value.flow.__doc__
        assert blocking.__doc__ == asynchronous.__doc__ == value.flow.__doc__
        assert inspect.signature(blocking) == inspect.signature(asynchronous)
        assert not inspect.iscoroutinefunction(blocking)
        assert inspect.iscoroutinefunction(asynchronous)


def test_nobody_answers(make: Open, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is there, the agent is not: nothing is sent but syncs."""
    monkeypatch.setattr(module, "SYNC_TIMEOUT", 0.2)
    fake.deaf = 1000
    agent = make()
    agent.connect()
    for timeout, waited in ((0.05, 0.05), (60, 0.2), (None, 0.2)):
        with pytest.raises(AgentNotThere, match=f"guest-ping: no guest agent answers within {waited:g} s") as caught:
            agent.execute("guest-ping", timeout=timeout)
        assert not isinstance(caught.value, MonitorTimeout)
        assert caught.value.what == "guest-ping"
    assert agent.is_connected()
    assert fake.commands == []
    assert fake.syncs == 3  # each anew: the one before may be lost
    fake.deaf = 0
    agent.ping()


def test_an_agent_that_comes_later(make: Open, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the first syncs along when it ended; they are sent again, ever more rarely."""
    monkeypatch.setattr(module, "SYNC_RETRY", 0.05)
    fake.deaf = 3
    agent = make()
    start = time.monotonic()
    agent.sync(timeout=30)
    assert time.monotonic() - start + 0.01 >= 0.05 + 0.1 + 0.2
    assert fake.syncs == 4
    fake.deaf = 1000
    agent.connect()
    with pytest.raises(AgentNotThere, match="guest-sync-delimited.*within 0.2 s"):
        agent.sync(timeout=0.2)


def test_slow(make: Open, fake: FakeAgent) -> None:
    """The agent is in step, and takes its time; what it says then answers nothing."""
    fake.replies |= {"guest-fstrim": Hold, "guest-info": {"version": "1", "supported_commands": []}}
    agent = make()
    agent.connect()
    agent.sync(timeout=20)
    with pytest.raises(AgentSlow, match="guest-fstrim: no answer of the guest agent within 0.1 s$") as caught:
        agent.fstrim(timeout=0.1)
    assert isinstance(caught.value, MonitorTimeout)
    assert caught.value.busy_with == "guest-fstrim"
    with pytest.raises(AgentSlow, match="guest-info.*not sent: it is at guest-fstrim") as caught:
        agent.execute("guest-info", timeout=0.1)
    assert caught.value.busy_with == "guest-fstrim"
    fake.go_on.set()
    assert agent.info().version == "1"
    assert fake.commands == ["guest-fstrim", "guest-info"]


LONG = (b'{"return": "', *(b"x" for _ in range(8)), b'"}\n')


def test_a_reply_that_comes_slowly(make: Open, fake: FakeAgent) -> None:
    """As long as ever more of it comes it is waited for, unless the caller has said how long."""
    fake.replies |= {"guest-long": LONG, "guest-cut": (*LONG[:3], b"")}
    agent = make(timeout=0.3)
    agent.connect()
    assert agent.execute("guest-long") == "x" * 8
    with pytest.raises(AgentSlow, match="guest-long: no answer of the guest agent within 0.3 s$"):
        agent.execute("guest-long", timeout=0.3)
    agent.sync(timeout=20)
    with pytest.raises(AgentSlow, match="guest-cut: no answer of the guest agent within 0.[6-9]"):
        agent.execute("guest-cut")


def test_a_reply_that_comes_for_ever(make: Open, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_REPLY", 0.6)
    fake.replies["guest-long"] = LONG
    agent = make(timeout=0.3)
    agent.connect()
    with pytest.raises(AgentSlow, match="guest-long: no answer of the guest agent within 0.6 s$"):
        agent.execute("guest-long")


def test_slow_for_too_long(make: Open, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the time that the command takes, it explains no silence any more."""
    passed = 0.0
    for port in (module._BlockingAgentPort, module._AsyncAgentPort):
        monkeypatch.setattr(port, "now", lambda self, now=port.now: now(self) + passed)
    monkeypatch.setattr(module, "SYNC_TIMEOUT", 0.1)
    fake.replies["guest-hold"] = Hold
    agent = make(timeout=30)
    agent.connect()
    agent.sync(timeout=20)
    with pytest.raises(AgentSlow):
        agent.execute("guest-hold", timeout=0.05)
    with pytest.raises(AgentSlow, match="not sent"):
        agent.execute("guest-ping", timeout=0.05)
    passed = 30
    with pytest.raises(AgentNotThere):
        agent.execute("guest-ping")


def test_a_queue_behind_a_slow_one(fake: FakeAgent) -> None:
    fake.replies["guest-hold"] = Hold

    async def main() -> None:
        async with AsyncGuestAgent(fake.path) as agent:
            await agent.sync(timeout=20)
            first = asyncio.create_task(agent.execute("guest-hold", timeout=30))
            await asyncio.sleep(0.05)
            with pytest.raises(AgentSlow, match="guest-ping.*not sent: it is at guest-hold"):
                await agent.ping(timeout=0.1)
            third = asyncio.create_task(agent.ping(timeout=30))
            await asyncio.sleep(0)
            fake.go_on.set()
            assert await first == "late"
            await third
            first = asyncio.create_task(agent.execute("guest-hold"))
            first.cancel()
            await agent.ping()

    asyncio.run(main())
    assert fake.commands.count("guest-ping") == 2


def test_threads_share_one(fake: FakeAgent) -> None:
    fake.replies["guest-echo"] = lambda arguments: arguments["value"]
    failures: list[object] = []

    def work(agent: GuestAgent, number: int) -> None:
        for turn in range(50):
            value = f"{number}.{turn}"
            try:
                if turn % 5 == 4:
                    agent.execute("guest-echo", {"value": value}, timeout=0)
                elif agent.execute("guest-echo", {"value": value}, timeout=30) != value:
                    failures.append(value)
            except AgentSlow:
                pass
            except Exception as error:
                failures.append(error)

    with GuestAgent(fake.path) as agent:
        threads = [threading.Thread(target=work, args=(agent, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert not failures
        agent.ping()


def test_connections(make: Open, fake: FakeAgent) -> None:
    agent = make()
    agent.ping()  # connects for the call
    assert not agent.is_connected()
    agent.connect()
    fake.replies["guest-hold"] = lambda _: fake.hang_up() or Hold
    fake.go_on.set()
    with pytest.raises(ConnectionClosed) as caught:
        agent.execute("guest-hold")
    assert caught.value.in_flight == ("guest-hold",)
    with pytest.raises(ConnectionClosed):
        agent.ping()
    agent.connect()
    agent.ping()


def test_reconnect(make: Open, fake: FakeAgent) -> None:
    agent = make(reconnect=Reconnect(give_up=30))
    agent.connect()
    agent.ping()
    fake.hang_up()
    agent.ping()  # found again, and in step
    assert fake.commands.count("guest-ping") == 2


def test_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(ConnectError):
        GuestAgent(tmp_path / "nothing", timeout=0.1).ping()


def test_nonsense(make: Open, fake: FakeAgent) -> None:
    """It costs the command, not the connection."""
    fake.replies |= {"guest-a": b"\n[    1.0] oops\n", "guest-b": b'{"return": "' + b"x" * 5000 + b'"}\n'}
    agent = make(limit=1000)
    agent.connect()
    with pytest.raises(ProtocolError, match="oops"):
        agent.execute("guest-a")
    with pytest.raises(ProtocolError, match="limit of 1000"):
        agent.execute("guest-b")
    fake.replies["guest-get-host-name"] = {"host-name": 7}
    with pytest.raises(ProtocolError, match="guest-get-host-name.*makes no sense"):
        agent.hostname()
    agent.ping()
    assert agent.is_connected()


def test_what_is_silent_when_done(make: Open, fake: FakeAgent) -> None:
    """A shutdown is answered only when it fails; that it does not is seen by the sync behind it."""
    fake.replies |= {"guest-shutdown": b"", "guest-suspend-ram": ValueError("cannot")}
    agent = make()
    agent.connect()
    assert agent.execute("guest-shutdown", {"mode": "halt"}) == {}
    with pytest.raises(CommandError, match="cannot"):
        agent.suspend()
    agent.ping()
    fake.replies["guest-shutdown"] = ValueError("would not")
    with pytest.raises(CommandError, match="would not"):
        agent.shutdown()
    fake.replies["guest-shutdown"] = lambda _: fake.hang_up() or b""
    agent.shutdown()
    assert not agent.is_connected()


def test_secrets(make: Open, fake: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    fake.replies |= {"guest-set-user-password": ValueError("no"), "guest-exec": {"pid": 1}}
    fake.replies["guest-exec-status"] = {"exited": True, "exitcode": 0}
    agent = make()
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(CommandError) as caught:
            agent.set_user_password("root", "s3cret")
        agent.exec("login", input=b"s3cret", env={"PW": "s3cret"})
    for secret in ("s3cret", "czNjcmV0"):  # and as base64
        assert secret not in caplog.text
        assert secret not in str(caught.value)
    assert "guest-set-user-password" in caplog.text


class Freezer:
    """The replies of an agent that can freeze."""

    def __init__(self, fake: FakeAgent) -> None:
        self.frozen = False
        fake.replies |= {
            "guest-fsfreeze-status": lambda _: "frozen" if self.frozen else "thawed",
            "guest-fsfreeze-freeze": lambda _: self.set(True),
            "guest-fsfreeze-thaw": lambda _: self.set(False),
        }

    def set(self, frozen: bool) -> int:
        self.frozen = frozen
        return 1


def test_frozen_leaves_no_thread(fake: FakeAgent) -> None:
    freezer = Freezer(fake)
    before = threading.active_count()
    agent = GuestAgent(fake.path)
    with agent.frozen():
        assert freezer.frozen
        assert threading.active_count() == before + 1
        with pytest.raises(AgentFrozen):
            agent.hostname()
    assert not freezer.frozen
    assert not agent.is_connected()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_frozen_leaves_no_task(fake: FakeAgent) -> None:
    freezer = Freezer(fake)

    async def main() -> None:
        agent = AsyncGuestAgent(fake.path)
        async with agent.frozen():
            assert freezer.frozen
        assert not agent.is_connected()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert not freezer.frozen


def test_frozen_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectError):
        with GuestAgent(tmp_path / "nothing", timeout=0.1).frozen():
            pytest.fail("frozen")
