"""The commands for what else comes and goes while an instance runs: vCPUs, memory, USB; and those that take out."""

from typing import Any

import click

from drover.cli.backend import connected
from drover.cli.output import Size, answer, output_option
from drover.ops.unplug import UNPLUG_TIMEOUT

_timeout = click.option(
    "--timeout", type=float, default=UNPLUG_TIMEOUT, show_default=True, help="Seconds for the guest to let go of it."
)


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if value is not None}


@click.command
@click.argument("name")
@click.argument("count", type=int)
@click.option("--even-under-tcg", is_flag=True, help="Also without KVM, though QEMU may abort over it.")
@_timeout
@output_option
def set_vcpus(name: str, count: int, even_under_tcg: bool, timeout: float, output: str) -> None:
    """Plug vCPUs in or out until there are COUNT. Those that were there at the start stay."""
    connected().instance(name).set_vcpus(count, timeout=timeout, even_under_tcg=even_under_tcg)
    answer(output, f"{name} has {count} vCPUs.", {"name": name, "count": count})


@click.command
@click.argument("name")
@click.argument("size", type=Size())
@click.option("--type", type=click.Choice(["dimm", "virtio-mem"]), default="dimm", show_default=True)
@output_option
def add_memory(name: str, size: int, type: str, output: str) -> None:
    """Plug memory in: a DIMM of SIZE, such as 1GiB; or virtio-mem up to SIZE, of which resize-memory gives some."""
    memory = connected().instance(name).add_memory(size, type=type)
    answer(output, f"{name} has the memory {memory.id}.", {"name": name, "id": memory.id, "size": memory.size})


@click.command
@click.argument("name")
@click.argument("id")
@click.argument("size", type=Size())
@output_option
def resize_memory(name: str, id: str, size: int, output: str) -> None:
    """Ask the guest to have SIZE of a virtio-mem device's memory."""
    now = connected().instance(name).resize_memory(id, size)
    answer(output, f"{name} has {now} bytes of {id}.", {"name": name, "id": id, "size": now})


@click.command
@click.argument("name")
@click.argument("size", type=Size())
@output_option
def balloon(name: str, size: int, output: str) -> None:
    """Ask the guest to do with SIZE of memory, until its next start."""
    now = connected().instance(name).balloon(size)
    answer(output, f"{name} has {now} bytes.", {"name": name, "size": now})


@click.command
@click.argument("name")
@click.option("--type", type=click.Choice(["tablet", "mouse", "keyboard", "host"]), help="host by default.")
@click.option("--vendor", help="Of the host's device: four hexadecimal digits.")
@click.option("--product", help="The same.")
@click.option("--bus", type=int, help="Of the host's device, instead: the number of its bus.")
@click.option("--address", type=int, help="And its number there.")
@click.option("--id", help="Of the device; chosen where it is not said.")
@output_option
def add_usb(name: str, output: str, **fields: Any) -> None:
    """Plug a USB device in; it stays in the specification."""
    device = connected().instance(name).add_usb(**_said(fields))
    answer(output, f"{name} has the USB device {device.id}.", {"name": name, "id": device.id})


@click.command
@click.argument("name")
@click.argument("host")
@click.option("--id", help="Of the device; chosen where it is not said.")
@output_option
def add_vfio(name: str, host: str, output: str, **fields: Any) -> None:
    """Give the guest the host's PCI device HOST, such as 0000:3b:00.0, whose driver there is vfio-pci."""
    device = connected().instance(name).add_vfio(host=host, **_said(fields))
    answer(output, f"{name} has the device {device.id}.", {"name": name, "id": device.id})


def _removal(kind: str, thing: str, note: str = "") -> click.Command:
    """The command that takes a device of a kind out."""

    text = f"Take {thing} out of an instance that runs, and out of its specification.{note}"

    @click.command(f"remove-{kind}", help=text)
    @click.argument("name")
    @click.argument("id")
    @_timeout
    @output_option
    def remove(name: str, id: str, timeout: float, output: str) -> None:
        getattr(connected().instance(name), f"remove_{kind}")(id, timeout=timeout)
        answer(output, f"{name} no longer has {id}.", {"name": name, "id": id})

    return remove


remove_disk = _removal("disk", "a disk", " Its image is not touched.")
remove_nic = _removal("nic", "a network card")
remove_memory = _removal("memory", "memory", " Of virtio-mem the guest must have nothing any more.")
remove_usb = _removal("usb", "a USB device", " The guest is not asked.")
remove_vfio = _removal("vfio", "a PCI device of the host")
