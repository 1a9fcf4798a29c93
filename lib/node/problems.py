"""Errors as the API tells them: ``application/problem+json`` (RFC 9457) with a code that stays the same."""

import os
import re
from typing import Any, Final

from msgspec import UNSET, Struct

from .. import errors as e

CONTENT_TYPE: Final = "application/problem+json"
_WORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
# The first class that fits.
_STATUS: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (e.ArgumentError, 422),
    (e.InstanceNotFound, 404),
    (e.InstanceExists, 409),
    (e.InstanceBusy, 409),
    (e.WrongState, 409),
    (e.InstanceTimeout, 504),
    (e.StartFailed, 409),
    (e.MonitorTimeout, 504),
    (e.MonitorError, 502),
    (e.CommandError, 409),
    (e.HotplugError, 409),
    (e.NotSupported, 422),
    (e.ImageError, 409),
    (e.NbdError, 502),
    (e.DroverError, 500),
    # of a path that somebody named
    (FileNotFoundError, 422),
    (FileExistsError, 409),
    (PermissionError, 422),
    (NotADirectoryError, 422),
    (IsADirectoryError, 422),
    (OSError, 500),
)


class Problem(Struct, frozen=True, kw_only=True):
    """An error, as it is told.

    :ivar status: of HTTP
    :ivar code: stays the same; the name of the error in :mod:`drover.errors`
    :ivar title: the code, for people
    :ivar detail: what is wrong, for people
    :ivar instance: whose error it is
    :ivar errors: what is wrong with which field
    :ivar qemu_class: QEMU's own class of errors
    :ivar notes: what went wrong in the undo
    """

    status: int
    code: str
    title: str
    detail: str
    instance: str = ""
    errors: list[dict[str, str]] = []
    qemu_class: str = ""
    notes: list[str] = []


class Refused(e.DroverError):
    """A request that is not carried out, whoever sends it and whatever the instances do.

    :ivar status: of HTTP
    :ivar code: that stays the same
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


def problem(error: BaseException) -> dict[str, Any]:
    """An error as JSON values.

    :returns: ``status``, ``code``, ``title`` and ``detail``; and, where they are known, ``instance`` (which),
        ``errors`` (what is wrong with which field), ``qemu_class``, and ``notes`` (what went wrong in the undo)
    """
    if isinstance(error, Refused):
        return {"status": error.status, "code": error.code, "title": error.code, "detail": str(error)}
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if not isinstance(error, (e.DroverError, OSError)):
        return _told(500, "internal-error", "something went wrong in here; the daemon's log says what")
    told = _told(status, code_of(error), _text(error)) | _data(error)
    if notes := getattr(error, "__notes__", None):
        told["notes"] = list(notes)
    return told


def code_of(error: BaseException) -> str:
    """The code of an error: its class's name in small letters, or what it says itself."""
    if isinstance(error, Refused):
        return error.code
    return "os-error" if isinstance(error, OSError) and not isinstance(error, e.DroverError) else _kebab(type(error))


def _kebab(kind: type) -> str:
    return _WORD.sub("-", kind.__name__).lower()


def _told(status: int, code: str, detail: str) -> dict[str, Any]:
    return {"status": status, "code": code, "title": code.replace("-", " "), "detail": detail}


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _data(error: BaseException) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if isinstance(error, e.InstanceError):
        data["instance"] = error.name
    if isinstance(error, e.SpecError):
        data["errors"] = [_field(problem.path, problem.value, problem.allowed) for problem in error.problems]
    elif isinstance(error, e.ArgumentError):
        data["errors"] = [_field(error.field, error.value, error.allowed)]
    if isinstance(error, e.CommandError):
        data["qemu_class"] = error.error_class
    return data


def _field(field: str, value: object, allowed: str) -> dict[str, Any]:
    return {"field": field, "allowed": allowed} | ({} if value is UNSET else {"value": repr(value)})
