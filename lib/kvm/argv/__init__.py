"""QEMU's command line, from a specification: one function for each class of device. Pure: nothing is opened here.

- :mod:`.launch`   what comes out: the words, and which descriptors go where
- :mod:`.board`    machine, processors, memory, firmware, monitors
- :mod:`.places`   a PCI address for everything, none left to QEMU
- :mod:`.devices`  disks, network cards, the rest
"""

from pathlib import Path

from msgspec import Struct

from ..spec import Spec
from . import board, devices
from .launch import Built, DiskNeed, Launch
from .places import Places

__all__ = ["Built", "DiskNeed", "Given", "Launch", "build"]


class Given(Struct, frozen=True, kw_only=True):
    """What is decided elsewhere.

    :ivar machine: the versioned machine type
    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar private: the folder that QEMU itself may write to
    :ivar host_devices: ids of the disks whose source is a block device
    """

    machine: str
    accelerator: str
    private: Path
    host_devices: frozenset[str] = frozenset()


def build(spec: Spec, given: Given) -> Launch:
    """The command line that makes `spec` of a QEMU. The same comes out for the same arguments, always."""
    launch = Launch()
    places = Places("q35" in given.machine, spec.machine.root_ports)
    board.machine(launch, spec, given.machine, given.accelerator)
    board.processors(launch, spec, given.accelerator)
    board.memory(launch, spec)
    board.boot(launch, spec)
    board.monitors(launch)
    devices.serial(launch, spec)
    devices.helpers(launch, spec, places)
    devices.disks(launch, spec, places, given.host_devices)
    devices.nics(launch, spec, places)
    devices.screen(launch, spec, places, given.private)
    launch.put_first(places.words())
    launch.add(*spec.extra_args)
    return launch
