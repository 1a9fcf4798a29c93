"""Machines that come to this node and that leave it, and the records by which both are held to who may run them."""

from functools import partial
from typing import Any

from aiohttp import web

from .access import require
from .along import DiskCalls
from .answers import answer
from .arrivals import Arrivals
from .books import Books
from .checking import CheckCalls
from .departures import Departures
from .known import known_as
from .link import Callers
from .model import Model
from .operations import Role
from .owner_calls import OwnerCalls
from .parameters import Move
from .pki.folder import Folder
from .problems import Refused
from .shares import Shares
from .work import Worker


class Traffic:
    """All of it.

    :ivar departures: what leaves
    :ivar arrivals: what comes
    :param worker: does what blocks
    :param model: of the instances
    :param folder: of this node's certificates
    :param bandwidth: bytes a second that migrations may use of this node's link, each way; None: all of it
    """

    def __init__(self, worker: Worker, model: Model, folder: Folder, bandwidth: float | None) -> None:
        self._worker = worker
        self._books = Books(worker.node.host.paths.state)
        caller, here = Callers(folder), partial(known_as, folder)
        self._kept = caller.kept
        self.departures = Departures(worker, model, self._books, here, caller, Shares(bandwidth))
        self._checks = CheckCalls(worker, here)
        self.arrivals = Arrivals(worker, model, self._books, lambda: here().name, caller, Shares(bandwidth))

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        self.arrivals.add_to(router)
        router.add_get("/v1/instances/{name}/migration", self._going)
        router.add_post("/v1/instances/{name}/migration/recover", self._recover)
        OwnerCalls(self._worker, self._books).add_to(router)
        DiskCalls(self._worker).add_to(router)
        self._checks.add_to(router)

    async def start(self) -> None:
        """Take up what comes and was left by an earlier daemon; what leaves is a job's."""
        await self.arrivals.start()

    def check_settled(self, name: str) -> None:
        """See that a machine is on no way: what is done to it meanwhile would be lost, or stand in its way.

        :raises InstanceBusy: it is on one
        """
        self.departures.check_settled(name)
        self.arrivals.check_settled(name)

    def kill(self, name: str) -> dict[str, Any] | None:
        """End a machine that is on its way, and of which nobody can tell any more whether it may run on. Blocks.

        :returns: None where it is on no way
        :raises InstanceBusy: all is well with it: the migration is to be cancelled
        """
        ended = self.departures.kill(name)
        return self.arrivals.kill(name) if ended is None else ended

    def move(self, name: str, params: Move, *, again: bool) -> dict[str, Any]:
        """Move one to another node; see :meth:`.departures.Departures.move`."""
        return self.departures.move(name, params, again=again)

    def leave(self) -> None:
        """Drive none any further."""
        self.departures.leave()

    async def _going(self, request: web.Request) -> web.Response:
        """How far its passage is, as this node sees it."""
        require(request, Role.VIEWER)
        name = request.match_info["name"]
        if (going := self.departures.get(name)) is not None:
            return answer(going.view())
        if (coming := self.arrivals.get(name)) is not None:
            return answer(coming.view())
        instance = self._worker.node.instance(name)
        return answer(await self._worker.do(name, instance.going))

    async def _recover(self, request: web.Request) -> web.Response:
        """Look again now how things are, where it cannot go on by itself."""
        require(request, Role.OPERATOR)
        name = request.match_info["name"]
        dead = request.query.get("target-is-dead", "") == "true"
        if not self.departures.recover(name, target_is_dead=dead):
            raise Refused(409, "on-no-way", f"{name} is on no way from here to another node")
        return answer({"name": name})

    async def stop(self) -> None:
        """Let go of all; it goes on, and the next daemon takes it up."""
        await self.arrivals.stop()
        self._kept.close()
        self._books.close()
