"""Whether an instance that runs on another node could run here: all that this host lacks for it, at once.

Nothing is done to find that out but to look, and to start a QEMU that runs no guest, once for each kind of CPU.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, structs

from ..errors import ArgumentError, BinaryError, Blocker, NotSupported, RecordError
from ..ops.cpu_model import CpuModel
from ..qmp.ready import ready
from . import argv, faults, room
from .binary import Binary
from .cpu import probe_cpu
from .firmware import find_firmware
from .host import Host
from .parcel import Parcel
from .provisions import missing
from .record import load
from .spec import CloudInit, Smbios, Spec


class Fitness(Struct, frozen=True, kw_only=True):
    """What a host has for an instance.

    :ivar version: of the QEMU that it would have; None: there is none
    :ivar accelerator: ``kvm`` or ``tcg``; empty: neither works as it is wanted
    :ivar reason: why it is not KVM
    :ivar cpu: what its CPUs would be; None: it could not have them
    :ivar firmware: bytes of the UEFI, and of its variables; None: there is none, or none is wanted
    :ivar blockers: what it lacks
    """

    version: tuple[int, int, int] | None = None
    accelerator: str = ""
    reason: str = ""
    cpu: CpuModel | None = None
    firmware: tuple[int, int] | None = None
    blockers: tuple[Blocker, ...] = ()


def unsecret(parcel: Parcel) -> Parcel:
    """The same without what is secret, or may be: for whoever only wants to know whether it could run somewhere."""
    spec = parcel.spec
    screens = {name: structs.replace(screen, password=None)
               for name, screen in (("vnc", spec.vnc), ("spice", spec.spice)) if screen is not None}  # fmt: skip
    cloud = None if spec.cloud_init is None else CloudInit()
    return structs.replace(parcel, spec=structs.replace(spec, cloud_init=cloud, smbios=Smbios(), **screens))


def fitness(host: Host, parcel: Parcel, *, postcopy: bool = False) -> Fitness:
    """Tell what this host has for an instance, and lacks.

    :param parcel: what is known of it: its specification names the QEMU that is to take it here
    :param postcopy: it may be finished by postcopy
    """
    found, lacks = Fitness(), [*_name(host, parcel), *missing(host, parcel.spec), *_memory(host, parcel.spec)]
    firmware = _firmware(parcel, lacks)
    try:
        binary = host.binary(parcel.spec.emulator)
    except BinaryError as error:
        remedy = "install it there, or name another one: --emulator"
        lacks.append(Blocker("emulator", "emulator", str(error), remedy))
    else:
        found = _with_qemu(host, parcel, binary, lacks)
        if postcopy and (why := faults.lack(binary.version, rootless=host.rootless)):
            lacks.append(Blocker("userfaultfd", "postcopy", why, faults.REMEDY))
    return structs.replace(found, firmware=firmware, blockers=tuple(lacks))


def firmware_of(parcel: Parcel) -> tuple[int, int] | None:
    """Bytes of an instance's UEFI on this host, and of its variables; None: it has none.

    :raises NotSupported: the host has no such one
    :raises OSError: it is not to be read
    """
    if parcel.spec.firmware.type != "uefi":
        return None
    uefi = find_firmware(parcel.spec.firmware, parcel.machine)
    return os.stat(uefi.code).st_size, os.stat(uefi.vars_template).st_size


# -- how --------------------------------------------------------------------------------------------------------------


def _with_qemu(host: Host, parcel: Parcel, binary: Binary, lacks: list[Blocker]) -> Fitness:
    accelerator, reason = "", ""
    try:
        verdict = host.acceleration(binary, parcel.spec.acceleration)
        accelerator, reason = verdict.accelerator, verdict.reason
    except (ArgumentError, NotSupported) as error:
        lacks.append(Blocker("acceleration", "acceleration", str(error), "choose a node where it works"))
    cpu = None
    if parcel.machine not in binary.machines:
        why = f"QEMU {_text(binary)} there has no {parcel.machine}"
        remedy = "name another QEMU there (--emulator), or give the instance an older machine.type at its next start"
        lacks.append(Blocker("machine-type", "machine.type", why, remedy))
    else:
        lacks += _devices(parcel, binary)
        if accelerator == parcel.accelerator:
            cpu = _cpu(host, parcel, binary, lacks)
    return Fitness(version=binary.version, accelerator=accelerator, reason=reason, cpu=cpu)


def _cpu(host: Host, parcel: Parcel, binary: Binary, lacks: list[Blocker]) -> CpuModel | None:
    try:
        return probe_cpu(
            binary, parcel.machine, parcel.accelerator, parcel.spec.cpu, host.paths.cache, host.boot_id
        )  # fmt: skip
    except BinaryError as error:
        why = f"QEMU {_text(binary)} there does not come up with it: {error}"
        remedy = "give the instance a model that both have, such as qemu64, at its next start"
        lacks.append(Blocker("cpu-model", "cpu.model", why, remedy))
        return None


class _Noting:
    """A QEMU that has every device, and takes note of those that it has not."""

    def __init__(self, binary: Binary) -> None:
        self._binary = binary
        self.lacks: dict[str, None] = {}

    def has_device(self, name: str) -> bool:
        """Whatever it is asked."""
        if not self._binary.has_device(name):
            self.lacks[name] = None
        return True


def _devices(parcel: Parcel, binary: Binary) -> Iterator[Blocker]:
    noting = _Noting(binary)
    spec = parcel.spec
    given = argv.Given(
        machine=parcel.machine, accelerator=parcel.accelerator, private=Path("/"), places=parcel.places,
        board=parcel.board, firmware_code="/" if spec.firmware.type == "uefi" else "", firmware_vars="/",
        seed="/" if spec.cloud_init else "", incoming=True,
    )  # fmt: skip
    try:
        argv.build(spec, given, noting)
    except ArgumentError as error:
        yield Blocker("machine", error.field, error.allowed, "take something out of the machine")
    for name in (*noting.lacks, *_protocols(spec, binary)):
        why = f"QEMU {_text(binary)} there lacks it"
        yield Blocker("device", name, why, "install a QEMU there that has it, or its package with that module")


def _protocols(spec: Spec, binary: Binary) -> Iterator[str]:
    """What it was built without."""
    for name in ("vnc", "spice", "tpm"):
        if getattr(spec, name) is not None and f"query-{name}" not in binary.commands:
            yield name


def _name(host: Host, parcel: Parcel) -> Iterator[Blocker]:
    name = parcel.spec.name
    try:
        document = load(host.paths.instance(name).document)
    except FileNotFoundError:
        return
    except ArgumentError as error:
        yield Blocker("name", "name", error.allowed, "rename the instance")
    except (RecordError, OSError) as error:
        yield Blocker("name", "name", f"there is one of this name there, and {error}", f"drover delete {name}, there")
    else:
        passage = document.passage
        if passage is None or passage.way in ("out", "torn"):
            same = "the same" if document.spec.uuid == parcel.spec.uuid else "another one"
            why = f"there is an instance {name} there, {same}"
            yield Blocker("name", "name", why, f"drover rename {name}, or drover delete {name}, there")


def _memory(host: Host, spec: Spec) -> Iterator[Blocker]:
    for lack in room.look(host.paths, but=spec.name).lacks(room.wanted(spec)):
        promised = f", of which {sum(lack.promised.values())} are promised to others" if lack.promised else ""
        why = f"it takes {lack.wanted} bytes, and {lack.free} are free there{promised}"
        if lack.pages == room.PLAIN:
            yield Blocker("memory", "memory.size", why, "choose a node with more memory, or make room there")
        else:
            remedy = "have the kernel there keep more of them (vm.nr_hugepages), or choose another node"
            yield Blocker("hugepages", "memory.hugepages", f"in pages of {lack.pages} {why}", remedy)


def _firmware(parcel: Parcel, lacks: list[Blocker]) -> tuple[int, int] | None:
    try:
        return firmware_of(parcel)
    except NotSupported as error:
        lacks.append(Blocker("firmware", "firmware", str(error), "install ovmf there, of the same version as here"))
    except OSError as error:
        if not parcel.spec.firmware.code:  # else its path is told of already
            why = f"{error.filename}: {error.strerror}"
            lacks.append(Blocker("firmware", "firmware", why, "install ovmf there, of the same version as here"))
    return None


def _text(binary: Binary) -> str:
    return ".".join(map(str, binary.version))


ready(Fitness)
