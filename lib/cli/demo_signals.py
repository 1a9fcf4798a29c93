"""Ctrl-C and its like as one exception that comes once, and never while something is being made or cleaned up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Self

# SIGHUP is the terminal that was closed.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks to stop. Not an error: nothing that catches errors may catch it.

    :ivar number: of the signal
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """While entered, the first signal raises :exc:`Interrupted` in the main thread; those after it change nothing.

    So whatever the first one sets off, such as the cleaning up in ``finally``, runs to its end; after it they stay
    ignored, since all that is left to do is to exit. Signals that were ignored before (``nohup``) stay so.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """From here on nothing is interrupted."""
        self._held = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Interrupt nothing within, so that what is made there is also entered where it will be cleaned up.

        What came meanwhile is raised at the end. After an error inside, everything stays held.
        """
        before, self._held = self._held, True
        yield
        self._held = before
        if self._first is not None:
            self._raise()

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if self._first is None:
            self._first = number
            self._raise()

    def _raise(self) -> None:
        if not self._held and self._first is not None:
            self._held = True
            raise Interrupted(self._first)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self._first is None else signal.SIG_IGN)
