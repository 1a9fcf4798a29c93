"""The daemon of the node that a machine goes to, as the one that it leaves speaks to it: one WebSocket, made anew when
it breaks. To make it takes as long as to find out what is to go: so it is begun before."""

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


class Link:
    """A WebSocket to another node's daemon, about one machine.

    :ivar hear: called with what it says
    :ivar made: called when it can be reached
    :ivar trouble: why it cannot be
    :ivar where: that daemon is, for people
    :param daemon: of that node
    :param machine: the machine's name
    """

    def __init__(self, daemon: Daemon, machine: str) -> None:
        self.hear: Callable[[bytes | str], None] = lambda _: None
        self.made: Callable[[], None] = lambda: None
        self.trouble = "it has not answered yet"
        self.where = daemon.where
        self._daemon = daemon
        self._path = f"/v1/instances/{quote(machine)}/arrival"
        self._socket: ClientWebSocketResponse | None = None
        self._there = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pause = _AGAIN

    def start(self) -> None:
        """Begin to make it, on the loop. May be repeated."""
        if self._task is None:
            self._task = asyncio.create_task(self._stay(), name=f"link to {self.where}")

    def stop(self) -> None:
        """Let go of it, on the loop. May be repeated."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until there is one."""
        await self._there.wait()

    async def send(self, data: bytes) -> None:
        """Say something.

        :raises ConnectError: there is none
        """
        if self._socket is None:
            raise ConnectError(self.where, self.trouble)
        try:
            await self._socket.send_bytes(data)
        except OSError as error:
            raise ConnectError(self.where, str(error)) from error

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _stay(self) -> None:
        from aiohttp import ClientError

        while True:
            try:
                for base, session in self._ways():
                    async with session:
                        try:
                            await self._hold(session, base + self._path)
                        except (ClientError, OSError, DroverError, TimeoutError) as error:
                            self.trouble = str(error) or type(error).__name__
            except DroverError as error:  # we have no certificate
                self.trouble = str(error)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST)

    async def _hold(self, session: "ClientSession", url: str) -> None:
        """Make it, and hear what is said until it breaks."""
        from aiohttp import WSMsgType

        try:
            async with session.ws_connect(url, heartbeat=_SIGN, max_msg_size=MAX_LETTER, compress=0) as self._socket:
                self._there.set()
                self._pause = _AGAIN
                self.made()
                self.trouble = "the connection was closed"
                async for message in self._socket:
                    if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                        self.trouble = str(message.data)  # as where no sign of life has come
                        break
                    self.hear(message.data)
        finally:
            self._socket = None
            self._there.clear()

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


class LinkPeer(Peer):
    """The other node, for one migration.

    :param link: to its daemon; closed with this
    :param incarnation: the process there that is meant
    :param invite: what goes with a question to accept it; None: whoever has accepted it is to say so
    :param console: the end of what the guest wrote on its console, at its last moment here
    :param hear: called with what it says
    :param linked: called when it can be reached again, and nobody waits to ask it something
    """

    def __init__(
        self,
        link: Link,
        incarnation: str,
        invite: Callable[[int], Invitation | None],
        console: Callable[[], bytes],
        hear: Callable[[Said | Did], None],
        linked: Callable[[], None],
    ) -> None:
        self._link = link
        self._incarnation = incarnation
        self._invite = invite
        self._console = console
        self._hear = hear
        self._linked = linked
        self._waiting = 0
        self._went_over: asyncio.Future[str] | None = None
        link.hear, link.made = self._take, self._made
        link.start()

    async def ask(self, verb: TargetVerb, epoch: int) -> None:
        """Ask over the link, once there is one; the answer is heard.

        :raises ConnectError: there was none in time
        """
        self._waiting += 1
        try:
            async with asyncio.timeout(_CONNECT):
                await self._link.wait()
        except TimeoutError:
            raise ConnectError(self._link.where, self._link.trouble) from None
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

    def close(self) -> None:
        """Say nothing more."""
        self._link.stop()

    async def _send(self, letter: Question | Usage | GoOver) -> None:
        await self._link.send(encode(letter))

    # -- how ----------------------------------------------------------------------------------------------------------

    def _made(self) -> None:
        if not self._waiting:
            self._linked()

    def _take(self, data: bytes | str) -> None:
        try:
            letter = answer(data)
        except msgspec.MsgspecError as error:
            log.warning("%s says what nobody can read: %s", self._link.where, error)
            return
        if not isinstance(letter, WentOver):
            self._hear(letter)
        elif self._went_over is not None and not self._went_over.done():
            self._went_over.set_result(letter.why)
