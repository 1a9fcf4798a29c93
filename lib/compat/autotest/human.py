"""The human monitor, as avocado-vt has it, on Drover's."""

import re
from typing import Any

from ...errors import ArgumentError, ConnectionClosed, DroverError
from ...monitor.drive import drive
from ...monitor.human import HumanMonitor as DroversHumanMonitor
from ._human_machine import _Machine
from .errors import HumanCmdError, MonitorError, MonitorProtocolError, MonitorSocketError
from .monitor import LOG, Monitor, descriptor

CMD_TIMEOUT = 900


class HumanMonitor(_Machine, Monitor):
    """A human monitor's socket; any number of threads may share one.

    Parameters are those of :class:`.Monitor`.

    :raises MonitorConnectError: nobody answers there
    :raises MonitorProtocolError: there was no prompt within `PROMPT_TIMEOUT` seconds
    """

    PROMPT_TIMEOUT = 60
    CMD_TIMEOUT = CMD_TIMEOUT
    protocol = "human"

    def __init__(self, vm: Any, name: str, monitor_params: Any, suppress_exceptions: bool = False) -> None:
        try:
            super().__init__(vm, name, monitor_params)
            self._begin()
        except MonitorError as error:
            self._close_sock()
            if not suppress_exceptions:
                raise
            LOG.warning(error)

    def _begin(self) -> None:
        monitor = DroversHumanMonitor(self._copy_of_socket(), timeout=self.PROMPT_TIMEOUT)
        try:
            monitor.connect()
        except DroverError as error:
            raise MonitorProtocolError(f"Could not find (qemu) prompt after connecting to monitor. {error}") from error
        self._line = monitor._port.link
        self._get_supported_cmds()

    def _get_supported_cmds(self) -> None:
        found = re.findall(r"^(.*?) ", self.cmd("help", debug=False), re.MULTILINE)
        self._supported_cmds = [name for name in found if name]
        if not self._supported_cmds:
            LOG.warning("Could not get supported monitor cmds list")

    def _submit(self, cmd: str, fd: int | None = None) -> tuple[Any, Any]:
        line = self._open_line(f"Could not send monitor command {cmd!r}")
        self._take_lock(f"send monitor command '{cmd}'")
        try:
            call = line.submit(cmd.strip("\r\n"), None, fd, False)
        except ConnectionClosed as error:
            raise MonitorSocketError(f"Could not send monitor command {cmd!r}", error) from error
        except ArgumentError as error:
            raise MonitorProtocolError(f"The human monitor does not take {cmd!r}: {error}") from error
        finally:
            self._lock.release()
        self._log_lines(cmd)
        return line, call

    def _send(self, cmd: bytes, fds: Any = None) -> None:
        """Send a line, and do not wait for what it prints."""
        self._submit(cmd.decode(), fds[0] if fds else None)

    # -- commands --------------------------------------------------------

    def cmd(self, cmd: str, timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> str:
        """Run a line, and return what it prints.

        :param timeout: seconds
        :param debug: log the line, and what it prints
        :param fd: a file or descriptor to go along
        :raises HumanCmdError: it printed an error
        :raises MonitorProtocolError: the prompt did not come back in time
        :raises MonitorSocketError: the connection has ended
        """
        output = self._output_of(cmd, timeout, debug, fd)
        if "Error: " in output:
            raise HumanCmdError(cmd, output)
        return output

    def _output_of(self, cmd: str, timeout: float, debug: bool, fd: Any) -> str:
        self._log_command(cmd, debug)
        line, call = self._submit(cmd, descriptor(fd))
        missing = f"Could not find (qemu) prompt after command '{cmd}'."
        try:
            if not drive(line.wait(call, timeout)):
                raise MonitorProtocolError(missing + f" Nothing within {timeout:g} s")
            output: str = call.outcome().replace("\r\n", "\n").removesuffix("\n")
        except DroverError as error:
            raise MonitorProtocolError(f"{missing} {error}") from error
        finally:
            line.abandon(call)
        if output:
            self._log_lines(output)
            self._log_response(cmd, output, debug)
        return output

    def human_monitor_cmd(self, cmd: str = "", timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> str:
        """The same as :meth:`cmd`, by a name that both monitors have."""
        return self.cmd(cmd, timeout, debug, fd)

    def verify_responsive(self) -> None:
        """Run a command, to see that there is an answer."""
        self.cmd("info status", debug=False)

    def get_status(self) -> str:
        """What ``info status`` prints."""
        return self.cmd("info status", debug=False)

    def verify_status(self, status: str) -> bool:
        """Whether `status`, such as ``running``, is in what ``info status`` prints."""
        return status in self.get_status()

    def send_args_cmd(self, cmdlines: str, timeout: float = CMD_TIMEOUT, convert: bool = True) -> Any:
        """Run lines like ``memsave val=0 size=10240 filename=f``, one after another, with ``;`` between them.

        :param timeout: seconds for each
        :param convert: take the arguments' names out; False runs the first line as it is
        :returns: what it prints; a list where there are several
        """
        if not convert:
            return self.cmd(cmdlines.split(";", maxsplit=1)[0], timeout)
        outputs = [self.cmd(without_names(line), timeout) for line in cmdlines.split(";")]
        return outputs[0] if len(outputs) == 1 else outputs

    def quit(self) -> None:
        """End QEMU, without waiting for that."""
        self._send(b"quit")

    def info(self, what: str, debug: bool = True) -> str:
        """What ``info WHAT`` prints."""
        return self.cmd(f"info {what}", debug=debug)

    def query(self, what: str) -> str:
        """The same as :meth:`info`."""
        return self.info(what)


def without_names(line: str) -> str:
    """A command with named arguments as the human monitor takes it: their values, in order."""
    if "=" not in line:
        return line
    command, *rest = line.split()
    for argument in " ".join(rest).split(","):
        name, _, value = argument.partition("=")
        command += " " + (value.replace("/", ",") if name == "cert-subject" else value)
    return command
