"""Two tasks, one that reads and one that writes: for subclasses of `AsyncProtocol` with messages of their own.

:class:`~.qmp_client.QMPClient` is none of these: it stands on Drover's link, which needs no task.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from ...monitor.wire import Wire
from .error import ProtocolError, QMPError
from .util import exception_summary, flush, pretty_traceback

M = TypeVar("M")

# Messages; who puts more waits until the peer has taken some.
OUTGOING_SIZE: Final = 1000
# Seconds for the peer to take what is left when the session ends; one that reads nothing must not hold us.
FLUSH_TIMEOUT: Final = 5.0


class _Pump(Generic[M]):
    """Moves messages between a stream and the methods that a subclass gives.

    :ivar _outgoing: what is put here is sent
    """

    logger: logging.Logger
    readbuflen: int

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._outgoing: asyncio.Queue[M]
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._stopping: asyncio.Task[None] | None = None
        self._end: Exception | None = None

    # -- what a subclass gives -------------------------------------------

    async def _do_recv(self) -> M:
        """Read one message, as by :meth:`_readline`."""
        raise NotImplementedError

    def _do_send(self, msg: M) -> None:
        """Write one message to `_writer`."""
        raise NotImplementedError

    async def _on_message(self, msg: M) -> None:
        """Take what has come, after `_cb_inbound`. The next one is read when this has returned."""

    def _cb_outbound(self, msg: M) -> M:
        raise NotImplementedError

    def _cb_inbound(self, msg: M) -> M:
        raise NotImplementedError

    def _schedule_disconnect(self) -> None:
        raise NotImplementedError

    # -- what it is given ------------------------------------------------

    async def _readline(self) -> bytes:
        """Read a line with its end; at the end of the stream, what is left.

        :raises EOFError: nothing is left
        :raises ProtocolError: it is longer than `readbuflen`
        """
        assert self._reader is not None
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise ProtocolError(f"a line is longer than the limit of {self.readbuflen} bytes") from error
        if not line:
            raise EOFError
        return line

    async def _recv(self) -> M:
        """Read one message through `_cb_inbound`. While the session runs, its own task does that."""
        return self._cb_inbound(await self._do_recv())

    async def _send(self, msg: M) -> None:
        """Write one message through `_cb_outbound`. While the session runs, its own task does that."""
        self._do_send(self._cb_outbound(msg))

    # -- its life --------------------------------------------------------

    async def _connected(self, wire: Wire) -> None:
        """Take over a connection."""
        if type(wire) is not Wire:
            wire.close()
            raise QMPError("TLS is supported for QMP only")
        sock = socket.socket(fileno=os.dup(wire.fileno()))
        wire.close()
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=self.readbuflen)

    def _start_pump(self) -> None:
        self._outgoing = asyncio.Queue(OUTGOING_SIZE)
        steps = {"Reader": self._take_in, "Writer": self._give_out}
        self._tasks = tuple(asyncio.create_task(self._repeat(step, name)) for name, step in steps.items())

    def _stop_pump(self) -> None:
        """End it, in a task of its own."""
        if self._stopping is None and (self._tasks or self._writer is not None):
            self._stopping = asyncio.create_task(self._stop())

    async def _pump_stopped(self) -> None:
        """Wait until all is ended and closed."""
        if self._stopping is not None:
            await asyncio.wait((self._stopping,))
            self._stopping = None

    async def _take_in(self) -> None:
        await self._on_message(await self._recv())

    async def _give_out(self) -> None:
        msg = await self._outgoing.get()
        try:
            await self._send(msg)
            if self._writer is not None:
                await self._writer.drain()
        finally:
            self._outgoing.task_done()

    async def _repeat(self, step: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            while True:
                await step()
        except Exception as error:
            self._fail(error, f"Task.{name}")
            self._schedule_disconnect()

    def _fail(self, error: Exception, where: str) -> None:
        if isinstance(error, EOFError):
            self.logger.info("%s: end-of-file", where)
        else:
            self.logger.error("%s: %s", where, exception_summary(error))
            self.logger.debug("%s: failure:\n%s\n", where, pretty_traceback())
        if self._end is None:
            self._end = error

    async def _stop(self) -> None:
        try:
            if self._tasks and self._end is None:
                await asyncio.wait_for(self._flush(), FLUSH_TIMEOUT)
        except (OSError, TimeoutError) as error:
            self._fail(error, "Failed to flush the writer")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        writer: Any = self._writer
        self._tasks, self._reader, self._writer = (), None, None
        if writer is not None:
            writer.transport.abort()

    async def _flush(self) -> None:
        await self._outgoing.join()
        if self._writer is not None:
            await flush(self._writer)
