"""A program: connects, as one of the contenders, to all the monitors that a line names, says so, and waits for more."""

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "py"))

from contenders import contenders


def hold(make: Callable[[str], Any]) -> None:
    """As a blocking client."""
    held = []
    for line in sys.stdin:
        for path in line.split():
            held.append(make(path))
            held[-1].connect()
        ready()


async def hold_on_loop(make: Callable[[str], Any]) -> None:
    """As a client of an event loop."""
    loop, held = asyncio.get_running_loop(), []
    lines = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        for path in line.decode().split():
            held.append(make(path))
            await held[-1].connect()
        ready()


def ready() -> None:
    """Say so, with nothing left that is only to be collected."""
    gc.collect()
    print("ready", flush=True)


if __name__ == "__main__":
    contender = next(it for it in contenders() if it.name == sys.argv[1])
    if contender.new_loop is None:
        hold(contender.make)
    else:
        asyncio.run(hold_on_loop(contender.make))
