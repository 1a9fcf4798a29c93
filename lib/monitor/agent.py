"""A guest's agent (qemu-ga) by its socket, blocking or on asyncio; one set of verbs.

A connection is one to QEMU, which holds the channel open whether there is an agent behind it or
not. So connecting says nothing of the agent; each command finds out, as far as it has to.
"""

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from ..errors import AgentNotThere, AgentSlow
from ..ops import agent, agent_exec, agent_file, agent_freeze
from ..ops.agent_freeze import FREEZE_DEADLINE, THAW_PATIENCE, Freeze
from ..ops.agent_port import SYNC_TIMEOUT, AgentPort, agent_timeout
from ..ops.port import DEFAULT, Arguments, Timeout
from ..qmp.agent import SYNC, SYNC_IDS, AgentSession
from ..qmp.life import Call
from .aio import AsyncLife, AsyncWaits
from .connection import BlockingLife, BlockingWaits
from .drive import drive
from .life import Life, LinkPort
from .link import Link
from .socket import Wire
from .verbs import verb

P = ParamSpec("P")
T = TypeVar("T")
AgentFlow = Callable[Concatenate[AgentPort, P], Coroutine[Any, Any, T]]

# While an agent is waited for, a sync that it may have taken along when it ended is sent anew: after so many seconds
# first, then at twice the distance each time, so that an agent that is only slow gets to answer the newest in the end.
SYNC_RETRY: Final = SYNC_TIMEOUT
# Seconds that a reply may take which goes on coming: what a program printed may be 22 MB, through a slow channel.
LONG_REPLY: Final = 120.0


class agent_verb(verb[P, T]):
    """Makes a method of both faces from a flow on an :class:`~drover.ops.agent_port.AgentPort`."""

    def __init__(self, flow: AgentFlow[P, T]) -> None:
        super().__init__(cast(Any, flow))  # which port it is, only the face's `_run` knows


class AgentVerbs:
    """All verbs of a guest agent; the faces inherit them."""

    execute = agent_verb(agent.execute)
    ping = agent_verb(agent.ping)
    sync = agent_verb(agent.sync)
    info = agent_verb(agent.info)

    get_time = agent_verb(agent.get_time)
    set_time = agent_verb(agent.set_time)
    osinfo = agent_verb(agent.osinfo)
    hostname = agent_verb(agent.hostname)
    timezone = agent_verb(agent.timezone)
    users = agent_verb(agent.users)
    vcpus = agent_verb(agent.vcpus)
    set_vcpus = agent_verb(agent.set_vcpus)
    memory_blocks = agent_verb(agent.memory_blocks)
    memory_block_size = agent_verb(agent.memory_block_size)
    network_interfaces = agent_verb(agent.network_interfaces)
    fsinfo = agent_verb(agent.fsinfo)
    disks = agent_verb(agent.disks)
    fstrim = agent_verb(agent.fstrim)

    exec = agent_verb(agent_exec.run_program)
    exec_stream = agent_verb(agent_exec.stream_program)

    read_file = agent_verb(agent_file.read_file)
    write_file = agent_verb(agent_file.write_file)
    download = agent_verb(agent_file.download)
    upload = agent_verb(agent_file.upload)

    fsfreeze_status = agent_verb(agent_freeze.fsfreeze_status)
    fsfreeze_thaw = agent_verb(agent_freeze.fsfreeze_thaw)

    shutdown = agent_verb(agent.shutdown)
    suspend = agent_verb(agent.suspend)
    set_user_password = agent_verb(agent.set_user_password)
    ssh_keys = agent_verb(agent.ssh_keys)
    add_ssh_keys = agent_verb(agent.add_ssh_keys)
    remove_ssh_keys = agent_verb(agent.remove_ssh_keys)


class AgentMonitor(AgentVerbs, Life[AgentSession]):
    """A guest agent's socket, before it is said how to wait.

    Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is the longest reply, in bytes.
    """

    def _make_session(self, wire: Wire, lost: Link[AgentSession] | None) -> AgentSession:
        return AgentSession(lambda: secrets.randbelow(SYNC_IDS), self._limit)

    def _opening(self, session: AgentSession) -> Call:
        call = Call("connect", 0, b"")
        call.finish()  # the channel greets nobody
        return call


