"""The HTTP face of a node: JSON over a socket, by the table of operations."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import structs

from ..errors import DroverError, SpecError
from ..kvm.record import load
from ..kvm.spec import public
from ..kvm.spec.reader import Reader
from ..version import __version__
from . import openapi
from .access import CALLER, allow, caller_of
from .feed import Feed
from .metrics import CONTENT_TYPE as CONTENT_TYPE_METRICS
from .metrics import Metrics
from .model import Model
from .operations import ACTS, CREATE, DELETE, Operation
from .problems import CONTENT_TYPE, Refused, code_of, problem
from .screens import Screens
from .work import Worker

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Bytes of a request's body: a specification with its cloud-init data; what is larger is refused.
MAX_BODY: Final = 1 << 20
log = logging.getLogger("drover.node")
audit = logging.getLogger("drover.audit")


class Server:
    """Answers the calls.

    :param worker: does what blocks
    :param model: what is read
    :param feed: what happens
    """

    def __init__(self, worker: Worker, model: Model, feed: Feed) -> None:
        self._worker = worker
        self._model = model
        self._feed = feed
        self._metrics = Metrics(model)
        self._started = time.time()

    def application(self) -> web.Application:
        """For aiohttp."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_told_as_problem, _with_caller])
        app.router.add_get("/v1/node", self._node)
        app.router.add_get("/v1/instances", self._list)
        app.router.add_post("/v1/instances", self._create)
        app.router.add_get("/v1/instances/{name}", self._show)
        app.router.add_delete("/v1/instances/{name}", self._delete)
        app.router.add_get("/v1/instances/{name}/verify", self._verify)
        app.router.add_post("/v1/instances/{name}/{verb}", self._act)
        app.router.add_get("/v1/events", self._feed.serve)
        app.router.add_get("/v1/openapi.json", self._openapi)
        Screens(self._worker).add_to(app.router)
        app.router.add_get("/metrics", self._told_figures)
        return app

    # -- what is read -------------------------------------------------------------------------------------------------

    async def _node(self, request: web.Request) -> web.Response:
        rows = self._model.summaries
        states: dict[str, int] = {}
        for row in rows:
            states[row.state] = states.get(row.state, 0) + 1
        host = self._worker.node.host
        return answer({"version": __version__, "started": self._started, "boot_id": host.boot_id,
                       "rootless": host.rootless, "instances": len(rows), "states": states})  # fmt: skip

    async def _openapi(self, request: web.Request) -> web.Response:
        return answer(openapi.document())

    async def _told_figures(self, request: web.Request) -> web.Response:
        text = await self._worker.do("", self._metrics.text)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_METRICS})

    async def _list(self, request: web.Request) -> web.Response:
        return answer({"instances": self._model.summaries})

    async def _show(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        row = self._model.summary(name)
        instance = self._worker.node.instance(name)  # tells of those that are spelt alike
        document = await self._worker.do("", lambda: load(instance.host.paths.instance(name).document))
        shown = msgspec.to_builtins(document) | {"spec": public(structs.replace(document.spec, name=name))}
        if document.runtime is not None:
            shown["runtime"] |= {"spec": public(document.runtime.spec), "argv": []}
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
        caller = request[CALLER]
        outcome, begun = "failed", time.monotonic()
        try:
            allow(caller, operation.role)
            params = parameters(operation, document)
            result = await self._worker.do(name, lambda: operation.does(self._worker.node, name, params))
            outcome = "done"
        except (DroverError, OSError) as error:
            outcome = code_of(error)
            raise
        finally:
            said = {"caller": caller.name, "operation": operation.verb, "instance": name, "outcome": outcome}
            self._metrics.calls.labels(operation.verb, outcome).inc()
            self._metrics.seconds.labels(operation.verb).observe(time.monotonic() - begun)
            audit.info("%s %s by %s: %s", operation.verb, name, caller.name, outcome, extra=said)
        for each in {name, result.get("name", name) if isinstance(result, Mapping) else name}:
            await self._model.refreshed(each)
        return answer(result if isinstance(result, Mapping) else {"result": result}, status=status)


def answer(data: Any, *, status: int = 200) -> web.Response:
    """A response of JSON."""
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")


def parameters(operation: Operation, document: Any) -> Any:
    """What an operation takes, of what was sent.

    :raises SpecError: it is something else; says all that is wrong with it
    """
    if operation.takes is None:
        if not isinstance(document, Mapping):
            raise Refused(422, "argument-error", "the body has to be a JSON object")
        return document
    reader = Reader()
    params = reader.struct(operation.takes, document)
    if reader.problems:
        raise SpecError(reader.problems)
    return params


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
        log.exception("%s %s", request.method, request.path)
        told = problem(error)
    return web.Response(body=json.dumps(told).encode(), status=told["status"], content_type=CONTENT_TYPE)


@web.middleware
async def _with_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[CALLER] = caller_of(request)
    return await handler(request)
