"""What a guest's agent (qemu-ga) can be asked and told in one step: who it is, the guest's state, its end.

More steps take: :mod:`.agent_exec` programs, :mod:`.agent_file` files, :mod:`.agent_freeze` file systems
that stand still.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, get_args

from msgspec import Struct

from ..errors import AgentError, AgentNotThere, AgentSlow, ArgumentError, ConnectionClosed, MonitorTimeout
from ..qmp.agent import SYNC
from ..qmp.ready import ready
from .agent_port import SYNC_TIMEOUT, AgentInfo, AgentPort
from .port import DEFAULT, Timeout

# How long a guest may take to stop its services after it was told to end.
SHUTDOWN_TIMEOUT: Final = 120.0
# Within this an agent says that the guest's program to end it would not; that one only tells others, and returns.
REFUSAL_TIMEOUT: Final = 10.0
# An agent that agreed to end the guest is asked so often whether it is still there, and is gone when it says nothing
# for so long: a machine that starts anew, with a new agent, takes longer than both together.
SHUTDOWN_POLL: Final = 0.3
SHUTDOWN_SILENCE: Final = 1.0
# The agent does not answer while the guest sleeps, and refuses within this.
SUSPEND_TIMEOUT: Final = 5.0

NANOSECOND: Final = 1e-9

Shutdown = Literal["powerdown", "halt", "reboot"]
Suspend = Literal["ram", "disk", "hybrid"]


class OsInfo(Struct, frozen=True, rename="kebab"):
    """The guest's operating system; what it does not tell is empty. `id` is such as ``debian`` or ``mswindows``."""

    id: str = ""
    name: str = ""
    pretty_name: str = ""
    version: str = ""
    version_id: str = ""
    kernel_release: str = ""
    kernel_version: str = ""
    machine: str = ""
    variant: str = ""
    variant_id: str = ""


class Timezone(Struct, frozen=True):
    """The guest's time zone: its name, and its offset from UTC in seconds, positive east of Greenwich."""

    offset: int
    zone: str = ""


class User(Struct, frozen=True, rename="kebab"):
    """Somebody who is logged in; `login_time` in seconds since the epoch."""

    user: str
    login_time: float
    domain: str = ""


class Vcpu(Struct, frozen=True, rename="kebab"):
    """A virtual CPU as the guest has it."""

    logical_id: int
    online: bool
    can_offline: bool = False


class MemoryBlock(Struct, frozen=True, rename="kebab"):
    """A block of memory that the guest can use, or not; all are of one size (:func:`memory_block_size`)."""

    phys_index: int
    online: bool
    can_offline: bool = False


class IpAddress(Struct, frozen=True, rename={"address": "ip-address", "type": "ip-address-type"}):
    """An address of a network interface; `type` is ``ipv4`` or ``ipv6``."""

    address: str
    type: str
    prefix: int


class NetworkStatistics(Struct, frozen=True, rename="kebab"):
    """What went through a network interface since it came up."""

    rx_bytes: int
    rx_packets: int
    rx_errs: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errs: int
    tx_dropped: int


class NetworkInterface(Struct, frozen=True, rename="kebab"):
    """A network interface of the guest; `hardware_address` is empty where it has none."""

    name: str
    hardware_address: str = ""
    ip_addresses: list[IpAddress] = []
    statistics: NetworkStatistics | None = None


class Filesystem(Struct, frozen=True, rename="kebab"):
    """A mounted file system; sizes in bytes, None where it does not tell. `disk`: where it lies, as QEMU says it."""

    name: str
    mountpoint: str
    type: str
    used_bytes: int | None = None
    total_bytes: int | None = None
    disk: list[dict[str, Any]] = []


class Disk(Struct, frozen=True):
    """A disk or partition of the guest; `dependencies` are what it lies on."""

    name: str
    partition: bool
    dependencies: list[str] = []
    address: dict[str, Any] | None = None
    alias: str = ""


class Trimmed(Struct, frozen=True):
    """What became of one file system: bytes that the host was told of as free, or the error."""

    path: str
    trimmed: int = 0
    minimum: int = 0
    error: str = ""


class _HostName(Struct, rename="kebab"):
    host_name: str


class _BlockInfo(Struct):
    size: int


class _Trim(Struct):
    paths: list[Trimmed]


class _Keys(Struct):
    keys: list[str]


# -- the agent itself --------------------------------------------------------


