"""What the API is, for programs: an OpenAPI 3.1 document, made of the table of operations and the types it takes."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..kvm.spec import Spec
from ..kvm.verify import Report
from ..version import __version__
from .operations import ACTS, Operation
from .problems import CONTENT_TYPE, Problem
from .summary import Summary

_Refs = dict[Any, dict[str, Any]]  # by type
_REF: Final = "#/components/schemas/{name}"


class Instances(Struct, frozen=True):
    """:ivar instances: a row for each"""

    instances: list[Summary]


def document() -> dict[str, Any]:
    """The whole of it."""
    bodies = [_body_of(operation) for operation in ACTS.values()]
    types = list(dict.fromkeys([Spec, Instances, Report, Problem, *bodies]))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    refs: _Refs = dict(zip(types, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "drover-noded", "version": __version__, "summary": "The virtual machines of one host."},
        "paths": _reads(refs) | {path: {"post": call} for path, call in _acts(refs)},
        "components": {"schemas": components},
    }


def _body_of(operation: Operation) -> type[Struct]:
    kind = operation.takes or operation.document
    assert kind is not None
    return kind


def _reads(refs: _Refs) -> dict[str, Any]:
    name = "/v1/instances/{name}"
    return {
        "/v1/node": {"get": _call("node", "What this daemon serves.", refs)},
        "/v1/instances": {
            "get": _call("list", "All instances.", refs, answer=refs[Instances]),
            "post": _call("create", "Make an instance.", refs, body=refs[Spec], status="201"),
        },
        name: {
            "get": _call("show", "One instance.", refs, named=True),
            "delete": _call("delete", "Forget one that does not run. Its disks are not touched.", refs, named=True),
        },
        f"{name}/verify": {"get": _call("verify", "Specification, record and QEMU side by side.", refs, named=True)},
    }


def _acts(refs: _Refs) -> Iterable[tuple[str, dict[str, Any]]]:
    for verb, operation in ACTS.items():
        body = refs[_body_of(operation)]
        yield f"/v1/instances/{{name}}/{verb}", _call(verb, operation.summary, refs, named=True, body=body)


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
