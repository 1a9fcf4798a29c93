"""The QMP monitor, as avocado-vt has it, on Drover's session."""

import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from ...errors import ArgumentError, ConnectionClosed, DroverError
from ...monitor.drive import drive
from ...monitor.socket import Wire, left
from ...qmp.events import Waitable
from ...qmp.framing import DEFAULT_LIMIT
from ...qmp.life import Call
from ...qmp.redact import redact
from ..qmp._link import BlockingFaceLink, FaceSession, reply_of
from ._qmp_block import _Block
from ._qmp_machine import _Machine
from .errors import (
    MonitorError,
    MonitorNotSupportedCmdError,
    MonitorProtocolError,
    MonitorSocketError,
    QMPCmdError,
    QMPEventError,
)
from .human import without_names
from .monitor import LOG, Monitor, descriptor

CMD_TIMEOUT = 900

# Nobody reads more by hand; a flood that nobody clears must not take all memory.
MAX_EVENTS: Final = 10_000
# How often a look at the events reads on while more keep coming.
_READS: Final = 100
_GREETING_TIMEOUT: Final = 20.0


class _Line(BlockingFaceLink):
    """A link whose messages may bring a descriptor along, or be no messages at all."""

    def exchange(self, message: Any, fd: int | None) -> Call:
        with self._lock:
            call = self.session.queue(self._call(message, fd))
            self._send_some()
        return call

    def _call(self, message: Any, fd: int | None) -> Call:
        number = self.session.new_id()
        if not isinstance(message, Mapping):  # QEMU says itself what is wrong with it
            return Call("text", number, str(message).strip().encode() + b"\n", fd)
        oob = "exec-oob" in message
        payload = json.dumps({**message, "id": number}).encode() + b"\n"
        return Call(str(message.get("exec-oob" if oob else "execute")), number, payload, fd, oob)


