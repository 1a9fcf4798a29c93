"""The human monitor on both faces, over a text socket and through QMP, against a scripted QEMU."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.errors import (
    ArgumentError,
    CommandError,
    CommandNotSupported,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    MonitorTimeout,
    NotSupported,
    ProtocolError,
)
from drover.monitor.human import AsyncHumanMonitor, AsyncQmpHumanMonitor, HumanMonitor, HumanVerbs, QmpHumanMonitor
from drover.monitor.verbs import verb
from drover.ops.human import HMP_TIMEOUTS, HumanPort, QmpHumanPort, line_timeout
from drover.qmp.hmp import PROMPT

BANNER = b"QEMU 10.0.2 monitor - type 'help' for more information\r\n"
Reply = str | bytes | None | Callable[["FakeHmp"], None]


class FakeHmp(threading.Thread):
    """QEMU's line editor on a socket: echoes each byte as readline.c does, and answers by a script.

    A reply is the text that is printed; None ends the connection; a function does what it likes.
    """

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self.replies: dict[str, Reply] = {}
        self.lines: list[str] = []
        self.fds: list[int] = []
        self.go_on = threading.Event()
        self.path = Path(str(listener.getsockname()))
        self._listener = listener
        self._peer: socket.socket | None = None

    def run(self) -> None:
        while True:
            try:
                self._peer, _ = self._listener.accept()
            except OSError:
                return
            with self._peer:
                try:
                    self._serve()
                except OSError:
                    pass  # the client left

    def say(self, text: str | bytes) -> None:
        """Print."""
        assert self._peer is not None
        data = text.encode() if isinstance(text, str) else text
        self._peer.sendall(data.replace(b"\n", b"\r\n"))

    def _serve(self) -> None:
        assert self._peer is not None
        self._peer.sendall(BANNER + PROMPT)
        typed = b""
        while True:
            byte, fds, _, _ = socket.recv_fds(self._peer, 1, 4)
            self.fds += fds
            if not byte:
                return
            before = len(typed)
            if byte == b"\n":
                self._peer.sendall(b"\r\n")
                if not self._run_line(typed.decode()):
                    return
                typed = b""
                self._peer.sendall(PROMPT)
                continue
            typed = b"" if byte == b"\x17" else typed + byte
            self._peer.sendall(b"\x1b[D" * before + typed + b"\x1b[K")

    def _run_line(self, line: str) -> bool:
        self.lines.append(line)
        reply = self.replies.get(line, "")
        if reply is None:
            return False
        if callable(reply):
            reply(self)
        else:
            self.say(reply)
        return True

    def stop(self) -> None:
        """End it."""
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._peer is not None and self._peer.fileno() >= 0:
            try:
                self._peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster
        self.join(5)
        self._listener.close()
        for fd in self.fds:
            os.close(fd)


class Blocking:
    """How a test uses a face; this one blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, **options: Any) -> Any:
        """A monitor, not connected."""
        return HumanMonitor(self.path, **options)

    def close(self) -> None:
        """Free what the face needs."""


class _Sync:
    def __init__(self, loop: asyncio.AbstractEventLoop, monitor: Any) -> None:
        self.loop, self.monitor = loop, monitor

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.monitor, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.loop.run_until_complete(value(*args, **kwargs))


