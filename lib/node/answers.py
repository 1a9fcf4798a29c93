"""What is answered, as HTTP has it; and what every request bears with it."""

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

# By which a request is found again in the logs: the caller's own, or one of ours.
REQUEST_ID: Final = web.RequestKey("request", str)
REQUEST_HEADER: Final = "X-Request-Id"
# The number of the job that a request has become.
JOB: Final = web.RequestKey("job", int)
JOB_HEADER: Final = "Drover-Job"
_SOUND: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def answer(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A response of JSON."""
    body = msgspec.json.encode(data)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def request_id(request: web.Request) -> str:
    """What to call a request."""
    said = request.headers.get(REQUEST_HEADER, "")
    return said if _SOUND.fullmatch(said) else secrets.token_hex(8)


def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Say in an answer which request it is to, and which job that has become."""
    if not response.prepared:
        response.headers[REQUEST_HEADER] = request[REQUEST_ID]
        if (job := request.get(JOB)) is not None:
            response.headers[JOB_HEADER] = str(job)
