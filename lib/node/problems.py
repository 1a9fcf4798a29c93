"""Errors as the API tells them: ``application/problem+json`` (RFC 9457) with a code that stays the same."""

import errno
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from msgspec import UNSET, Struct, to_builtins

from .. import errors as e
from ..store.job import Failure, Job, JobState

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
    (e.MemorySaved, 409),
    (e.MemoryUnusable, 409),
    (e.StartFailed, 409),
    (e.BinaryError, 409),
    (e.AgentNotThere, 409),
    (e.AgentFrozen, 409),
    (e.MonitorTimeout, 504),
    (e.MonitorError, 502),
    (e.CommandError, 409),
    (e.HotplugError, 409),
    (e.NotSupported, 422),
    (e.ImageError, 409),
    (e.NbdError, 502),
    (e.TokenRefused, 403),
    (e.PkiError, 409),
    (e.OperationCancelled, 409),
    (e.Overtaken, 409),
    (e.NotOwned, 404),
    (e.OwnerError, 409),
    (e.NoRoom, 507),
    (e.MigrationError, 409),
    (e.JobNotFound, 404),
    (e.TooManyJobs, 429),
    (e.DaemonJobError, 409),
    (e.StoreFull, 507),
    (e.StoreBusy, 503),
    (e.DroverError, 500),
    # of a path that somebody named
    (FileNotFoundError, 422),
    (FileExistsError, 409),
    (PermissionError, 422),
    (NotADirectoryError, 422),
    (IsADirectoryError, 422),
    (OSError, 500),
)

# What the host has no more of, whatever was asked: the code, and the status.
_SHORT: Final[Mapping[int, tuple[str, int]]] = {
    errno.ENOSPC: ("no-space", 507),
    errno.EDQUOT: ("no-space", 507),
    errno.EMFILE: ("no-descriptors", 503),
    errno.ENFILE: ("no-descriptors", 503),
    errno.ENOMEM: ("no-memory", 503),
}


class Problem(Struct, frozen=True, kw_only=True):
    """An error, as it is told.

    :ivar status: of HTTP
    :ivar code: stays the same; the name of the error in :mod:`drover.errors`
    :ivar title: the code, for people
    :ivar detail: what is wrong, for people
    :ivar instance: whose error it is
    :ivar needed: the state that it would have to be in
    :ivar errors: what is wrong with which field
    :ivar qemu_class: QEMU's own class of errors
    :ivar notes: what went wrong in the undo
    :ivar blockers: what is in the way of a migration, of each ``code``, ``what``, ``why`` and ``remedy``
    """

    status: int
    code: str
    title: str
    detail: str
    instance: str = ""
    needed: str = ""
    errors: list[dict[str, str]] = []
    qemu_class: str = ""
    notes: list[str] = []
    blockers: list[dict[str, str]] = []


class Refused(e.DroverError):
    """A request that is not carried out, whoever sends it and whatever the instances do.

    :ivar status: of HTTP
    :ivar code: that stays the same
    :ivar more: what else is told, by the names that :class:`Problem` has for it
    """

    def __init__(self, status: int, code: str, detail: str, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.more = more


def problem(error: BaseException) -> dict[str, Any]:
    """An error as JSON values.

    :returns: ``status``, ``code``, ``title`` and ``detail``; and, where they are known, ``instance`` (which),
        ``errors`` (what is wrong with which field), ``qemu_class``, ``notes`` (what went wrong in the undo), and
        ``blockers`` (of a migration)
    """
    if isinstance(error, Refused):
        return {"status": error.status, "code": error.code, "title": error.code, "detail": str(error), **error.more}
    status = _SHORT[error.errno or 0][1] if _is_short(error) else _of_kind(type(error))
    if not isinstance(error, (e.DroverError, OSError)):
        return _told(500, "internal-error", "something went wrong in here; the daemon's log says what")
    told = _told(status, code_of(error), _text(error)) | _data(error)
    if notes := getattr(error, "__notes__", None):
        told["notes"] = list(notes)
    return told


def failure_of(error: BaseException) -> Failure:
    """An error as a job keeps it."""
    told = problem(error)
    fields = told.get("errors") or [{}]
    return Failure(
        code=told["code"], message=told["detail"], field=fields[0].get("field", ""),
        instance=told.get("instance", ""), qemu_class=told.get("qemu_class", ""), blockers=told.get("blockers", []),
    )  # fmt: skip


def refused_as(job: Job) -> Refused:
    """What a job that is not done is told as to whoever asks for its outcome."""
    if job.error is not None:
        more = {"blockers": job.error.blockers} if job.error.blockers else {}
        return Refused(_status_of(job.error.code), job.error.code, job.error.message, more)
    if job.state is JobState.CANCELLED:
        return Refused(409, "operation-cancelled", f"{job.instance}: {job.kind} was cancelled")
    return Refused(503, "job-unfinished", f"job {job.id} is {job.state}")


def _status_of(code: str) -> int:
    for name in e.__all__:
        kind = getattr(e, name)
        if isinstance(kind, type) and issubclass(kind, BaseException) and _kebab(kind) == code:
            return _of_kind(kind)
    if status := dict(_SHORT.values()).get(code):
        return status
    return 409 if code.startswith("job-") else 500


def code_of(error: BaseException) -> str:
    """The code of an error: its class's name in small letters, or what it says itself."""
    if isinstance(error, Refused):
        return error.code
    if _is_short(error):
        return _SHORT[error.errno or 0][0]
    return "os-error" if isinstance(error, OSError) and not isinstance(error, e.DroverError) else _kebab(type(error))


def _is_short(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and not isinstance(error, e.DroverError) and error.errno in _SHORT


def _of_kind(kind: type[BaseException]) -> int:
    return next((status for known, status in _STATUS if issubclass(kind, known)), 500)


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
    if isinstance(error, e.InstanceError | e.DeviceNotFound):
        data["instance"] = error.name
    if isinstance(error, e.WrongState):
        data["needed"] = str(error.needed)
    if isinstance(error, e.SpecError):
        data["errors"] = [_field(problem.path, problem.value, problem.allowed) for problem in error.problems]
    elif isinstance(error, e.ArgumentError):
        data["errors"] = [_field(error.field, error.value, error.allowed)]
    if isinstance(error, e.MigrationBlocked):
        data |= {"instance": error.name, "blockers": to_builtins(error.blockers)}
    if isinstance(error, e.CommandError):
        data["qemu_class"] = error.error_class
    return data


def _field(field: str, value: object, allowed: str) -> dict[str, Any]:
    return {"field": field, "allowed": allowed} | ({} if value is UNSET else {"value": repr(value)})
