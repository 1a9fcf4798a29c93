"""The port of a guest agent: all that a flow may await there, and what holds for each command."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct, ValidationError, convert

from ..errors import (
    AgentError,
    AgentFrozen,
    CommandError,
    CommandNotSupported,
    NotSupported,
    ProtocolError,
)
from ..qmp.framing import excerpt
from ..qmp.ready import ready
from .port import DEFAULT, Arguments, Timeout

T = TypeVar("T")

AGENT: Final = "this guest's agent"

# Seconds that an agent may take to answer a sync: it is idle then, and answers within milliseconds. A guest that
# swaps, or whose host does, may take its time; libvirt gives up after 5 s, too.
SYNC_TIMEOUT: Final = 5.0

# Seconds; why: what the agent waits for in the guest.
_STORAGE: Final = 60.0  # writes back all that is dirty
_PROGRAM: Final = 30.0  # runs a program of the guest and waits for its end
AGENT_TIMEOUTS: Final[Mapping[str, float]] = {
    "guest-fsfreeze-freeze": _STORAGE,
    "guest-fsfreeze-freeze-list": _STORAGE,
    "guest-fsfreeze-thaw": _STORAGE,
    "guest-fstrim": 3600.0,  # tells the host of every free block
    "guest-set-memory-blocks": _STORAGE,  # taking a block away moves what is in it
    "guest-set-time": _PROGRAM,
    "guest-set-user-password": _PROGRAM,
    "guest-shutdown": _PROGRAM,
    "guest-suspend-disk": _PROGRAM,
    "guest-suspend-hybrid": _PROGRAM,
    "guest-suspend-ram": _PROGRAM,
}

# What the agent takes while the file systems are frozen (`ga_freeze_allowlist`): all else might log, and so hang.
FREEZE_ALLOWED: Final = frozenset({
    "guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw",
})  # fmt: skip

# The version of qemu-ga that brought a command, as its schema says; absent: before 2.0.
SINCE: Final[Mapping[str, str]] = {
    "guest-exec": "2.5",
    "guest-exec-status": "2.5",
    "guest-fsfreeze-freeze-list": "2.2",
    "guest-get-disks": "5.2",
    "guest-get-fsinfo": "2.2",
    "guest-get-host-name": "2.10",
    "guest-get-memory-block-info": "2.3",
    "guest-get-memory-blocks": "2.3",
    "guest-get-osinfo": "2.10",
    "guest-get-timezone": "2.10",
    "guest-get-users": "2.10",
    "guest-set-memory-blocks": "2.3",
    "guest-set-user-password": "2.3",
    "guest-ssh-add-authorized-keys": "5.2",
    "guest-ssh-get-authorized-keys": "5.2",
    "guest-ssh-remove-authorized-keys": "5.2",
}


class AgentCommand(Struct, frozen=True, rename="kebab"):
    """A command that an agent knows.

    :ivar enabled: False: it refuses it, for it was told so, the guest cannot do it, or file systems are frozen
    :ivar success_response: False: it answers only when it fails
    """

    name: str
    enabled: bool = True
    success_response: bool = True


class AgentInfo(Struct, frozen=True):
    """Who the agent is, and what it can do.

    :ivar version: of qemu-ga
    """

    version: str
    supported_commands: list[AgentCommand]

    def can(self, command: str) -> bool:
        """Whether the agent has `command` and would run it."""
        return any(entry.name == command and entry.enabled for entry in self.supported_commands)


def agent_timeout(command: str, default: float | None) -> float | None:
    """Seconds that `command` gets when the caller does not say; None waits for ever.

    :param default: for commands that are not slow by nature
    """
    return None if default is None else max(default, AGENT_TIMEOUTS.get(command, default))


def typed(reply: Any, kind: type[T], command: str) -> T:
    """A reply to `command` as a `kind`.

    :raises ProtocolError: it is none: the guest decides what it answers
    """
    try:
        return convert(reply, kind)
    except ValidationError as error:
        raise ProtocolError(
            f"{command}: the agent's reply makes no sense ({error})", excerpt(repr(reply).encode())
        ) from error


class AgentPort(ABC):
    """One guest agent as a flow sees it. Times are seconds on a clock that only this port knows.

    :ivar frozen: whether a flow of ours has frozen the guest's file systems
    """

    frozen: bool = False

    async def execute(self, command: str, arguments: Arguments | None = None, *, timeout: Timeout = DEFAULT) -> Any:
        """Run one command of the agent and return what it returned.

        :param timeout: seconds; None waits for ever
        :raises AgentNotThere: no agent answers; nothing was sent
        :raises AgentSlow: there was an agent, and it has not answered yet; the command may still take effect
        :raises AgentFrozen: it is none that an agent takes while file systems are frozen, and they are
        :raises NotSupported: this agent does not have the command, or was told to refuse it
        :raises CommandError: it could not be done
        :raises ConnectionClosed: the connection ended first
        """
        if self.frozen and command not in FREEZE_ALLOWED:
            raise AgentFrozen(command)
        try:
            return await self.call(command, arguments, timeout)
        except CommandNotSupported as refusal:
            raise await self._why_not(command) from refusal

    async def _why_not(self, command: str) -> NotSupported | AgentError:
        """Why the agent says that it has no such command: it says so, too, while file systems are frozen."""
        if command in FREEZE_ALLOWED:
            return NotSupported(command, by=AGENT)
        known = typed(await self.call("guest-info"), AgentInfo, "guest-info").supported_commands
        if all(entry.name != command for entry in known):
            since = SINCE.get(command)
            return NotSupported(command, f"qemu-ga {since} or later" if since else "", AGENT)
        try:
            if await self.call("guest-fsfreeze-status") == "frozen":
                return AgentFrozen(command)
        except CommandError:
            pass  # an agent without freezing
        return NotSupported(command, "an agent that was not told to refuse it", AGENT)

    async def ask(
        self, command: str, kind: type[T], arguments: Arguments | None = None, *, timeout: Timeout = DEFAULT
    ) -> T:
        """Run one command whose reply is a `kind`; see :meth:`execute`.

        :raises ProtocolError: it is none
        """
        return typed(await self.execute(command, arguments, timeout=timeout), kind, command)

    @abstractmethod
    async def call(self, command: str, arguments: Arguments | None = None, timeout: Timeout = DEFAULT) -> Any:
        """Run one command, whatever state the guest is in: :meth:`execute` without its checks."""

    @abstractmethod
    async def reconnect(self, timeout: float | None) -> None:
        """Connect anew after the connection was lost.

        :raises ConnectError: nobody answers there
        """

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    def now(self) -> float:
        """A clock, in seconds; only differences mean anything."""

    @abstractmethod
    async def offload(self, function: Callable[[], T]) -> T:
        """Run a function that may block on the file system."""

    @abstractmethod
    async def shield(self, flow: Coroutine[Any, Any, T]) -> T:
        """Run `flow` to its end, even when the caller is cancelled meanwhile."""

    @abstractmethod
    def later(self, seconds: float, flow: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        """Run `flow` by itself after `seconds`, unless the function that is returned is called before."""


ready(AgentInfo, AgentCommand)
