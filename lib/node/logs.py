"""The logs of a machine, in pieces: what its QEMU printed, and what its guest wrote to the first serial port."""

from typing import Final

from aiohttp import web

from ..errors import ArgumentError
from ..kvm.logs import Piece, piece
from .access import require
from .answers import answer
from .operations import Role
from .work import Worker

PIECE_MAX: Final = 256 << 10  # bytes of one answer, as base64 a third more
KINDS: Final = ("qemu", "serial")
_MOST: Final = 1 << 40


class Logs:
    """Serves them.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/v1/instances/{name}/log", self._log)

    async def _log(self, request: web.Request) -> web.Response:
        """From a byte on, or the end of it; a guest may write what is nobody's business but its operators'."""
        require(request, Role.OPERATOR)
        kind = request.query.get("kind", "serial")
        if kind not in KINDS:
            raise ArgumentError("kind", kind, " or ".join(KINDS))
        instance = self._worker.node.instance(request.match_info["name"])
        after, tail = _number(request, "after", 0), _number(request, "tail", 0)
        limit = min(_number(request, "limit", PIECE_MAX), PIECE_MAX)
        paths = instance.host.paths.instance(instance.name)
        path = paths.log if kind == "qemu" else paths.console_log
        found: Piece = await self._worker.do("", lambda: piece(path, after=after, tail=tail, limit=limit))
        return answer(found._asdict())


def _number(request: web.Request, field: str, default: int) -> int:
    said = request.query.get(field, str(default))
    if said.isascii() and said.isdecimal() and len(said) <= 13 and int(said) <= _MOST:
        return int(said)
    raise ArgumentError(field, said, f"a number from 0 to {_MOST}")
