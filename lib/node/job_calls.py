"""The calls about jobs: which there are, what came of one, and to have one end."""

from typing import Any, Final

from aiohttp import web
from msgspec import to_builtins

from ..errors import ArgumentError
from ..store.job import Caller, Job, JobState
from ..store.jobs import LIST_MAX
from .access import CALLER, require
from .answers import REQUEST_ID, answer
from .desk import Desk
from .operations import Role
from .streams import endless

MAX_WAIT: Final = 50.0  # s that one call waits for the end of a job; within what any call may take
_LIST: Final = 100
# Of no use to who asks: which process runs it, and what a later one would need.
_OWN: Final = ("runner", "epoch", "before", "partial")


def view(job: Job) -> dict[str, Any]:
    """A job as it is told."""
    told: dict[str, Any] = to_builtins(job)
    return {name: value for name, value in told.items() if name not in _OWN}


class JobCalls:
    """Serves them.

    :param desk: where the jobs are
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/jobs", self._list)
        router.add_get("/v1/jobs/{id}", endless(self._get))
        router.add_post("/v1/jobs/{id}/cancel", self._cancel)

    async def _list(self, request: web.Request) -> web.Response:
        """The newest first; the next page begins before the last one's number."""
        require(request, Role.VIEWER)
        query = request.query
        states = {state for said in query.getall("state", []) for state in said.split(",")}
        if unknown := states - set(JobState):
            raise ArgumentError("state", min(unknown), f"of {', '.join(JobState)}")
        found = await self._desk.list(
            states={JobState(state) for state in states},
            instance=query.get("instance"),
            before=_number("before", query["before"]) if "before" in query else None,
            limit=_number("limit", query.get("limit", str(_LIST)), LIST_MAX),
        )
        return answer({"jobs": [view(job) for job in found]})

    async def _get(self, request: web.Request) -> web.Response:
        """One; with ``wait``, when it has ended, or after so many seconds."""
        require(request, Role.VIEWER)
        said = request.query.get("wait", "0")
        try:
            wait = float(said)
        except ValueError:
            wait = -1
        if not 0 <= wait <= MAX_WAIT:
            raise ArgumentError("wait", said, f"0 to {MAX_WAIT:g} seconds")
        return answer(view(await self._desk.get(_id(request), wait)))

    async def _cancel(self, request: web.Request) -> web.Response:
        require(request, Role.OPERATOR)
        return answer(view(await self._desk.cancel(_id(request), asker(request))))


def asker(request: web.Request) -> Caller:
    """On whose behalf a request is."""
    caller = request[CALLER]
    return Caller(who=caller.name, role=caller.role.name.lower(), request=request[REQUEST_ID])


def _id(request: web.Request) -> int:
    return _number("id", request.match_info["id"])


def _number(field: str, said: str, most: int = 10**12 - 1) -> int:
    if said.isascii() and said.isdecimal() and len(said) <= 12 and 1 <= int(said) <= most:
        return int(said)
    raise ArgumentError(field, said, f"a number from 1 to {most}")
