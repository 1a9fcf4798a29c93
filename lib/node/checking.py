"""Whether a machine could go to another node: that one is asked once, for all that it has and lacks."""

import time
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web
from msgspec import Struct, structs, to_builtins

from ..kvm.fitness import fitness, unsecret
from ..kvm.likeness import marked
from ..kvm.parcel import Parcel
from ..migration.checks import Need, There
from ..migration.storage import DiskImage
from ..migration.survey import look
from ..qmp.ready import ready
from .along import read
from .answers import answer
from .client import Daemon
from .kept import Kept
from .known import Here
from .work import Worker

PATH: Final = "/v1/migration-check"
_TIMEOUT: Final = 60.0  # s: QEMUs that it does not know yet are started, and may take their time


class Asking(Struct, frozen=True, kw_only=True):
    """What is asked of the other node.

    :ivar parcel: the machine, without its secrets
    :ivar images: of its disks, where it runs
    :ivar marks: by which they are known there, by their paths
    :ivar postcopy: it may be finished by postcopy
    """

    parcel: Parcel
    images: tuple[DiskImage, ...]
    marks: dict[str, int]
    postcopy: bool


def ask(there: Daemon, need: Need, kept: Kept, *, emulator: str, postcopy: bool) -> There:
    """What the other node has and lacks for a machine. Blocks.

    :param there: its daemon
    :param kept: connections
    :param emulator: the QEMU that is to take it there; empty: the specification's
    :param postcopy: it may be finished by postcopy
    :raises CallFailed: it does not answer
    """
    parcel = unsecret(need.parcel)
    if emulator:
        parcel = structs.replace(parcel, spec=structs.replace(parcel.spec, emulator=emulator))
    with marked([image.path for image in need.images if not image.local]) as marks:
        asked = Asking(parcel=parcel, images=need.images, marks=marks, postcopy=postcopy)
        before = time.time()
        told = kept.call(there, "POST", PATH, to_builtins(asked), timeout=_TIMEOUT)
        after = time.time()
    found = msgspec.convert(told, There, strict=False)
    return structs.replace(found, ahead=_ahead(found.now, before, after))


def _ahead(now: float, before: float, after: float) -> float:
    """Seconds that a clock is ahead at least, which was looked at some time between two looks at ours."""
    if now > after:
        return now - after
    return min(0.0, now - before)


class CheckCalls:
    """Serves what the other node asks.

    :param worker: does what blocks
    :param here: this node
    """

    def __init__(self, worker: Worker, here: Callable[[], Here]) -> None:
        self._worker = worker
        self._here = here

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post(PATH, self._check)

    async def _check(self, request: web.Request) -> web.Response:
        """What this node has and lacks for a machine that is to come."""
        asked: Asking = await read(request, Asking)
        return answer(await self._worker.do("", lambda: self._look(asked)))

    def _look(self, asked: Asking) -> There:
        host, here = self._worker.node.host, self._here()
        return There(
            node=here.name, boot_id=host.boot_id, fit=fitness(host, asked.parcel, postcopy=asked.postcopy),
            seen=look(asked.images, asked.marks), now=time.time(), until=here.until,
        )  # fmt: skip


ready(Asking)