class OnLoop(Blocking):
    """The asyncio face, each call run to its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.loop = asyncio.new_event_loop()

    def make(self, **options: Any) -> Any:
        return _Sync(self.loop, AsyncHumanMonitor(self.path, **options))

    def close(self) -> None:
        self.loop.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHmp]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    fake = FakeHmp(listener)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(params=[Blocking, OnLoop])
def face(request: pytest.FixtureRequest, fake: FakeHmp) -> Iterator[Blocking]:
    face = request.param(fake.path)
    yield face
    face.close()


@pytest.fixture
def hmp(face: Blocking) -> Iterator[Any]:
    monitor = face.make(timeout=10)
    monitor.connect()
    yield monitor
    monitor.close()


def test_verbs_type_their_lines(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["info status"] = "VM status: paused (prelaunch)\n"
    fake.replies["info mice"] = "* Mouse #2: QEMU PS/2 Mouse\n"
    assert hmp.version == (10, 0, 2)
    assert hmp.status().status == "prelaunch"
    assert hmp.info("mice") == "* Mouse #2: QEMU PS/2 Mouse"
    assert hmp.help("sendkey") == ""
    for name in ("stop", "cont", "system_reset", "system_powerdown", "migrate_cancel", "help"):
        getattr(hmp, name)()
    hmp.sendkey("ctrl-alt-f1")
    hmp.sendkey("a", hold=20)
    hmp.mouse_move(1, -2)
    hmp.mouse_move(1, -2, 3)
    hmp.mouse_button(5)
    hmp.screendump(Path("/tmp/a b.ppm"))
    hmp.set_link("n0", True)
    hmp.set_link("n0", False)
    hmp.balloon(32 << 20)
    hmp.migrate("tcp:h:1")
    hmp.migrate("exec:cat > x", resume=True)
    assert fake.lines[2:] == [
        "help sendkey", "stop", "cont", "system_reset", "system_powerdown", "migrate_cancel", "help",
        "sendkey ctrl-alt-f1", "sendkey a 20", "mouse_move 1 -2", "mouse_move 1 -2 3", "mouse_button 5",
        'screendump "/tmp/a b.ppm"', "set_link n0 on", "set_link n0 off", "balloon 32",
        "migrate -d tcp:h:1", 'migrate -d -r "exec:cat > x"',
    ]  # fmt: skip


def test_outputs_with_prompts_in_them(hmp: Any, fake: FakeHmp) -> None:
    text = "(qemu) one\n(qemu) \n\x1b[K(qemu) x\x1b[K\n"
    fake.replies["x"] = text
    assert hmp.cmd("x") == text[:-1]
    fake.replies["y"] = "no end of line (qemu) "
    assert hmp.cmd("y") == "no end of line (qemu) "
    assert hmp.cmd("") == ""


def test_refusals(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["x"] = "unknown command: 'x'\n"
    fake.replies["set_link n on"] = "Error: Device 'n' not found\n"
    with pytest.raises(CommandNotSupported) as unknown:
        hmp.cmd("x")
    assert (unknown.value.command, unknown.value.error_class) == ("x", "CommandNotFound")
    with pytest.raises(CommandError) as refused:
        hmp.set_link("n", True)
    assert (refused.value.desc, refused.value.error_class) == ("Device 'n' not found", "GenericError")
    assert hmp.cmd("x", check=False) == "unknown command: 'x'"


def test_wrong_arguments_send_nothing(hmp: Any, fake: FakeHmp) -> None:
    for verb_name, argument in (("balloon", 5), ("cmd", "a\nb"), ("migrate", "x" * 2000)):
        with pytest.raises(ArgumentError):
            getattr(hmp, verb_name)(argument)
    hmp.cmd("last")
    assert fake.lines == ["last"]


def test_status_that_is_none(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["info status"] = "hello"
    with pytest.raises(ProtocolError):
        hmp.status()


def _wait(fake: FakeHmp) -> None:
    fake.say("early\n")
    fake.go_on.wait(10)
    fake.say("late\n")


def test_late_output_is_nobodys(hmp: Any, fake: FakeHmp) -> None:
    fake.replies.update({"slow": _wait, "next": "mine\n"})
    with pytest.raises(MonitorTimeout, match="slow"):
        hmp.cmd("slow", 0.05)
    with pytest.raises(MonitorTimeout):
        hmp.cmd("never", 0.05)  # QEMU is still at the first one: this one is never sent
    fake.go_on.set()
    assert hmp.cmd("next") == "mine"
    assert fake.lines == ["slow", "next"]


def test_death_in_a_command(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["x"] = None
    with pytest.raises(ConnectionClosed, match="unanswered: x"):
        hmp.cmd("x")
    assert not hmp.is_connected()
    with pytest.raises(ConnectionClosed):
        hmp.cmd("y")
    hmp.connect()
    assert hmp.cmd("y") == ""


def test_quit_sees_the_end(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["quit"] = None
    hmp.quit(timeout=5)
    assert not hmp.is_connected()


def test_quit_that_does_not_end(hmp: Any, fake: FakeHmp) -> None:
    with pytest.raises(MonitorTimeout):
        hmp.quit(timeout=0.05)


def test_quit_with_a_slow_end(hmp: Any, fake: FakeHmp) -> None:
    fake.replies["quit"] = _wait
    with pytest.raises(MonitorTimeout):
        hmp.quit(timeout=0.05)


def test_descriptor(hmp: Any, fake: FakeHmp, tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as file:
        hmp.cmd("before")
        assert fake.fds == []
        hmp.getfd("a", file.fileno())
        assert fake.lines[-1] == "getfd a"
        assert [os.path.samestat(os.fstat(fd), os.fstat(file.fileno())) for fd in fake.fds] == [True]


def test_closed_descriptor(hmp: Any, fake: FakeHmp) -> None:
    with pytest.raises(ArgumentError, match="open descriptor"):
        hmp.getfd("a", 12345)
    assert hmp.cmd("x") == ""
    assert fake.lines == ["x"]


def test_migration(hmp: Any, fake: FakeHmp) -> None:
    states = iter(["active", "completed"])
    fake.replies["info migrate"] = lambda fake: fake.say(f"globals:\nMigration status: {next(states)}\n")
    hmp.wait_migration(timeout=5)
    fake.replies["info migrate"] = "Status: \t\tcancelled\n"
    assert hmp.migrate_status() == "cancelled"
    with pytest.raises(MigrationCancelled):
        hmp.wait_migration(timeout=5)
    fake.replies["info migrate"] = "Migration status: failed (no (real) way)\n"
    with pytest.raises(MigrationFailed, match=r"no \(real\) way$"):
        hmp.wait_migration(timeout=5)
    fake.replies["info migrate"] = "globals:\n"
    with pytest.raises(MigrationError):
        hmp.wait_migration(timeout=None)
    fake.replies["info migrate"] = "Migration status: active\n"
    with pytest.raises(MonitorTimeout):
        hmp.wait_migration(timeout=0.01)


def test_unconnected_connects_for_the_call(face: Blocking, fake: FakeHmp) -> None:
    monitor = face.make()
    assert monitor.version == (0, 0, 0)
    assert monitor.cmd("x") == ""
    assert not monitor.is_connected()
    assert monitor.cmd("y") == ""


def test_nobody_there(face: Blocking, fake: FakeHmp) -> None:
    face.path = Path("/nosuch/s")
    with pytest.raises(ConnectTimeout):
        face.make().connect(timeout=0.01)


def test_silence(face: Blocking, fake: FakeHmp) -> None:
    path = fake.path.with_name("silent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        face.path = path
        monitor = face.make()
        with pytest.raises(ConnectTimeout, match="another client"):
            monitor.connect(timeout=0.05)
        assert not monitor.is_connected()


@pytest.mark.parametrize(("said", "error"), [(b'{"QMP": {}}\r\n', ProtocolError), (b"", ConnectError)])
def test_no_human_monitor(face: Blocking, fake: FakeHmp, said: bytes, error: type[Exception]) -> None:
    path = fake.path.with_name("other")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        face.path = path
        with pytest.raises(error):
            face.make().connect(timeout=5)
        thread.join()


def test_a_socket_that_was_used_before(fake: FakeHmp) -> None:
    """Neither a banner comes nor a prompt."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(fake.path))
    data = b""
    while not data.endswith(PROMPT):
        data += sock.recv(1000)
    with HumanMonitor(sock) as monitor:
        assert monitor.banner == ""
        monitor.cmd("x")
    assert fake.lines == ["x"]


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fake = FakeHmp(server)
        fake.start()
        with HumanMonitor(f"127.0.0.1:{server.getsockname()[1]}") as monitor:
            assert monitor.cmd("x") == ""
            with pytest.raises(ArgumentError, match="unix"):
                monitor.getfd("a", 0)
        fake.stop()


