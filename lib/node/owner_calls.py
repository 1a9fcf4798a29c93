"""The owner records over HTTP: for the node that a machine goes to, which asks the one that has its record."""

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from ..errors import CallFailed
from ..migration.ports import Register
from ..qmp.ready import ready
from ..store.owner import Owner
from .access import CALLER
from .answers import answer
from .books import Books, OwnRegister
from .client import Daemon
from .operations import Role
from .problems import Refused
from .work import Worker

PATH: Final = "/v1/owners/"
_TIMEOUT: Final = 5.0  # s


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

    :param daemon: that node's
    """

    def __init__(self, daemon: Daemon, machine: str) -> None:
        self._daemon = daemon
        self._path = PATH + machine

    async def read(self) -> Owner | None:
        return self._told(await self._call("GET", None))

    async def swap(self, expect: Owner, new: Owner) -> Owner:
        owner = self._told(await self._call("POST", msgspec.to_builtins(Swapping(expect=expect, new=new))))
        if owner is None:
            raise CallFailed("no-record", f"{self._daemon.where} has no record of {self._path}")
        return owner

    async def _call(self, method: str, body: Any) -> Any:
        return await asyncio.to_thread(self._daemon.call, method, self._path, body, timeout=_TIMEOUT)

    def _told(self, said: Any) -> Owner | None:
        return msgspec.convert(said, Told).owner


ready(Told, Swapping)
