"""An end by a signal that leaves nothing behind: the terminal as it was, and no QEMU of ours."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

# SIGHUP is the terminal that was closed.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
# Seconds that an end in good order may take. Beyond it the signal does what it does to any program: who closed the
# terminal does not see that something still holds the monitor.
_GRACE: Final = 3.0


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the program by way of every ``finally``; one that was ignored before stays so."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def run_until_signal(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` in a loop of its own, which SIGTERM and SIGHUP end by cancelling it. Returns what it returns.

    An exception out of a signal's handler would hit whatever the loop is just at, and the task that this was to wake
    would sleep for ever.

    :raises SystemExit: a signal ended it
    """
    return asyncio.run(_until_signal(main))


async def _until_signal(main: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    came: list[int] = []

    def end(number: int) -> None:
        came.append(number)
        task.cancel()
        loop.call_later(_GRACE, _die, number)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if came:
            _leave(came[0], None)
        raise


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
