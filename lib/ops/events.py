"""Waiting for events."""

from collections.abc import Collection
from typing import Final

from ..qmp.events import Match
from ..qmp.messages import Event
from .port import Port

EVENT_TIMEOUT: Final = 10.0


async def wait_event(
    port: Port,
    names: str | Collection[str],
    *,
    since: int | None = None,
    match: Match | None = None,
    timeout: float | None = EVENT_TIMEOUT,
) -> Event:
    """Wait for the first event that fits, and return it.

    To miss none, take ``event_mark()`` before the command that causes the event.

    :param names: one event name, or several; an empty collection means any
    :param since: only events numbered after this; None means from now on
    :param match: more to ask of the event
    :param timeout: seconds; None waits for ever
    :raises MonitorTimeout: it did not come in time
    :raises ConnectionClosed: the connection ended first
    """
    wanted = (names,) if isinstance(names, str) else names
    start = port.event_mark() if since is None else since
    return await port.wait_event(wanted, since=start, match=match, timeout=timeout)
