"""Each flow of a guest agent, failed and cancelled at each of its steps: nothing of it stays in the guest.

The steps are counted by running the flow; no test lists them.
"""

import asyncio
import base64
import io
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from drover.errors import (
    AgentFrozen,
    AgentNotThere,
    AgentSlow,
    CommandError,
    CommandNotSupported,
    ConnectError,
    ConnectionClosed,
    DroverError,
    FreezeBroken,
    MonitorTimeout,
    NotSupported,
    ProtocolError,
    ThawFailed,
)
from drover.monitor.drive import drive
from drover.ops import agent, agent_exec, agent_file, agent_freeze
from drover.ops.agent_port import FREEZE_ALLOWED, AgentPort
from drover.ops.port import DEFAULT, Arguments, Timeout
from drover.testing.scripted import Fault

T = TypeVar("T")
OUTPUT = b"what it prints\n"


class GuestModel:
    """A strict model of what flows leave in a guest: programs, files that are open, folders, frozen file systems."""

    def __init__(self) -> None:
        self.programs: dict[int, int] = {}  # that run: questions until their end
        self.ended: dict[int, dict[str, Any]] = {}  # whose end nobody asked for yet
        self.open: dict[int, bytearray] = {}
        self.at: dict[int, int] = {}
        self.files: dict[str, bytearray] = {"/data": bytearray(b"x" * 300_000)}
        self.folders: set[str] = set()
        self.frozen = False
        self.number = 0

    def leftovers(self) -> list[object]:
        """What a flow that is over must not leave."""
        return [*self.programs, *self.open, *self.folders, *(["frozen"] if self.frozen else [])]

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        if self.frozen and command not in FREEZE_ALLOWED:
            raise CommandNotSupported(command, "CommandNotFound", "disabled: frozen")
        handler: Callable[..., Any] | None = getattr(self, command.replace("-", "_"), None)
        if handler is None:
            raise CommandNotSupported(command, "CommandNotFound", "not found")
        return handler(**{name.replace("-", "_"): value for name, value in arguments.items()})

    def guest_ping(self) -> Any:
        return {}

    def guest_info(self) -> Any:
        names = [name.replace("_", "-") for name in dir(self) if name.startswith("guest_")]
        commands = [{"name": name, "enabled": not self.frozen or name in FREEZE_ALLOWED} for name in names]
        return {"version": "7.2.0", "supported_commands": [*commands, {"name": "guest-blocked", "enabled": False}]}

    def guest_exec(self, path: str, arg: list[str], capture_output: bool = False, **_: Any) -> Any:
        self.number += 1
        script = arg[1] if path == "/bin/sh" else ""
        if script == agent_exec._PREPARE:
            self.folders.add(arg[3])
            self.files |= {f"{arg[3]}/{name}": bytearray() for name in ("out", "err")}
        elif script == agent_exec._REMOVE:
            self.folders.discard(arg[3])
        elif script == agent_exec._KILL:
            if self.programs.pop(int(arg[3]), None) is not None:
                self.ended[int(arg[3])] = {"exited": True, "signal": 9}
        else:
            if script == agent_exec._START:
                self.files[f"{arg[3]}/out"] += OUTPUT
            self.programs[self.number] = 3
            return {"pid": self.number}
        self.ended[self.number] = {"exited": True, "exitcode": 0}
        return {"pid": self.number}

    def guest_exec_status(self, pid: int) -> Any:
        if pid in self.programs:
            self.programs[pid] -= 1
            if self.programs[pid]:
                return {"exited": False}
            del self.programs[pid]
            return {"exited": True, "exitcode": 0}
        if pid not in self.ended:
            raise CommandError("guest-exec-status", "GenericError", "no such program, or its end was told")
        return self.ended.pop(pid)

    def guest_file_open(self, path: str, mode: str) -> Any:
        self.number += 1
        if "w" in mode:
            self.files[path] = bytearray()
        self.open[self.number] = self.files[path]
        self.at[self.number] = 0
        return self.number

    def guest_file_read(self, handle: int, count: int) -> Any:
        data = bytes(self.open[handle][self.at[handle] :][:count])
        self.at[handle] += len(data)
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": not data}

    def guest_file_write(self, handle: int, buf_b64: str) -> Any:
        data = base64.b64decode(buf_b64)[:50_000]  # a short write is no error
        self.open[handle] += data
        return {"count": len(data), "eof": False}

    def guest_file_flush(self, handle: int) -> Any:
        assert handle in self.open
        return {}

    def guest_file_close(self, handle: int) -> Any:
        del self.open[handle]
        return {}

    def guest_fsfreeze_status(self) -> Any:
        return "frozen" if self.frozen else "thawed"

    def guest_fsfreeze_freeze(self) -> Any:
        self.frozen = True
        return 2

    def guest_fsfreeze_thaw(self) -> Any:
        count = 2 if self.frozen else 0
        self.frozen = False
        return count


