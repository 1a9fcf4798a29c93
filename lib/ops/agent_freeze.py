"""File systems of the guest that stand still, for a snapshot that holds whole files: frozen, and thawed for certain.

What writes in a frozen guest hangs. So whatever happens inside the block, and also if the reply to the
freeze never came, the thaw is tried until the agent says that it is done; and past a deadline it happens
by itself, even while the caller is stuck.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ..errors import (
    AgentError,
    AgentFrozen,
    ArgumentError,
    CommandError,
    ConnectError,
    ConnectionClosed,
    DroverError,
    FreezeBroken,
    ThawFailed,
)
from .agent_port import AgentPort
from .port import DEFAULT, Timeout

log = logging.getLogger("drover.qga")

# Seconds. A snapshot takes well below one; programs of a guest that cannot write for a minute give up.
FREEZE_DEADLINE: Final = 60.0
# Seconds for which the thaw is tried again while the agent does not answer: longer than its own slowest
# freeze, behind which a thaw waits.
THAW_PATIENCE: Final = 180.0
# Seconds between two tries, and for each.
THAW_PAUSE: Final = 1.0
THAW_TIMEOUT: Final = 30.0
STATUS_TIMEOUT: Final = 5.0
RECONNECT_TIMEOUT: Final = 10.0

FROZEN: Final = "frozen"


class Freeze:
    """What a block between freeze and thaw knows.

    :ivar count: number of file systems that were frozen
    :ivar broken: why they did not stand still up to the end of the block; empty as long as they do
    """

    def __init__(self) -> None:
        self.count = 0
        self.broken = ""


async def fsfreeze_status(port: AgentPort) -> str:
    """Return ``frozen`` or ``thawed``: what the agent did last (``guest-fsfreeze-status``)."""
    return await port.ask("guest-fsfreeze-status", str, timeout=STATUS_TIMEOUT)


async def fsfreeze_thaw(port: AgentPort, *, patience: float = THAW_PATIENCE) -> int:
    """Thaw the guest's file systems, whoever froze them (``guest-fsfreeze-thaw``), and see that it is so.

    :param patience: seconds for which it is tried again while the agent does not answer
    :returns: number of file systems that were thawed by this
    :raises ThawFailed: they may be frozen still
    """
    deadline = port.now() + patience
    thawed = 0
    while True:
        try:
            thawed += await port.ask("guest-fsfreeze-thaw", int, timeout=THAW_TIMEOUT)
            if await fsfreeze_status(port) != FROZEN:
                port.frozen = False
                return thawed
            failure: DroverError = AgentError("the agent says that they are frozen still")
        except ConnectionClosed as error:
            failure = error
            await _come_back(port, error)
        except (AgentError, CommandError) as error:
            failure = error
        if port.now() >= deadline:
            raise ThawFailed(f"the guest's file systems may be frozen still: {failure}") from failure
        log.warning("thaw of the guest's file systems: %s; trying again", failure)
        await port.sleep(THAW_PAUSE)


async def _come_back(port: AgentPort, error: ConnectionClosed) -> None:
    try:
        await port.reconnect(RECONNECT_TIMEOUT)
    except AgentError:
        pass  # the channel is there again, the agent will be
    except ConnectError as failure:
        raise ThawFailed(f"the guest's file systems may be frozen still: {failure}") from error


@asynccontextmanager
async def frozen(
    port: AgentPort,
    mountpoints: Sequence[str] | None = None,
    *,
    deadline: float = FREEZE_DEADLINE,
    patience: float = THAW_PATIENCE,
    timeout: Timeout = DEFAULT,
) -> AsyncIterator[Freeze]:
    """The guest's file systems stand still inside the block (``guest-fsfreeze-freeze``, ``-freeze-list``).

    They are thawed at its end, whatever ends it; shielded from a second cancel. Until then only those
    commands are sent that a frozen agent takes.

    :param mountpoints: only these; None means all that can
    :param deadline: seconds after which they are thawed by themselves
    :param patience: seconds for which the thaw is tried again while the agent does not answer
    :param timeout: seconds for the freeze; None waits for ever
    :raises AgentFrozen: somebody froze them before; they stay as they are
    :raises CommandError: the guest could not freeze one of them; then none is
    :raises FreezeBroken: the block came to its end, but they had been thawed before, by the deadline or by somebody
    :raises ThawFailed: they may be frozen still
    """
    if deadline <= 0:
        raise ArgumentError("deadline", deadline, "seconds, more than none")
    if isinstance(mountpoints, str):
        raise ArgumentError("mountpoints", mountpoints, "a list of mount points")
    if await fsfreeze_status(port) == FROZEN:
        raise AgentFrozen("guest-fsfreeze-freeze")
    freeze = Freeze()
    try:
        freeze.count = await _freeze(port, mountpoints, timeout)
        stop = port.later(deadline, lambda: _expire(port, freeze, deadline, patience))
        try:
            yield freeze
        finally:
            stop()
    except BaseException as error:
        await port.shield(_thaw_after(port, error, patience))
        raise
    await port.shield(_thaw(port, freeze, patience))
    if freeze.broken:
        raise FreezeBroken(freeze.broken)


async def _freeze(port: AgentPort, mountpoints: Sequence[str] | None, timeout: Timeout) -> int:
    port.frozen = True
    if mountpoints is None:
        count = await port.call("guest-fsfreeze-freeze", None, timeout)
    else:
        count = await port.call("guest-fsfreeze-freeze-list", {"mountpoints": list(mountpoints)}, timeout)
    return int(count)


async def _expire(port: AgentPort, freeze: Freeze, deadline: float, patience: float) -> None:
    freeze.broken = f"the guest's file systems were thawed after {deadline:g} s, before the end of the block"
    log.warning("%s", freeze.broken)
    try:
        await fsfreeze_thaw(port, patience=patience)
    except DroverError as error:  # the end of the block tries again, and tells
        log.error("%s", error)


async def _thaw(port: AgentPort, freeze: Freeze, patience: float) -> None:
    if not freeze.broken and await _status_or(port, FROZEN) != FROZEN:
        freeze.broken = "the guest's file systems were thawed by somebody before the end of the block"
    await fsfreeze_thaw(port, patience=patience)


async def _status_or(port: AgentPort, otherwise: str) -> str:
    try:
        return await fsfreeze_status(port)
    except DroverError:
        return otherwise


async def _thaw_after(port: AgentPort, error: BaseException, patience: float) -> None:
    try:
        await fsfreeze_thaw(port, patience=patience)
    except DroverError as failure:
        log.error("%s", failure)
        error.add_note(str(failure))
