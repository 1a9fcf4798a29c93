"""Commands one after another, without anybody at the keyboard; what came of them is the exit code."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Final

from drover.errors import DroverError

from .talk import Leave, Talker, exit_code, tell

# Bytes of one read: a pipe holds no more.
_CHUNK: Final = 1 << 16
# Bytes without a line end: more than any line that is taken (`parse.MAX_LINE` characters).
_LONGEST: Final = 1 << 23


async def run_script(talker: Talker, lines: AsyncIterator[str], *, keep_going: bool) -> int:
    """Connect, run `lines`, and return the exit code: 0, or that of the first line that failed.

    :param keep_going: go on behind a line that failed, as long as there is a connection
    """
    first = 0
    listening: asyncio.Task[None] | None = None
    try:
        await talker.join()
        if talker.view.events:
            listening = asyncio.ensure_future(_listen(talker))
            await asyncio.sleep(0)  # it listens before the first command runs
        async for text in talker.whole(lines):
            code = await _run(talker, text)
            first = first or code
            if code and not (keep_going and talker.is_connected()):
                break
    except Leave:
        pass
    except DroverError as error:
        tell(talker, error)
        return first or exit_code(error)
    finally:
        if listening is not None:
            listening.cancel()
        await talker.close()
    return first


async def _run(talker: Talker, text: str) -> int:
    try:
        await talker.run(text)
    except DroverError as error:
        tell(talker, error, text)
        return exit_code(error)
    return 0


async def _listen(talker: Talker) -> None:
    try:
        async for event in talker.events():
            talker.view.event(event)
    except DroverError:
        pass  # the next line finds that out, too


async def given(lines: Iterable[str]) -> AsyncIterator[str]:
    """Lines that are there already."""
    for line in lines:
        yield line


async def read_lines(fd: int) -> AsyncIterator[str]:
    """The lines that come from a descriptor, which may be a file; meanwhile the monitor is read.

    What is no UTF-8 comes as half characters, which the parser tells.
    """
    rest = b""
    while data := await _read(fd):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="surrogateescape")
        if len(rest) > _LONGEST:
            break
    if rest:
        yield rest.decode(errors="surrogateescape")


async def _read(fd: int) -> bytes:
    """Read in a thread of its own: no loop waits for a file, and nobody waits for such a thread when he is through."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def arrived(data: bytes) -> None:
        if not future.done():
            future.set_result(data)

    def work() -> None:
        try:
            data = os.read(fd, _CHUNK)
        except OSError:
            data = b""
        try:
            loop.call_soon_threadsafe(arrived, data)
        except RuntimeError:
            pass  # the loop is closed: nobody wants it any more

    threading.Thread(target=work, daemon=True).start()
    return await future
