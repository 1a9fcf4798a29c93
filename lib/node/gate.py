"""Each connection and each request, held to the limits: what takes too long or too much is refused.

aiohttp bounds a request's line and headers and how long a connection is idle, if it is told to. The rest is here.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from .job_calls import MAX_WAIT
from .limits import Crowd, Held
from .problems import CONTENT_TYPE, Refused, problem
from .tls import role_in

# Seconds that a refused request waits for its answer: whoever floods does so no faster, at next to no cost.
_HELD_BACK: Final = 0.5
# Seconds in which the rest of a body is read and thrown away, so that a caller can read why it was refused.
_LINGERING: Final = 5.0
_LONG: Final = ("/agent/file",)  # that are read, and take as long as a guest has to say
_READING: Final = 0.1  # s in which what is here already is read
_READS: Final = ("GET", "HEAD", "OPTIONS")
_STREAMS: Final = "/events"  # how their paths end
log = logging.getLogger("drover.node")


class Guarded(web.RequestHandler):
    """One connection, in time or ended.

    :param server: aiohttp's
    :ivar held: its entry among all
    :ivar answering: what ends with the connection: events for a reader, who is to be missed at once when it goes
    """

    def __init__(self, server: web.Server, crowd: Crowd, held: Held, loop: asyncio.AbstractEventLoop) -> None:
        limits = crowd.limits
        super().__init__(
            server,
            loop=loop,
            access_log=cast(Any, None),
            keepalive_timeout=limits.idle_seconds,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            lingering_time=_LINGERING,
        )
        self.held = held
        self.answering: asyncio.Task[Any] | None = None
        self._crowd = crowd
        self._asked = False
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open, and known whose it is."""
        certificate = transport.get_extra_info("peercert")
        name = role_in(certificate)[0] if certificate else ""
        drop = cast(asyncio.Transport, transport).abort
        self._crowd.known(self.held, f"certificate {name}" if name else self.held.caller, drop)
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It has ended."""
        self._crowd.leave(self.held)
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        if self.answering is not None:
            self.answering.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        if not self._asked and self._head is None:
            self._await_head()

    def begin(self) -> None:
        """The head of a request is here."""
        self._asked = True
        if self._head is not None:
            self._head.cancel()
            self._head = None
        self._crowd.begin(self.held)

    def end(self) -> None:
        """The request is answered."""
        self._asked, self.answering = False, None
        self._crowd.end(self.held)

    def pause_writing(self) -> None:
        """The caller does not read."""
        super().pause_writing()
        self._unread = self._loop.call_later(self._crowd.limits.answer_seconds, self._abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no request is answered, and not worth a line in the log."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            size = self._crowd.limits.header_bytes
            return refusal(Refused(431, "header-too-large", f"the request line and each header may have {size} bytes"))
        return refusal(Refused(400, "bad-request", (message or "this is no HTTP").partition("\n")[0]))

    def _await_head(self) -> None:
        self._head = self._loop.call_later(self._crowd.limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        """Unless it came while this process stood still, and is only now read."""
        self._head = self._loop.call_later(_READING, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Gate:
    """Lets requests through.

    :ivar crowd: who has how much
    """

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd

    @property
    def middleware(self) -> Any:
        """For aiohttp, before all others."""

        @web.middleware
        async def pass_gate(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            """Let a request through, or refuse it."""
            connection = request.protocol
            assert isinstance(connection, Guarded)
            connection.begin()
            try:
                await self._admit(request, connection.held)
                return await self._answer(request, connection.held, handler)
            except Refused as error:
                self.crowd.refused += 1
                return refusal(error)
            finally:
                connection.end()

        return pass_gate

    async def _admit(self, request: web.Request, held: Held) -> None:
        """See that a request may be answered, and that all of it is here.

        :raises Refused: not so
        """
        limits, wait = self.crowd.limits, ""
        if held.over:
            wait = f"too-many-connections: {limits.connections_per_caller} connections of {held.caller}, all in use"
        elif not self.crowd.may_ask(held.caller):
            wait = f"too-many-requests: {limits.requests_per_second:g} requests a second of {held.caller}"
        if wait:
            await asyncio.sleep(_HELD_BACK)
            code, _, said = wait.partition(": ")
            raise Refused(429, code, f"at most {said}: try again later")
        if request.can_read_body:
            try:
                async with asyncio.timeout(limits.body_seconds):
                    await request.read()  # which keeps it for who asks again
            except TimeoutError:
                raise Refused(408, "body-timeout", f"the body took longer than {limits.body_seconds:g} s") from None
            except web.HTTPRequestEntityTooLarge:
                raise Refused(413, "body-too-large", f"a body may have {limits.body_bytes} bytes") from None

    async def _answer(
        self, request: web.Request, held: Held, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """What the call is answered, in time.

        :raises Refused: it takes too long, or its caller has too many
        """
        if "Upgrade" in request.headers or request.path.endswith(_STREAMS):
            caller = held.caller
            if not self.crowd.may_stream(caller):
                await asyncio.sleep(_HELD_BACK)
                text = f"{self.crowd.limits.streams_per_caller} consoles and readers of events of {caller}"
                raise Refused(429, "too-many-streams", f"at most {text}")
            connection = request.protocol
            if isinstance(connection, Guarded) and "Upgrade" not in request.headers:  # a WebSocket sees it itself
                connection.answering = asyncio.current_task()
            try:
                return await handler(request)
            finally:
                self.crowd.streamed(caller)
        reads = request.method in _READS
        seconds = self.crowd.limits.read_seconds + _asked_to_wait(request)
        if not reads or request.path.endswith(_LONG):
            seconds = self.crowd.limits.change_seconds
        try:
            async with asyncio.timeout(seconds):
                return await handler(request)
        except TimeoutError:
            goes_on = "" if reads else ": what was asked goes on"
            raise Refused(504, "call-timeout", f"the answer took longer than {seconds:g} s{goes_on}") from None


def _asked_to_wait(request: web.Request) -> float:
    """For how long a caller wants to wait for a job; more than a call allows it refuses itself."""
    try:
        wait = float(request.query.get("wait", "0"))
    except ValueError:
        return 0.0
    return wait if 0 <= wait <= MAX_WAIT else 0.0


def refusal(error: Refused) -> web.Response:
    """A refusal, after which the connection ends: so no one who is refused keeps others out."""
    body = json.dumps(problem(error)).encode()
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    response = web.Response(body=body, status=error.status, content_type=CONTENT_TYPE, headers=headers)
    response.force_close()
    return response
