"""The owner records over HTTP: for the node that a machine goes to, which asks the one that has its record."""

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from ..errors import CallFailed, DroverError
from ..migration.ports import Register
from ..qmp.ready import ready
from ..store.owner import Owner
from .access import CALLER
from .answers import answer
from .books import Books, OwnRegister
from .client import Daemon
from .kept import Kept
from .operations import Role
from .problems import Refused
from .work import Worker

PATH: Final = "/v1/owners/"
_TIMEOUT: Final = 5.0  # s
_STAY: Final = 30.0  # s: less than connections are kept


class Swapping(Struct, frozen=True, kw_only=True):
    """A change of a record.

    :ivar expect: how it has to be, in all of it
    :ivar new: how it is to be
    """

    expect: Owner
    new: Owner


class Told(Struct, frozen=True, kw_only=True):
    """A record.

    :ivar owner: None: there is none
    """

    owner: Owner | None


class OwnerCalls:
    """Serves them.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker, books: Books) -> None:
        self._worker = worker
        self._books = books

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(PATH + "{name}", self._read)
        router.add_post(PATH + "{name}", self._swap)

    async def _read(self, request: web.Request) -> web.Response:
        """Who may run a machine, by this node's own record."""
        return answer(Told(owner=await self._register(request).read()))

    async def _swap(self, request: web.Request) -> web.Response:
        """Change the record, if it is as expected; what there is then."""
        register = self._register(request)
        try:
            asked = msgspec.json.decode(await request.read(), type=Swapping)
        except msgspec.MsgspecError as error:
            raise Refused(400, "bad-json", f"the body is no change of an owner record: {error}") from error
        return answer(Told(owner=await register.swap(asked.expect, asked.new)))

    def _register(self, request: web.Request) -> OwnRegister:
        for_nodes(request)
        return OwnRegister(self._worker, self._books, request.match_info["name"])


def for_nodes(request: web.Request) -> None:
    """See that it is another daemon, or an admin, that calls.

    :raises Refused: it is not
    """
    if request[CALLER].role not in (Role.NODE, Role.ADMIN):
        raise Refused(403, "not-allowed", f"{request[CALLER].name} is neither a node nor admin")


class FarRegister(Register):
    """The record of one machine, which another node has.

    A connection is kept: the record is asked for while the guest stands still, and to make a new one takes several
    words there and back, which on a link that is full of memory is long.

    :param daemon: that node's
    :param machine: its name
    :param kept: connections
    """

    def __init__(self, daemon: Daemon, machine: str, kept: Kept) -> None:
        self._daemon = daemon
        self._path = PATH + machine
        self._kept = kept
        self._used_at = 0.0
        self._staying: asyncio.Task[None] | None = None

    def stay(self) -> None:
        """Have the connection live on, where it has been of no use for a while."""
        is_due = self._used_at and time.monotonic() > self._used_at + _STAY
        if is_due and (self._staying is None or self._staying.done()):
            self._staying = asyncio.create_task(self._use())

    def close(self) -> None:
        """Ask no more."""
        if self._staying is not None:
            self._staying.cancel()

    async def read(self) -> Owner | None:
        return self._told(await self._call("GET", None))

    async def swap(self, expect: Owner, new: Owner) -> Owner:
        # it may be said twice: the second finds what the first has written, and tells that
        owner = self._told(await self._call("POST", msgspec.to_builtins(Swapping(expect=expect, new=new))))
        if owner is None:
            raise CallFailed("no-record", f"{self._daemon.where} has no record of {self._path}")
        return owner

    async def _call(self, method: str, body: Any) -> Any:
        told = await asyncio.to_thread(self._kept.call, self._daemon, method, self._path, body, timeout=_TIMEOUT)
        self._used_at = time.monotonic()
        return told

    async def _use(self) -> None:
        with suppress(DroverError):  # whoever needs it has another one made
            await self.read()

    def _told(self, said: Any) -> Owner | None:
        return msgspec.convert(said, Told).owner


ready(Told, Swapping)
