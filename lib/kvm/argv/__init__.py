"""From a specification to QEMU's command line. Pure: nothing is looked up or opened here.

- :mod:`.launch`  what goes in and comes out
- :mod:`.places`  where on which bus
- :mod:`.board`, :mod:`.disks`, :mod:`.nics`, :mod:`.screen`, :mod:`.devices`  the words, a function a class of devices
- :mod:`.plugged`  vCPUs and memory that were plugged into a machine that arrives

Not on the command line, as it has no place there: passwords, limits of disks, the pinning of CPUs.
Whoever starts the machine sets them before it runs.
"""

from ..spec import Spec
from . import board, devices, disks, nics, plugged, screen
from .launch import Built, DiskNeed, Given, Launch, Qemu, Writer
from .places import Places

__all__ = ["build", "Launch", "Given", "DiskNeed", "Built", "Qemu"]


def build(spec: Spec, given: Given, qemu: Qemu | None = None) -> Launch:
    """The command line that starts this instance, paused, with its monitors listening.

    The same comes out for the same arguments, always.

    :param spec: as :func:`drover.kvm.spec.parse` gives it
    :param given: what is not in the specification
    :param qemu: the QEMU that will be started, to be asked for each device whether it has it
    :raises ArgumentError: the machine has no room for all
    :raises NotSupported: the QEMU lacks a device
    """
    out = Writer(spec, given, qemu)
    places = _places(spec, given)
    board.write_machine(out)
    board.write_cpu(out)
    board.write_memory(out)
    board.write_firmware(out)
    board.write_boot(out)
    board.write_smbios(out)
    board.write_monitors(out)
    board.write_buses(out, places)
    plugged.write_vcpus(out)
    plugged.write_sticks(out, places)
    devices.write_serial(out)
    devices.write_agents(out, places)
    screen.write_screen(out, places)
    nics.write_nics(out, places)
    disks.write_disks(out, places)
    disks.write_seed(out, places)
    devices.write_usb(out, places)
    devices.write_vfio(out, places)
    devices.write_balloon(out, places)
    devices.write_rng(out, places)
    devices.write_watchdog(out, places)
    devices.write_vsock(out, places)
    devices.write_tpm(out)
    devices.write_panic(out)
    out.add(*spec.extra_args)
    return out.finish()


def _places(spec: Spec, given: Given) -> Places:
    """Network cards first: guests name them by their places, and disks by their contents."""
    arrives = given.board
    sticks = [stick for stick in arrives.sticks if stick.bus] if arrives else []
    pluggable = [
        *(nic.id for nic in spec.nics),
        *(device.id for device in spec.vfio),
        *(disk.id for disk in spec.disks if disk.bus == "virtio-blk"),
        *([disks.SEED] if spec.cloud_init else []),
        *(stick.id for stick in sticks),
    ]
    bridges = [f"br{n}" for n in range(spec.machine.bridges)]
    fixed = {
        "vserial": spec.agent or (spec.spice and spec.spice.agent),
        "balloon": spec.memory.balloon,
        "rng": spec.rng,
        "xhci": devices.has_usb(spec, arrives),
        "vsock": spec.vsock_cid,
        "watchdog": spec.watchdog and spec.watchdog.model == "i6300esb",
        "ahci": disks.needs_ahci(spec),
        **dict.fromkeys([*bridges, *disks.scsi_controllers(spec, arrives)], True),
    }
    return Places(
        q35=spec.machine.q35,
        pluggable=pluggable,
        fixed=[name for name, there in fixed.items() if there],
        spare=spec.machine.root_ports,
        bridges=len(bridges),
        before={**given.places, **{stick.id: (stick.bus, stick.addr) for stick in sticks}},
        root_ports=arrives.root_ports if arrives else None,
    )
