"""The commands that change an instance that runs, and what its devices are on."""

from typing import Any

import click

from drover.cli.attach import MODES
from drover.cli.backend import connected
from drover.cli.choice import path_there
from drover.cli.clerk import no_wait_option
from drover.cli.complete import device_argument, file_argument, instance_argument
from drover.cli.output import Size, answer, output_option
from drover.ops.image import FORMATS
from drover.ops.unplug import UNPLUG_TIMEOUT

unplug_timeout = click.option(
    "--timeout", type=float, default=UNPLUG_TIMEOUT, show_default=True, help="Seconds for the guest to let go of it."
)


@click.command
@instance_argument()
@click.argument("count", type=int)
@click.option("--even-under-tcg", is_flag=True, help="Also without KVM, though QEMU may abort over it.")
@unplug_timeout
@no_wait_option
@output_option
def vcpus(name: str, count: int, even_under_tcg: bool, timeout: float, no_wait: bool, output: str) -> None:
    """Plug vCPUs in or out until there are COUNT. Those that were there at the start stay."""
    connected(no_wait=no_wait).instance(name).set_vcpus(count, timeout=timeout, even_under_tcg=even_under_tcg)
    answer(output, f"{name} has {count} vCPUs.", {"name": name, "count": count})


@click.command
@instance_argument()
@click.argument("size", type=Size())
@no_wait_option
@output_option
def balloon(name: str, size: int, no_wait: bool, output: str) -> None:
    """Ask the guest to do with SIZE of memory, until its next start."""
    now = connected(no_wait=no_wait).instance(name).balloon(size)
    answer(output, f"{name} has {now} bytes.", {"name": name, "size": now})


@click.command
@instance_argument()
@device_argument("nic")
@click.option("--mode", type=click.Choice(MODES), help="What it is on.")
@click.option("--link", help="The bridge, or the device.")
@click.option("--vlan", type=int, help="On the bridge.")
@click.option("--ip", help="The guest's address, for mode routed.")
@output_option
def nic(name: str, id: str, output: str, **fields: Any) -> None:
    """Connect a network card to something else; it keeps its address.

    From bridge to bridge the guest keeps the card; else it sees it go and come again.
    """
    said = {field: value for field, value in fields.items() if value is not None}
    if said.get("mode") == "user":
        said = {"link": None, "vlan": None, "ip": None} | said
    now = connected().instance(name).change_nic(id, **said)
    answer(output, f"{name}: the card {id} is on {now.link or now.mode}.", {"name": name, "id": id, "link": now.link})


@click.command
@instance_argument()
@device_argument("nic")
@click.argument("state", type=click.Choice(["up", "down"]))
@output_option
def link(name: str, id: str, state: str, output: str) -> None:
    """Plug the cable of a network card in (up) or out (down), as the guest sees it."""
    connected().instance(name).set_link(id, up=state == "up")
    answer(output, f"{name}: the link of {id} is {state}.", {"name": name, "id": id, "state": state})


@click.command
@instance_argument()
@device_argument("disk")
@click.argument("limits", nargs=-1, metavar="[LIMIT=NUMBER]...")
@output_option
def throttle(name: str, id: str, limits: tuple[str, ...], output: str) -> None:
    """Limit a disk, such as iops_total=500 bps_read=10000000; without any, take its limits away."""
    told: dict[str, Any] = {}
    for text in limits:
        word, _, number = text.partition("=")
        told[word] = int(number) if number.isdecimal() else number  # the specification says what is wrong
    connected().instance(name).set_throttle(id, **told)
    answer(output, f"{name}: {id} has {len(told) or 'no'} limits.", {"name": name, "id": id, "throttle": told})


@click.command
@instance_argument()
@device_argument("cdrom")
@file_argument("source", required=False)
@click.option("--format", type=click.Choice(FORMATS), default="raw", show_default=True, help="Said, never probed.")
@click.option("--force", is_flag=True, help="Even if the guest holds the tray shut.")
@output_option
def medium(name: str, id: str, source: str | None, format: str, force: bool, output: str) -> None:
    """Put a medium into a CD drive, in place of the one that is in it; without SOURCE only take that out."""
    where = "" if source is None else path_there(source)
    connected().instance(name).change_medium(id, where, format=format, force=force)
    there = f"{where} is in {id}" if where else f"{id} is empty"
    answer(output, f"{name}: {there}.", {"name": name, "id": id, "source": where})
