"""The commands for instances of this host: each a thin face of :mod:`drover.kvm`."""

import json
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from drover.cli.backend import connected, row_of
from drover.cli.list import restarts, row, told
from drover.cli.output import answer, notice, output_option, table
from drover.errors import ArgumentError, DroverError, SpecError
from drover.kvm.condition import Condition
from drover.kvm.instance import SHUTDOWN_TIMEOUT
from drover.kvm.node import Node
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


@click.command
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
def create(file: Path, output: str) -> None:
    """Make an instance of a specification (a .toml or .json file). It does not run yet."""
    instance = connected().create(read_spec(file))
    spec = instance.show().document.spec
    answer(output, f"{spec.name} is there, with uuid {spec.uuid}.", {"name": spec.name, "uuid": spec.uuid})


@click.command
@click.argument("name")
@click.option("--paused", is_flag=True, help="Do not let the guest run yet.")
@output_option
def start(name: str, paused: bool, output: str) -> None:
    """Start an instance; nothing if it runs."""
    notices = connected().instance(name).start(paused=paused)
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
    ended = connected().instance(name).stop(timeout=timeout, force=not no_force)
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@click.argument("name")
@output_option
def kill(name: str, output: str) -> None:
    """End an instance at once, as if the plug was pulled."""
    ended = connected().instance(name).kill()
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@click.argument("name")
@output_option
def pause(name: str, output: str) -> None:
    """Let the guest stand still."""
    connected().instance(name).pause()
    answer(output, f"{name} stands still.", {"name": name, "state": "paused"})


@click.command
@click.argument("name")
@output_option
def resume(name: str, output: str) -> None:
    """Let the guest run on, also after its storage failed."""
    connected().instance(name).resume()
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@click.argument("name")
@output_option
def reset(name: str, output: str) -> None:
    """Press the reset button."""
    connected().instance(name).reset()
    answer(output, f"{name} was reset.", {"name": name})


@click.command
@click.argument("name")
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for the guest.")
@output_option
def reboot(name: str, timeout: float, output: str) -> None:
    """Shut an instance down and start it from its specification, as that is now."""
    for text in connected().instance(name).reboot(timeout=timeout):
        notice(text)
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@click.argument("name")
@output_option
def delete(name: str, output: str) -> None:
    """Forget an instance that does not run. Its disks are not touched."""
    connected().delete(name)
    answer(output, f"{name} is gone.", {"name": name})


@click.command
@click.argument("name")
@click.argument("new")
@output_option
def rename(name: str, new: str, output: str) -> None:
    """Give an instance that does not run another name."""
    connected().rename(name, new)
    answer(output, f"{name} is called {new} now.", {"name": new})


@click.command
@click.argument("name")
@output_option
def show(name: str, output: str) -> None:
    """Show an instance: what it does, how its last run ended, and its specification."""
    condition = connected().instance(name).show()
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
        facts["last stop"] = told(document.last_stop) + restarts(document.restart)
    if document.pending is not None:
        facts["unfinished"] = document.pending.operation
    return facts


@click.command
@output_option
def adopt(output: str) -> None:
    """After a restart of the manager or the host: find what runs, and mend what was left unfinished."""
    reports = Node().adopt()
    shown = [row(row_of(report)) | {"done": "; ".join(report.notices)} for report in reports]
    table(output, shown, ("name", "state", "pid", "done"))
    if failed := [report for report in reports if report.error is not None]:
        raise DroverError(f"{len(failed)} of {len(reports)} could not be adopted: {', '.join(r.name for r in failed)}")