class SocketAgentPort(LinkPort[AgentSession], AgentPort):
    """What the ports of both faces share."""

    def __init__(self, face: AgentMonitor) -> None:
        self._face = face
        self._excused = 0.0  # until when what it was left to do may be why the agent does not answer

    async def call(self, command: str, arguments: Arguments | None = None, timeout: Timeout = DEFAULT) -> Any:
        """Have the agent run a command, and return what it answers; one that is silent is :class:`AgentSlow`."""
        usual = agent_timeout(command, self._face.timeout)
        limit = usual if timeout is DEFAULT else timeout
        link, start = self.link, self.now()
        call = link.submit(command, arguments, None, False)
        try:
            await self._wait(link, call, limit, LONG_REPLY if timeout is DEFAULT else 0.0)
            return call.outcome()
        finally:
            if not call.done:
                link.abandon(call)
                if call.sent:
                    self._excused = start + (usual or SYNC_TIMEOUT)

    def _is_there(self, session: AgentSession, call: Call) -> bool:
        """Whether the agent is there as far as is known: in step, or at what takes its time."""
        return call.sent or (session.busy_with != "" and (session.in_flight != () or self.now() < self._excused))

    async def reconnect(self, timeout: float | None) -> None:
        await self._face._connect(timeout)

    async def _wait(self, link: Link[AgentSession], call: Call, limit: float | None, longest: float) -> None:
        """Wait until `call` is done.

        An agent that is in step is there, and so is one that was left with a command, for as long as such a
        command takes. Else its answer to a sync is waited for: as long as the caller likes where that is all
        he wants, and no longer than an agent takes before any other command.

        :param longest: seconds for which a reply of which ever more comes is waited for
        """
        session, start = link.session, self.now()
        patience = _less(limit, None if call.command == SYNC else SYNC_TIMEOUT)
        resend = pause = SYNC_RETRY
        waited, come, usual = 0.0, 0, limit
        while True:
            there = self._is_there(session, call)
            until = limit if there else patience
            left = None if until is None else max(0.0, until - waited)
            if await link.wait(call, left if call.sent else _less(left, max(0.0, resend - waited))):
                return
            waited = self.now() - start
            if usual is not None and call.sent and waited < longest and session.come > come:
                limit, come = min(waited + usual, longest), session.come
                continue
            if until is not None and waited >= until and there == self._is_there(session, call):
                raise AgentSlow(call.command, limit, session.busy_with) if there else AgentNotThere(call.command, until)
            if not call.sent and waited >= resend:
                link.abandon(link.submit(SYNC, None, None, False))
                pause *= 2
                resend = waited + pause


def _less(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


# -- the two faces -----------------------------------------------------------


class _BlockingAgentPort(BlockingWaits, SocketAgentPort):
    def later(self, seconds: float, flow: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        # The one thread of ours: what must happen while the caller's own thread is stuck needs another.
        timer = threading.Timer(seconds, lambda: drive(flow()))
        timer.daemon = True
        timer.start()
        return timer.cancel


class _AsyncAgentPort(AsyncWaits, SocketAgentPort):
    def later(self, seconds: float, flow: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks only weakly
        handle = loop.call_later(seconds, lambda: tasks.add(loop.create_task(flow())))
        return lambda: handle.cancel() if not tasks else None


class GuestAgent(BlockingLife[AgentSession], AgentMonitor):
    """A guest's agent for blocking code; threads may share one.

    ::

        with GuestAgent("/run/vm/demo.qga") as agent:
            print(agent.exec("/bin/uname", ["-a"]).stdout.decode())
            with agent.frozen():
                take_snapshot()

    Commands run one after another, in the order in which they were given. A verb that is used
    unconnected connects for the call and closes after it. After the connection was lost, verbs raise
    :class:`~drover.errors.ConnectionClosed` until :meth:`close` or :meth:`connect` is called, unless
    `reconnect` says otherwise. Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is
    the longest reply, in bytes.
    """

    def frozen(
        self,
        mountpoints: Sequence[str] | None = None,
        *,
        deadline: float = FREEZE_DEADLINE,
        patience: float = THAW_PATIENCE,
        timeout: Timeout = DEFAULT,
    ) -> "Frozen":
        """The guest's file systems stand still inside the ``with`` block, and are thawed at its end.

        See :func:`drover.ops.agent_freeze.frozen`. For the deadline a thread waits meanwhile.
        """
        return Frozen(self, mountpoints, deadline=deadline, patience=patience, timeout=timeout)

    def _make_port(self) -> SocketAgentPort:
        return _BlockingAgentPort(self)


class AsyncGuestAgent(AsyncLife[AgentSession], AgentMonitor):
    """A guest's agent on asyncio; the same verbs as coroutines, and ``async with agent.frozen():``.

    A cancelled command that was sent goes on in the guest; the next one gets in step first.
    Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is the longest reply, in bytes.
    """

    def frozen(
        self,
        mountpoints: Sequence[str] | None = None,
        *,
        deadline: float = FREEZE_DEADLINE,
        patience: float = THAW_PATIENCE,
        timeout: Timeout = DEFAULT,
    ) -> "AsyncFrozen":
        """The guest's file systems stand still inside the ``async with`` block, and are thawed at its end.

        See :func:`drover.ops.agent_freeze.frozen`.
        """
        return AsyncFrozen(self, mountpoints, deadline=deadline, patience=patience, timeout=timeout)

    def _make_port(self) -> SocketAgentPort:
        return _AsyncAgentPort(self)


class _FrozenBlock:
    """A block between freeze and thaw, with a connection for itself where there was none."""

    def __init__(self, face: AgentMonitor, mountpoints: Sequence[str] | None, **options: Any) -> None:
        self._face = face
        self._block = agent_freeze.frozen(face._port, mountpoints, **options)
        self._borrowed = False

    async def _enter(self) -> Freeze:
        self._borrowed = not self._face.is_connected()
        if self._borrowed:
            await self._face._connect(None)
        try:
            return await self._block.__aenter__()
        except BaseException:
            self._leave()
            raise

    async def _exit(self, *error: Any) -> bool | None:
        self._borrowed = self._borrowed or self._face._link is None
        try:
            return await self._block.__aexit__(*error)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._borrowed:
            self._face._disconnect()


class Frozen(_FrozenBlock):
    """What :meth:`GuestAgent.frozen` gives: for ``with``."""

    def __enter__(self) -> Freeze:
        return drive(self._enter())

    def __exit__(self, *error: Any) -> bool | None:
        return drive(self._exit(*error))


class AsyncFrozen(_FrozenBlock):
    """What :meth:`AsyncGuestAgent.frozen` gives: for ``async with``."""

    async def __aenter__(self) -> Freeze:
        return await self._enter()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._exit(*error)
