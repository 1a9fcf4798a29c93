"""Small helpers that programs on top of ``qemu.qmp`` import from here."""

import asyncio
import traceback
import warnings
from typing import TypeVar

T = TypeVar("T")


def get_or_create_event_loop() -> asyncio.AbstractEventLoop:
    """This thread's event loop; where it has none, one is made and set. Nothing here needs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return asyncio.get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop


async def flush(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written has gone to the system; `drain` alone waits until little is left.

    :raises OSError: the stream broke
    """
    transport = writer.transport
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0, 0)
    try:
        await writer.drain()
    finally:
        transport.set_write_buffer_limits(high, low)


def upper_half(func: T) -> T:
    """Mark a method as one that callers call; it does nothing."""
    return func


def bottom_half(func: T) -> T:
    """Mark a method as one that the tasks of a session call; it does nothing."""
    return func


def exception_summary(exc: BaseException) -> str:
    """An exception in one line: its type with the module, and its text if it has one."""
    kind = type(exc)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    return f"{name}: {exc}" if str(exc) else name


def pretty_traceback(prefix: str = "  | ") -> str:
    """The traceback of the exception that is being handled, each line behind `prefix`."""
    return "\n".join(prefix + line for line in traceback.format_exc().removesuffix("\n").split("\n"))
