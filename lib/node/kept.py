"""Connections to other daemons that are kept for their next use.

To make one by TLS takes words there and back, and some milliseconds of a processor on both sides: while a machine is to
move, or stands still, that is long.
"""

import http.client
import threading
import time
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from ..errors import CallFailed
from .client import NO_ANSWER, Daemon

# Seconds for which one is kept idle: the other side lets go of it after 75 (lib/node/limits.py).
IDLE: Final = 60.0


class _Idle(NamedTuple):
    whose: Hashable
    since: float
    connection: http.client.HTTPConnection


class Kept:
    """All of one daemon's. Its threads may share it."""

    def __init__(self) -> None:
        self._idle: list[_Idle] = []  # the oldest first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def call(self, daemon: Daemon, method: str, path: str, body: Any = None, *, timeout: float) -> Any:
        """One call of those that may be made twice without harm; what it was answered. Blocks.

        It is made again where the other side had let go of the connection meanwhile.

        :param timeout: seconds for the answer
        :raises CallFailed: as of :meth:`Daemon.call`
        """
        if (kept := self._take(daemon.identity, timeout)) is not None:
            try:
                return self._exchange(daemon, kept, method, path, body)
            except CallFailed as error:
                if error.code != NO_ANSWER or isinstance(error.__cause__, TimeoutError):
                    raise
        return self._exchange(daemon, daemon.connection(timeout), method, path, body)

    def close(self) -> None:
        """Let go of those that are idle."""
        self._drop(0.0)

    def _exchange(
        self, daemon: Daemon, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> Any:
        answered = False
        try:
            told = daemon.exchange(connection, method, path, body)
            answered = True
            return told
        except CallFailed as error:
            answered = error.code not in (NO_ANSWER, "unreachable")
            raise
        finally:
            if answered and connection.sock is not None:
                self._keep(_Idle(daemon.identity, time.monotonic(), connection))
            else:
                connection.close()

    def _take(self, whose: Hashable, timeout: float) -> http.client.HTTPConnection | None:
        with self._lock:
            at = next((at for at in reversed(range(len(self._idle))) if self._idle[at].whose == whose), None)
            found = None if at is None else self._idle.pop(at)
        if found is None:
            return None
        if time.monotonic() > found.since + IDLE:
            found.connection.close()
            return None
        found.connection.timeout = timeout
        found.connection.sock.settimeout(timeout)
        return found.connection

    def _keep(self, idle: _Idle) -> None:
        with self._lock:
            self._idle.append(idle)
            if self._timer is None:
                self._watch()

    def _watch(self) -> None:
        self._timer = threading.Timer(IDLE, self._drop, (IDLE,))
        self._timer.daemon = True
        self._timer.start()

    def _drop(self, age: float) -> None:
        """Let go of those that have been idle for so many seconds."""
        with self._lock:
            last = time.monotonic() - age
            old = [idle for idle in self._idle if idle.since <= last]
            self._idle = [idle for idle in self._idle if idle.since > last]
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._idle:
                self._watch()
        for idle in old:
            idle.connection.close()