def test_long_line(hmp: Any, fake: FakeHmp) -> None:
    """More echo than any buffer of a socket holds: who only sends hangs."""
    fake.replies["x" * 1500] = "ok\n"
    assert hmp.cmd("x" * 1500) == "ok"


def test_threads_share_one(fake: FakeHmp) -> None:
    for number in range(40):
        fake.replies[f"n{number}"] = f"{number}\n"
    results: dict[int, str] = {}

    def run(start: int) -> None:
        for number in range(start, 40, 4):
            results[number] = monitor.cmd(f"n{number}")

    with HumanMonitor(fake.path) as monitor:
        threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: str(number) for number in range(40)}


def test_cancel(fake: FakeHmp) -> None:
    fake.replies.update({"slow": _wait, "next": "mine\n"})
    asyncio.run(_cancel(fake))


async def _cancel(fake: FakeHmp) -> None:
    async with AsyncHumanMonitor(fake.path) as monitor:
        task = asyncio.create_task(monitor.cmd("slow"))
        while not fake.lines:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        both = [asyncio.create_task(monitor.cmd(line)) for line in ("next", "other")]
        await asyncio.sleep(0.01)
        fake.go_on.set()
        assert [await task for task in both] == ["mine", ""]


def test_close_wakes_who_waits(fake: FakeHmp) -> None:
    fake.replies["slow"] = _wait
    monitor = HumanMonitor(fake.path)
    monitor.connect()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            monitor.cmd("slow")
        except ConnectionClosed as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not fake.lines:
        time.sleep(0.001)
    monitor.close()
    thread.join(5)
    assert len(errors) == 1


