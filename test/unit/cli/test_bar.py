"""What a bar tells of a job, and what a Ctrl-C, an error and a retry come to."""

import pytest

from drover.cli.bar import told
from drover.cli.clerk import outcome
from drover.cli.failures import CONFLICT, FAILED, IN_DOUBT, NOT_FOUND, advice
from drover.errors import CallFailed, DeviceNotFound, DroverError, InstanceBusy, InstanceNotFound, WrongState


@pytest.mark.parametrize(
    ("far", "text"),
    [
        ({}, ""),
        ({"done": 3, "of": 30, "unit": "s"}, "3 of 30"),
        ({"done": 5e6, "of": 0, "unit": "bytes"}, "5.0 MB"),
        (
            {"done": 5e6, "of": 2e7, "unit": "bytes", "rate": 1.5e6, "eta": 10.2},
            "5.0 MB of 20.0 MB, 1.5 MB/s, 0:00:10 to go",
        ),
    ],
)
def test_how_far(far: dict[str, object], text: str) -> None:
    assert told(far) == text


def job(state: str, **more: object) -> dict[str, object]:
    return {"id": 7, "kind": "start", "instance": "a", "state": state, "result": None} | more


def test_outcome() -> None:
    assert outcome(job("done", result={"notices": []})) == {"notices": []}
    for state, code, status in (("lost", "job-lost", IN_DOUBT), ("cancelled", "operation-cancelled", FAILED)):
        with pytest.raises(CallFailed, match=f"job 7, start a, was {state}") as caught:
            outcome(job(state))
        assert (caught.value.code, advice(caught.value).status) == (code, status)
    with pytest.raises(CallFailed, match="no such") as caught:
        outcome(job("failed", error={"code": "instance-not-found", "message": "no such"}))
    assert advice(caught.value).status == NOT_FOUND


@pytest.mark.parametrize(
    ("error", "status", "then"),
    [
        (InstanceNotFound("a"), NOT_FOUND, "drover list shows what there is"),
        (DeviceNotFound("a", "d", "none"), NOT_FOUND, "drover show a lists its devices"),
        (WrongState("a", "stopped", "running"), CONFLICT, "drover start a starts it"),
        (CallFailed("wrong-state", "x", {"instance": "a", "needed": "stopped"}), CONFLICT, "drover stop a stops it"),
        (CallFailed("device-not-found", "x"), NOT_FOUND, "drover show NAME lists its devices"),
        (InstanceBusy("a", "clone", 0), CONFLICT, "try again when that is done"),
        (CallFailed("no-answer", "x"), IN_DOUBT, "drover list says whether it is there again"),
        (DroverError("x"), FAILED, ""),
    ],
)
def test_what_to_do_next(error: DroverError, status: int, then: str) -> None:
    """The same, whether it was raised here or in a daemon."""
    assert advice(error) == (status, then)
