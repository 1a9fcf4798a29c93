"""The commands that make a part of an instance that runs larger, or smaller."""

import click

from drover.cli.backend import connected
from drover.cli.care import dry_run_option, would
from drover.cli.clerk import no_wait_option
from drover.cli.complete import device_argument, instance_argument
from drover.cli.output import Size, answer, output_option


@click.command
@instance_argument()
@device_argument("disk")
@click.argument("size", type=Size())
@click.option("--shrink", is_flag=True, help="Let it be smaller than it is: what is beyond is lost.")
@dry_run_option
@output_option
def disk(name: str, id: str, size: int, shrink: bool, dry_run: bool, output: str) -> None:
    """Make a disk of an instance that runs larger: SIZE in all, such as 20GiB."""
    if dry_run:
        has = connected().instance(name).resize_disk(id, size, shrink=shrink, dry_run=True)
        lost = f"; its last {has - size} bytes would be lost" if size < has else ""
        told = {"name": name, "id": id, "size": size, "has": has, "lost": max(0, has - size)}
        would(output, f"give {id} of {name} {size} bytes, which has {has} now{lost}.", told)
        return
    now = connected().instance(name).resize_disk(id, size, shrink=shrink)
    answer(output, f"{name}: {id} has {now} bytes.", {"name": name, "id": id, "size": now})


@click.command
@instance_argument()
@device_argument("memory")
@click.argument("size", type=Size())
@no_wait_option
@output_option
def memory(name: str, id: str, size: int, no_wait: bool, output: str) -> None:
    """Ask the guest to have SIZE of a virtio-mem device's memory."""
    now = connected(no_wait=no_wait).instance(name).resize_memory(id, size)
    answer(output, f"{name} has {now} bytes of {id}.", {"name": name, "id": id, "size": now})