class QMPMonitor(_Block, _Machine, Monitor):
    """A QMP monitor; any number of threads may share one.

    Parameters are those of :class:`.Monitor`.

    :raises MonitorConnectError: nobody answers there
    :raises MonitorProtocolError: there was no greeting: another client may hold the monitor
    """

    READ_OBJECTS_TIMEOUT = 10
    CMD_TIMEOUT = CMD_TIMEOUT
    RESPONSE_TIMEOUT = 600
    PROMPT_TIMEOUT = 90
    protocol = "qmp"

    def __init__(self, vm: Any, name: str, monitor_params: Any, suppress_exceptions: bool = False) -> None:
        try:
            super().__init__(vm, name, monitor_params)
            self._begin()
        except MonitorError as error:
            self._close_sock()
            if not suppress_exceptions:
                raise
            LOG.warning(error)

    def _prepare(self, name: str, log_file: str) -> None:
        super()._prepare(name, log_file)
        self._greeting: dict[str, Any] | None = None
        self._events: list[dict[str, Any]] = []
        self._supported_hmp_cmds: list[str] = []
        self._guard = threading.Lock()  # of the two below, and the events
        self._arrival = Waitable()
        self._heard = 0

    def _begin(self) -> None:
        session = FaceSession(self._hear, DEFAULT_LIMIT, True, True)
        session._want_oob = False
        self._line = line = _Line(Wire(socket.socket(fileno=self._copy_of_socket())), session)
        done = drive(line.wait(session.negotiation, _GREETING_TIMEOUT))
        if not done or session.negotiation.error is not None:
            cause = session.negotiation.error
            why = cause or f"nothing within {_GREETING_TIMEOUT:g} s: another client may hold the monitor"
            raise MonitorProtocolError(f"No QMP greeting message received. {why}") from cause
        assert session.said is not None
        self._greeting = session.said._asdict()
        self._get_supported_cmds()

    def _get_supported_cmds(self) -> None:
        self._supported_cmds = [entry["name"] for entry in self.cmd("query-commands", debug=False)]

    def _get_supported_hmp_cmds(self) -> None:
        text = self.human_monitor_cmd("help", debug=False)
        found = re.findall(r"(?:^\w+\|(\w+)\s)|(?:^(\w+?)\s)", text, re.MULTILINE)
        self._supported_hmp_cmds = [alias + name for alias, name in found]

    def _has_hmp_command(self, cmd: Any) -> bool:
        if not self._supported_hmp_cmds:
            self._get_supported_hmp_cmds()
        return bool(cmd) and cmd in self._supported_hmp_cmds

    def verify_supported_hmp_cmd(self, cmd: Any) -> None:
        """Check that QEMU has a command of the human monitor.

        :raises MonitorNotSupportedCmdError: it has not
        """
        if not self._has_hmp_command(cmd):
            raise MonitorNotSupportedCmdError(self.name, cmd)

    # -- messages --------------------------------------------------------

    def _build_cmd(self, cmd: Any, args: Any = None, q_id: Any = None) -> dict[str, Any]:
        message = {"execute": cmd}
        if args is not None:
            message["arguments"] = args
        if q_id is not None:
            message["id"] = q_id
        return message

    def _send(self, data: bytes, fds: Any = None) -> None:
        """Send a message, and do not wait for its reply, which is dropped."""
        self._post(json.loads(data), fds[0] if fds else None)

    def _post(self, message: Any, fd: int | None) -> tuple[_Line, Call]:
        failed = f"Could not send data: {message!r}"
        line = self._open_line(failed)
        assert isinstance(line, _Line)
        self._take_lock(f"send {message!r}")
        try:
            call = line.exchange(message, fd)
        except ConnectionClosed as error:
            raise MonitorSocketError(failed, error) from error
        finally:
            self._lock.release()
        self._log_lines(json.dumps(_shown(message)))
        return line, call

    def _exchange(self, message: Any, timeout: float, missing: str, fd: int | None = None) -> dict[str, Any]:
        """Send a message and return the whole reply, with the id that the message had."""
        line, call = self._post(message, fd)
        try:
            if not drive(line.wait(call, timeout)):
                raise MonitorProtocolError(missing)
            reply = reply_of(call, message if isinstance(message, Mapping) else {})
        except ArgumentError as error:
            raise MonitorSocketError(f"Could not send data: {message!r}", error) from error
        except DroverError as error:
            raise MonitorProtocolError(missing) from error
        finally:
            line.abandon(call)
        self._log_lines(json.dumps(reply))
        return reply

    def cmd(self, cmd: str, args: Any = None, timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> Any:
        """Run a command, and return what QEMU returned.

        :param args: its arguments
        :param timeout: seconds
        :param debug: log the command, and what it returned
        :param fd: a file or descriptor to go along
        :raises QMPCmdError: QEMU refused
        :raises MonitorProtocolError: no answer in time, or the connection ended before it
        :raises MonitorSocketError: the connection has ended
        """
        self._log_command(cmd, debug)
        missing = f"Received no response to QMP command '{cmd}', or received a response with an incorrect id"
        reply = self._exchange(self._build_cmd(cmd, args), timeout, missing, descriptor(fd))
        if "error" in reply:
            raise QMPCmdError(cmd, args, reply["error"])
        if value := reply["return"]:
            self._log_response(cmd, value, debug)
        return reply["return"]

    def cmd_raw(self, data: str, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Send a text, and return the whole reply, an error too."""
        try:
            message = json.loads(data)
        except ValueError:
            message = data
        missing = f"Received no response to data: {data!r}"
        return self._exchange(message if isinstance(message, dict) else data, timeout, missing)

    def cmd_obj(self, obj: Any, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Send an object as JSON, and return the whole reply, an error too."""
        return self.cmd_raw(json.dumps(obj) + "\n", timeout)

    def cmd_qmp(self, cmd: str, args: Any = None, q_id: Any = None, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Run a command, and return the whole reply, an error too."""
        return self.cmd_obj(self._build_cmd(cmd, args, q_id), timeout)

    def human_monitor_cmd(self, cmd: str = "", timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> Any:
        """Run a line of the human monitor, and return what it prints."""
        self._log_command(cmd, debug, extra_str="(via Human Monitor)")
        output = self.cmd("human-monitor-command", {"command-line": cmd}, timeout, False, fd)
        if output:
            self._log_response(cmd, output, debug)
        return output

    # -- events ----------------------------------------------------------

    def _hear(self, event: dict[str, Any]) -> None:
        with self._guard:
            self._heard += 1
            self._events.append(event)
            del self._events[:-MAX_EVENTS]
            self._arrival.finish()
        self._log_lines(json.dumps(event))

    def _gather(self) -> None:
        """Read what has come, without waiting."""
        for _ in range(_READS):
            line, before = self._line, self._heard
            if line is None or line.session.fault is not None:
                return
            drive(line.wait(Waitable(), 0))
            if self._heard == before:
                return

    def get_events(self) -> list[dict[str, Any]]:
        """The events since they were cleared, oldest first; they stay."""
        self._take_lock("read QMP events")
        try:
            self._gather()
            with self._guard:
                return self._events[:]
        finally:
            self._lock.release()

    def get_event(self, name: str) -> dict[str, Any] | None:
        """The oldest event of a name; it stays. None where there is none."""
        return next((event for event in self.get_events() if event.get("event") == name), None)

    def clear_events(self) -> None:
        """Forget all events that have come so far."""
        self._forget(None)

    def clear_event(self, name: str) -> None:
        """Forget the events of a name that have come so far."""
        self._forget(name)

    def _forget(self, name: str | None) -> None:
        self._take_lock("clear QMP event list")
        try:
            self._gather()
            with self._guard:
                self._events = [] if name is None else [item for item in self._events if item["event"] != name]
        finally:
            self._lock.release()

    def _await_event(self, cmd: str, name: str, timeout: float = 120) -> None:
        """Wait for the event that ends what `cmd` began.

        :raises QMPEventError: it did not come within `timeout` seconds, or the connection ended
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._guard:
                if self._arrival.done:
                    self._arrival = Waitable()
                arrival = self._arrival
            if self.get_event(name) is not None:
                return
            line = self._line
            ended = line is None or line.session.fault is not None
            if ended or not drive(line.wait(arrival, left(deadline))):  # type: ignore[union-attr]
                raise QMPEventError(cmd, name, self.vm.name, self.name)

    def get_greeting(self) -> dict[str, Any] | None:
        """What QEMU said first."""
        return self._greeting

    # -- what both monitors have by the same name ------------------------

    def verify_responsive(self) -> None:
        """Run a command, to see that there is an answer."""
        self.cmd(cmd="query-status", debug=False)

    def get_status(self) -> Any:
        """What ``query-status`` returns."""
        return self.cmd(cmd="query-status", debug=False)

    def verify_status(self, status: str) -> bool:
        """Whether the machine is ``running``, ``paused`` (it does not run), or in another of QEMU's states."""
        found = self.get_status()
        if status in ("running", "paused"):
            return bool(found["running"]) is (status == "running")
        return bool(found["status"] == status)

    def send_args_cmd(self, cmdlines: str, timeout: float = CMD_TIMEOUT, convert: bool = True) -> Any:
        """Run commands like ``memsave val=0,size=10240,filename=f``, one after another, with ``;`` between them.

        What QMP does not have goes to the human monitor.

        :param timeout: seconds for each
        :param convert: is not looked at
        :returns: what it returned; a list where there are several
        """
        values = [self._run_line(line, timeout) for line in cmdlines.split(";")]
        return values[0] if len(values) == 1 else values

    def _run_line(self, line: str, timeout: float) -> Any:
        command, *rest = line.split()
        if self._has_command(command):
            return self.cmd(command, arguments_in(" ".join(rest)), timeout=timeout)
        if "=" in line:
            self.verify_supported_hmp_cmd(command)
        return self.human_monitor_cmd(without_names(line), timeout)

    def quit(self) -> Any:
        """End QEMU."""
        return self.cmd("quit")

    def info(self, what: str, debug: bool = True) -> Any:
        """What ``query-WHAT`` returns, or where QEMU has no such command, what ``info WHAT`` prints."""
        if self._has_command(f"query-{what}"):
            return self.cmd(f"query-{what}", debug=debug)
        return self.human_monitor_cmd(f"info {what}", debug=debug)

    def query(self, what: str, debug: bool = True) -> Any:
        """The same as :meth:`info`."""
        return self.info(what, debug)


def arguments_in(text: str) -> dict[str, Any]:
    """``name=value,…`` as arguments: numbers and truth values are made such, but for descriptors."""
    arguments = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name:
            arguments[name.strip()] = value.replace("/", ",") if name == "cert-subject" else _value(name, value)
    return arguments


def _value(name: str, text: str) -> Any:
    if re.fullmatch(r"[0-9]+", text):
        return text if name == "fd" else int(text)
    if re.fullmatch(r"[0-9]+\.[0-9]*", text):
        return float(text)
    return {"true": True, "false": False}.get(text.strip().lower(), text.strip())


def _shown(message: Any) -> Any:
    """A message as it may be written down."""
    if not isinstance(message, Mapping) or not isinstance(message.get("arguments"), Mapping):
        return message
    return {**message, "arguments": redact(str(message.get("execute")), message["arguments"])}
