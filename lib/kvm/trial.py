"""A QEMU that is started only to learn something from it. Whatever happens, nothing of it is left.

It is our child, in a session of its own, and gets SIGKILL at the end of the block and when the
thread that started it ends, by SIGKILL too. We speak with it over one end of a socket pair: there
is no path for anybody else to come by, and no name to be left behind.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ..errors import BinaryError, BinarySlow, CommandError, ConnectionClosed, MonitorError, MonitorTimeout
from ..monitor.connection import QmpConnection
from ..ops.cpu_model import CpuModel
from .keeper import ExitStatus
from .process import ENVIRONMENT, stuck
from .rollback import Rollback

KILL_TIMEOUT: Final = 10.0  # s; it has next to no memory to free, so more is a kernel that hangs
OBITUARY_TIMEOUT: Final = 1.0  # s, from the end of its monitor to its own
LOG_LINES: Final = 10  # of what it printed, in an error
_PIPE: Final = 65536  # bytes: what a pipe holds; whoever prints more has to wait, and is killed in time
_PLAIN: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-S")
# `no_new_privs`: a binary that somebody made setuid is asked as whom we are
_SETPRIV: Final = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--")
# What the system can execute by itself. setpriv would hand anything else to a shell, to be read as commands.
_EXECUTABLE: Final = (b"\x7fELF", b"#!")


class Trial:
    """A QEMU under trial, whose guest stands still until it is told `cont`. A context manager: it runs in between.

    :ivar qmp: the way to it
    """

    qmp: QmpConnection

    def __init__(self, path: Path, words: Sequence[str], *, fds: Sequence[int] = (), timeout: float) -> None:
        """Nothing is started yet.

        :param path: the binary, an absolute path
        :param words: what else it gets on the command line
        :param fds: descriptors that it inherits, under the same numbers
        :param timeout: from its start to the last answer, in seconds
        """
        self._path = path
        self._words = [*_PLAIN, *words]
        self._fds = tuple(fds)
        self._timeout = timeout
        self._deadline = 0.0
        self._undo = Rollback()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._log = -1

    @property
    def pid(self) -> int:
        """Its process id, for as long as the block lasts."""
        assert self._process
        return self._process.pid

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Execute a QMP command.

        :raises BinaryError: it ended, or speaks no QMP, or does not know the command
        :raises BinarySlow: there was no answer before the deadline
        """
        try:
            return self.qmp.execute(command, arguments, timeout=self._left())
        except (MonitorError, CommandError) as error:
            raise self._verdict(error) from error

    def cpu_model(self, name: str) -> CpuModel:
        """What its CPUs are.

        :param name: of the model that it was started with
        :raises BinaryError: it ended, or cannot tell
        """
        try:
            return self.qmp.query_cpu_model(name)
        except (MonitorError, CommandError) as error:
            raise self._verdict(error) from error

    def wait(self) -> ExitStatus:
        """Wait for its end, and tell how it ended.

        :raises BinarySlow: it runs on at the deadline
        """
        if not self._ended(self._left()):
            raise self._slow()
        return self._status()

    def __enter__(self) -> Self:
        """Start it, and return when it has greeted.

        :raises BinaryError: it cannot be executed, or did not get that far
        :raises BinarySlow: it did not get that far in time
        """
        self._deadline = time.monotonic() + self._timeout
        try:
            self._start()
            self.qmp.connect(self._left())
        except MonitorError as error:
            verdict = self._verdict(error)
            self.__exit__(type(verdict), verdict, None)
            raise verdict from error
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    # -- its life --------------------------------------------------------------------------------

    def _start(self) -> None:
        _check_executable(self._path)
        ours, theirs = socket.socketpair()
        with theirs:
            self._undo.remember("a socket", ours.close)
            self.qmp = QmpConnection(ours, timeout=self._timeout, share_discovery=False)  # it would ask who we are
            self._undo.remember("a connection", self.qmp.close)
            monitor = ("-chardev", f"socket,id=trial,fd={theirs.fileno()}", "-mon", "chardev=trial,mode=control")
            self._launch([*_SETPRIV, os.fspath(self._path), *monitor, *self._words], [theirs.fileno(), *self._fds])

    def _launch(self, words: Sequence[str], fds: Sequence[int]) -> None:
        self._log, log = os.pipe2(os.O_CLOEXEC)
        self._undo.remember("a pipe", lambda: os.close(self._log))
        os.set_blocking(self._log, False)
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds,
                start_new_session=True, cwd="/", env=ENVIRONMENT,
            )  # fmt: skip
        except OSError as error:
            raise BinaryError(os.fspath(self._path), f"setpriv: {error.strerror}") from error
        finally:
            os.close(log)
        self._undo.remember("a trial QEMU", self._end)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._undo.remember("a pidfd", lambda: os.close(self._pidfd))
        with contextlib.suppress(OSError):  # that it may abort is no news: no core in the root directory for that
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))

    def _end(self) -> None:
        """Kill it and what it may have started, and see it end."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        try:
            self._process.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise stuck(self._process.pid, KILL_TIMEOUT) from error

    def _ended(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _status(self) -> ExitStatus:
        self._end()
        assert self._process
        code = self._process.returncode
        return ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)

    # -- what went wrong -------------------------------------------------------------------------

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _verdict(self, error: MonitorError | CommandError) -> BinaryError:
        if isinstance(error, MonitorTimeout):
            return self._slow()
        if isinstance(error, MonitorError) and self._ended(OBITUARY_TIMEOUT):
            status = self._status()
            reason = f"it {'ended with' if status.signal is None else 'was'} {status}"
            return BinaryError(os.fspath(self._path), reason, status=str(status), log=self._tail())
        reason = "it closed its monitor" if isinstance(error, ConnectionClosed) else str(error)
        return BinaryError(os.fspath(self._path), reason, log=self._tail())

    def _slow(self) -> BinarySlow:
        return BinarySlow(os.fspath(self._path), self._timeout, log=self._tail())

    def _tail(self) -> str:
        try:
            text = os.read(self._log, _PIPE).decode(errors="replace")
        except BlockingIOError:
            return ""
        return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def _check_executable(path: Path) -> None:
    if not path.is_file():  # to open a pipe would wait for who writes to it
        raise BinaryError(os.fspath(path), "it is not a file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise BinaryError(os.fspath(path), (error.strerror or str(error)).lower()) from error
    if not start.startswith(_EXECUTABLE):
        raise BinaryError(os.fspath(path), "it is neither a program nor a script")
    if not os.access(path, os.X_OK):
        raise BinaryError(os.fspath(path), "it may not be executed")
