"""What the API is, for programs: an OpenAPI 3.1 document, made of the table of operations and the types it takes."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..kvm.spec import Spec
from ..kvm.verify import Report
from ..store.job import Job, JobState
from ..store.jobs import LIST_MAX
from ..version import __version__
from .admission import Join, Renew
from .job_calls import MAX_WAIT
from .logs import KINDS, PIECE_MAX
from .operations import ACTS, Operation
from .owner_calls import Swapping
from .problems import CONTENT_TYPE, Problem
from .stats import AllStats, OneStats
from .summary import Summary

_Refs = dict[Any, dict[str, Any]]  # by type
_REF: Final = "#/components/schemas/{name}"


class JobList(Struct, frozen=True):
    """:ivar jobs: the newest first"""

    jobs: list[Job]


class LogPiece(Struct, frozen=True):
    """:ivar start: the byte that it begins at
    :ivar next: the one behind it
    :ivar size: of the log
    :ivar data: base64
    """

    start: int
    next: int
    size: int
    data: bytes


class Instances(Struct, frozen=True):
    """:ivar instances: a row for each"""

    instances: list[Summary]


def document() -> dict[str, Any]:
    """The whole of it."""
    bodies = [_body_of(operation) for operation in ACTS.values()]
    answers = [Instances, Report, LogPiece, Problem, Job, JobList, AllStats, OneStats]
    types = list(dict.fromkeys([Spec, *answers, Join, Renew, Swapping, *bodies]))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    refs: _Refs = dict(zip(types, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "drover-noded", "version": __version__, "summary": "The virtual machines of one host."},
        "paths": _reads(refs) | _jobs(refs) | _events(refs) | _admission(refs) | dict(_acts(refs)),
        "components": {"schemas": components},
    }


def _body_of(operation: Operation) -> type[Struct]:
    kind = operation.takes or operation.document
    assert kind is not None
    return kind


def _reads(refs: _Refs) -> dict[str, Any]:
    name = "/v1/instances/{name}"
    recover = _call("recover", "Look again how things are, where it cannot go on by itself.", refs, named=True)
    dead = _query("target-is-dead", {"type": "boolean"}, "the QEMU on the other node is dead for certain")
    return {
        "/v1/node": {"get": _call("node", "What this daemon serves.", refs)},
        "/v1/instances": {
            "get": _call("list", "All instances.", refs, answer=refs[Instances]),
            "post": _as_job(_call("create", "Make an instance.", refs, body=refs[Spec], status="201"), refs),
        },
        name: {
            "get": _call("show", "One instance.", refs, named=True),
            "delete": _as_job(
                _call("delete", "Forget one that does not run. Its disks are not touched.", refs, named=True), refs
            ),
        },
        "/v1/stats": {"get": _call("all-stats", "What each that runs uses.", refs, answer=refs[AllStats])},
        f"{name}/stats": {"get": _call("stats", "What it uses.", refs, named=True, answer=refs[OneStats])},
        f"{name}/migration": {"get": _call("migration", "How far its passage to a node is.", refs, named=True)},
        f"{name}/migration/recover": {
            "post": recover | {"parameters": [*recover["parameters"], dead]}
        },
        "/v1/owners/{name}": {
            "get": _call("owner", "Who may run a machine, by this node's own record.", refs, named=True),
            "post": _call("swap-owner", "Change that, if it is as expected.", refs, named=True, body=refs[Swapping]),
        },
        f"{name}/parcel": {"get": _call("parcel", "What a node has to know that it goes to.", refs, named=True)},
        f"{name}/agent": {"get": _call("agent-about", "What the guest's agent tells of its guest.", refs, named=True)},
        f"{name}/log": {"get": _log(refs)},
        f"{name}/verify": {"get": _call("verify", "Specification, record and QEMU side by side.", refs, named=True)},
    }


def _log(refs: _Refs) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0, "maximum": 1 << 40}
    asked = [
        _query("kind", {"type": "string", "enum": list(KINDS)}, "what its guest wrote to the serial port, or its QEMU"),
        _query("after", number, "the byte that it begins at"),
        _query("tail", number, "so many bytes before its end instead"),
        _query("limit", number, f"bytes at most, and at most {PIECE_MAX}"),
    ]
    call = _call("log", "A part of its log, as base64.", refs, named=True, answer=refs[LogPiece])
    return call | {"parameters": [*call["parameters"], *asked]}


def _jobs(refs: _Refs) -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer", "minimum": 1, "maximum": 10**12 - 1}
    wait = _query("wait", {"type": "number", "minimum": 0, "maximum": MAX_WAIT}, "seconds to wait for its end")
    page = [
        _query("state", {"type": "string", "enum": list(JobState)}, "only those in this state"),
        _query("instance", text, "only those of this one"),
        _query("before", number, "only those of lower numbers"),
        _query("limit", number | {"maximum": LIST_MAX}, "at most so many"),
    ]
    which = {"name": "id", "in": "path", "required": True, "schema": number}
    one = _call("job", "A job; with wait, at its end.", refs, answer=refs[Job])
    cancel = _call("cancel", "Have a job end, where it can.", refs, answer=refs[Job])
    several = _call("jobs", "Jobs, the newest first.", refs, answer=refs[JobList])
    return {
        "/v1/jobs": {"get": several | {"parameters": page}},
        "/v1/jobs/{id}": {"get": one | {"parameters": [which, wait]}},
        "/v1/jobs/{id}/cancel": {"post": cancel | {"parameters": [which]}},
    }


def _admission(refs: _Refs) -> dict[str, Any]:
    """Where this node has a certificate, and listens on the network."""
    join = _call("join", "Get a certificate for a one-time token: takes none.", refs, body=refs[Join])
    return {
        "/v1/join": {"get": _call("authority", "The authority's certificate: takes none.", refs), "post": join},
        "/v1/renew": {"post": _call("renew", "Get the caller's next certificate.", refs, body=refs[Renew])},
        "/v1/revoked": {"get": _call("revoked", "Numbers of certificates that hold no longer.", refs)},
    }


def _events(refs: _Refs) -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 2**53}
    several = {"explode": True, "schema": {"type": "array", "items": text}}
    asked = [
        _query("after", number, "only what came after the event of this number; Last-Event-ID counts more"),
        _query("follow", {"type": "string", "enum": ["0", "1"]}, "0: what there is, and then the end"),
        _query("kind", text, "only these") | several,
    ]
    name = _query("name", text, "only what is about these instances") | several
    frames = {"description": "server-sent events, each with its number as id", "content": {"text/event-stream": {}}}
    upgrade = {"description": "as messages of a WebSocket, each the JSON of an event"}
    problem = _call("", "", refs)["responses"]["default"]
    answers = {"200": frames, "101": upgrade, "default": problem}
    node = _call("events", "What happens on the node.", refs)
    machine = _call("instance-events", "What its machine says, and said.", refs, named=True)
    return {
        "/v1/events": {"get": node | {"parameters": [*asked, name], "responses": answers}},
        "/v1/instances/{name}/events": {
            "get": machine | {"parameters": [*machine["parameters"], *asked], "responses": answers}
        },
    }


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _acts(refs: _Refs) -> Iterable[tuple[str, dict[str, Any]]]:
    for verb, operation in ACTS.items():
        body = refs[_body_of(operation)]
        call = _call(verb, operation.summary, refs, named=True, body=body)
        yield f"/v1/instances/{{name}}/{verb}", {"post": _as_job(call, refs)}


def _as_job(call: dict[str, Any], refs: _Refs) -> dict[str, Any]:
    """A change, which can be asked for without waiting for it, and asked for again without its being done again."""
    taken = {"description": "taken on", "content": {"application/json": {"schema": refs[Job]}}}
    header = {"in": "header", "required": False}
    prefer = {"name": "Prefer", "schema": {"type": "string"}, "description": "respond-async: do not wait"} | header
    key = {"name": "Idempotency-Key", "schema": {"type": "string", "maxLength": 255}} | header
    return call | {
        "parameters": [*call.get("parameters", []), prefer, key],
        "responses": call["responses"] | {"202": taken},
    }


def _call(
    verb: str,
    summary: str,
    refs: _Refs,
    *,
    named: bool = False,
    body: dict[str, Any] | None = None,
    answer: dict[str, Any] | None = None,
    status: str = "200",
) -> dict[str, Any]:
    problem = {"description": "why not", "content": {CONTENT_TYPE: {"schema": refs[Problem]}}}
    done = {"description": "done", "content": {"application/json": {"schema": answer or {"type": "object"}}}}
    call: dict[str, Any] = {"operationId": verb, "summary": summary, "responses": {status: done, "default": problem}}
    if named:
        schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$"}
        call["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": schema}]
    if body is not None:
        call["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return call
