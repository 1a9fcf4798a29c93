"""Ganeti's monitor sockets: bytes (:class:`UnixFileSocketConnection`), raw messages (:class:`QemuMonitorSocket`)."""

import logging
import os
import socket
import time
from collections.abc import Collection
from typing import Any, Final, Self

from ...monitor.socket import MonitorSocket, left
from ...qmp.framing import LineFramer
from .errors import HypervisorError, ProgrammerError, QmpTimeoutError, translated
from .messages import QmpEvent, QmpMessage
from .raw import Inbox, Wanted, dial, is_reply

log = logging.getLogger("drover.compat.ganeti")

_OURS: Final = "drover-"  # how the ids begin that QemuMonitorSocket puts into commands


class UnixFileSocketConnection:
    """A monitor socket: bytes, each call with a deadline.

    :param socket_path: of the unix socket
    :param timeout: seconds for each call; it may be changed at any time
    :ivar sock: the connected socket; None before
    """

    def __init__(self, socket_path: str, timeout: float | None) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self.sock: socket.socket | None = None
        self._line: MonitorSocket | None = None
        self._rest = b""

    @property
    def monitor_filename(self) -> str:
        """The name of `socket_path` up to Ganeti 3.0."""
        return self.socket_path

    def connect(self) -> None:
        """Connect; nothing happens when there is a connection.

        :raises HypervisorError: nobody listens there
        """
        if self.is_connected():
            return
        self.close()
        with translated():
            sock = dial(self.socket_path, self.timeout)
            try:
                self._line = self._open_line(os.dup(sock.fileno()))
            except BaseException:
                sock.close()
                raise
        self.sock, self._rest = sock, b""
        self.reset_timeout()
        log.debug("connected to %s", self.socket_path)

    def close(self) -> None:
        """Close the connection; nothing happens when there is none."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if self.sock is not None:
            self.sock.close()

    def is_connected(self) -> bool:
        """Whether there is a connection, and it has not ended as far as is known."""
        return self._line is not None and self._line.is_connected()

    def send(self, data: bytes) -> None:
        """Send all of `data`.

        :raises QmpTimeoutError: only a part was taken in time
        """
        line = self._connected()
        with translated():
            line.send(data, timeout=self.timeout)

    def recv(self, bufsize: int) -> bytes:
        """Receive what comes next, at most `bufsize` bytes; ``b""`` when the peer has closed.

        :raises QmpTimeoutError: nothing came in time
        """
        line = self._connected()
        if not self._rest:
            with translated():
                self._rest = line.recv(self.timeout)
        data, self._rest = self._rest[:bufsize], self._rest[bufsize:]
        return data

    def reset_timeout(self) -> None:
        """Give `sock` the timeout of this object, for whoever uses it directly."""
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, exc_type: object, exc_value: object, exc_traceback: object) -> None:
        self.close()

    def _open_line(self, fd: int) -> MonitorSocket:
        line = MonitorSocket(fd, timeout=self.timeout)
        line.connect()
        return line

    def _connected(self) -> MonitorSocket:
        if self._line is None:
            raise ProgrammerError("To use a monitor you need to first invoke connect() on it")
        return self._line


class QemuMonitorSocket(UnixFileSocketConnection):
    """A QMP socket as it is: no greeting is read and no command sent that you do not read or send yourself.

    Parameters are those of :class:`UnixFileSocketConnection`.
    """

    _ERROR_CLASS_KEY = "class"
    _ERROR_DESC_KEY = "desc"
    _EXECUTE_KEY = "execute"
    _ARGUMENTS_KEY = "arguments"
    _EVENT_KEY = "event"
    _ERROR_KEY = "error"
    _RETURN_KEY = "return"
    _ID_KEY: Final = "id"
    _MESSAGE_END_TOKEN = b"\r\n"
    _SEND_END_TOKEN = b"\n"

    def __init__(self, socket_path: str, timeout: float | None) -> None:
        super().__init__(socket_path, timeout)
        self._inbox = Inbox()
        self._framer = LineFramer()
        self._number = 0
        self._pending: str | None = None  # the id of the command that is waited for

    def connect(self) -> None:
        """Connect; nothing happens when there is a connection, and nothing is read.

        :raises HypervisorError: nobody listens there
        """
        if not self.is_connected():
            self._inbox, self._framer = Inbox(), LineFramer()
        super().connect()

    def execute_qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one command and return what QEMU returned.

        :param arguments: JSON values; left out of the message when empty
        :raises HypervisorError: QEMU refused, or the connection ended
        :raises QmpTimeoutError: no answer in time; the command may still take effect
        :raises ProgrammerError: not connected
        """
        self._number += 1
        message = self._command(command, arguments)
        message[self._ID_KEY] = self._pending = f"{_OURS}{self._number}"
        try:
            self.send_qmp(message)
            return self._value(command, self._next(self._answers))
        finally:
            self._pending = None

    def send_qmp(self, message: QmpMessage) -> None:
        """Send a message as it is."""
        self.send(message.to_bytes())

    def get_qmp_response(self, command: str) -> Any:
        """Take the next reply and return what QEMU returned; events stay where they are.

        :param command: for the text of errors
        :raises HypervisorError: QEMU refused, or the connection ended
        :raises QmpTimeoutError: no reply in time
        """
        return self._value(command, self._next(is_reply))

    def wait_for_qmp_event(self, event_types: Collection[str], timeout: float) -> QmpEvent | None:
        """Take the first event of these types that nobody took yet, and wait for it if there is none.

        Events are kept while commands run; those of other types stay for later calls.

        :param timeout: seconds, for all of the wait
        :returns: None if none came in time
        :raises HypervisorError: the connection ended
        """
        wanted = frozenset(event_types)
        message = self._take(lambda message: message.data.get(self._EVENT_KEY) in wanted, timeout)
        return None if message is None else QmpEvent.build_from_data(message.data)

    def recv_qmp(self) -> QmpMessage:
        """Take the next message: an event, or a reply that answers no :meth:`execute_qmp`.

        :raises HypervisorError: the connection ended
        :raises QmpTimeoutError: none came in time
        """
        return self._next(lambda message: True)

    def _answers(self, message: QmpMessage) -> bool:
        # a server that echoes no ids answers in order
        return is_reply(message) and message[self._ID_KEY] in (None, self._pending)

    def _command(self, command: str, arguments: dict[str, Any] | None) -> QmpMessage:
        message = QmpMessage({self._EXECUTE_KEY: command})
        if arguments:
            message[self._ARGUMENTS_KEY] = arguments
        return message

    def _value(self, command: str, reply: QmpMessage) -> Any:
        error = reply[self._ERROR_KEY]
        if error:
            text = f"{error.get(self._ERROR_DESC_KEY)} ({error.get(self._ERROR_CLASS_KEY)})"
            raise HypervisorError(f"kvm: error executing the {command} command: {text}:")
        return reply[self._RETURN_KEY]

    def _next(self, wanted: Wanted) -> QmpMessage:
        message = self._take(wanted, self.timeout)
        if message is None:
            raise QmpTimeoutError(f"Timeout while receiving a QMP message: nothing within {self.timeout:g} s")
        return message

    def _take(self, wanted: Wanted, timeout: float | None) -> QmpMessage | None:
        """Take the next message that fits; None if none comes within `timeout` seconds."""
        line = self._connected()
        deadline = None if timeout is None else time.monotonic() + timeout
        while (message := self._inbox.take(wanted)) is None:
            try:
                with translated():
                    data = line.recv(left(deadline))
            except QmpTimeoutError:
                return None
            try:
                self._take_in(data)
            except HypervisorError:
                line.close()
                raise
        return message

    def _take_in(self, data: bytes) -> None:
        if not data:
            raise HypervisorError("Unable to receive data from KVM using the QMP protocol: QEMU has closed")
        with translated():
            block = self._framer.feed(data)
        for text in filter(None, map(bytes.strip, block.split(b"\n"))):
            message = QmpMessage.build_from_json_string(text)
            number = message[self._ID_KEY]
            late = isinstance(number, str) and number.startswith(_OURS) and number != self._pending
            if not late:  # else nobody waits for it any more
                self._inbox.put(message)