async def execute(
    port: AgentPort, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: Timeout = DEFAULT
) -> Any:
    """Run one command of the agent and return what it returned.

    :param timeout: seconds; None waits for ever
    :raises AgentNotThere: no agent answers; nothing was sent
    :raises AgentSlow: there was an agent, and it has not answered yet; the command may still take effect
    :raises AgentFrozen: it is none that an agent takes while file systems are frozen, and they are
    :raises NotSupported: this agent does not have the command, or was told to refuse it
    :raises CommandError: it could not be done
    :raises ConnectionClosed: the connection ended first
    """
    return await port.execute(command, arguments, timeout=timeout)


async def ping(port: AgentPort, *, timeout: float | None = SYNC_TIMEOUT) -> None:
    """See whether the agent answers (``guest-ping``).

    :raises AgentNotThere: it does not
    :raises AgentSlow: it does not any more
    """
    await port.execute("guest-ping", timeout=timeout)


async def sync(port: AgentPort, *, timeout: float | None = SYNC_TIMEOUT) -> None:
    """Get in step with the agent anew (``guest-sync-delimited``). Done by itself wherever it is needed."""
    await port.execute(SYNC, timeout=timeout)


async def info(port: AgentPort) -> AgentInfo:
    """Return who the agent is and what it can do (``guest-info``)."""
    return await port.ask("guest-info", AgentInfo)


# -- the guest ---------------------------------------------------------------


async def get_time(port: AgentPort) -> float:
    """Return the guest's time in seconds since the epoch (``guest-get-time``)."""
    return await port.ask("guest-get-time", int) * NANOSECOND


async def set_time(port: AgentPort, seconds: float | None = None) -> None:
    """Set the guest's time (``guest-set-time``).

    :param seconds: since the epoch; None takes the machine's own clock (RTC)
    """
    if seconds is not None and seconds < 0:
        raise ArgumentError("seconds", seconds, "seconds since the epoch")
    await port.execute("guest-set-time", None if seconds is None else {"time": round(seconds / NANOSECOND)})


async def osinfo(port: AgentPort) -> OsInfo:
    """Return what operating system the guest runs (``guest-get-osinfo``)."""
    return await port.ask("guest-get-osinfo", OsInfo)


async def hostname(port: AgentPort) -> str:
    """Return the guest's host name (``guest-get-host-name``)."""
    return (await port.ask("guest-get-host-name", _HostName)).host_name


async def timezone(port: AgentPort) -> Timezone:
    """Return the guest's time zone (``guest-get-timezone``)."""
    return await port.ask("guest-get-timezone", Timezone)


async def users(port: AgentPort) -> list[User]:
    """Return who is logged in (``guest-get-users``)."""
    return await port.ask("guest-get-users", list[User])


async def vcpus(port: AgentPort) -> list[Vcpu]:
    """Return the virtual CPUs as the guest has them (``guest-get-vcpus``)."""
    return await port.ask("guest-get-vcpus", list[Vcpu])


async def set_vcpus(port: AgentPort, online: Mapping[int, bool]) -> None:
    """Bring virtual CPUs into use, or out of it (``guest-set-vcpus``), one after another.

    :param online: logical id to whether it shall be in use
    :raises CommandError: one of them could not; those before it could
    """
    wishes = [{"logical-id": number, "online": wanted} for number, wanted in online.items()]
    while wishes:
        # the agent returns how many it did, and says why not of the first one only
        done = await port.ask("guest-set-vcpus", int, {"vcpus": wishes})
        if done <= 0:
            raise AgentError(f"guest-set-vcpus: the agent did nothing for CPU {wishes[0]['logical-id']}")
        wishes = wishes[done:]


async def memory_blocks(port: AgentPort) -> list[MemoryBlock]:
    """Return the guest's blocks of memory (``guest-get-memory-blocks``)."""
    return await port.ask("guest-get-memory-blocks", list[MemoryBlock])


async def memory_block_size(port: AgentPort) -> int:
    """Return the size of one block of memory, in bytes (``guest-get-memory-block-info``)."""
    return (await port.ask("guest-get-memory-block-info", _BlockInfo)).size


async def network_interfaces(port: AgentPort) -> list[NetworkInterface]:
    """Return the guest's network interfaces with their addresses (``guest-network-get-interfaces``)."""
    return await port.ask("guest-network-get-interfaces", list[NetworkInterface])


async def fsinfo(port: AgentPort) -> list[Filesystem]:
    """Return the mounted file systems that lie on disks (``guest-get-fsinfo``)."""
    return await port.ask("guest-get-fsinfo", list[Filesystem])


async def disks(port: AgentPort) -> list[Disk]:
    """Return the guest's disks and partitions (``guest-get-disks``)."""
    return await port.ask("guest-get-disks", list[Disk])


