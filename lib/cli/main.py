"""The program `drover`: a table of sub-commands, each one's module loaded only when that command is typed.

`drover --help` and `drover --version` import click and nothing else of weight, so they answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

import click

from drover.errors import DroverError
from drover.version import __version__


class Entry(NamedTuple):
    """A sub-command as the table knows it: the module, its name there, and its line in `drover --help`."""

    module: str
    summary: str
    name: str = "command"


_INSTANCES, _BOOT = "drover.cli.instances", "drover.cli.boot"
_DEVICES, _PARTS = "drover.cli.devices", "drover.cli.parts"
COMMANDS = {
    "add-disk": Entry(_DEVICES, "Plug a disk into an instance that runs.", "add_disk"),
    "add-nic": Entry(_DEVICES, "Plug a network card into an instance that runs.", "add_nic"),
    "add-memory": Entry(_PARTS, "Plug memory into an instance that runs.", "add_memory"),
    "add-usb": Entry(_PARTS, "Plug a USB device into an instance that runs.", "add_usb"),
    "add-vfio": Entry(_PARTS, "Give an instance that runs a PCI device of the host.", "add_vfio"),
    "balloon": Entry(_PARTS, "Ask a guest to do with less memory.", "balloon"),
    "change-medium": Entry(_DEVICES, "Put a medium into a CD drive, or take it out.", "change_medium"),
    "change-nic": Entry(_DEVICES, "Connect a network card to something else.", "change_nic"),
    "remove-memory": Entry(_PARTS, "Take memory out of an instance that runs.", "remove_memory"),
    "remove-usb": Entry(_PARTS, "Take a USB device out of an instance that runs.", "remove_usb"),
    "remove-vfio": Entry(_PARTS, "Take a PCI device of the host from an instance that runs.", "remove_vfio"),
    "resize-disk": Entry(_DEVICES, "Make a disk of an instance that runs larger.", "resize_disk"),
    "resize-memory": Entry(_PARTS, "Give a guest more or less of virtio-mem.", "resize_memory"),
    "set-link": Entry(_DEVICES, "Plug the cable of a network card in or out.", "set_link"),
    "set-throttle": Entry(_DEVICES, "Limit a disk of an instance that runs.", "set_throttle"),
    "set-vcpus": Entry(_PARTS, "Plug vCPUs in or out.", "set_vcpus"),
    "remove-disk": Entry(_PARTS, "Take a disk out of an instance that runs.", "remove_disk"),
    "remove-nic": Entry(_PARTS, "Take a network card out of an instance that runs.", "remove_nic"),
    "adopt": Entry(_INSTANCES, "After a restart: find what runs, mend what was left unfinished.", "adopt"),
    "clone": Entry("drover.cli.clone", "Make an instance like another one.", "clone"),
    "console": Entry("drover.cli.console", "Be at an instance's serial console.", "console"),
    "create": Entry(_INSTANCES, "Make an instance of a specification.", "create"),
    "delete": Entry(_INSTANCES, "Forget an instance that does not run.", "delete"),
    "kill": Entry(_INSTANCES, "End an instance at once.", "kill"),
    "list": Entry("drover.cli.list", "Show all instances of this host.", "list_"),
    "pause": Entry(_INSTANCES, "Let a guest stand still.", "pause"),
    "reboot": Entry(_INSTANCES, "Shut an instance down and start it anew.", "reboot"),
    "rename": Entry(_INSTANCES, "Give an instance another name.", "rename"),
    "reset": Entry(_INSTANCES, "Press an instance's reset button.", "reset"),
    "resume": Entry(_INSTANCES, "Let a guest run on.", "resume"),
    "run": Entry("drover.cli.run", "Make, start and watch an instance: drover run demo.", "run"),
    "show": Entry(_INSTANCES, "Show an instance.", "show"),
    "start": Entry(_INSTANCES, "Start an instance.", "start"),
    "start-all": Entry(_BOOT, "Start the instances that start with the host.", "start_all"),
    "stop": Entry(_INSTANCES, "Shut an instance down.", "stop"),
    "stop-all": Entry(_BOOT, "Shut down all instances.", "stop_all"),
    "verify": Entry("drover.cli.verify", "Put specification, record and QEMU side by side.", "verify"),
    "watch": Entry("drover.cli.watch", "Watch all instances: restart, resume, take note.", "watch"),
    "demo": Entry("drover.cli.demo", "Boot a guest, hot-plug, live-migrate it, show each step."),
    "hmp": Entry("drover.shell.hmp", "Talk to a machine's human monitor."),
    "qga": Entry("drover.shell.qga", "Talk to the agent in a guest."),
    "qmp": Entry("drover.shell.qmp", "Talk QMP to a machine: a shell, or a script."),
    "qom": Entry("drover.shell.qom", "Look at the objects of a machine, and set their properties."),
}


class LazyGroup(click.Group):
    """A group that knows its sub-commands by the table, and imports one only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the table, sorted as click sorts them."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported now; None if the table has no such name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(import_module(entry.module), entry.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table alone: click's own way would import every one of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="drover", message="%(prog)s %(version)s")
def group() -> None:
    """Drive QEMU/KVM virtual machines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `drover` with these arguments (those of the process unless given), and exit the process.

    A `DroverError` is told in one line on standard error, exit status 1, and so is what the system says of a file;
    anything else is a fault of ours and keeps its traceback.
    """
    try:
        group.main(args=arguments, prog_name="drover")
    except DroverError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")


def _fail(text: str) -> NoReturn:
    click.echo(f"drover: {' '.join(text.split())}", err=True)
    sys.exit(1)
