"""The commands for instances of this host: each a thin face of :mod:`drover.kvm`."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from drover.cli.output import answer, notice, output_option, table
from drover.errors import ArgumentError, DroverError, SpecError
from drover.kvm.condition import Condition
from drover.kvm.instance import SHUTDOWN_TIMEOUT
from drover.kvm.node import Node, Report
from drover.kvm.record import Document, Stop
from drover.kvm.spec import Spec, load, public


def read_spec(path: Path) -> Spec:
    """The specification in a file.

    :raises click.ClickException: it is none; every fault on a line of its own
    """
    kind = path.suffix.removeprefix(".")
    if kind not in ("toml", "json"):
        raise ArgumentError("FILE", str(path), "a name that ends with .toml or .json")
    try:
        return load(path.read_bytes(), kind)
    except SpecError as error:
        faults = "".join(f"\n  {problem}" for problem in error.problems)
        raise click.ClickException(f"{path} is no specification of an instance:{faults}") from error


def told(stop: Stop) -> str:
    """How a run ended, in words."""
    detail = f": {stop.detail}" if stop.detail else ""
    when = f" at {datetime.fromtimestamp(stop.at).astimezone():%Y-%m-%d %H:%M:%S}" if stop.at else ""
    return f"{stop.reason}{detail}{when}"


def _restarts(document: Document) -> str:
    """Whether it is to be started again, in words."""
    if document.restart is None or not document.restart.due:
        return ""
    when = datetime.fromtimestamp(document.restart.at).astimezone()
    return f"; to be started again by the watcher, at {when:%H:%M:%S}"


@click.command
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
def create(file: Path, output: str) -> None:
    """Make an instance of a specification (a .toml or .json file). It does not run yet."""
    instance = Node().create(read_spec(file))
    spec = instance.show().document.spec
    answer(output, f"{spec.name} is there, with uuid {spec.uuid}.", {"name": spec.name, "uuid": spec.uuid})


@click.command
@click.argument("name")
@click.option("--paused", is_flag=True, help="Do not let the guest run yet.")
@output_option
def start(name: str, paused: bool, output: str) -> None:
    """Start an instance; nothing if it runs."""
    notices = Node().instance(name).start(paused=paused)
    for text in notices:
        notice(text)
    state = "paused" if paused else "running"
    answer(output, f"{name} is {state}.", {"name": name, "state": state, "notices": notices})


@click.command
@click.argument("name")
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for the guest.")
@click.option("--no-force", is_flag=True, help="Leave a guest running that does not shut down in time.")
@output_option
def stop(name: str, timeout: float, no_force: bool, output: str) -> None:
    """Shut an instance down: by the power button, and if the guest does not heed that, by pulling the plug."""
    ended = Node().instance(name).stop(timeout=timeout, force=not no_force)
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@click.argument("name")
@output_option
def kill(name: str, output: str) -> None:
    """End an instance at once, as if the plug was pulled."""
    ended = Node().instance(name).kill()
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@click.argument("name")
@output_option
def pause(name: str, output: str) -> None:
    """Let the guest stand still."""
    Node().instance(name).pause()
    answer(output, f"{name} stands still.", {"name": name, "state": "paused"})


@click.command
@click.argument("name")
@output_option
def resume(name: str, output: str) -> None:
    """Let the guest run on, also after its storage failed."""
    Node().instance(name).resume()
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@click.argument("name")
@output_option
def reset(name: str, output: str) -> None:
    """Press the reset button."""
    Node().instance(name).reset()
    answer(output, f"{name} was reset.", {"name": name})


@click.command
@click.argument("name")
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for the guest.")
@output_option
def reboot(name: str, timeout: float, output: str) -> None:
    """Shut an instance down and start it from its specification, as that is now."""
    for text in Node().instance(name).reboot(timeout=timeout):
        notice(text)
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@click.argument("name")
@output_option
def delete(name: str, output: str) -> None:
    """Forget an instance that does not run. Its disks are not touched."""
    Node().delete(name)
    answer(output, f"{name} is gone.", {"name": name})


@click.command
@click.argument("name")
@click.argument("new")
@output_option
def rename(name: str, new: str, output: str) -> None:
    """Give an instance that does not run another name."""
    Node().rename(name, new)
    answer(output, f"{name} is called {new} now.", {"name": new})


@click.command("list")
@click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds for each QEMU to answer.")
@output_option
def list_(timeout: float, output: str) -> None:
    """Show all instances. One that hangs keeps no other waiting."""
    rows = [_row(report) for report in Node().survey(timeout=timeout)]
    table(output, rows, ("name", "state", "pid", "vcpus", "memory_mib", "detail"))


def _row(report: Report) -> dict[str, Any]:
    if report.condition is None:
        blank = {"name": report.name, "pid": "", "vcpus": "", "memory_mib": ""}
        return blank | {"state": "unknown", "detail": str(report.error)}
    document, runtime = report.condition.document, report.condition.document.runtime
    spec = runtime.spec if runtime else document.spec
    detail = report.condition.detail
    if runtime is None and document.last_stop is not None:
        detail = told(document.last_stop) + _restarts(document)
    pid = runtime.pid if runtime else ""
    known = {"pid": pid, "vcpus": spec.cpu.count, "memory_mib": spec.memory.size >> 20, "detail": detail}
    return {"name": report.name, "state": str(report.condition.state)} | known


@click.command
@click.argument("name")
@output_option
def show(name: str, output: str) -> None:
    """Show an instance: what it does, how its last run ended, and its specification."""
    condition = Node().instance(name).show()
    spec = public(condition.document.spec)
    facts = _facts(condition)
    if output == "json":
        answer(output, "", facts | {"spec": spec})
        return
    for key, value in facts.items():
        if value not in ("", None):
            click.echo(f"{key + ':':14} {value}")
    click.echo(f"specification:\n{json.dumps(spec, indent=1)}")


def _facts(condition: Condition) -> dict[str, Any]:
    document, runtime = condition.document, condition.document.runtime
    facts: dict[str, Any] = {"name": condition.name, "state": str(condition.state), "detail": condition.detail}
    if runtime is not None:
        facts |= {"pid": runtime.pid, "emulator": runtime.emulator, "version": ".".join(map(str, runtime.version))}
        facts |= {"machine": runtime.machine, "accelerator": runtime.accelerator, "notice": runtime.notice}
        facts |= {"user": runtime.uid, "devices": ", ".join(runtime.devices)}
    if document.last_stop is not None:
        facts["last stop"] = told(document.last_stop) + _restarts(document)
    if document.pending is not None:
        facts["unfinished"] = document.pending.operation
    return facts


@click.command
@output_option
def adopt(output: str) -> None:
    """After a restart of the manager or the host: find what runs, and mend what was left unfinished."""
    reports = Node().adopt()
    rows = [_row(report) | {"done": "; ".join(report.notices)} for report in reports]
    table(output, rows, ("name", "state", "pid", "done"))
    if failed := [report for report in reports if report.error is not None]:
        raise DroverError(f"{len(failed)} of {len(reports)} could not be adopted: {', '.join(r.name for r in failed)}")
