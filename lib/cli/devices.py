"""The commands for the devices of an instance that runs: thin faces of :mod:`drover.kvm.instance`."""

from pathlib import Path
from typing import Any

import click

from drover.cli.backend import connected
from drover.cli.output import Size, answer, output_option
from drover.ops.image import CACHES, FORMATS

# Mode fd needs a descriptor of the caller's.
MODES = ("bridge", "ovs", "routed", "macvtap", "user")


@click.command
@click.argument("name")
@click.argument("source")
@click.option("--format", type=click.Choice(FORMATS), required=True, help="Said, never probed.")
@click.option("--id", help="Of the device; chosen where it is not said.")
@click.option("--bus", type=click.Choice(["virtio-blk", "virtio-scsi"]), help="virtio-blk by default.")
@click.option("--iothread", help="A thread of its own, by name; several disks may share it.")
@click.option("--cache", type=click.Choice(list(CACHES)), help="Of the host; none by default.")
@click.option("--serial", help="What the guest sees as its serial number.")
@click.option("--read-only", is_flag=True, help="The guest cannot write.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the guest's driver to be ready for it.")
@output_option
def add_disk(name: str, source: str, output: str, wait: float | None, **fields: Any) -> None:
    """Plug a disk into an instance that runs; it stays in its specification.

    SOURCE is a file, a block device, or an NBD server's URI.
    """
    where = source if "://" in source else str(Path(source).absolute())
    said = {field: value for field, value in fields.items() if value not in (None, False)}
    instance = connected().instance(name)
    disk = instance.add_disk(source=where, **said)
    if wait is not None:
        instance.wait_driver(disk.id, wait)
    answer(output, f"{name} has the disk {disk.id}.", {"name": name, "id": disk.id})


@click.command
@click.argument("name")
@click.option("--mode", type=click.Choice(MODES), required=True, help="What it is on.")
@click.option("--link", help="The bridge, or the device.")
@click.option("--id", help="Of the card; chosen where it is not said.")
@click.option("--mac", help="Its address; chosen where it is not said.")
@click.option("--ip", help="The guest's address, for mode routed.")
@click.option("--vlan", type=int, help="On the bridge.")
@click.option("--queues", type=int, help="Pairs of queues; 1 by default.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the guest's driver to be ready for it.")
@output_option
def add_nic(name: str, output: str, wait: float | None, **fields: Any) -> None:
    """Plug a network card into an instance that runs; it stays in its specification."""
    instance = connected().instance(name)
    nic = instance.add_nic(**{field: value for field, value in fields.items() if value is not None})
    if wait is not None:
        instance.wait_driver(nic.id, wait)
    answer(output, f"{name} has the card {nic.id}, {nic.mac}.", {"name": name, "id": nic.id, "mac": nic.mac})


@click.command
@click.argument("name")
@click.argument("id")
@click.option("--mode", type=click.Choice(MODES), help="What it is on.")
@click.option("--link", help="The bridge, or the device.")
@click.option("--vlan", type=int, help="On the bridge.")
@click.option("--ip", help="The guest's address, for mode routed.")
@output_option
def change_nic(name: str, id: str, output: str, **fields: Any) -> None:
    """Connect a network card to something else; it keeps its address.

    From bridge to bridge the guest keeps the card; else it sees it go and come again.
    """
    said = {field: value for field, value in fields.items() if value is not None}
    if said.get("mode") == "user":
        said = {"link": None, "vlan": None, "ip": None} | said
    nic = connected().instance(name).change_nic(id, **said)
    answer(output, f"{name}: the card {id} is on {nic.link or nic.mode}.", {"name": name, "id": id, "link": nic.link})


@click.command
@click.argument("name")
@click.argument("id")
@click.argument("state", type=click.Choice(["up", "down"]))
@output_option
def set_link(name: str, id: str, state: str, output: str) -> None:
    """Plug the cable of a network card in (up) or out (down), as the guest sees it."""
    connected().instance(name).set_link(id, up=state == "up")
    answer(output, f"{name}: the link of {id} is {state}.", {"name": name, "id": id, "state": state})


@click.command
@click.argument("name")
@click.argument("id")
@click.argument("size", type=Size())
@click.option("--shrink", is_flag=True, help="Let it be smaller than it is: what is beyond is lost.")
@output_option
def resize_disk(name: str, id: str, size: int, shrink: bool, output: str) -> None:
    """Make a disk of an instance that runs larger: SIZE in all, such as 20GiB."""
    now = connected().instance(name).resize_disk(id, size, shrink=shrink)
    answer(output, f"{name}: {id} has {now} bytes.", {"name": name, "id": id, "size": now})


@click.command
@click.argument("name")
@click.argument("id")
@click.argument("limits", nargs=-1, metavar="[LIMIT=NUMBER]...")
@output_option
def set_throttle(name: str, id: str, limits: tuple[str, ...], output: str) -> None:
    """Limit a disk, such as iops_total=500 bps_read=10000000; without any, take its limits away."""
    told: dict[str, Any] = {}
    for text in limits:
        word, _, number = text.partition("=")
        told[word] = int(number) if number.isdecimal() else number  # the specification says what is wrong
    connected().instance(name).set_throttle(id, **told)
    answer(output, f"{name}: {id} has {len(told) or 'no'} limits.", {"name": name, "id": id, "throttle": told})


@click.command
@click.argument("name")
@click.argument("id")
@click.argument("source", required=False)
@click.option("--format", type=click.Choice(FORMATS), default="raw", show_default=True, help="Said, never probed.")
@click.option("--force", is_flag=True, help="Even if the guest holds the tray shut.")
@output_option
def change_medium(name: str, id: str, source: str | None, format: str, force: bool, output: str) -> None:
    """Put a medium into a CD drive, in place of the one that is in it; without SOURCE only take that out."""
    where = "" if source is None else source if "://" in source else str(Path(source).absolute())
    connected().instance(name).change_medium(id, where, format=format, force=force)
    there = f"{where} is in {id}" if where else f"{id} is empty"
    answer(output, f"{name}: {there}.", {"name": name, "id": id, "source": where})
