"""Who runs, and when: the QEMUs of one machine on two nodes, watched by their own monitors, from outside all else."""

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_LOOK = 0.01  # s between two looks for a QEMU that is not there yet


class Span(NamedTuple):
    """A time in which one copy ran, in Unix time, by the stamps of QEMU's own events."""

    side: str
    since: float
    until: float

    def meets(self, other: "Span") -> bool:
        return self.since < other.until and other.since < self.until


class Watched(threading.Thread):
    """Each QEMU that is at one socket, one after the other, from its first moment to its last."""

    def __init__(self, side: str, path: Path) -> None:
        super().__init__(name=f"watch of {path}", daemon=True)
        self.side = side
        self.looks = 0
        self._path = path
        self._over = threading.Event()
        self._done: list[Span] = []
        self._since: float | None = None

    @property
    def spans(self) -> list[Span]:
        """When it ran; a run that goes on ends in the infinite."""
        since = self._since
        return [*self._done, *([Span(self.side, since, float("inf"))] if since is not None else [])]

    @property
    def runs(self) -> bool:
        return self._since is not None

    def run(self) -> None:
        while not self._over.wait(_LOOK):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self._path))
                sock.settimeout(0.05)
                self._hear(sock)
            self._stopped(time.time())

    def close(self) -> None:
        self._over.set()
        self.join(10)

    def _hear(self, sock: socket.socket) -> None:
        asked = time.time()
        sock.sendall(b'{"execute":"qmp_capabilities"}\n{"execute":"query-status"}\n')
        text = b""
        while not self._over.is_set():
            try:
                piece = sock.recv(1 << 16)
            except TimeoutError:
                continue
            if not piece:
                return
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                self._take(json.loads(line), asked)

    def _take(self, said: dict[str, Any], asked: float) -> None:
        self.looks += 1
        stamp = said.get("timestamp", {})
        at = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
        if said.get("event") == "RESUME":
            self._since = self._since or at
        elif said.get("event") == "STOP":
            self._stopped(at)
        elif said.get("return", {}).get("status") == "running":
            self._since = self._since or asked

    def _stopped(self, at: float) -> None:
        if self._since is not None:
            self._done.append(Span(self.side, self._since, at))
            self._since = None


class Watch:
    """Both."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = Watched("here", here), Watched("there", there)
        for each in (self.here, self.there):
            each.start()

    def check(self) -> None:
        """See that never two ran at once."""
        two = [(one, other) for one in self.here.spans for other in self.there.spans if one.meets(other)]
        assert not two, f"two copies ran at once: {two}"
        assert self.here.looks, "nobody has looked"

    def close(self) -> None:
        for each in (self.here, self.there):
            each.close()
