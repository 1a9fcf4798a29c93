"""The commands that take a machine from one QEMU to another on its host: by a file, or while it runs."""

from typing import TYPE_CHECKING

import click
from msgspec import to_builtins

from drover.cli.backend import connected
from drover.cli.care import confirm, dry_run_option, would, yes_option
from drover.cli.choice import path_there
from drover.cli.clerk import no_wait_option
from drover.cli.complete import instance_argument
from drover.cli.output import answer, notice, output_option
from drover.kvm.state import State
from drover.node.client import RemoteInstance

if TYPE_CHECKING:
    from drover.kvm.upgrade import Upgraded


@click.command
@instance_argument()
@click.option("--to", metavar="FILE", help="Where to; FILE is not there yet. By default the instance's own folder.")
@no_wait_option
@output_option
def save(name: str, to: str | None, no_wait: bool, output: str) -> None:
    """Put an instance's memory into a file, and end it; `drover start` has it go on where it was.

    The guest does not notice, but for the clock. If it cannot be saved, as where the disk is full, it runs on. Nothing
    may write to its disks until it is restored.
    """
    saved = connected(no_wait=no_wait).instance(name).save(file=path_there(to) if to else "")
    where = f" to {saved.path}" if saved.path else ""
    told = {"name": name, "state": "saved", "path": saved.path, "size": saved.size, "form": saved.form}
    answer(output, f"{name} is saved{where}: {saved.size >> 20} MiB. drover start {name} has it go on.", told)


@click.command
@instance_argument()
@click.option("--from", "source", metavar="FILE", help="Where the file is now, if it was moved.")
@click.option("--emulator", metavar="PATH", help="The QEMU, where it is to be another one.")
@click.option("--paused", is_flag=True, help="Do not let the guest run yet.")
@no_wait_option
@output_option
def restore(name: str, source: str | None, emulator: str | None, paused: bool, no_wait: bool, output: str) -> None:
    """Have a saved instance go on where it was; the file is removed.

    If that fails, it is saved still. A guest that stood still when it was saved does so after it.
    """
    instance = connected(no_wait=no_wait).instance(name)
    notices = instance.restore(
        file=path_there(source) if source else "", emulator=path_there(emulator) if emulator else "", paused=paused
    )
    for text in notices:
        notice(text)
    state = str(instance.show().state)
    answer(output, f"{name} is {state}.", {"name": name, "state": state, "notices": notices})


@click.command
@instance_argument()
@yes_option
@dry_run_option
@output_option
def discard(name: str, yes: bool, dry_run: bool, output: str) -> None:
    """Forget what was saved of an instance: its next start boots it. It asks first, unless --yes is said."""
    instance = connected().instance(name)
    is_saved = instance.show().state is State.SAVED
    if dry_run:
        act = f"forget what {name} had in its memory" if is_saved else f"do nothing: {name} is not saved"
        would(output, f"{act}.", {"name": name, "saved": is_saved})
        return
    if is_saved:
        confirm(f"Forget what {name} had in its memory? Its next start boots it.", yes)
    instance.discard()
    answer(output, f"Of {name} nothing is saved.", {"name": name})


@click.command
@instance_argument()
@click.option("--emulator", metavar="PATH", help="The QEMU, where it is to be another one.")
@no_wait_option
@output_option
def upgrade(name: str, emulator: str | None, no_wait: bool, output: str) -> None:
    """Have an instance go over to the QEMU that an update has brought, while it runs; nothing if it runs that.

    `drover list` marks those whose QEMU was replaced since they were started. A second QEMU is started beside the
    first, so both need memory for a moment. It goes over as between two nodes (`drover migrate`), and what it took is
    told likewise; a guest that writes faster than is sent stands still for the rest at last. If it cannot go over, it
    runs on where it is. Where there cannot be two of it at once, as with a TPM, `drover save` and `drover restore` do
    it with a pause.
    """
    there = connected(no_wait=no_wait).instance(name)
    path = path_there(emulator) if emulator else ""
    if isinstance(there, RemoteInstance):
        done = there.upgrade(emulator=path)
    else:
        from drover.migration.local import upgrade as go_over  # what a daemon does for us takes long to load

        done = go_over(there, emulator=path)
    for text in done.notices:
        notice(text)
    answer(output, _gone_over(name, done), {"name": name, **to_builtins(done), "version": _version(done)})


def _gone_over(name: str, done: "Upgraded") -> str:
    if not done.moved:
        return f"{name} runs on QEMU {_version(done)} already."
    text = f"{name} runs on QEMU {_version(done)} now, after {done.seconds:.1f} s; "
    text += f"it stood still for {done.blackout * 1000:.0f} ms"
    if done.helped:
        text += f". Helped on by: {'; '.join(done.helped)}"
    return f"{text}."


def _version(done: "Upgraded") -> str:
    return ".".join(map(str, done.version))
