"""Files of the guest, read and written through its agent in pieces; whatever happens, they are closed again."""

import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Final

from msgspec import Struct

from ..errors import AgentError, ArgumentError, DroverError
from ..qmp.ready import ready
from .agent_port import AgentPort

# Bytes in one command. The agent reads its channel by 4 KiB, and builds each message in memory several times.
CHUNK: Final = 128 << 10
# Bytes: what is returned at once is held in memory here, and the guest decides how much there is.
READ_LIMIT: Final = 64 << 20
# Seconds for the close of a file after its use was cut short.
CLOSE_TIMEOUT: Final = 10.0

Progress = Callable[[int], object]


class _Piece(Struct, rename={"buf_b64": "buf-b64"}):
    buf_b64: str


class _Written(Struct):
    count: int


@asynccontextmanager
async def opened(port: AgentPort, path: str, mode: str) -> AsyncIterator[int]:
    """A file of the guest, closed at the end of the block also when the caller is cancelled.

    Should the reply to the opening itself not come in time, the agent keeps the file open until it ends.

    :param mode: as ``fopen`` takes it
    """
    handles: list[int] = []

    async def open_it() -> None:
        handles.append(await port.ask("guest-file-open", int, {"path": path, "mode": mode}))

    try:
        await port.shield(open_it())  # whoever gives up in the middle knows no number by which to close it
        yield handles[0]
    except BaseException as error:
        for handle in handles:
            await port.shield(_close_after(port, handle, error))
        raise
    await port.shield(_close(port, handles[0]))


async def _close(port: AgentPort, handle: int) -> None:
    await port.execute("guest-file-close", {"handle": handle}, timeout=CLOSE_TIMEOUT)


async def _close_after(port: AgentPort, handle: int, error: BaseException) -> None:
    try:
        await _close(port, handle)
    except DroverError as failure:
        error.add_note(f"the guest's file stays open: {failure}")


async def read_piece(port: AgentPort, handle: int, count: int = CHUNK) -> bytes:
    """Return the next up to `count` bytes of an open file; none at its present end (``guest-file-read``)."""
    reply = await port.ask("guest-file-read", _Piece, {"handle": handle, "count": count})
    return decoded(reply.buf_b64)


async def write_piece(port: AgentPort, handle: int, data: bytes) -> None:
    """Write all of `data`, of one chunk at most, to an open file (``guest-file-write``)."""
    while data:
        reply = await port.ask("guest-file-write", _Written, {"handle": handle, "buf-b64": encoded(data)})
        if reply.count <= 0:
            raise AgentError("guest-file-write: nothing was written")
        data = data[reply.count :]


async def download(port: AgentPort, path: str, file: BinaryIO, *, progress: Progress | None = None) -> int:
    """Copy a file of the guest into one of ours, by pieces (``guest-file-open``, ``-read``, ``-close``).

    :param path: in the guest
    :param file: open for writing, in binary mode
    :param progress: called with the number of bytes so far after each piece
    :returns: number of bytes
    :raises CommandError: the guest's file cannot be read
    """

    async def take(data: bytes) -> None:
        await port.offload(lambda: file.write(data))

    return await _read(port, path, take, None, progress)


async def upload(
    port: AgentPort, file: BinaryIO, path: str, *, append: bool = False, progress: Progress | None = None
) -> int:
    """Copy a file of ours into one of the guest, by pieces (``guest-file-open``, ``-write``, ``-flush``, ``-close``).

    The guest's file is made with the rights that its agent gives to new ones, and is not synced to disk.
    Where this fails half way, what was written stays.

    :param file: open for reading, in binary mode; from where it stands
    :param path: in the guest; overwritten
    :param append: add to it instead
    :param progress: called with the number of bytes so far after each piece
    :returns: number of bytes
    :raises CommandError: the guest's file cannot be written
    """
    total = 0
    async with opened(port, path, "ab" if append else "wb") as handle:
        while data := await port.offload(lambda: file.read(CHUNK)):
            await write_piece(port, handle, data)
            total += len(data)
            if progress is not None:
                progress(total)
        await port.execute("guest-file-flush", {"handle": handle})  # tells of a full disk, which the close may not
    return total


async def read_file(port: AgentPort, path: str, *, limit: int = READ_LIMIT, progress: Progress | None = None) -> bytes:
    """Return what is in a file of the guest.

    :param limit: in bytes; :func:`download` has none
    :param progress: called with the number of bytes so far after each piece
    :raises AgentError: there is more in it
    :raises CommandError: it cannot be read
    """
    data = bytearray()

    async def take(piece: bytes) -> None:
        data.extend(piece)

    await _read(port, path, take, limit, progress)
    return bytes(data)


async def write_file(
    port: AgentPort, path: str, data: bytes, *, append: bool = False, progress: Progress | None = None
) -> int:
    """Write a file of the guest; see :func:`upload`.

    :param data: what shall be in it
    :returns: number of bytes
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ArgumentError("data", type(data).__name__, "bytes")
    return await upload(port, io.BytesIO(data), path, append=append, progress=progress)


async def _read(
    port: AgentPort, path: str, take: Callable[[bytes], Any], limit: int | None, progress: Progress | None
) -> int:
    total = 0
    async with opened(port, path, "rb") as handle:
        while data := await read_piece(port, handle):
            total += len(data)
            if limit is not None and total > limit:
                raise AgentError(f"{path}: longer than the limit of {limit} bytes")
            await take(data)
            if progress is not None:
                progress(total)
    return total


def encoded(data: bytes) -> str:
    """`data` as the agent takes it."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """What the agent sent as `text`.

    :raises AgentError: it is not base64
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise AgentError(f"the agent sent what is not base64: {error}") from error


ready(_Piece, _Written)