class ScriptedAgentPort(AgentPort):
    """A port on a model, with a clock that only moves when somebody waits.

    :ivar steps: what was awaited, in order
    """

    def __init__(self, model: GuestModel, fault: Fault | None = None, at: int = -1) -> None:
        self.model = model
        self.steps: list[str] = []
        self.clock = 0.0
        self.closed = False
        self.silent = False
        self.stuck: Callable[[], bool] = lambda: False
        self._fault = fault
        self._at = at
        self._late: list[Callable[[], object]] = []
        self._timers: list[tuple[float, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._shields = 0
        self._cancelled = False

    async def call(self, command: str, arguments: Arguments | None = None, timeout: Timeout = DEFAULT) -> Any:
        if self.silent or self.stuck():
            self.clock += 5.0
            raise AgentNotThere(command, 5.0)

        def apply() -> Any:
            return self.model.execute(command, dict(arguments or {}))

        fault = self._step(command)
        if self.closed:
            raise ConnectionClosed("scripted")
        for late in self._late:
            late()
        self._late.clear()
        if fault is Fault.CLOSED:
            self.closed = True
            raise ConnectionClosed("scripted", [command])
        if fault is Fault.REFUSED:
            raise CommandError(command, "GenericError", "scripted refusal")
        if fault is Fault.CANCELLED_EARLY:
            raise asyncio.CancelledError
        if fault is Fault.LATE:
            self._late.append(apply)
        elif fault is None:
            return apply()
        else:
            apply()
        if fault is Fault.CANCELLED:
            raise asyncio.CancelledError
        raise AgentSlow(command, 1.0, command)

    async def reconnect(self, timeout: float | None) -> None:
        self._step("reconnect")
        self.closed = False

    async def sleep(self, seconds: float) -> None:
        fault = self._step("sleep")
        self.clock += seconds
        due = [timer for timer in self._timers if timer[0] <= self.clock]
        self._timers = [timer for timer in self._timers if timer not in due]
        for _, flow in due:
            await flow()
        if fault in (Fault.CANCELLED, Fault.CANCELLED_EARLY):
            raise asyncio.CancelledError

    def now(self) -> float:
        return self.clock

    async def offload(self, function: Callable[[], T]) -> T:
        self._step("offload")
        return function()

    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        self._shields += 1
        try:
            result = await flow
        finally:
            self._shields -= 1
        if self._cancelled and not self._shields:
            self._cancelled = False
            raise asyncio.CancelledError
        return result

    def later(self, seconds: float, flow: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        timer = (self.clock + seconds, flow)
        self._timers.append(timer)
        return lambda: self._timers.remove(timer) if timer in self._timers else None

    def _step(self, what: str) -> Fault | None:
        self.steps.append(what)
        if len(self.steps) - 1 != self._at:
            return None
        if self._shields and self._fault in (Fault.CANCELLED, Fault.CANCELLED_EARLY):
            self._cancelled = True  # it is told when the shielded part is through
            return None
        return self._fault


async def freeze(port: AgentPort) -> None:
    async with agent_freeze.frozen(port) as block:
        assert block.count == 2
        assert port.frozen
        await agent.ping(port)


def stream(port: AgentPort) -> Coroutine[Any, Any, object]:
    return agent_exec.stream_program(port, "prog", on_output=lambda *_: None)


FLOWS: dict[str, Callable[[AgentPort], Coroutine[Any, Any, object]]] = {
    "run a program": lambda port: agent_exec.run_program(port, "prog"),
    "give up on a program": lambda port: agent_exec.run_program(port, "prog", timeout=0.01),
    "stream a program": stream,
    "read a file": lambda port: agent_file.read_file(port, "/data"),
    "write a file": lambda port: agent_file.write_file(port, "/new", b"y" * 300_000),
    "freeze": freeze,
}


def run(flow: Coroutine[Any, Any, object]) -> BaseException | None:
    try:
        drive(flow)
    except (DroverError, asyncio.CancelledError) as error:
        return error
    return None


def faults(name: str) -> list[tuple[int, Fault]]:
    port = ScriptedAgentPort(GuestModel())
    run(FLOWS[name](port))
    return [(step, fault) for step in range(len(port.steps)) for fault in Fault]


def may_stay(command: str, fault: Fault, name: str) -> bool:
    """Whether there is no way back: out of reach, nobody was told what to undo, or the undo itself was refused."""
    if fault is Fault.CLOSED:
        return True
    if command in ("guest-exec", "guest-file-open"):
        return fault in (Fault.LOST, Fault.LATE) or (fault is Fault.REFUSED and name != "run a program")
    if command == "guest-exec-status":
        return fault is Fault.REFUSED
    return command == "guest-file-close" and fault is Fault.REFUSED


@pytest.mark.parametrize("name", FLOWS)
def test_nothing_stays(name: str) -> None:
    for step, fault in faults(name):
        model = GuestModel()
        port = ScriptedAgentPort(model, fault, step)
        error = run(FLOWS[name](port))
        for late in port._late:
            late()
        command = port.steps[step]
        if name != "freeze" and may_stay(command, fault, name):
            continue
        assert not model.leftovers(), (step, command, fault, error)
        assert not port.frozen
        if fault in (Fault.CANCELLED, Fault.CANCELLED_EARLY) and command != "offload":
            assert isinstance(error, asyncio.CancelledError | MonitorTimeout), (step, command, fault)


def test_what_they_do() -> None:
    port = ScriptedAgentPort(GuestModel())
    came: list[bytes] = []
    done = drive(agent_exec.stream_program(port, "prog", on_output=lambda _, data: came.append(data)))
    assert (done.exit_code, came) == (0, [OUTPUT])
    sink = io.BytesIO()
    assert drive(agent_file.download(port, "/data", sink)) == 300_000
    assert sink.getvalue() == b"x" * 300_000
    assert drive(agent_file.write_file(port, "/new", b"y" * 300_000)) == 300_000
    assert port.model.files["/new"] == b"y" * 300_000


def test_an_error_in_the_block_stays_the_first() -> None:
    port = ScriptedAgentPort(GuestModel())

    async def flow() -> None:
        async with agent_freeze.frozen(port, patience=3.0):
            port.silent = True
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        drive(flow())
    assert "may be frozen still" in caught.value.__notes__[0]
    assert port.model.frozen


def test_patience() -> None:
    """An agent that is away for a while is waited for; one that stays away is told of."""
    port = ScriptedAgentPort(GuestModel())
    port.model.frozen = True
    port.stuck = lambda: port.clock < 100
    assert drive(agent_freeze.fsfreeze_thaw(port)) == 2
    assert port.clock >= 100
    port.model.frozen = True
    port.silent = True
    with pytest.raises(ThawFailed, match="no guest agent answers"):
        drive(agent_freeze.fsfreeze_thaw(port, patience=20))


def test_no_way_back() -> None:
    class Gone(ScriptedAgentPort):
        async def reconnect(self, timeout: float | None) -> None:
            raise ConnectError("there", "gone")

    port = Gone(GuestModel())

    async def flow() -> None:
        async with agent_freeze.frozen(port):
            port.closed = True

    with pytest.raises(ThawFailed, match="gone") as caught:
        drive(flow())
    assert isinstance(caught.value.__cause__, ConnectionClosed)


def test_deadline() -> None:
    port = ScriptedAgentPort(GuestModel())

    async def flow() -> None:
        async with agent_freeze.frozen(port, deadline=10) as block:
            await port.sleep(9)
            assert port.model.frozen
            assert not block.broken
            await port.sleep(2)
            assert not port.model.frozen
            assert block.broken
            await agent_exec.run_program(port, "prog")  # commands are taken again

    with pytest.raises(FreezeBroken, match="after 10 s"):
        drive(flow())
    assert not port._timers


def test_an_agent_that_says_frozen_is_asked_again() -> None:
    class Nested(GuestModel):
        """Frozen twice: it takes two thaws."""

        count = 2

        def guest_fsfreeze_thaw(self) -> Any:
            self.count -= 1
            self.frozen = self.count > 0
            return 1

    port = ScriptedAgentPort(Nested())
    port.model.frozen = True
    assert drive(agent_freeze.fsfreeze_thaw(port)) == 2


def test_why_not() -> None:
    port = ScriptedAgentPort(GuestModel())
    with pytest.raises(NotSupported, match=r"guest-ssh-get-authorized-keys.*qemu-ga 5\.2"):
        drive(agent.ssh_keys(port, "u"))
    with pytest.raises(NotSupported, match="told to refuse"):
        drive(agent.execute(port, "guest-blocked"))
    port.model.frozen = True
    with pytest.raises(AgentFrozen):
        drive(agent.execute(port, "guest-exec", {"path": "x", "arg": []}))


@pytest.mark.parametrize("reply", [None, 7, "x", {"pid": "1"}, {"pid": None}, []])
def test_replies_that_make_no_sense(reply: object) -> None:
    """A guest may answer whatever it likes."""
    model = GuestModel()
    vars(model)["guest_exec"] = lambda **_: reply
    with pytest.raises(ProtocolError, match="makes no sense"):
        drive(agent_exec.run_program(ScriptedAgentPort(model), "prog"))
    vars(model)["guest_file_read"] = lambda **_: {"count": 1, "buf-b64": "%%%"}
    with pytest.raises(DroverError, match="base64"):
        drive(agent_file.read_file(ScriptedAgentPort(model), "/data"))
    vars(model)["guest_file_write"] = lambda **_: {"count": 0}
    with pytest.raises(DroverError, match="nothing was written"):
        drive(agent_file.write_file(ScriptedAgentPort(model), "/new", b"x"))
    assert not model.open


class Ending(GuestModel):
    """A guest that ends when it is told to, after its agent was asked so many times whether it is still there."""

    left = 3

    def guest_shutdown(self, mode: str) -> Any:
        self.told = mode
        return {}

    def guest_ping(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise AgentNotThere("guest-ping", 1.0)
        return {}


def test_shutdown() -> None:
    port = ScriptedAgentPort(Ending())
    drive(agent.shutdown(port, "reboot"))
    assert port.steps.count("guest-ping") == 4
    stays = Ending()
    stays.left = 10**6
    with pytest.raises(MonitorTimeout, match="halt"):
        drive(agent.shutdown(ScriptedAgentPort(stays), "halt", timeout=5))
    for fault in (Fault.LOST, Fault.CLOSED):
        drive(agent.shutdown(ScriptedAgentPort(Ending(), fault, 0)))
    with pytest.raises(CommandError):
        drive(agent.shutdown(ScriptedAgentPort(Ending(), Fault.REFUSED, 0)))


def test_a_shutdown_that_was_not_sent_is_no_success() -> None:
    port = ScriptedAgentPort(Ending())
    port.silent = True
    with pytest.raises(AgentNotThere):
        drive(agent.shutdown(port))
    port.silent, port.closed = False, True
    with pytest.raises(ConnectionClosed):
        drive(agent.shutdown(port))

    class Busy(ScriptedAgentPort):
        async def call(self, command: str, arguments: Arguments | None = None, timeout: Timeout = DEFAULT) -> Any:
            raise AgentSlow(command, 1.0, "guest-fstrim")

    with pytest.raises(AgentSlow, match="not sent: it is at guest-fstrim"):
        drive(agent.shutdown(Busy(Ending())))
    with pytest.raises(AgentSlow):
        drive(agent.suspend(Busy(Ending())))
