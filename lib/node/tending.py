"""The daemon's own certificate, renewed before it ends, and what is revoked, fetched from where that is known.

Neither takes a restart: whoever connects next is shown what is in the files then.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ..errors import DroverError
from .pki.folder import Folder, save
from .tls import Listening
from .work import Worker

# Seconds between two looks. Of a certificate that holds for minutes, so many in its life.
_LOOK: Final = 60.0
_LOOKS: Final = 30
_CUT: Final = 1.0  # s between two looks at who is there; one costs 2 µs, and one for each of them
# So that nodes that were started together do not all ask at once.
_JITTER: Final = 0.2
log = logging.getLogger("drover.node")


class Tending:
    """Looks after a folder of certificates.

    :param worker: does what blocks
    :param folder: of this node
    :param context: by which callers are there
    """

    def __init__(self, worker: Worker, folder: Folder, context: Listening) -> None:
        self._worker = worker
        self._folder = folder
        self._context = context
        self._trouble: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            seconds = await self._worker.do("", self.tend)
            end = time.monotonic() + seconds * (1 + random.uniform(-_JITTER, _JITTER))  # noqa: S311  no secret
            while (left := end - time.monotonic()) > 0:
                if count := self._context.cut_off():
                    log.info("%d connections were cut off: their certificates hold no longer", count)
                await asyncio.sleep(min(left, _CUT))

    def tend(self) -> float:
        """Do what is due; seconds until the next look."""
        from .pki.own import own_card

        try:
            card = own_card(self._folder)
            if card.is_due(time.time()):
                self._tried("renewal", self._renew)
            if not self._folder.has_authority:
                self._tried("what is revoked", self._fetch)
            return min(_LOOK, (card.until - card.since) / _LOOKS)
        except (DroverError, OSError) as error:
            self._tell("certificate", str(error))
            return _LOOK

    def _tried(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (DroverError, OSError, msgspec.MsgspecError) as error:
            self._tell(what, str(error))
        else:
            self._trouble.pop(what, None)

    def _tell(self, what: str, trouble: str) -> None:
        """Say once what does not work, until it does again or is something else."""
        if self._trouble.get(what) != trouble:
            self._trouble[what] = trouble
            log.error("certificates: %s: %s", what, trouble)

    def _renew(self) -> None:
        from .joining import renewed
        from .pki.own import about, renew_here

        folder = self._folder
        card = renew_here(folder) if folder.has_authority else renewed(folder, about(folder).issuer)
        log.info("the certificate was renewed: it holds until %s", time.strftime("%F %T%z", time.localtime(card.until)))

    def _fetch(self) -> None:
        from .link import RemoteDaemon
        from .pki.ledger import Revoked, revoked
        from .pki.own import about

        told = RemoteDaemon(about(self._folder).issuer, self._folder).call("GET", "/v1/revoked")
        found = msgspec.convert(told, Revoked)
        found.numbers()  # they are numbers
        if found.serials != revoked(self._folder).serials:
            save(self._folder.revoked, found)
            log.info("%d certificates are revoked", len(found.serials))
