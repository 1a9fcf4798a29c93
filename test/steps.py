"""Flows run on a model, failed and cancelled at each of their steps: the steps are counted by running the flow."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from drover.errors import DroverError
from drover.monitor.drive import drive
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.nbd_model import NbdServerModel
from drover.testing.scripted import Fault, ScriptedPort

Flow = Callable[[Port], Coroutine[Any, Any, object]]

# Where an NBD server of the model's listens; its exports are "disk" and, read-only, "cd".
SERVER = "storage:10809"
MACHINES = ("q35", "pc")


class Case(NamedTuple):
    """A flow, and what must have happened before it."""

    flow: Flow
    before: Flow | None = None


def prepare(case: Case, machine: str, version: str = "7.2", guest: str = "obeys") -> QemuModel:
    """A model that the flow can run on."""
    model = QemuModel(machine, version, guest)
    model.nbd_servers[f"tcp:{SERVER}"] = NbdServerModel({"disk": (1 << 20, False), "cd": (1 << 20, True)})
    if case.before is not None:
        drive(case.before(ScriptedPort(model)))
    return model


def count_steps(case: Case, machine: str) -> int:
    """How many awaits the flow has when all goes well."""
    port = ScriptedPort(prepare(case, machine))
    drive(case.flow(port))
    assert port.steps
    return len(port.steps)


def descriptors() -> list[str]:
    """Our own."""
    return sorted(os.listdir("/proc/self/fd"))


def failure(case: Case, port: ScriptedPort) -> BaseException | None:
    """Run the flow; return how it failed, if it did."""
    try:
        drive(case.flow(port))
    except (DroverError, OSError, asyncio.CancelledError) as error:
        return error
    return None


def assert_nothing_held(port: ScriptedPort) -> None:
    """No name and no place is reserved any more."""
    assert not port.reservations._held


def check_change(case: Case, machine: str, fault: Fault) -> None:
    """At each step: all of it happens, or nothing of it stays."""
    for step in range(count_steps(case, machine)):
        model = prepare(case, machine)
        before, fds = model.left(), descriptors()
        port = ScriptedPort(model, fault, step)
        error = failure(case, port)
        assert (error is not None) == port.struck, f"{fault.name} at step {step} of {port.steps}"
        assert descriptors() == fds, f"{port.steps}: a descriptor of ours stayed open"
        assert_nothing_held(port)
        if error is not None and fault is not Fault.CLOSED:  # then nobody can undo anything
            assert not getattr(error, "__notes__", []), "the undo went well, so there is nothing to note"
            assert model.left() == before, f"{fault.name} at step {step} of {port.steps}"


def check_removal(case: Case, machine: str, fault: Fault) -> None:
    """At each step: repeated, it comes to its end."""
    clean = QemuModel(machine).left()
    for step in range(count_steps(case, machine)):
        model = prepare(case, machine)
        port = ScriptedPort(model, fault, step)
        failure(case, port)
        assert_nothing_held(port)
        if model.left() != clean:
            drive(case.flow(ScriptedPort(model)))
        assert model.left() == clean, f"{fault.name} at step {step} of {port.steps}"
