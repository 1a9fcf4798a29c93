"""What machines use, as it is read: from memory, at no QEMU's cost."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from .answers import answer
from .metrics import CONTENT_TYPE, Metrics
from .sampler import Sampler
from .stats import AllStats, OneStats
from .work import Worker

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stopwatch:
    """Takes the time of each request, but of those whose answers go on.

    :param metrics: where it is counted
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @property
    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """For aiohttp."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            begun = time.monotonic()
            response = await handler(request)
            if isinstance(response, web.Response):
                resource = request.match_info.route.resource
                route = resource.canonical if resource is not None else "none"  # not the path: that is the caller's own
                self._metrics.requests.labels(request.method, route).observe(time.monotonic() - begun)
            return response

        return timed


class Figures:
    """Serves them.

    :param worker: does what blocks
    :param sampler: what each machine uses
    :param metrics: those, and of the daemon itself, for Prometheus
    """

    def __init__(self, worker: Worker, sampler: Sampler, metrics: Metrics) -> None:
        self._worker = worker
        self._sampler = sampler
        self._metrics = metrics

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/stats", self._all)
        router.add_get("/v1/instances/{name}/stats", self._one)
        router.add_get("/metrics", self._text)

    async def _all(self, request: web.Request) -> web.Response:
        """Each that runs."""
        return answer(AllStats(now=time.time(), stats=self._sampler.read()))

    async def _one(self, request: web.Request) -> web.Response:
        """One of them; null where it does not run."""
        name = request.match_info["name"]
        await self._worker.do("", lambda: self._worker.node.instance(name))  # tells of those that are spelt alike
        return answer(OneStats(now=time.time(), stats=self._sampler.read_one(name)))

    async def _text(self, request: web.Request) -> web.Response:
        """For Prometheus."""
        text = await self._worker.do("", self._metrics.text)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})
