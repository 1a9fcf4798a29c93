"""The events of a node daemon from the outside: read as they come, and read on when the daemon is there again.

Blocking, and by the standard library alone, as all of the client.
"""

import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from ..errors import CallFailed
from .client import Daemon

Heard = dict[str, Any]  # the JSON of one event

# Seconds without a sign of life, of which there is one every 15 s; after that the connection is taken for gone.
_SILENCE: Final = 40.0
_PAUSE: Final = 0.5  # seconds between two tries to get to a daemon that has gone


class Hearing:
    """Events of a daemon, or of one of its instances.

    :param name: the instance's; empty: what happens on the node
    :param after: the number of the last event that is known; None: from now on, or, where it is not followed, all
    :param follow: wait for more, also over an end of the daemon
    :param kinds: only these; empty: all
    :param gone: called when the daemon is away, once each time
    """

    def __init__(
        self,
        daemon: Daemon,
        name: str = "",
        *,
        after: int | None = None,
        follow: bool = False,
        kinds: Sequence[str] = (),
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._daemon = daemon
        self._follow = follow
        self._gone = gone
        self._last = "" if after is None else str(after)
        query = [("kind", kind) for kind in kinds] + ([] if follow else [("follow", "0")])
        path = f"/v1/instances/{quote(name, safe='')}/events" if name else "/v1/events"
        self._path = f"{path}?{urlencode(query)}"
        self._ended = False

    def __iter__(self) -> Iterator[Heard]:
        """Each event, in order, until there are no more.

        :raises CallFailed: the daemon says no, or, when there is nothing to go on from, does not answer
        """
        is_away = False
        while not self._ended:
            try:
                for event in self._read():
                    is_away = False
                    yield event
            except (OSError, http.client.HTTPException) as error:
                if not (self._follow and self._last):
                    raise CallFailed(
                        "no-answer", f"drover-noded at {self._daemon.where} went away ({error})"
                    ) from error
            if not self._follow or self._ended:
                return
            if not is_away:
                is_away = True
                self._gone()
            time.sleep(_PAUSE)

    def _read(self) -> Iterator[Heard]:
        """What comes over one connection."""
        connection = self._daemon.connection(_SILENCE)
        try:
            headers = {"Last-Event-ID": self._last} if self._last else {}
            connection.request("GET", self._path, headers=headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response)
            yield from self._events(response)
        finally:
            connection.close()

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Heard]:
        for line in response:
            if line.startswith(b"id: "):
                self._last = line[4:].decode().strip()
            elif line.startswith(b"data: "):
                event: Heard = msgspec.json.decode(line[6:])
                self._ended = event["kind"] == "gone" and "number" not in event
                yield event


def _refusal(response: http.client.HTTPResponse) -> CallFailed:
    try:
        told = msgspec.json.decode(response.read())
    except msgspec.DecodeError:
        told = None
    if not isinstance(told, Mapping):
        return CallFailed("no-answer", f"drover-noded answers {response.status} {response.reason}")
    return CallFailed(str(told.get("code", "")), str(told.get("detail", response.reason)), dict(told))
