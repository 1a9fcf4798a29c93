"""The HTTP face of a node: JSON over a socket, by the table of operations."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from msgspec import structs

from ..errors import DroverError
from ..kvm.record import load, public_saved
from ..kvm.spec import public
from ..version import __version__
from . import openapi, streams
from .access import CALLER, JOIN, allow, caller_of, check_origin
from .answers import JOB, REQUEST_ID, answer, mark, request_id
from .desk import Desk
from .feed import Feed
from .figures import Figures, Stopwatch
from .gate import Gate
from .guest_calls import GuestCalls
from .job_calls import JobCalls, asker, view
from .logs import Logs
from .metrics import Metrics
from .model import Model
from .operations import ACTS, CREATE, DELETE, Operation, parameters
from .passage_calls import PassageCalls
from .problems import CONTENT_TYPE, Refused, code_of, problem
from .sampler import Sampler
from .screens import Screens
from .streams import endless
from .tails import Tails
from .work import Worker

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("drover.node")


class Server:
    """Answers the calls.

    :param name: of this node
    :param worker: does what blocks
    :param model: what is read
    :param feed: what happens
    :param tails: what machines say
    :param sampler: what each uses
    :param desk: what is changed
    :param metrics: figures of it all
    :param gate: holds callers to the limits
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        model: Model,
        feed: Feed,
        tails: Tails,
        sampler: Sampler,
        desk: Desk,
        metrics: Metrics,
        gate: Gate,
    ) -> None:
        self._name = name
        self._worker = worker
        self._model = model
        self._feed = feed
        self._tails = tails
        self._sampler = sampler
        self._desk = desk
        self._metrics = metrics
        self._gate = gate
        self._started = time.time()

    def application(self) -> web.Application:
        """For aiohttp."""
        watch = Stopwatch(self._metrics).middleware
        middlewares = [_marked, self._gate.middleware, watch, _told_as_problem, _with_caller]
        app = web.Application(client_max_size=self._gate.crowd.limits.body_bytes, middlewares=middlewares)
        app.on_shutdown.append(self._let_readers_go)
        streams.add_to(app)
        app.router.add_get("/v1/node", self._node)
        app.router.add_get("/v1/instances", self._list)
        app.router.add_post("/v1/instances", self._create)
        app.router.add_get("/v1/instances/{name}", self._show)
        app.router.add_delete("/v1/instances/{name}", self._delete)
        app.router.add_get("/v1/instances/{name}/verify", self._verify)
        app.router.add_post("/v1/instances/{name}/{verb}", self._act)
        app.router.add_get("/v1/events", endless(self._feed.serve), allow_head=False)
        app.router.add_get("/v1/instances/{name}/events", endless(self._tails.serve), allow_head=False)
        app.router.add_get("/v1/openapi.json", self._openapi)
        JobCalls(self._desk).add_to(app.router)
        GuestCalls(self._worker, self._desk).add_to(app.router)
        Logs(self._worker).add_to(app.router)
        PassageCalls(self._worker).add_to(app.router)
        Screens(self._worker).add_to(app.router)
        Figures(self._worker, self._sampler, self._metrics).add_to(app.router)
        return app

    # -- what is read -------------------------------------------------------------------------------------------------

    async def _node(self, request: web.Request) -> web.Response:
        rows = self._model.summaries
        states: dict[str, int] = {}
        for row in rows:
            states[row.state] = states.get(row.state, 0) + 1
        host = self._worker.node.host
        return answer({"name": self._name, "version": __version__, "started": self._started, "boot_id": host.boot_id,
                       "rootless": host.rootless, "instances": len(rows), "states": states,
                       "limits": self._gate.crowd.limits, "connections": self._gate.crowd.told()})  # fmt: skip

    async def _let_readers_go(self, _: web.Application) -> None:
        self._tails.end()
        await self._feed.end()

    async def _openapi(self, request: web.Request) -> web.Response:
        return answer(openapi.document())

    async def _list(self, request: web.Request) -> web.Response:
        return answer({"instances": self._model.summaries})

    async def _show(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        row = self._model.summary(name)
        instance = self._worker.node.instance(name)  # tells of those that are spelt alike
        document = await self._worker.do("", lambda: load(instance.host.paths.instance(name).document))
        shown = msgspec.to_builtins(document) | {"spec": public(structs.replace(document.spec, name=name))}
        for part, runtime in (("runtime", document.runtime), ("other", document.other)):
            if runtime is not None:
                shown[part] |= {"spec": public(runtime.spec), "argv": []}
        if document.saved is not None:
            shown["saved"] = public_saved(document.saved)
        return answer({"summary": row, "document": shown})

    async def _verify(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        report = await self._worker.do(name, lambda: self._worker.node.instance(name).verify())
        found: dict[str, Any] = msgspec.to_builtins(report)
        return answer(found | {"agrees": report.agrees})

    # -- what is changed ----------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        document = await _body(request)
        name = document.get("name") if isinstance(document, Mapping) else None
        return await self._do(request, CREATE, name if isinstance(name, str) else "", document, status=201)

    async def _delete(self, request: web.Request) -> web.Response:
        return await self._do(request, DELETE, request.match_info["name"], {})

    async def _act(self, request: web.Request) -> web.Response:
        operation = ACTS.get(request.match_info["verb"])
        if operation is None:
            raise Refused(404, "no-such-operation", f"there is no {request.match_info['verb']!r}: {', '.join(ACTS)}")
        return await self._do(request, operation, request.match_info["name"], await _body(request))

    async def _do(
        self, request: web.Request, operation: Operation, name: str, document: Any, *, status: int = 200
    ) -> web.Response:
        """As a job: its outcome, or at once the job itself for who prefers that."""
        caller = asker(request)
        try:
            allow(request[CALLER], operation.role)
            params = parameters(operation, document)
            job = await self._desk.take(operation, name, params, caller, request.headers.get("Idempotency-Key", ""))
        except (DroverError, OSError) as error:
            self._desk.note(operation.verb, name, caller, code_of(error))
            raise
        request[JOB] = job.id
        if _prefers_async(request):
            return answer(view(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})
        return answer(await self._desk.outcome(job), status=status)


def _prefers_async(request: web.Request) -> bool:
    """Whether not to wait for the outcome (RFC 7240)."""
    said = ",".join(request.headers.getall("Prefer", []))
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in said.split(","))


async def _body(request: web.Request) -> Any:
    """The JSON of a request; without a body an empty object."""
    data = await request.read()
    if not data:
        return {}
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refused(400, "bad-json", f"the body is no JSON: {error}") from error


@web.middleware
async def _told_as_problem(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        told = problem(Refused(error.status, error.reason.lower().replace(" ", "-"), error.text or error.reason))
    except (DroverError, OSError) as error:
        told = problem(error)
    except Exception as error:
        log.exception("%s %s", request.method, request.path, extra={"request": request[REQUEST_ID]})
        told = problem(error)
    return web.Response(body=json.dumps(told).encode(), status=told["status"], content_type=CONTENT_TYPE)


@web.middleware
async def _marked(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[REQUEST_ID] = request_id(request)
    response = await handler(request)
    mark(request, response)
    return response


@web.middleware
async def _with_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    check_origin(request)
    if request.path != JOIN:  # there a token stands for the certificate
        request[CALLER] = caller_of(request)
    return await handler(request)
