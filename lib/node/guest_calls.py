"""The calls that read in a guest, by its agent. What changes a guest is in the table of operations."""

from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web

from ..errors import ArgumentError
from ..kvm.instance import Instance
from . import guest
from .access import require
from .answers import answer
from .desk import Desk
from .job_calls import asker
from .operations import Role
from .problems import code_of
from .work import Worker

T = TypeVar("T")


class GuestCalls:
    """Serves them.

    :param worker: does what blocks
    :param desk: logs who reads
    """

    def __init__(self, worker: Worker, desk: Desk) -> None:
        self._worker = worker
        self._desk = desk

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/instances/{name}/agent", self._about)
        router.add_get("/v1/instances/{name}/agent/file", self._file)

    async def _about(self, request: web.Request) -> web.Response:
        """What the agent tells of its guest."""
        require(request, Role.VIEWER)
        return answer(await self._on_guest(request, guest.about))

    async def _file(self, request: web.Request) -> web.Response:
        """A file of the guest, as it is."""
        require(request, Role.OPERATOR)
        path, name, outcome = request.query.get("path", ""), request.match_info["name"], "failed"
        if not path:
            raise ArgumentError("path", path, "of a file in the guest")
        try:
            data = await self._on_guest(request, lambda instance: guest.read_file(instance, path))
            outcome = "done"
        except Exception as error:
            outcome = code_of(error)
            raise
        finally:
            self._desk.note("agent-read-file", name, asker(request), outcome)
        return web.Response(body=data, content_type="application/octet-stream")

    async def _on_guest(self, request: web.Request, act: Callable[[Instance], T]) -> T:
        name = request.match_info["name"]
        instance: Any = self._worker.node.instance(name)
        return await self._worker.do(f"{name}'s agent", lambda: act(instance))
