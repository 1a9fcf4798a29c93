"""The commands for the devices of an instance that runs: thin faces of :mod:`drover.kvm.instance`."""

from pathlib import Path
from typing import Any

import click

from drover.cli.output import answer, output_option
from drover.kvm.node import Node
from drover.ops.image import CACHES, FORMATS
from drover.ops.unplug import UNPLUG_TIMEOUT

_timeout = click.option(
    "--timeout", type=float, default=UNPLUG_TIMEOUT, show_default=True, help="Seconds for the guest to let go of it."
)


@click.command
@click.argument("name")
@click.argument("source")
@click.option("--format", type=click.Choice(FORMATS), required=True, help="Said, never probed.")
@click.option("--id", help="Of the device; chosen where it is not said.")
@click.option("--bus", type=click.Choice(["virtio-blk", "virtio-scsi"]), help="virtio-blk by default.")
@click.option("--cache", type=click.Choice(list(CACHES)), help="Of the host; none by default.")
@click.option("--serial", help="What the guest sees as its serial number.")
@click.option("--read-only", is_flag=True, help="The guest cannot write.")
@output_option
def add_disk(name: str, source: str, output: str, **fields: Any) -> None:
    """Plug a disk into an instance that runs; it stays in its specification.

    SOURCE is a file, a block device, or an NBD server's URI.
    """
    where = source if "://" in source else str(Path(source).absolute())
    said = {field: value for field, value in fields.items() if value not in (None, False)}
    disk = Node().instance(name).add_disk(source=where, **said)
    answer(output, f"{name} has the disk {disk.id}.", {"name": name, "id": disk.id})


@click.command
@click.argument("name")
@click.argument("id")
@_timeout
@output_option
def remove_disk(name: str, id: str, timeout: float, output: str) -> None:
    """Take a disk out of an instance that runs, and out of its specification. Its image is not touched."""
    Node().instance(name).remove_disk(id, timeout=timeout)
    answer(output, f"{name} no longer has the disk {id}.", {"name": name, "id": id})


@click.command
@click.argument("name")
@click.option("--mode", type=click.Choice(["bridge", "ovs", "routed", "macvtap"]), required=True, help="What it is on.")
@click.option("--link", help="The bridge, or the device.")
@click.option("--id", help="Of the card; chosen where it is not said.")
@click.option("--mac", help="Its address; chosen where it is not said.")
@click.option("--ip", help="The guest's address, for mode routed.")
@click.option("--queues", type=int, help="Pairs of queues; 1 by default.")
@output_option
def add_nic(name: str, output: str, **fields: Any) -> None:
    """Plug a network card into an instance that runs; it stays in its specification."""
    nic = Node().instance(name).add_nic(**{field: value for field, value in fields.items() if value is not None})
    answer(output, f"{name} has the card {nic.id}, {nic.mac}.", {"name": name, "id": nic.id, "mac": nic.mac})


@click.command
@click.argument("name")
@click.argument("id")
@_timeout
@output_option
def remove_nic(name: str, id: str, timeout: float, output: str) -> None:
    """Take a network card out of an instance that runs, and out of its specification."""
    Node().instance(name).remove_nic(id, timeout=timeout)
    answer(output, f"{name} no longer has the card {id}.", {"name": name, "id": id})
