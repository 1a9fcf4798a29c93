"""QEMU dials us: a listener that hands out one QMP connection at a time (:mod:`.listen` does the rest)."""

import logging
import socket
from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Self, TypedDict, TypeVar, Unpack

from ..errors import ConnectError, ConnectionClosed, ConnectTimeout, MonitorError, MonitorTimeout, ProtocolError
from ..qmp.timeouts import DEFAULT_TIMEOUT
from .address import Address
from .base import QmpMonitor
from .connection import BlockingWaits, QmpConnection
from .drive import drive
from .listen import Left, SocketListener

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("drover.monitor")

Monitor = TypeVar("Monitor", bound=QmpMonitor)


class ConnectionOptions(TypedDict, total=False):
    """What a listener passes on to its connections; see :class:`~drover.monitor.base.QmpMonitor`."""

    limit: int
    oob: bool
    log_size: int
    share_discovery: bool


class Listener(SocketListener, Generic[Monitor]):
    """A listener for QEMU, before it is said how to wait.

    :param address: see :mod:`drover.monitor.address`; of a host with several addresses, the first that can be
        listened on; port 0 lets the system choose one, which :attr:`address` tells from then on
    :param timeout: seconds for each accept, greeting included, and each command of its connections
    :param tls: secures the connections; its protocol is that of a server
    :param options: passed on to the connections, see :class:`ConnectionOptions`
    :ivar address: where QEMU can dial us; its ``str()`` is what to write behind ``unix:`` or ``tcp:``
    :raises ArgumentError: it is no address to listen on
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        tls: "ssl.SSLContext | None" = None,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        super().__init__(address, timeout)
        self._context = tls
        self._options = options
        self._client: Monitor | None = None

    @abstractmethod
    def _make_monitor(self, sock: socket.socket) -> Monitor:
        """A connection for a client that dialled."""

    def _is_taken(self) -> bool:
        return self._client is not None and self._client.is_connected()

    async def _accept(self, timeout: float | None) -> Monitor:
        sock = self._socket
        if sock is None or self._is_closing():
            raise ConnectionClosed(f"not listening on {self.address}")
        self._check_free()
        limit = self.timeout if timeout is None else timeout
        self._accepting = True
        try:
            sock = self._listen_again(sock)
            self._client = client = await self._next_client(sock, self._deadline(limit), limit)
            self._stop_listening(sock)
            return client
        except MonitorError:  # some are an OSError, too
            raise
        except OSError as error:
            raise self._cannot_listen(error) from error
        finally:
            self._accepting = False
            if self._closing:
                self._close()

    async def _next_client(self, sock: socket.socket, left: Left, timeout: float | None) -> Monitor:
        """The first that greets as QEMU does. Others are sent away: somebody who only looks must not end the wait."""
        wrong: Exception | None = None
        while True:
            monitor = self._make_monitor(await self._dialled(sock, left, timeout, wrong))
            if self._context is not None:
                from .tls import Tls

                monitor._tls = Tls(self._context, server_side=True)
            try:
                await monitor._connect(left())
            except MonitorTimeout as error:
                reason = f"who dialled did not greet within {timeout or 0:g} s"
                raise ConnectTimeout(str(self.address), reason, timeout) from error
            except (ConnectError, ProtocolError) as error:
                log.warning("%s: a client was sent away: %s", self.address, error)
                wrong = error
            else:
                return monitor


class MonitorListener(BlockingWaits, Listener[QmpConnection]):
    """Listens for a QEMU that dials us (``-qmp unix:PATH,server=off``), for blocking code.

    ::

        with MonitorListener("/run/vm/demo.qmp") as listener:
            start_qemu("-qmp", f"unix:{listener.address},server=off")
            with listener.accept(timeout=30) as vm:
                vm.cont()

    Closing it leaves the connection that it handed out as it is. Parameters are those of :class:`Listener`.
    """

    def listen(self) -> None:
        """Listen, if it does not; entering the object as a context does this.

        Call it again after a client's end where the next one may dial before :meth:`accept` is called.

        :raises ConnectError: somebody else listens there, the address is not ours, or a client is connected
        """
        drive(self._listen())

    def accept(self, timeout: float | None = None) -> QmpConnection:
        """Wait for QEMU, greet and negotiate. While the connection lasts, other clients are refused.

        :param timeout: seconds for all of it; None takes the object's
        :raises ConnectError: the connection of before is still there
        :raises ConnectTimeout: no QEMU dialled and greeted in time
        :raises ConnectionClosed: this is not listening, or was closed meanwhile
        """
        return drive(self._accept(timeout))

    def close(self) -> None:
        """Stop listening, and remove the socket's file if it is still ours. Another thread's accept ends."""
        self._close()

    def _make_monitor(self, sock: socket.socket) -> QmpConnection:
        return QmpConnection(sock, timeout=self.timeout, **self._options)

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
