"""What QEMU knows of a guest agent's channel: whether somebody in the guest has it open.

The agent's own socket cannot tell an agent that is not there from one that hangs, nor from a
guest that hangs. The machine's QMP monitor tells a part of it.
"""

from typing import Any

from ..errors import ArgumentError, MonitorTimeout
from .port import Port


async def agent_connected(port: Port, chardev: str) -> bool:
    """Whether somebody in the guest has the agent's channel open (``query-chardev``, ``frontend-open``).

    That is a process, not an answer: an agent that hangs holds it open, too. A virtio-serial port
    tells; a plain serial port is always open.

    :param chardev: id of the character device that the agent's port stands on
    :raises ArgumentError: there is no such character device
    """
    devices: list[dict[str, Any]] = await port.execute("query-chardev")
    for device in devices:
        if device["label"] == chardev:
            return bool(device["frontend-open"])
    raise ArgumentError("chardev", chardev, f"one of {', '.join(sorted(device['label'] for device in devices))}")


async def wait_agent(port: Port, chardev: str, *, connected: bool = True, timeout: float | None) -> None:
    """Wait until a guest's agent has opened its channel, or closed it (event ``VSERPORT_CHANGE``).

    :param chardev: id of the character device that the agent's port stands on
    :param connected: what to wait for
    :param timeout: seconds; None waits for ever
    :raises ArgumentError: there is no such character device
    :raises MonitorTimeout: it did not come to that
    """
    deadline = None if timeout is None else port.now() + timeout
    while True:
        mark = port.event_mark()
        if await agent_connected(port, chardev) is connected:
            return
        remaining = None if deadline is None else deadline - port.now()
        if remaining is not None and remaining <= 0:
            raise MonitorTimeout(f"the guest agent on {chardev}", timeout)
        try:
            # of any port: the event names the device and not what it stands on
            await port.wait_event(("VSERPORT_CHANGE",), since=mark, timeout=remaining)
        except MonitorTimeout:
            continue  # asked once more: QEMU holds back events that come too often
