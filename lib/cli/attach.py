"""The commands that plug a device into an instance that runs: thin faces of :mod:`drover.kvm.instance`."""

from typing import Any

import click

from drover.cli.backend import connected
from drover.cli.choice import path_there
from drover.cli.complete import file_argument, instance_argument
from drover.cli.output import Size, answer, output_option
from drover.ops.image import CACHES, FORMATS

# Mode fd needs a descriptor of the caller's.
MODES = ("bridge", "ovs", "routed", "macvtap", "user")


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {field: value for field, value in fields.items() if value not in (None, False)}


@click.command
@instance_argument()
@file_argument("source")
@click.option("--format", type=click.Choice(FORMATS), required=True, help="Said, never probed.")
@click.option("--id", help="Of the device; chosen where it is not said.")
@click.option("--bus", type=click.Choice(["virtio-blk", "virtio-scsi"]), help="virtio-blk by default.")
@click.option("--iothread", help="A thread of its own, by name; several disks may share it.")
@click.option("--cache", type=click.Choice(list(CACHES)), help="Of the host; none by default.")
@click.option("--serial", help="What the guest sees as its serial number.")
@click.option("--read-only", is_flag=True, help="The guest cannot write.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the guest's driver to be ready for it.")
@output_option
def disk(name: str, source: str, output: str, wait: float | None, **fields: Any) -> None:
    """Plug a disk into an instance that runs; it stays in its specification.

    SOURCE is a file, a block device, or an NBD server's URI.
    """
    where = path_there(source)
    instance = connected().instance(name)
    added = instance.add_disk(source=where, **_said(fields))
    if wait is not None:
        instance.wait_driver(added.id, wait)
    answer(output, f"{name} has the disk {added.id}.", {"name": name, "id": added.id})


@click.command
@instance_argument()
@click.option("--mode", type=click.Choice(MODES), required=True, help="What it is on.")
@click.option("--link", help="The bridge, or the device.")
@click.option("--id", help="Of the card; chosen where it is not said.")
@click.option("--mac", help="Its address; chosen where it is not said.")
@click.option("--ip", help="The guest's address, for mode routed.")
@click.option("--vlan", type=int, help="On the bridge.")
@click.option("--queues", type=int, help="Pairs of queues; 1 by default.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the guest's driver to be ready for it.")
@output_option
def nic(name: str, output: str, wait: float | None, **fields: Any) -> None:
    """Plug a network card into an instance that runs; it stays in its specification."""
    instance = connected().instance(name)
    added = instance.add_nic(**_said(fields))
    if wait is not None:
        instance.wait_driver(added.id, wait)
    answer(output, f"{name} has the card {added.id}, {added.mac}.", {"name": name, "id": added.id, "mac": added.mac})


@click.command
@instance_argument()
@click.argument("size", type=Size())
@click.option("--type", type=click.Choice(["dimm", "virtio-mem"]), default="dimm", show_default=True)
@output_option
def memory(name: str, size: int, type: str, output: str) -> None:
    """Plug memory in: a DIMM of SIZE, such as 1GiB; or virtio-mem up to SIZE, of which `resize memory` gives some."""
    added = connected().instance(name).add_memory(size, type=type)
    answer(output, f"{name} has the memory {added.id}.", {"name": name, "id": added.id, "size": added.size})


@click.command
@instance_argument()
@click.option("--type", type=click.Choice(["tablet", "mouse", "keyboard", "host"]), help="host by default.")
@click.option("--vendor", help="Of the host's device: four hexadecimal digits.")
@click.option("--product", help="The same.")
@click.option("--bus", type=int, help="Of the host's device, instead: the number of its bus.")
@click.option("--address", type=int, help="And its number there.")
@click.option("--id", help="Of the device; chosen where it is not said.")
@output_option
def usb(name: str, output: str, **fields: Any) -> None:
    """Plug a USB device in; it stays in the specification."""
    device = connected().instance(name).add_usb(**_said(fields))
    answer(output, f"{name} has the USB device {device.id}.", {"name": name, "id": device.id})


@click.command
@instance_argument()
@click.argument("host")
@click.option("--id", help="Of the device; chosen where it is not said.")
@output_option
def vfio(name: str, host: str, output: str, **fields: Any) -> None:
    """Give the guest the host's PCI device HOST, such as 0000:3b:00.0, whose driver there is vfio-pci."""
    device = connected().instance(name).add_vfio(host=host, **_said(fields))
    answer(output, f"{name} has the device {device.id}.", {"name": name, "id": device.id})
