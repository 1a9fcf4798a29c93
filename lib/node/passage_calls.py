"""The calls that tell of an instance's passage between nodes."""

from aiohttp import web

from ..kvm.instance import Instance
from .access import CALLER
from .answers import answer
from .operations import Role
from .problems import Refused
from .work import Worker


class PassageCalls:
    """Serves them.

    :param worker: does what blocks
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/instances/{name}/parcel", self._parcel)

    async def _parcel(self, request: web.Request) -> web.Response:
        """What another node has to know of it: with its secrets, and so for nodes and admins alone."""
        if request[CALLER].role not in (Role.NODE, Role.ADMIN):
            raise Refused(403, "not-allowed", f"{request[CALLER].name} is neither a node nor admin")
        instance = self._instance(request)
        return answer(await self._worker.do(instance.name, instance.parcel))

    def _instance(self, request: web.Request) -> Instance:
        return self._worker.node.instance(request.match_info["name"])
