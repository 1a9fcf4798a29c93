"""Answers that go on for as long as somebody listens: they end when the daemon does, which waits for calls alone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_GOING_ON: Final = web.AppKey("going_on", set[asyncio.Task[object]])


def add_to(app: web.Application) -> None:
    """Have the application end them when it is shut down."""
    app[_GOING_ON] = set[asyncio.Task[object]]()
    app.on_shutdown.append(_end)


def endless(handler: Handler) -> Handler:
    """A handler whose answers go on."""

    async def handle(request: web.Request) -> web.StreamResponse:
        going_on, task = request.app[_GOING_ON], asyncio.current_task()
        assert task is not None
        going_on.add(task)
        try:
            return await handler(request)
        finally:
            going_on.discard(task)

    return handle


async def _end(app: web.Application) -> None:
    going_on: set[asyncio.Task[object]] = app[_GOING_ON]
    for task in tuple(going_on):
        task.cancel()
