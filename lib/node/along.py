"""The disks of a machine that moves: what both nodes see of each image, agreed on before anything is done."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct, to_builtins

from ..kvm.likeness import Seen, digest
from ..migration.storage import DiskImage, Plan, plan, to_compare
from ..qmp.ready import ready
from .answers import answer
from .client import Daemon
from .owner_calls import for_nodes
from .problems import Refused
from .work import Worker

PATH: Final = "/v1/migration-disks/digests"
_TIMEOUT: Final = 3600.0  # s: a digest reads a whole image


class Paths(Struct, frozen=True, kw_only=True):
    """:ivar paths: of which a digest is wanted"""

    paths: list[str]


class Digests(Struct, frozen=True, kw_only=True):
    """:ivar digests: by the paths"""

    digests: dict[str, str]


def agreed(
    images: Sequence[DiskImage], seen: Mapping[str, Seen], there: Daemon, *, shared: tuple[str, ...]
) -> Plan:
    """What is to become of each image. Blocks.

    :param seen: what the other node sees of them
    :param there: its daemon
    :param shared: ids of disks that somebody says to be on storage in common
    :raises CallFailed: it does not answer
    """
    if not images:
        return Plan()
    pairs = to_compare(images, seen)
    alike: list[str] = []
    if pairs:
        asked = to_builtins(Paths(paths=list(pairs.values())))
        theirs = msgspec.convert(there.call("POST", PATH, asked, timeout=_TIMEOUT), Digests).digests
        alike = [here for here, path in pairs.items() if digest(here) == theirs[path]]
    return plan(images, seen, alike=alike, shared=shared)


class DiskCalls:
    """Serves what the other node asks.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post(PATH, self._digests)

    async def _digests(self, request: web.Request) -> web.Response:
        """Digests of files, which nobody writes to."""
        asked = await read(request, Paths)
        digests = await self._worker.do("", lambda: {path: digest(path) for path in asked.paths})
        return answer(Digests(digests=digests))


async def read(request: web.Request, kind: type[Any]) -> Any:
    """What another node asks.

    :raises Refused: it is no node that asks, or nothing of this kind
    """
    for_nodes(request)
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(400, "bad-json", f"the body is not what a node asks: {error}") from error


ready(Paths, Digests)
