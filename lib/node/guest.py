"""What the guest's own agent does, through the daemon: on the agent's socket, beside what is done to the machine."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, structs, to_builtins

from ..errors import ArgumentError, CommandError, NotSupported, WrongState
from ..kvm.instance import Instance
from ..kvm.record import load
from ..kvm.state import State
from ..monitor.agent import GuestAgent
from .parameters import Seconds

# Bytes of a file that one call brings: it is held in memory, some times over.
MAX_FILE: Final = 16 << 20
# Bytes of a program's output, and of its errors, that are told: they are kept with the job.
MAX_OUTPUT: Final = 128 << 10
# Seconds for an agent to say that it is there, where that is the question.
_THERE: Final = 3.0

Path = Annotated[str, Meta(min_length=1, max_length=4096)]
Base64 = Annotated[str, Meta(description="in base64")]


class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar execute: a command of the agent's, such as ``guest-get-time``
    :ivar arguments: of it
    :ivar timeout: seconds for its answer
    """

    execute: Annotated[str, Meta(min_length=1, max_length=100)]
    arguments: dict[str, Any] = {}
    timeout: Seconds = 30.0


class Exec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar path: of a program in the guest
    :ivar args: its arguments
    :ivar env: its whole environment; without it, the agent's
    :ivar input: what it reads, in base64
    :ivar timeout: seconds; after that it is killed
    """

    path: Path
    args: tuple[str, ...] = ()
    env: dict[str, str] | None = None
    input: Base64 | None = None
    timeout: Seconds = 60.0


class WriteFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar path: of a file in the guest
    :ivar data: what shall be in it, in base64
    :ivar append: after what is in it
    """

    path: Path
    data: Base64
    append: bool = False


class SetPassword(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar user: of the guest
    :ivar password: their new one
    :ivar crypted: it is given as crypt(3) has it
    """

    user: Annotated[str, Meta(min_length=1, max_length=256)]
    password: str
    crypted: bool = False


class Shutdown(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar mode: what the guest is to do
    :ivar timeout: seconds for it
    """

    mode: Literal["powerdown", "halt", "reboot"] = "powerdown"
    timeout: Seconds = 120.0


@contextmanager
def reached(instance: Instance) -> Iterator[GuestAgent]:
    """The agent of an instance's guest.

    :raises WrongState: it does not run
    :raises NotSupported: it has no channel for an agent
    """
    paths = instance.host.paths.instance(instance.name)
    runtime = load(paths.document).runtime
    if runtime is None:
        raise WrongState(instance.name, State.STOPPED, State.RUNNING)
    if not runtime.spec.agent:
        raise NotSupported("a guest agent", by=f"{instance.name}: its specification says agent = false")
    with GuestAgent(paths.socket("agent")) as agent:
        yield agent


def about(instance: Instance) -> dict[str, Any]:
    """What the agent tells of itself and its guest; what it cannot tell is null.

    :raises AgentNotThere: no agent answers
    """
    with reached(instance) as agent:
        agent.ping(timeout=_THERE)
        told: dict[str, Any] = {}
        for name in ("info", "osinfo", "hostname", "timezone", "users", "network_interfaces", "fsinfo"):
            try:
                told[name] = to_builtins(getattr(agent, name)())
            except (CommandError, NotSupported):
                told[name] = None
        return told


def command(instance: Instance, params: Command) -> Any:
    """Have the agent run a command of its own."""
    with reached(instance) as agent:
        return agent.execute(params.execute, params.arguments, timeout=params.timeout)


def execute(instance: Instance, params: Exec) -> dict[str, Any]:
    """Run a program in the guest. Of what it prints the first :data:`MAX_OUTPUT` bytes are told."""
    data = None if params.input is None else _bytes("input", params.input)
    with reached(instance) as agent:
        ended = agent.exec(params.path, params.args, env=params.env, input=data, timeout=params.timeout)
    told: dict[str, Any] = to_builtins(
        structs.replace(
            ended,
            stdout=ended.stdout[:MAX_OUTPUT],
            stderr=ended.stderr[:MAX_OUTPUT],
            stdout_truncated=ended.stdout_truncated or len(ended.stdout) > MAX_OUTPUT,
            stderr_truncated=ended.stderr_truncated or len(ended.stderr) > MAX_OUTPUT,
        )
    )
    return told


def read_file(instance: Instance, path: str) -> bytes:
    """What is in a file of the guest.

    :raises AgentError: that is more than :data:`MAX_FILE` bytes
    """
    with reached(instance) as agent:
        return agent.read_file(path, limit=MAX_FILE)


def write_file(instance: Instance, params: WriteFile) -> dict[str, Any]:
    """Write a file of the guest."""
    data = _bytes("data", params.data)
    with reached(instance) as agent:
        return {"size": agent.write_file(params.path, data, append=params.append)}


def set_password(instance: Instance, params: SetPassword) -> None:
    """Give a user of the guest another password."""
    with reached(instance) as agent:
        agent.set_user_password(params.user, params.password, crypted=params.crypted)


def shut_down(instance: Instance, params: Shutdown) -> None:
    """Have the guest end, or begin anew, by its own means."""
    with reached(instance) as agent:
        agent.shutdown(params.mode, timeout=params.timeout)


def _bytes(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ArgumentError(field, f"{text[:20]}…" if len(text) > 20 else text, "base64") from None