async def fstrim(port: AgentPort, *, minimum: int = 0, timeout: Timeout = DEFAULT) -> list[Trimmed]:
    """Tell the host which blocks are free (``guest-fstrim``), on all file systems that can.

    :param minimum: leave out free extents that are smaller, in bytes
    :param timeout: seconds; None waits for ever
    """
    return (await port.ask("guest-fstrim", _Trim, {"minimum": minimum}, timeout=timeout)).paths


# -- its end -----------------------------------------------------------------


async def shutdown(port: AgentPort, mode: Shutdown = "powerdown", *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
    """End the guest from within (``guest-shutdown``), and wait until its agent has gone.

    The agent goes early in a guest's end. When the guest is through, QEMU says it on the QMP monitor, by
    ``SHUTDOWN`` or ``RESET``: take the mark before this, and wait for the event behind it.

    :param mode: ``powerdown``, ``halt`` (the machine stays on), or ``reboot``
    :param timeout: seconds
    :raises CommandError: the guest would not
    :raises MonitorTimeout: its agent still answers
    """
    _one_of("mode", mode, get_args(Shutdown))
    deadline = port.now() + timeout
    if not await _agreed(port, "guest-shutdown", {"mode": mode}, min(timeout, REFUSAL_TIMEOUT)):
        return  # it went before it could say that it did as it was told
    try:
        while port.now() < deadline:
            await port.sleep(SHUTDOWN_POLL)
            await ping(port, timeout=SHUTDOWN_SILENCE)
    except (AgentNotThere, AgentSlow, ConnectionClosed):
        return
    raise MonitorTimeout(f"the guest's {mode}", timeout)


async def suspend(port: AgentPort, mode: Suspend = "ram", *, timeout: float = SUSPEND_TIMEOUT) -> None:
    """Put the guest to sleep (``guest-suspend-ram``, ``-disk``, ``-hybrid``).

    The agent says nothing on success. QEMU does, on the QMP monitor: event ``SUSPEND`` or ``SUSPEND_DISK``.

    :param timeout: seconds in which a refusal would come
    :raises CommandError: the guest cannot
    """
    _one_of("mode", mode, get_args(Suspend))
    await _agreed(
        port, f"guest-suspend-{mode}", None, timeout
    )  # if it says nothing, it sleeps with the rest of the guest


async def _agreed(port: AgentPort, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> bool:
    """Run a command that ends what answers it; False if it was sent, and then there was silence."""
    try:
        await port.execute(command, arguments, timeout=timeout)
    except AgentSlow as error:
        if error.busy_with != command:
            raise
    except ConnectionClosed as error:
        if command not in error.in_flight:
            raise
    else:
        return True
    return False


# -- who may come in ---------------------------------------------------------


async def set_user_password(port: AgentPort, user: str, password: str, *, crypted: bool = False) -> None:
    """Set a user's password (``guest-set-user-password``). It reaches no log of ours.

    :param user: the account's name
    :param password: as it is typed, or as it stands in the guest's ``/etc/shadow``
    :param crypted: it is the latter
    :raises CommandError: there is no such user, or the guest's tools refused
    """
    encoded = base64.b64encode(password.encode()).decode()
    await port.execute("guest-set-user-password", {"username": user, "password": encoded, "crypted": crypted})


async def ssh_keys(port: AgentPort, user: str) -> list[str]:
    """Return a user's public keys in ``~/.ssh/authorized_keys`` (``guest-ssh-get-authorized-keys``)."""
    return (await port.ask("guest-ssh-get-authorized-keys", _Keys, {"username": user})).keys


async def add_ssh_keys(port: AgentPort, user: str, keys: Sequence[str], *, replace: bool = False) -> None:
    """Let holders of these public keys in as `user` (``guest-ssh-add-authorized-keys``).

    :param replace: and no others
    """
    arguments = {"username": user, "keys": _lines("keys", keys), "reset": replace}
    await port.execute("guest-ssh-add-authorized-keys", arguments)


async def remove_ssh_keys(port: AgentPort, user: str, keys: Sequence[str]) -> None:
    """Take public keys away again (``guest-ssh-remove-authorized-keys``); those that are not there are passed over."""
    await port.execute("guest-ssh-remove-authorized-keys", {"username": user, "keys": _lines("keys", keys)})


def _lines(field: str, values: Sequence[str]) -> list[str]:
    for value in [values] if isinstance(values, str) else values:
        if isinstance(values, str) or "\n" in value:
            raise ArgumentError(field, value, "a list of keys, each of one line")
    return list(values)


def _one_of(field: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ArgumentError(field, value, f"one of {', '.join(allowed)}")


ready(OsInfo, Timezone, User, Vcpu, MemoryBlock, NetworkInterface, Filesystem, Disk)
ready(_HostName, _BlockInfo, _Trim, _Keys)
