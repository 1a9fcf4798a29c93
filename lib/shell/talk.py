"""A monitor as a shell sees it: something to type lines to. Each language of QEMU's has one of these."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from msgspec import Struct

from drover.errors import AgentFrozen, ArgumentError, CommandError, ConnectionClosed, DroverError, MonitorError
from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.messages import Event
from drover.qmp.redact import may_hold_secret, redact

from .check import suggestion
from .complete import Candidate
from .literal import LineError, Unfinished
from .parse import Command, Own, parse
from .view import View

# Exit codes of a script.
REFUSED: Final = 1
USAGE: Final = 2
LOST: Final = 3

# Lines of one command: each one more has the whole looked at again, and nobody writes a command of as many.
MAX_LINES: Final = 1_000
# Seconds between two looks at a connection that has no events: soon enough for who reads along.
LOOK: Final = 0.2


class Options(Struct, frozen=True):
    """What was asked on the command line, beside the address.

    :ivar commands: to run instead of asking for some
    """

    commands: tuple[str, ...] = ()
    json: bool = False
    pretty: bool = False
    verbose: bool = False
    keep_going: bool = False
    events: bool = False
    logfile: str | None = None


OWN: Final = {
    "help": "this text; /help COMMAND: what a command takes",
    "events": "show or hide events",
    "pretty": "JSON over several lines, or in one",
    "verbose": "show what is sent, or not",
    "reconnect": "connect anew",
    "quit": "leave; QEMU runs on",
}


class Leave(Exception):
    """The shell is to end."""


class Talker(ABC):
    """Takes lines, and shows what comes of them.

    :param view: where it shows
    :ivar own: the shell's own commands, and what each does
    :ivar alive: raises a `ConnectError` if it is known that nobody can answer
    :ivar revive: connects anew, where a lost connection is not the end
    :ivar reconnecting: the connection ends because that was asked for
    """

    own: Mapping[str, str] = OWN

    def __init__(self, view: View) -> None:
        self.view = view
        self.alive: Callable[[], None] = lambda: None
        self.revive: Callable[[], Awaitable[None]] | None = None
        self.reconnecting = False

    @property
    @abstractmethod
    def prompt(self) -> str:
        """What stands before the line that is typed."""

    @abstractmethod
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""

    @abstractmethod
    async def connect(self) -> str:
        """Connect, without a look at who is there; :meth:`join` has one."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""

    def help_text(self, about: str) -> str:
        """What there is to say about one command, or about the shell.

        :raises LineError: there is no such command
        """
        return "\n".join(f"/{name:10} {what}" for name, what in self.own.items())

    async def join(self) -> str:
        """Connect, and return what to greet with.

        :raises MonitorError: it does not work
        """
        self.alive()
        try:
            return await self.connect()
        except MonitorError:
            self.alive()
            raise

    async def ready(self) -> None:
        """What a line waits for before it is sent: a connection, made anew where somebody sees to that.

        :raises ConnectionClosed: there is none
        """
        if self.is_connected():
            return
        if self.revive is None:
            raise ConnectionClosed("there is no connection any more")
        await self.revive()

    async def run_own(self, line: Own) -> None:
        """Do one of the shell's own commands.

        :raises LineError: there is none of that name
        :raises Leave: that was to leave
        """
        if line.name not in self.own:
            raise LineError(f"the shell has no command /{line.name}{suggestion(line.name, self.own)}", 0)
        if line.name == "help":
            self.view.text(self.help_text(line.rest))
        elif line.name == "quit":
            raise Leave
        elif line.name == "reconnect":
            self.reconnecting = True
            try:
                await self.close()
                self.view.note(await self.join())
            finally:
                self.reconnecting = False
        else:
            switched = not getattr(self.view, line.name)
            setattr(self.view, line.name, switched)
            self.view.note(f"{line.name}: {'on' if switched else 'off'}")

    @abstractmethod
    async def run(self, text: str) -> None:
        """Do what was typed, and show what came back.

        :raises LineError: it means nothing; nothing was sent
        :raises CommandError: QEMU refused; not shown yet
        :raises MonitorError: there is no answer
        :raises Leave: that was to leave
        """

    @abstractmethod
    async def candidates(self, text: str) -> list[Candidate]:
        """Ways to go on at the end of `text`."""

    @abstractmethod
    def events(self) -> AsyncIterator[Event]:
        """Events as they come, where the monitor has some.

        :raises ConnectionClosed: the connection ended: nothing else ends this
        """

    async def until_lost(self) -> AsyncIterator[Event]:
        """The events of a monitor that has none: there is only the end of the connection to tell.

        :raises ConnectionClosed: that is it
        """
        none: tuple[Event, ...] = ()
        for event in none:
            yield event
        while self.is_connected():  # noqa: ASYNC110 - its end is no event of the loop
            await asyncio.sleep(LOOK)
        raise ConnectionClosed("QEMU closed the connection")

    def refused(self, error: CommandError) -> None:
        """Show that QEMU said no."""
        self.view.refused(error)

    def is_unfinished(self, text: str) -> bool:
        """Whether more lines may make `text` whole, which it is not as it stands."""
        return False

    async def whole(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        """`lines`, those that belong together in one piece.

        What the last ones leave open comes as it is: to run it is the error.
        """
        held: list[str] = []
        async for line in lines:
            text = self._joined(held, line)
            if text is not None:
                yield text
        if held:
            yield "\n".join(held)

    def pieces(self, text: str) -> list[str]:
        """`text`, which may have been pasted, in parts to be run one after another."""
        held: list[str] = []
        found = [self._joined(held, line) for line in text.split("\n")]
        return [piece for piece in [*found, "\n".join(held)] if piece]

    def _joined(self, held: list[str], line: str) -> str | None:
        """Add a line to those that are held back; all of them, once they are whole."""
        held.append(line)
        text = "\n".join(held)
        if self.is_unfinished(text) and len(held) < MAX_LINES:
            return None
        held.clear()
        return text

    def is_secret(self, text: str) -> bool:
        """Whether `text` holds what must not be kept in a file."""
        return False


class LineTalker(Talker):
    """Takes the lines of :mod:`.parse`."""

    def is_unfinished(self, text: str) -> bool:
        try:
            parse(text)
        except Unfinished:
            return True
        except LineError:
            pass
        return False

    def pieces(self, text: str) -> list[str]:
        try:
            parse(text)
        except LineError:  # not one command over several lines, then
            return super().pieces(text)
        return [text]

    def is_secret(self, text: str) -> bool:
        try:
            command = parse(text)
        except LineError:
            return may_hold_secret(text)
        if not isinstance(command, Command):
            return False
        return bool(redact(command.name, command.arguments) != command.arguments)


async def tapped(vm: AsyncQmpConnection) -> AsyncIterator[Event]:
    """The events of `vm` from now on; it is not asked for more than are taken.

    :raises ConnectionClosed: the connection ended
    """
    with vm.events() as events:
        async for event in events:
            yield event


def exit_code(error: DroverError) -> int:
    """What a script that ended with `error` exits with."""
    if isinstance(error, LineError | ArgumentError):
        return USAGE
    return LOST if isinstance(error, MonitorError) and not isinstance(error, AgentFrozen) else REFUSED


def tell(talker: Talker, error: DroverError, line: str = "") -> None:
    """Show what went wrong with `line`."""
    if isinstance(error, CommandError):
        talker.refused(error)
    else:
        talker.view.trouble(error, line)


Prepare = Callable[[View], Talker]