# -- through QMP -------------------------------------------------------------


class ScriptedQmp:
    """As much of a QMP connection as a human monitor uses."""

    timeout: float | None = 10.0

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, Any]] = []
        self.output = ""

    async def execute(self, command: str, arguments: Any, *, timeout: Any) -> str:
        self.seen.append((command, arguments["command-line"], timeout))
        return self.output

    async def wait_closed(self, timeout: float | None) -> None:
        self.seen.append(("wait_closed", None, timeout))

    async def sleep(self, seconds: float) -> None:
        self.seen.append(("sleep", None, seconds))

    def now(self) -> float:
        return 0.0

    def _run(self, flow: Any, args: Any, kwargs: Any) -> Any:
        return asyncio.run(flow(self, *args, **kwargs))

    async def _run_async(self, flow: Any, args: Any, kwargs: Any) -> Any:
        return await flow(self, *args, **kwargs)


def test_through_qmp() -> None:
    qmp: Any = ScriptedQmp()
    monitor = QmpHumanMonitor(qmp)
    qmp.output = "VM status: running (single step mode)\r\n"
    assert monitor.status().running
    qmp.output = "Error: no\r\n"
    with pytest.raises(CommandError, match="savevm: no"):
        monitor.cmd("savevm x")
    qmp.output = ""
    asyncio.run(AsyncQmpHumanMonitor(qmp).cmd("x y", 3))
    monitor.quit(timeout=5)
    command = "human-monitor-command"
    assert qmp.seen == [
        (command, "info status", 60.0),
        (command, "savevm x", 3600.0),
        (command, "x y", 3),
        (command, "quit", 5),
        ("wait_closed", None, 5),
    ]
    with pytest.raises(NotSupported, match="text monitor"):
        monitor.getfd("a", 0)
    states = iter(["Migration status: active", "Migration status: completed"])

    async def execute(command: str, arguments: Any, *, timeout: Any) -> str:
        return next(states)

    qmp.execute = execute
    monitor.wait_migration(timeout=1)
    assert qmp.seen[-1] == ("sleep", None, 0.1)


def test_timeouts() -> None:
    assert line_timeout("info status", 10) == 10
    assert line_timeout("object_add x", 10) == 60
    assert line_timeout("stop", 100) == 100
    assert line_timeout("savevm x", 10) == HMP_TIMEOUTS["savevm"]
    assert line_timeout("savevm x", None) is None
    assert line_timeout("", 10) == 10


def test_all_have_the_same_verbs() -> None:
    verbs = {name for name, value in vars(HumanVerbs).items() if isinstance(value, verb)}
    assert len(verbs) == 20
    for name in verbs:
        for blocking in (HumanMonitor, QmpHumanMonitor):
            assert not asyncio.iscoroutinefunction(getattr(blocking, name))
        for asynchronous in (AsyncHumanMonitor, AsyncQmpHumanMonitor):
            assert asyncio.iscoroutinefunction(getattr(asynchronous, name))
    assert issubclass(QmpHumanPort, HumanPort)
