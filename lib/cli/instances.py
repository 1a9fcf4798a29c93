"""The commands for instances of this host: each a thin face of :mod:`drover.kvm`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import to_builtins

from drover.cli.backend import connected, row_of
from drover.cli.care import confirm, dry_run_option, would, yes_option
from drover.cli.clerk import no_wait_option
from drover.cli.complete import instance_argument
from drover.cli.list import restarts, row, told
from drover.cli.output import answer, coloured, data, for_people, notice, output_option, table
from drover.cli.text import harmless
from drover.errors import ArgumentError, DroverError, InstanceBusy, SpecError, WrongState
from drover.kvm.deadlines import SHUTDOWN_TIMEOUT
from drover.kvm.spec import Spec, load, public
from drover.kvm.state import State

if TYPE_CHECKING:
    from drover.kvm.condition import Condition

_FORGOTTEN: Final = "with its specification, logs, UEFI variables and TPM"
# Of a run that is over in one of these, note is taken by whatever comes next.
_OVER: Final = (State.STOPPED, State.SAVED, State.ENDED, State.SHUTDOWN, State.PANICKED)


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
@instance_argument()
@click.option("--paused", is_flag=True, help="Do not let the guest run yet.")
@click.option("--fresh", is_flag=True, help="Of one that is saved: forget that, and boot it.")
@yes_option
@no_wait_option
@output_option
def start(name: str, paused: bool, fresh: bool, yes: bool, no_wait: bool, output: str) -> None:
    """Start an instance; nothing if it runs. One that was saved goes on where it was (`drover restore`)."""
    instance = connected(no_wait=no_wait).instance(name)
    if fresh and instance.show().state is State.SAVED:
        confirm(f"Forget what {name} had in its memory, and boot it?", yes)
    notices = instance.start(paused=paused, fresh=fresh)
    for text in notices:
        notice(text)
    state = "paused" if paused else "running"
    answer(output, f"{name} is {state}.", {"name": name, "state": state, "notices": notices})


@click.command
@instance_argument()
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for the guest.")
@click.option("--no-force", is_flag=True, help="Leave a guest running that does not shut down in time.")
@no_wait_option
@output_option
def stop(name: str, timeout: float, no_force: bool, no_wait: bool, output: str) -> None:
    """Shut an instance down: by the power button, and if the guest does not heed that, by pulling the plug."""
    ended = connected(no_wait=no_wait).instance(name).stop(timeout=timeout, force=not no_force)
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@instance_argument()
@dry_run_option
@output_option
def kill(name: str, dry_run: bool, output: str) -> None:
    """End an instance at once, as if the plug was pulled."""
    instance = connected().instance(name)
    if dry_run:
        state = instance.show().state
        rests = state in (State.STOPPED, State.SAVED)
        act = f"do nothing: {name} is {state}" if rests else f"end {name} at once, which is {state}"
        would(output, f"{act}.", {"name": name, "state": str(state)})
        return
    ended = instance.kill()
    answer(output, f"{name} has stopped ({told(ended)}).", {"name": name, "stop": to_builtins(ended)})


@click.command
@instance_argument()
@output_option
def pause(name: str, output: str) -> None:
    """Let the guest stand still."""
    connected().instance(name).pause()
    answer(output, f"{name} stands still.", {"name": name, "state": "paused"})


@click.command
@instance_argument()
@output_option
def resume(name: str, output: str) -> None:
    """Let the guest run on, also after its storage failed."""
    connected().instance(name).resume()
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@instance_argument()
@output_option
def reset(name: str, output: str) -> None:
    """Press the reset button."""
    connected().instance(name).reset()
    answer(output, f"{name} was reset.", {"name": name})


@click.command
@instance_argument()
@click.option("--timeout", type=float, default=SHUTDOWN_TIMEOUT, show_default=True, help="Seconds for the guest.")
@no_wait_option
@output_option
def reboot(name: str, timeout: float, no_wait: bool, output: str) -> None:
    """Shut an instance down and start it from its specification, as that is now."""
    for text in connected(no_wait=no_wait).instance(name).reboot(timeout=timeout):
        notice(text)
    answer(output, f"{name} is running.", {"name": name, "state": "running"})


@click.command
@instance_argument()
@yes_option
@dry_run_option
@output_option
def delete(name: str, yes: bool, dry_run: bool, output: str) -> None:
    """Forget an instance that does not run: its specification, logs, UEFI variables and TPM.

    Its disks are not touched. It asks first, unless --yes is said.
    """
    node = connected()
    condition = node.instance(name).show()
    if condition.state is State.BUSY:
        raise InstanceBusy(name, condition.detail, 0)
    if condition.state not in _OVER:
        raise WrongState(name, condition.state, State.STOPPED)
    if dry_run:
        disks = [disk.source for disk in condition.document.spec.disks if disk.source]
        kept = f"Its disks would stay: {', '.join(disks)}." if disks else "It has no disks."
        would(output, f"forget {name}, {_FORGOTTEN}. {kept}", {"name": name, "disks": disks})
        return
    memory = ", and what was saved of its memory" if condition.state is State.SAVED else ""
    confirm(f"Forget {name}, {_FORGOTTEN}{memory}? Its disks stay.", yes)
    node.delete(name)
    answer(output, f"{name} is gone.", {"name": name})


@click.command
@instance_argument()
@click.argument("new")
@output_option
def rename(name: str, new: str, output: str) -> None:
    """Give an instance that does not run another name."""
    connected().rename(name, new)
    answer(output, f"{name} is called {new} now.", {"name": new})


@click.command
@instance_argument()
@output_option
def show(name: str, output: str) -> None:
    """Show an instance: what it does, how its last run ended, and its specification."""
    condition = connected().instance(name).show()
    spec = public(condition.document.spec)
    facts = _facts(condition)
    if not for_people(output):
        data(output, facts | {"spec": spec})
        return
    for key, value in facts.items():
        if value not in ("", None) and key != "devices":
            click.echo(f"{key + ':':14} {coloured(harmless(str(value)))}")
    if devices := _devices(condition):
        click.echo()
        table(output, devices, ("device", "kind", "what", "on", "at"))
    if output == "wide":
        click.echo(f"\nspecification:\n{json.dumps(spec, indent=1)}")


def _devices(condition: "Condition") -> list[dict[str, Any]]:
    """What is plugged in, or is to be: a row for each."""
    runtime = condition.document.runtime
    spec = runtime.spec if runtime else condition.document.spec
    what = {disk.id: ("disk", disk.source or "empty") for disk in spec.disks}
    what |= {nic.id: ("nic", " ".join(filter(None, (nic.mode, nic.link, nic.mac)))) for nic in spec.nics}
    rows = {name: {"device": name, "kind": kind, "what": text} for name, (kind, text) in what.items()}
    for name, device in runtime.devices.items() if runtime else ():
        size = f"{device.size >> 20} MiB" if device.size else ""
        row = {"device": name, "kind": device.kind, "what": size} | rows.get(name, {})
        rows[name] = row | {"on": device.bus, "at": device.addr}
    return list(rows.values())


def _facts(condition: "Condition") -> dict[str, Any]:
    document, runtime = condition.document, condition.document.runtime
    facts: dict[str, Any] = {"name": condition.name, "state": str(condition.state), "detail": condition.detail}
    if runtime is not None:
        facts |= {"pid": runtime.pid, "emulator": runtime.emulator, "version": ".".join(map(str, runtime.version))}
        facts |= {"machine": runtime.machine, "accelerator": runtime.accelerator, "notice": runtime.notice}
        facts |= {"user": runtime.uid, "devices": ", ".join(runtime.devices)}
    if document.last_stop is not None:
        facts["last stop"] = told(document.last_stop) + restarts(document.restart)
    if (saved := document.saved) is not None:
        where = f" in {saved.path}" if saved.path else ""
        facts["memory"] = f"{saved.size >> 20} MiB{where}, of QEMU {'.'.join(map(str, saved.parcel.version))}"
    if document.pending is not None:
        facts["unfinished"] = document.pending.operation
    return facts


@click.command
@output_option
def adopt(output: str) -> None:
    """After a restart of the manager or the host: find what runs, and mend what was left unfinished."""
    from drover.kvm.node import Node

    reports = Node().adopt()
    shown = [row(row_of(report)) | {"done": "; ".join(report.notices)} for report in reports]
    table(output, shown, ("name", "state", "pid", "done"))
    if failed := [report for report in reports if report.error is not None]:
        raise DroverError(f"{len(failed)} of {len(reports)} could not be adopted: {', '.join(r.name for r in failed)}")
