"""How errors are told to those who call."""

import errno

import pytest

from drover import errors as e
from drover.errors import Problem
from drover.kvm.spec import parse
from drover.node.problems import Refused, code_of, failure_of, problem, refused_as
from drover.store.job import Job, JobState


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (e.BinaryError("/nowhere/qemu", "there is none"), 409, "binary-error"),
        (e.InstanceNotFound("a"), 404, "instance-not-found"),
        (e.InstanceExists("a"), 409, "instance-exists"),
        (e.ArgumentError("size", 3, "more"), 422, "argument-error"),
        (e.WrongState("a", "stopped", "running"), 409, "wrong-state"),
        (e.CommandError("stop", "GenericError", "no"), 409, "command-error"),
        (e.CommandNotSupported("stop", "CommandNotFound", "no"), 409, "command-not-supported"),
        (FileNotFoundError(errno.ENOENT, "no such file", "/x"), 422, "os-error"),
        (OSError(errno.EIO, "broken"), 500, "os-error"),
        (OSError(errno.ENOSPC, "full"), 507, "no-space"),
        (OSError(errno.EDQUOT, "quota"), 507, "no-space"),
        (OSError(errno.EMFILE, "many"), 503, "no-descriptors"),
        (Refused(413, "too-large", "that is too much"), 413, "too-large"),
        (e.DroverError("well"), 500, "drover-error"),
    ],
)
def test_status_and_code(error: BaseException, status: int, code: str) -> None:
    told = problem(error)
    assert (told["status"], told["code"]) == (status, code)
    text = "/x: no such file" if isinstance(error, FileNotFoundError) else str(error)
    assert told["detail"] == text


def test_what_is_known_goes_with_it() -> None:
    assert problem(e.InstanceNotFound("web1"))["instance"] == "web1"
    assert problem(e.CommandError("stop", "GenericError", "no"))["qemu_class"] == "GenericError"
    told = problem(e.SpecError([Problem("memory.size", "fast", "a size"), Problem("name", "", "a name")]))
    assert told["errors"] == [
        {"field": "memory.size", "allowed": "a size", "value": "'fast'"},
        {"field": "name", "allowed": "a name", "value": "''"},
    ]
    error = e.DroverError("well")
    error.add_note("undo failed")
    assert problem(error)["notes"] == ["undo failed"]


def test_a_password_is_in_no_answer() -> None:
    with pytest.raises(e.SpecError) as caught:
        parse({"name": "vm", "vnc": {"password": "geheimgeheim"}})
    told = problem(caught.value)
    assert told["errors"][0]["field"] == "vnc.password"
    assert "geheim" not in str(told)


def test_a_fault_of_ours_tells_nothing_of_our_inside() -> None:
    told = problem(KeyError("secret"))
    assert (told["status"], told["code"]) == (500, "internal-error")
    assert "secret" not in str(told)


def test_each_error_of_ours_has_a_code_of_its_own() -> None:
    everything = [getattr(e, name) for name in e.__all__]
    kinds = [kind for kind in everything if isinstance(kind, type) and issubclass(kind, e.DroverError)]
    assert len({code_of(kind.__new__(kind)) for kind in kinds}) == len(kinds)


def test_what_is_in_the_way_of_a_migration() -> None:
    """Told with the error; kept with its job, and told again to who asks for the outcome later."""
    blockers = [e.Blocker("link", "nics[0].link", "there is no bridge br7", "make it there"), e.Blocker("name", *"abc")]
    told = problem(error := e.MigrationBlocked("web1", "b", blockers))
    assert (told["status"], told["code"], told["instance"]) == (409, "migration-blocked", "web1")
    said = "web1 cannot go to b: nics[0].link: there is no bridge br7: make it there; a: b: c"
    assert told["detail"] == said
    assert told["blockers"][0] == {
        "code": "link", "what": "nics[0].link", "why": "there is no bridge br7", "remedy": "make it there",
    }  # fmt: skip
    job = Job(id=7, kind="migrate", instance="web1", state=JobState.FAILED, error=failure_of(error))
    again = problem(refused_as(job))
    assert {name: again[name] for name in ("status", "code", "detail", "blockers")} == {
        name: told[name] for name in ("status", "code", "detail", "blockers")
    }
