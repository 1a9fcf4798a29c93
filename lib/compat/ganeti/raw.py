"""Raw messages beside Drover's session: Ganeti's interface hands them out, Drover's keeps them to itself.

Every event, and every reply that answers no command of ours, goes to an :class:`Inbox`
in the order in which they came. Whoever wants one takes it out; the others stay.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from ...errors import ConnectTimeout, MonitorError, ProtocolError
from ...monitor.connection import BlockingLink, QmpConnection
from ...monitor.drive import drive
from ...monitor.link import Link
from ...monitor.socket import Wire, open_wire, sleep
from ...monitor.verbs import verb
from ...ops.port import Arguments
from ...qmp.events import EventLog, Waitable
from ...qmp.life import Call
from ...qmp.messages import Message
from ...qmp.session import QmpSession, State
from . import flows
from .messages import QmpMessage

Wanted = Callable[[QmpMessage], bool]

# As many as drover.qmp.events keeps: hours of a normal life that nobody asks about.
INBOX_SIZE: Final = 1_000


def is_reply(message: QmpMessage) -> bool:
    """Whether it answers a command."""
    return "return" in message.data or "error" in message.data


class Awaited(Waitable, eq=False):
    """Waits for the next message that fits."""

    wanted: Wanted
    message: QmpMessage | None = None


class Inbox:
    """Messages that nobody took yet, oldest first; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._messages: deque[QmpMessage] = deque(maxlen=INBOX_SIZE)
        self._waiting: list[Awaited] = []

    def put(self, message: QmpMessage) -> None:
        """Give `message` to who waits for it, or keep it."""
        for awaited in self._waiting:
            if not awaited.done and awaited.wanted(message):
                awaited.message = message
                awaited.finish()
                return
        self._messages.append(message)

    def take(self, wanted: Wanted) -> QmpMessage | None:
        """The oldest message that fits, or None."""
        for position, message in enumerate(self._messages):
            if wanted(message):
                del self._messages[position]
                return message
        return None

    def wait(self, wanted: Wanted) -> Awaited:
        """Wait for a message that fits; :meth:`forget` it afterwards."""
        awaited = Awaited(wanted)
        self._waiting.append(awaited)
        return awaited

    def forget(self, awaited: Awaited) -> None:
        """Nobody waits for it any more."""
        self._waiting.remove(awaited)

    def close(self, reason: MonitorError) -> None:
        """No more messages will come."""
        for awaited in self._waiting:
            awaited.fail(reason)


class RawLog(EventLog):
    """An event log that also puts each event into an inbox, as it came."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self.inbox = inbox

    def extend(self, messages: Iterable[Message]) -> None:
        messages = list(messages)
        super().extend(messages)
        for message in messages:
            self.inbox.put(_raw(message))


class RawSession(QmpSession):
    """A session that keeps the replies which answer no command of its own."""

    def __init__(self, log: RawLog, limit: int) -> None:
        super().__init__(log, limit, oob=False)  # Ganeti negotiates nothing
        self.inbox = log.inbox
        self._late = False

    def claim(self) -> None:
        """Let a reply that came too early answer the command that was just sent.

        Where the server echoes no ids, replies count in their order, and one may come
        before its command: scripted servers do so. QEMU echoes ids.
        """
        if self._echoes is False and self._pending and (early := self.inbox.take(is_reply)) is not None:
            self._on_reply(msgspec.convert(early.data, Message))

    def close(self, reason: MonitorError) -> None:
        super().close(reason)
        self.inbox.close(self.fault or reason)

    def _call_of(self, message: Message) -> Call | None:
        call = super()._call_of(message)
        self._late = call is not None
        return call

    def _on_stray(self, message: Message) -> None:
        if self._late:  # to a command of ours that nobody waits for any more: not the next one's answer
            super()._on_stray(message)
        elif self.state is State.GREETING:
            self.close(ProtocolError("kvm: QMP communication error (wrong server greeting)"))
        else:
            self.inbox.put(_raw(message))


class RawLink(BlockingLink[QmpSession]):
    """A connection whose inbox can be waited on."""

    session: RawSession

    def submit(self, command: str, arguments: Arguments | None, fd: int | None, oob: bool) -> Call:
        """Send a command; a reply that is here already may be its answer."""
        call = super().submit(command, arguments, fd, oob)
        with self._lock:
            self.session.claim()
        return call

    def next_message(self, wanted: Wanted, timeout: float | None) -> QmpMessage | None:
        """Take the next message that fits; None if none comes within `timeout` seconds.

        :raises ConnectionClosed: the connection ended first
        """
        inbox = self.session.inbox
        with self._lock:
            message = inbox.take(wanted)
            if message is not None:
                return message
            if self.session.fault is not None:
                raise self.session.closed()
            awaited = inbox.wait(wanted)
        try:
            drive(self.wait(awaited, timeout))
        finally:
            with self._lock:
                inbox.forget(awaited)
        if awaited.error is not None:
            raise awaited.error
        return awaited.message


class Monitor(QmpConnection):
    """Drover's monitor, one object for each connection of Ganeti's: with an inbox, and Ganeti's payloads.

    :param fd: the connected socket's descriptor, which is taken over
    :param timeout: seconds, for each command that is not slow by nature
    """

    add_nic = verb(flows.add_nic)
    remove_nic = verb(flows.remove_nic)
    add_disk = verb(flows.add_disk)
    add_drive = verb(flows.add_drive)
    remove_disk = verb(flows.remove_disk)
    free_pci_slot = verb(flows.free_pci_slot)

    def __init__(self, fd: int, timeout: float | None) -> None:
        super().__init__(fd, timeout=timeout, oob=False, share_discovery=False)
        self.log = RawLog(Inbox())
        self.event_log = self.log

    def next_message(self, wanted: Wanted, timeout: float | None) -> QmpMessage | None:
        """Take the next message that fits; None if none comes within `timeout` seconds.

        :raises ConnectionClosed: there is no connection, or it ended first
        """
        link = self._port.link
        assert isinstance(link, RawLink)
        return link.next_message(wanted, timeout)

    def _make_session(self, wire: Wire, lost: Link[QmpSession] | None) -> RawSession:
        return RawSession(self.log, self._limit)

    def _make_link(self, wire: Wire, session: QmpSession) -> RawLink:
        return RawLink(wire, session)


def dial(path: str, timeout: float | None) -> socket.socket:
    """Connect to a monitor socket; one try, but a full backlog (EAGAIN) is waited out.

    A socket that is not there, or that nobody listens on, is a machine that does not run:
    Ganeti starts QEMU with ``-daemonize``, which returns when its monitors listen.

    :param timeout: seconds
    :raises ConnectError: nobody answers there
    """
    try:
        wire = drive(open_wire(path, 0.0, sleep, time.monotonic))
    except ConnectTimeout as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        wire = drive(open_wire(path, timeout, sleep, time.monotonic))
    try:
        return socket.socket(fileno=os.dup(wire.fileno()))
    finally:
        wire.close()


def _raw(message: Message) -> QmpMessage:
    data: dict[str, Any] = msgspec.to_builtins(message)
    return QmpMessage(data)
