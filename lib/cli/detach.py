"""The commands that take a device out of an instance that runs, and out of its specification."""

from typing import TYPE_CHECKING

import click

from drover.cli.backend import connected
from drover.cli.care import dry_run_option, would
from drover.cli.clerk import no_wait_option
from drover.cli.complete import device_argument, instance_argument
from drover.cli.output import answer, output_option
from drover.cli.setting import unplug_timeout
from drover.errors import DeviceNotFound, WrongState
from drover.kvm.record import Device
from drover.kvm.state import State

if TYPE_CHECKING:
    from drover.kvm.condition import Condition


def _device(condition: "Condition", kind: str, id: str) -> Device:
    """What would be taken out.

    :raises WrongState: the instance does not run
    :raises DeviceNotFound: it has none of this kind
    """
    runtime = condition.document.runtime
    if runtime is None:
        raise WrongState(condition.name, condition.state, State.RUNNING)
    there = {name: device for name, device in runtime.devices.items() if device.kind == kind}
    if id not in there:
        raise DeviceNotFound(condition.name, id, f"one of its {kind} devices: {', '.join(there) or 'none'}")
    return there[id]


def _removal(kind: str, thing: str, note: str = "") -> click.Command:
    """The command that takes a device of a kind out."""

    text = f"Take {thing} out of an instance that runs, and out of its specification.{note}"

    @click.command(kind, help=text)
    @instance_argument()
    @device_argument(kind)
    @unplug_timeout
    @dry_run_option
    @no_wait_option
    @output_option
    def remove(name: str, id: str, timeout: float, dry_run: bool, no_wait: bool, output: str) -> None:
        instance = connected(no_wait=no_wait).instance(name)
        if dry_run:
            device = _device(instance.show(), kind, id)
            where = f" ({device.addr} on {device.bus})" if device.bus else ""
            would(output, f"take {id}{where} out of {name}.{note}", {"name": name, "id": id, "kind": kind})
            return
        getattr(instance, f"remove_{kind}")(id, timeout=timeout)
        answer(output, f"{name} no longer has {id}.", {"name": name, "id": id})

    return remove


disk = _removal("disk", "a disk", " Its image is not touched.")
nic = _removal("nic", "a network card")
memory = _removal("memory", "memory", " Of virtio-mem the guest must have nothing any more.")
usb = _removal("usb", "a USB device", " The guest is not asked.")
vfio = _removal("vfio", "a PCI device of the host")
