"""The shell on a terminal: a line that is typed, and what happens meanwhile printed above it."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeVar

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.shortcuts import CompleteStyle, print_formatted_text

from drover.errors import ConnectionClosed, DroverError

from .colours import LineLexer
from .history import PrivateHistory, history_path
from .talk import LOST, Leave, Options, Prepare, Talker, tell
from .view import Pace, View

T = TypeVar("T")

# Lines that a menu of completions takes below the line that is typed.
MENU_LINES: Final = 6
# Seconds from the first event that is not shown to when it is told how many were not.
QUIET: Final = 1.0


async def run_app(prepare: Prepare, options: Options, title: str, log: Callable[[str], None] | None) -> int:
    """Talk with a person until that one leaves. Returns the exit code: 3 if there was never a connection."""
    colour = ColorDepth.from_env() is not ColorDepth.DEPTH_1_BIT
    view = View(_print, _print, pretty=options.pretty, verbose=options.verbose, people=True, colour=colour, log=log)
    talker = prepare(view)
    try:
        with patch_stdout(raw=True):
            return await App(talker, title).run()
    finally:
        await talker.close()


def _print(text: str) -> None:
    print_formatted_text(ANSI(text))


class _Interrupted(Exception):
    """Ctrl-C while something was waited for."""


class App:
    """One session at a terminal."""

    def __init__(self, talker: Talker, title: str) -> None:
        self._talker = talker
        self._view = talker.view
        self._reading: asyncio.Task[None] | None = None
        talker.revive = self._again
        self._told = False
        self._pace = Pace()
        self._session: PromptSession[str] = PromptSession(
            history=PrivateHistory(history_path(title), talker.is_secret),
            completer=_LineCompleter(talker),
            complete_while_typing=False,
            complete_style=CompleteStyle.COLUMN,
            reserve_space_for_menu=MENU_LINES,
            lexer=LineLexer(),
            multiline=True,
            key_bindings=_keys(talker),
            prompt_continuation=self._continuation,
            enable_open_in_editor=True,
        )
        self._view.width = lambda: self._session.output.get_size().columns

    async def run(self) -> int:
        """Greet, and take lines until one says to leave."""
        try:
            greeting = await self._interruptible(self._talker.join())
        except _Interrupted:
            return LOST
        except DroverError as error:
            tell(self._talker, error)
            return LOST
        self._view.note(f"{greeting}. Tab completes, /help tells more, Ctrl-D leaves.")
        self._listen()
        try:
            while True:
                await self._step()
        except (Leave, EOFError):
            return 0
        finally:
            self._hush()

    async def _step(self) -> None:
        try:
            text = await self._session.prompt_async(self._talker.prompt)
        except KeyboardInterrupt:
            return
        if not text.strip():
            return
        for piece in self._talker.pieces(text):
            if not await self._run(piece):
                break

    async def _run(self, text: str) -> bool:
        """Do what was typed; False if it failed."""
        try:
            await self._interruptible(self._talker.run(text))
        except _Interrupted:
            self._view.note("Not waited for any longer. If it was sent, QEMU may do it all the same.")
        except DroverError as error:
            if not (isinstance(error, ConnectionClosed) and self._told):
                tell(self._talker, error, text)
        else:
            return True
        finally:
            if self._talker.is_connected() and self._reading is None:
                self._listen()
        return False

    async def _again(self) -> None:
        """The connection was lost, and a line is to be sent."""
        self._view.note(await self._talker.join())
        self._listen()

    async def _interruptible(self, action: Awaitable[T]) -> T:
        """Wait for `action`, until Ctrl-C ends that."""
        task = asyncio.ensure_future(action)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if here is not None and here.cancelling():  # it is us who are to end
                raise
            raise _Interrupted from None
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    # -- what comes by itself ----------------------------------------------

    def _listen(self) -> None:
        self._hush()
        self._told = False
        self._reading = asyncio.ensure_future(self._read())

    def _hush(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for event in self._talker.events():
                shown = self._pace.admit(loop.time())
                self._view.event(event, shown)
                if not shown and self._pace.hidden == 1:
                    loop.call_later(QUIET, self._tell_hidden)
        except DroverError as error:
            if not self._talker.reconnecting:
                self._told = True
                self._view.note(f"{error}. The next line connects again.")
        self._reading = None

    def _tell_hidden(self) -> None:
        hidden, self._pace.hidden = self._pace.hidden, 0
        if self._view.events:
            self._view.note(f"… and {hidden} more events, too fast to be shown; --logfile has them all")

    def _continuation(self, width: int, number: int, wrapped: int) -> str:
        if wrapped:
            return ""
        inside = "TRANS> " if self._session.default_buffer.text.lstrip().startswith("transaction") else "... "
        return inside.rjust(width)


class _LineCompleter(Completer):
    """Asks the talker; a QEMU that does not answer gives no completions, and holds nobody up."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        """Nothing: all is found by asking, which is awaited."""
        return []

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """What may follow before the cursor."""
        text = document.text_before_cursor
        for found in await self._talker.candidates(text):
            yield Completion(found.text, found.start - len(text), display_meta=found.note)


def _keys(talker: Talker) -> KeyBindings:
    """Enter ends a line that is whole, and begins another one where something is still open."""
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # the choice stands; a second Enter sends
            return
        if talker.is_unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
