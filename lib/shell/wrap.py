"""A QEMU that lives as long as the shell: started with a monitor for us, ended when we leave."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from drover.errors import ConnectError

from .signals import ended_by_signals

# Seconds until a QEMU that was started listens: 0.1 on an idle machine, more where it loads a large image first.
START_TIMEOUT: Final = 60.0
# Seconds that it gets to end by itself when it is asked to: it flushes its images.
END_TIMEOUT: Final = 30.0
_LOOK: Final = 0.02
# Characters of what QEMU printed, from the end.
EXCERPT: Final = 4_000


class Wrapped:
    """A QEMU under way.

    :ivar address: of its monitor
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.address = str(folder / "qmp")
        self._log = folder / "log"
        words = [*command, "-qmp", f"unix:{self.address},server=on,wait=off"]
        with self._log.open("wb") as log:
            try:
                # in a session of its own: Ctrl-C at our terminal is meant for the shell
                self._process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise ConnectError(command[0], error.strerror or str(error)) from error

    def wait(self) -> None:
        """Wait until it listens.

        :raises ConnectError: it ended first, or does not listen; with what it printed
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not os.path.exists(self.address):
            self.check()
            if time.monotonic() > deadline:
                raise ConnectError(self.address, f"QEMU does not listen after {START_TIMEOUT:g} s{self._said()}")
            time.sleep(_LOOK)

    def check(self) -> None:
        """Pass if it runs.

        :raises ConnectError: it has ended; with what it printed
        """
        status = self._process.poll()
        if status is not None:
            how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
            raise ConnectError(self.address, f"QEMU ended {how}{self._said()}")

    def _said(self) -> str:
        said = self._log.read_text(errors="replace").strip()[-EXCERPT:]
        return f": {said}" if said else ""

    def end(self) -> None:
        """End it, and wait for that."""
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def wrapped(command: Sequence[str]) -> Iterator[Wrapped]:
    """Start a QEMU by this command line, to which ``-qmp`` is added; ended at the end, also by SIGTERM and SIGHUP.

    :raises ConnectError: it does not start
    """
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="drover-") as folder:
        qemu = Wrapped(command, Path(folder))
        try:
            qemu.wait()
            yield qemu
        finally:
            qemu.end()
