"""The blocking client, on Drover's blocking link: no event loop, so it works inside of one and from any thread."""

import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from inspect import Parameter, Signature
from types import TracebackType
from typing import Any, Self

from ... import errors
from ...monitor.drive import drive
from ...monitor.socket import Wire, left
from ...qmp.events import Waitable
from ._dial import Listener, SocketAddrT, carries_descriptors, dial_blocking
from ._link import BlockingFaceLink, FaceSession, end_of, reply_of
from .error import QMPError, QMPTimeoutError
from .events import QUEUE_SIZE, ListenerEndedError
from .message import Message, received
from .protocol import ConnectError, Runstate, wrong_state
from .qmp_client import READ_LIMIT, interrupted, session_error, value_of

QMPMessage = dict[str, Any]
QMPReturnValue = object
QMPObject = dict[str, object]

# How often a poll reads on while events keep coming: a flood must not hold the caller for ever.
_READS_PER_POLL = 100


class QMPBadPortError(QMPError):
    """The part of an address behind its last colon is no port."""


class _Inbox:
    """The events that nobody has taken yet, the newest ones if there are too many.

    :ivar arrival: done while there is something to take, or nothing more will come
    :ivar total: how many events ever came
    :ivar lost: how many of them had to go
    """

    def __init__(self) -> None:
        self.arrival = Waitable()
        self.total = 0
        self.lost = 0
        self._lock = threading.Lock()
        self._events: deque[QMPMessage] = deque()
        self._ended = False

    def put(self, event: QMPMessage) -> None:
        with self._lock:
            self.total += 1
            self._events.append(event)
            if len(self._events) > QUEUE_SIZE:
                self._events.popleft()
                self.lost += 1
            self.arrival.done = True

    def take(self) -> QMPMessage | None:
        with self._lock:
            event = self._events.popleft() if self._events else None
            self.arrival.done = self._ended or bool(self._events)
            return event

    def take_all(self) -> list[QMPMessage]:
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self.arrival.done = self._ended
            return events

    def end(self) -> None:
        with self._lock:
            self._ended = self.arrival.done = True

    def reopen(self) -> None:
        with self._lock:
            self._events.clear()
            self._ended = self.arrival.done = False


