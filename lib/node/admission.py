"""How callers come to a certificate: by a one-time token, or by the one that they have."""

import logging
import time
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from ..errors import DroverError, SpecError
from ..kvm.spec.reader import Reader
from .access import CALLER, JOIN, require
from .answers import answer
from .limits import Bucket
from .operations import Role
from .pki.folder import Folder
from .pki.ledger import revoked
from .problems import Refused, code_of
from .work import Worker

# Nobody guesses a secret of 32 bytes: this is how much of the host's time strangers may take meanwhile.
_BURST: Final = 50.0
_PER_SECOND: Final = 10.0
audit = logging.getLogger("drover.audit")


class Join(Struct, frozen=True, kw_only=True):
    """What whoever joins says.

    :ivar token: the id of their token
    :ivar secret: the token's
    :ivar csr: a request for a certificate, in PEM
    :ivar name: what they are called, where the token does not say
    :ivar addresses: where they answer, if they are a node
    """

    token: str
    secret: str
    csr: str
    name: str = ""
    addresses: tuple[str, ...] = ()


class Renew(Struct, frozen=True, kw_only=True):
    """:ivar csr: a request for the next certificate, in PEM"""

    csr: str


class Admission:
    """Answers those calls, where this node has a certificate of its own.

    :param worker: does what blocks
    :param folder: of the certificates
    """

    def __init__(self, worker: Worker, folder: Folder) -> None:
        self._worker = worker
        self._folder = folder
        self._tries = Bucket(_PER_SECOND, _BURST)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(JOIN, self._authority)
        router.add_post(JOIN, self._join)
        router.add_post("/v1/renew", self._renew)
        router.add_get("/v1/revoked", self._revoked)

    async def _authority(self, request: web.Request) -> web.Response:
        """The authority's certificate: who has a token sees by it whether this is whom the token means."""
        pem = await self._worker.do("", self._folder.trusted.read_bytes)
        return answer({"ca": pem.decode()})

    async def _join(self, request: web.Request) -> web.Response:
        from .pki.own import admit

        if not self._tries.take(time.monotonic()):
            raise Refused(429, "too-many", "too many try to join: again in a second")
        asked = _read(await request.read(), Join)
        outcome, whom = "failed", f"token {''.join(filter(str.isalnum, asked.token))[:16]}"  # as it is, it may lie
        try:
            pem, card = await self._worker.do("", lambda: admit(
                self._folder, asked.token, asked.secret, asked.csr, name=asked.name, addresses=asked.addresses
            ))  # fmt: skip
            outcome, whom = "done", f"{card.role} {card.name} (certificate {card.serial}) by {whom}"
        except (DroverError, OSError) as error:
            outcome = code_of(error)
            raise
        finally:
            said = {"caller": whom, "operation": "join", "instance": "", "outcome": outcome}
            audit.info("join of %s: %s", whom, outcome, extra=said)
        ca = await self._worker.do("", self._folder.trusted.read_text)
        return answer({"certificate": pem, "ca": ca, "name": card.name, "role": card.role, "until": card.until})

    async def _renew(self, request: web.Request) -> web.Response:
        from .pki.own import renew_for

        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        if not certificate:
            raise Refused(403, "no-certificate", "this renews the certificate that a caller shows")
        asked = _read(await request.read(), Renew)
        serial = f"{int(certificate['serialNumber'], 16):x}"
        outcome, caller = "failed", request[CALLER].name
        try:
            pem, card = await self._worker.do("", lambda: renew_for(self._folder, serial, asked.csr))
            outcome = "done"
        except (DroverError, OSError) as error:
            outcome = code_of(error)
            raise
        finally:
            said = {"caller": caller, "operation": "renew", "instance": "", "outcome": outcome}
            audit.info("renewal of certificate %s of %s: %s", serial, caller, outcome, extra=said)
        return answer({"certificate": pem, "name": card.name, "role": card.role, "until": card.until})

    async def _revoked(self, request: web.Request) -> web.Response:
        require(request, Role.VIEWER)
        return answer(await self._worker.do("", lambda: revoked(self._folder)))


def _read(data: bytes, kind: type[Any]) -> Any:
    """What was sent.

    :raises Refused: no JSON
    :raises SpecError: something else
    """
    reader = Reader()
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Refused(400, "bad-json", "the body is no JSON") from None  # the cause would quote it
    params = reader.struct(kind, document)
    if reader.problems:
        raise SpecError(reader.problems)
    return params
