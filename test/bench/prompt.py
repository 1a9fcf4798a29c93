"""A guest's shell, and when it sees something: by the standard library alone, since it also runs beside libvirtd."""

import contextlib
import socket
import threading
import time
from pathlib import Path

BOOT = 120.0  # seconds; 3 of them on an idle machine
SIGHT = 60.0


def wait_for_prompt(path: str | Path) -> None:
    """Wait for the prompt of a guest that boots.

    :param path: of its console
    """
    _Console(path).read("guest# ", BOOT)


class _Console:
    def __init__(self, path: str | Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))

    def read(self, end: str, timeout: float) -> str:
        """All until that has come."""
        self.socket.settimeout(timeout)
        text = ""
        while end not in text:
            data = self.socket.recv(4096)
            if not data:
                raise RuntimeError(f"the console was closed; {text!r}")
            text += data.decode(errors="replace")
        return text


class Lookout:
    """The shell of a guest that has booted, and looks for a file.

    It looks each millisecond or so; to look costs a guest without KVM 0.1 ms.

    :param path: of its console
    """

    def __init__(self, path: str | Path) -> None:
        self._console = _Console(path)
        self._console.socket.sendall(b"\n")
        self._console.read("guest# ", SIGHT)
        self._thread: threading.Thread | None = None
        self._at = 0.0

    def look_for(self, file: str) -> None:
        """Begin to look."""
        self._begin("!", file)

    def seen(self) -> float:
        """Wait until it has seen it; when that was, by the clock ``time.perf_counter``."""
        assert self._thread is not None
        self._thread.join()
        if not self._at:
            raise RuntimeError("the guest did not see it")
        return self._at

    def wait_gone(self, file: str) -> None:
        """Wait until there is no such file."""
        self._begin("", file)
        self.seen()

    def close(self) -> None:
        """Leave the console."""
        self._console.socket.close()

    def _begin(self, unless: str, file: str) -> None:
        line = f"while [ {unless} -e {file} ]; do read -t 0.001 _; done; echo se''en"
        self._at = 0.0
        self._console.socket.sendall(line.encode() + b"\n")
        self._console.read("se''en", SIGHT)  # it has the line
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        with contextlib.suppress(OSError):  # the guest was ended, or does not see it
            self._console.read("seen\r\nguest# ", SIGHT)
            self._at = time.perf_counter()