class QEMUMonitorProtocol:
    """A QMP monitor for blocking code; any number of threads may share one.

    ::

        with QEMUMonitorProtocol("/run/vm/demo.qmp") as vm:
            vm.connect()
            print(vm.cmd("query-status"))

    :param address: path of a unix socket, host and port, or a connected socket, which is taken over
    :param server: listen there, from now on; :meth:`accept` does the rest
    :param nickname: what this connection is called in the log
    :raises ValueError: a connected socket cannot listen
    :raises ConnectError: there is nothing to listen on
    """

    def __init__(self, address: SocketAddrT | socket.socket, server: bool = False, nickname: str | None = None) -> None:
        if server and isinstance(address, socket.socket):
            raise ValueError("server argument should be False when passing a socket")
        self.nickname = nickname
        self._address = address
        self._timeout: float | None = None
        self._numbers = itertools.count()
        self._inbox = _Inbox()
        self._link: BlockingFaceLink | None = None
        self._listener: Listener | None = None
        if server and not isinstance(address, socket.socket):
            try:
                self._listener = Listener(address)
            except OSError as error:
                raise ConnectError("Failed to establish connection", error) from error

    def _get_greeting(self) -> QMPMessage | None:
        """What the server said when this connected last; None where nobody waited for it. QEMU's own tests use it."""
        link = self._link
        return None if link is None or link.session.said is None else link.session.said._asdict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def parse_address(cls, address: str) -> SocketAddrT:
        """The address that `address` names: ``host:port``, ``[v6]:port``, or else the path of a unix socket.

        What has a slash is a path, whatever colons it has.

        :raises QMPBadPortError: it has one colon and no slash, and what follows the colon is no number
        """
        host, colon, port = address.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif not colon or "/" in address or ":" in host:
            return address
        if not (port.isascii() and port.isdigit()):
            raise QMPBadPortError(f"Bad port: '{port}' in '{address}'.")
        return (host, int(port))

    # -- the connection --------------------------------------------------

    def connect(self, negotiate: bool = True) -> QMPMessage | None:
        """Connect, wait for the greeting, and negotiate; all within what :meth:`settimeout` said.

        :param negotiate: False for a server without greeting, such as a guest agent: only connect
        :returns: the greeting; None without `negotiate`
        :raises ConnectError: nobody answers there, or not as expected, or not in time
        :raises StateError: it is connected already, or listens
        """
        self._require(Runstate.IDLE)
        try:
            wire = dial_blocking(self._address, self._timeout)
        except OSError as error:
            raise ConnectError("Failed to establish connection", error) from error
        return self._establish(wire, negotiate, self._timeout)

    def accept(self, timeout: float | None = 15.0) -> QMPMessage:
        """Wait for QEMU to call, for its greeting, and negotiate; later callers are refused.

        :param timeout: seconds for all of it; None waits for ever
        :returns: the greeting
        :raises QMPTimeoutError: nobody called in time
        :raises ConnectError: who called is no QMP server
        :raises StateError: it does not listen
        """
        self._require(Runstate.CONNECTING)
        listener, self._listener = self._listener, None
        assert listener is not None
        try:
            wire = listener.accept(timeout)
        except TimeoutError:
            raise QMPTimeoutError(f"nobody called within {timeout:g} s") from None
        except OSError as error:
            raise ConnectError("Failed to establish connection", error) from error
        greeting = self._establish(wire, True, timeout)
        assert greeting is not None
        return greeting

    def close(self) -> None:
        """Close the connection; nothing happens when there is none.

        :raises EOFError: the server had closed it without announcing that
        :raises ProtocolError: the server had not kept to the protocol
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        link, self._link = self._link, None
        if link is None:
            return
        cause = end_of(link.session)
        link.close(errors.ConnectionClosed("closed by this side"))
        if cause is not None:
            raise cause

    def settimeout(self, timeout: float | None) -> None:
        """Say how long each command may take from now on, and :meth:`connect`.

        :param timeout: seconds; None waits for ever
        """
        self._timeout = timeout

    # -- commands --------------------------------------------------------

    def cmd_obj(self, qmp_cmd: QMPMessage) -> QMPMessage:
        """Send a message made by hand, and return the whole reply, an error too.

        :raises StateError: there is no connection
        :raises ExecInterruptedError: the connection ended before the reply
        :raises QMPTimeoutError: no reply within what :meth:`settimeout` said; QEMU may yet do it
        """
        return self._exchange(qmp_cmd)

    def cmd_raw(self, name: str, args: dict[str, object] | None = None) -> QMPMessage:
        """Run a command, and return the whole reply; raises what :meth:`cmd_obj` raises.

        :param name: the command's name
        :param args: its arguments
        """
        return self._exchange(_command(name, args))

    def cmd(self, *args: Any, **kwds: Any) -> QMPReturnValue:
        """Run a command, in either of the two meanings that this name has had.

        ``cmd(command, **arguments)``
            returns the value, and raises :class:`ExecuteError` if QEMU refuses (since 0.0.4).
        ``cmd(name, args, cmd_id)``
            returns the whole reply, an error too (until 0.0.3). Only a call that has more than one
            positional argument, or ``name=``, ``args=`` or ``cmd_id=``, means this: with nothing but
            a name both look the same, and it is the newer one.

        :raises ExecuteError: QEMU refused
        :raises StateError: there is no connection
        :raises ExecInterruptedError: the connection ended before the reply
        :raises QMPTimeoutError: no reply within what :meth:`settimeout` said; QEMU may yet do it
        """
        if len(args) > 1 or _is_old(args, kwds):
            return self._old_cmd(*args, **kwds)
        command = args[0] if args else kwds.pop("cmd")
        return self._value(command, kwds)

    def command(self, cmd: str, **kwds: object) -> QMPReturnValue:
        """Run a command, and return the value; raises what :meth:`cmd` raises. Its name until 0.0.3.

        :param cmd: the command's name
        :param kwds: its arguments
        """
        return self._value(cmd, kwds)

    def send_fd_scm(self, fd: int) -> None:
        """Send a descriptor for the next ``getfd`` or ``add-fd``, behind all commands sent so far. It stays yours.

        :raises StateError: there is no connection
        :raises QMPError: the connection is no unix socket, which alone can carry it
        """
        link = self._running()
        if not carries_descriptors(link.wire):
            raise QMPError("Sending file descriptors requires a UNIX socket.")
        try:
            link.send_rights(fd)
        except errors.ConnectionClosed as error:
            raise interrupted(end_of(link.session)) from error

    # -- events ----------------------------------------------------------

    def pull_event(self, wait: bool | float = False) -> QMPMessage | None:
        """Take the oldest event.

        :param wait: False or 0 takes one only if it is there; True waits for ever; a number is seconds, int or float
        :returns: the event; None if there is none and it did not wait
        :raises QMPTimeoutError: none came in time
        :raises ListenerEndedError: none will: the connection has ended
        :raises StateError: it would have to wait and was never connected
        """
        if not wait:
            self._gather()
            return self._inbox.take()
        if (event := self._inbox.take()) is not None:
            return event
        return self._wait_event(None if wait is True else float(wait))

    def get_events(self, wait: bool | float = False) -> list[QMPMessage]:
        """Take all events that are there; with `wait`, at least one. Raises what :meth:`pull_event` raises.

        :param wait: for the first one; as in :meth:`pull_event`
        """
        self._gather()
        events = self._inbox.take_all()
        if events or not wait:
            return events
        event = self.pull_event(wait)
        return [] if event is None else [event, *self._inbox.take_all()]

    def clear_events(self) -> None:
        """Forget all events that have come so far."""
        self._gather()
        self._inbox.take_all()

    @property
    def lost_events(self) -> int:
        """How many events were dropped because nobody took them in time."""
        return self._inbox.lost

    # -- inside ----------------------------------------------------------

    def _establish(self, wire: Wire, negotiate: bool, timeout: float | None) -> QMPMessage | None:
        self._inbox.reopen()
        session = FaceSession(self._inbox.put, READ_LIMIT, negotiate, negotiate)
        session.ended.notify = self._inbox.end
        link = BlockingFaceLink(wire, session)
        problem: Exception
        try:
            if drive(link.wait(session.negotiation, timeout)) and session.fault is None:
                self._link = link
                return self._get_greeting()
            if session.fault is not None:
                problem = session_error(session)
            else:
                problem = QMPTimeoutError(f"no greeting within {timeout:g} s: another client may hold the monitor")
        except BaseException:
            link.close(errors.ConnectionClosed("connecting failed"))
            raise
        link.close(errors.ConnectionClosed("connecting failed"))
        raise ConnectError("Failed to establish session", problem) from problem

    def _state(self) -> Runstate:
        if self._listener is not None:
            return Runstate.CONNECTING
        if self._link is None:
            return Runstate.IDLE
        return Runstate.RUNNING if self._link.session.fault is None else Runstate.DISCONNECTING

    def _require(self, required: Runstate) -> None:
        state, link = self._state(), self._link
        if state is not required:
            raise wrong_state(type(self).__name__, state, required, None if link is None else end_of(link.session))

    def _running(self) -> BlockingFaceLink:
        self._require(Runstate.RUNNING)
        link = self._link
        if link is None:  # another thread closed it just now
            raise wrong_state(type(self).__name__, Runstate.IDLE, Runstate.RUNNING)
        return link

    def _exchange(self, message: Mapping[str, object]) -> QMPMessage:
        link = self._running()
        try:
            call = link.post(message)
            try:
                if not drive(link.wait(call, self._timeout)):
                    raise QMPTimeoutError(f"{call.command}: no answer within {self._timeout:g} s")
            finally:
                link.abandon(call)
            return reply_of(call, message)
        except errors.MonitorError as error:
            raise interrupted(end_of(link.session)) from error

    def _value(self, command: str, arguments: dict[str, object]) -> object:
        self._require(Runstate.RUNNING)
        message = {"execute": command, "arguments": arguments, "id": f"__qmp#{next(self._numbers):05d}"}
        return value_of(received(self._exchange(message)), Message(message))

    def _old_cmd(self, name: str, args: dict[str, object] | None = None, cmd_id: object | None = None) -> QMPMessage:
        message = _command(name, args)
        if cmd_id:
            message["id"] = cmd_id
        return self._exchange(message)

    def _wait_event(self, timeout: float | None) -> QMPMessage:
        link = self._link
        if link is None:
            raise wrong_state(type(self).__name__, self._state(), Runstate.RUNNING)
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self._inbox.take()) is None:
            if link.session.fault is not None:
                cause = end_of(link.session)
                raise ListenerEndedError("the session has ended, no more events will come") from cause
            if not drive(link.wait(self._inbox.arrival, left(deadline))):
                raise QMPTimeoutError(f"no event within {timeout:g} s")
        return event

    def _gather(self) -> None:
        """Read what has come, without waiting."""
        for _ in range(_READS_PER_POLL):
            link, before = self._link, self._inbox.total
            if link is None or link.session.fault is not None:
                return
            drive(link.wait(Waitable(), 0))
            if self._inbox.total == before:
                return


def _command(name: str, arguments: dict[str, object] | None) -> QMPMessage:
    message: QMPMessage = {"execute": name}
    if arguments:
        message["arguments"] = arguments
    return message


def _is_old(args: tuple[object, ...], kwds: dict[str, object]) -> bool:
    """Whether a call of `cmd` with one positional argument at most has keywords of the old meaning only."""
    if not args and "cmd" not in kwds:
        return True
    return bool(kwds) and kwds.keys() <= {"args", "cmd_id"}


# `cmd` takes the calls of two signatures; what it announces is the newer one.
vars(QEMUMonitorProtocol.cmd)["__signature__"] = Signature(
    [
        Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
        Parameter("cmd", Parameter.POSITIONAL_OR_KEYWORD, annotation=str),
        Parameter("kwds", Parameter.VAR_KEYWORD, annotation=object),
    ],
    return_annotation=QMPReturnValue,
)
