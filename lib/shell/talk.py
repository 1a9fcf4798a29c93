"""A monitor as a shell sees it: something to type lines to. Each language of QEMU's has one of these."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from msgspec import Struct

from drover.errors import ArgumentError, CommandError, DroverError, MonitorError
from drover.qmp.messages import Event

from .complete import Candidate
from .literal import LineError
from .view import View

# Exit codes of a script.
REFUSED: Final = 1
USAGE: Final = 2
LOST: Final = 3


class Options(Struct, frozen=True):
    """What was asked on the command line, beside the address.

    :ivar commands: to run instead of asking for some
    """

    commands: tuple[str, ...] = ()
    json: bool = False
    pretty: bool = False
    verbose: bool = False
    keep_going: bool = False
    logfile: str | None = None


class Leave(Exception):
    """The shell is to end."""


class Talker(ABC):
    """Takes lines, and shows what comes of them.

    :param view: where it shows
    :ivar own: the shell's own commands, and what each does
    """

    own: Mapping[str, str] = {}

    def __init__(self, view: View) -> None:
        self.view = view

    @property
    @abstractmethod
    def prompt(self) -> str:
        """What stands before the line that is typed."""

    @abstractmethod
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""

    @abstractmethod
    async def connect(self) -> str:
        """Connect, and return what to greet with.

        :raises MonitorError: it does not work
        """

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""

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

    def is_unfinished(self, text: str) -> bool:
        """Whether more lines may make `text` whole, which it is not as it stands."""
        return False

    def is_secret(self, text: str) -> bool:
        """Whether `text` holds what must not be kept in a file."""
        return False


def exit_code(error: DroverError) -> int:
    """What a script that ended with `error` exits with."""
    if isinstance(error, LineError | ArgumentError):
        return USAGE
    return LOST if isinstance(error, MonitorError) else REFUSED


def tell(view: View, error: DroverError, line: str = "") -> None:
    """Show what went wrong with `line`."""
    if isinstance(error, CommandError):
        view.refused(error)
    else:
        view.trouble(error, line)


Prepare = Callable[[View], Talker]
