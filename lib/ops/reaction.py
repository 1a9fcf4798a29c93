"""What QEMU does when the guest shuts down, reboots, panics, or does not feed its watchdog."""

from typing import Final

from ..errors import ArgumentError, NotSupported
from .port import Port

_SINCE: Final = {"exit-failure": "QEMU 7.1 or later"}


async def set_action(
    port: Port,
    *,
    reboot: str | None = None,
    shutdown: str | None = None,
    panic: str | None = None,
    watchdog: str | None = None,
) -> None:
    """Say what QEMU does from now on; what is None stays as it is (``set-action``, QEMU 6.0).

    :param reboot: ``reset`` or ``shutdown``
    :param shutdown: ``poweroff``, or ``pause``: then the machine waits in run state ``shutdown`` for who reads it
    :param panic: ``pause``, ``shutdown``, ``exit-failure`` or ``none``
    :param watchdog: ``reset``, ``shutdown``, ``poweroff``, ``pause``, ``debug``, ``none`` or ``inject-nmi``
    :raises ArgumentError: there is no such action
    """
    given = {"reboot": reboot, "shutdown": shutdown, "panic": panic, "watchdog": watchdog}
    actions = {name: action for name, action in given.items() if action is not None}
    if not actions:
        raise ArgumentError("reboot, shutdown, panic, watchdog", None, "one of them at least")
    schema = await port.schema()
    for name, action in actions.items():
        known = schema.values("set-action", name)
        if action not in known and action in _SINCE:
            raise NotSupported(f"{name}={action}", _SINCE[action])
        if action not in known:
            raise ArgumentError(name, action, f"one of {', '.join(sorted(known))}")
    await port.execute("set-action", actions)


async def watchdog_set_action(port: Port, action: str) -> None:
    """Say what QEMU does when the guest does not feed its watchdog; raises what :func:`set_action` raises."""
    await set_action(port, watchdog=action)
