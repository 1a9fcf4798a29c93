"""The daemon of the node that a machine goes to, as the one that it leaves speaks to it: one WebSocket, made anew when
it breaks."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from ..errors import ConnectError, DroverError, MigrationError
from ..migration.letters import MAX_LETTER, Did, GoOver, Invitation, Question, Said, Usage, WentOver, answer, encode
from ..migration.ports import Peer
from ..migration.words import TargetVerb
from .client import Daemon
from .link import RemoteDaemon
from .pki.folder import split_address

if TYPE_CHECKING:  # what is never asked on the network takes its time to load
    from aiohttp import ClientSession, ClientWebSocketResponse

_SIGN: Final = 5.0  # s between two signs of life, by which a node that is gone is noticed
_CONNECT: Final = 5.0  # s that a connection may take, and that a question waits for one
_GO_OVER: Final = 30.0  # s until it is asked again
_AGAIN, _LONGEST = 0.05, 5.0  # s until it is made anew; twice as long each time
log = logging.getLogger("drover.migration")


class LinkPeer(Peer):
    """The other node, for one migration.

    :ivar listens: where the QEMU there listens, in QEMU's words; empty: it has not said so
    :param daemon: of that node
    :param machine: the machine's name
    :param incarnation: the process there that is meant
    :param invite: what goes with a question to accept it; None: whoever has accepted it is to say so
    :param console: the end of what the guest wrote on its console, at its last moment here
    :param hear: called with what it says
    :param linked: called when it can be reached again, and nobody waits to ask it something
    """

    def __init__(
        self,
        daemon: Daemon,
        machine: str,
        incarnation: str,
        invite: Callable[[int], Invitation | None],
        console: Callable[[], bytes],
        hear: Callable[[Said | Did], None],
        linked: Callable[[], None],
    ) -> None:
        self._daemon = daemon
        self._path = f"/v1/instances/{quote(machine)}/arrival"
        self._incarnation = incarnation
        self._invite = invite
        self._console = console
        self._hear = hear
        self._linked = linked
        self._waiting = 0
        self._went_over: asyncio.Future[str] | None = None
        self._socket: ClientWebSocketResponse | None = None
        self._there = asyncio.Event()
        self._trouble = "it has not answered yet"
        self._task = asyncio.create_task(self._stay(), name=f"link to {daemon.where}")

    async def ask(self, verb: TargetVerb, epoch: int) -> None:
        """Ask over the link, once there is one; the answer is heard.

        :raises ConnectError: there was none in time
        """
        self._waiting += 1
        try:
            async with asyncio.timeout(_CONNECT):
                await self._there.wait()
        except TimeoutError:
            raise ConnectError(self._daemon.where, self._trouble) from None
        finally:
            self._waiting -= 1
        invitation = self._invite(epoch) if verb is TargetVerb.ACCEPT else None
        console = self._console() if verb is TargetVerb.RUN else b""
        asked = Question(
            verb=verb, epoch=epoch, incarnation=self._incarnation, invitation=invitation, console=console
        )
        await self._send(asked)

    async def tell_usage(self, rate: float, limit: float) -> None:
        """Say what it uses of the link; where that is not heard, it is said again.

        :param rate: bytes a second
        :param limit: it may use no more
        """
        with suppress(ConnectError):
            await self._send(Usage(incarnation=self._incarnation, rate=rate, limit=limit))

    async def go_over(self) -> None:
        """Have the disks exported: what is beneath them is there. Asked again until it is answered.

        :raises MigrationError: it could not be
        """
        while True:
            self._went_over = asyncio.get_running_loop().create_future()
            with suppress(ConnectError, TimeoutError):
                await self._send(GoOver(incarnation=self._incarnation))
                async with asyncio.timeout(_GO_OVER):
                    why = await self._went_over
                if why:
                    raise MigrationError(f"the other node cannot go over to the disks: {why}")
                return
            await asyncio.sleep(_LONGEST)

    async def close(self) -> None:
        """Say nothing more."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _send(self, letter: Question | Usage | GoOver) -> None:
        if self._socket is None:
            raise ConnectError(self._daemon.where, self._trouble)
        try:
            await self._socket.send_bytes(encode(letter))
        except OSError as error:
            raise ConnectError(self._daemon.where, str(error)) from error

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _stay(self) -> None:
        from aiohttp import ClientError, WSMsgType

        pause = _AGAIN
        while True:
            for base, session in self._ways():
                async with session:
                    try:
                        async with session.ws_connect(
                            base + self._path, heartbeat=_SIGN, max_msg_size=MAX_LETTER, compress=0
                        ) as self._socket:
                            self._there.set()
                            pause = _AGAIN
                            if not self._waiting:
                                self._linked()
                            self._trouble = "the connection was closed"
                            async for message in self._socket:
                                if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                                    self._trouble = str(message.data)  # as where no sign of life has come
                                    break
                                self._take(message.data)
                    except (ClientError, OSError, DroverError, TimeoutError) as error:
                        self._trouble = str(error) or type(error).__name__
                    finally:
                        self._socket = None
                        self._there.clear()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    def _ways(self) -> "Iterator[tuple[str, ClientSession]]":
        from aiohttp import ClientSession, ClientTimeout, TCPConnector, UnixConnector

        daemon, soon = self._daemon, ClientTimeout(total=_CONNECT)
        if not isinstance(daemon, RemoteDaemon):
            yield "http://localhost", ClientSession(connector=UnixConnector(path=str(daemon.path)), timeout=soon)
            return
        for address in daemon.addresses:
            host, port = split_address(address)
            session = ClientSession(connector=TCPConnector(ssl=daemon.context), timeout=soon)
            yield f"https://{f'[{host}]' if ':' in host else host}:{port}", session

    def _take(self, data: bytes | str) -> None:
        try:
            letter = answer(data)
        except msgspec.MsgspecError as error:
            log.warning("%s says what nobody can read: %s", self._daemon.where, error)
            return
        if not isinstance(letter, WentOver):
            self._hear(letter)
        elif self._went_over is not None and not self._went_over.done():
            self._went_over.set_result(letter.why)
