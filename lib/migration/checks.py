"""What is in the way of a migration: all of it, before anything is done. Pure.

What the machine needs (:class:`Need`, by :mod:`.needs`), what the other node says of itself (:class:`There`), what
becomes of the disks (:mod:`.storage`), and how it is to go over go in; blockers come out, each with what to do.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from msgspec import Struct

from ..errors import Blocker
from ..kvm.fitness import Fitness
from ..kvm.handover import Settings, source_settings
from ..kvm.likeness import Seen
from ..kvm.parcel import Parcel
from ..ops.cpu_model import CpuModel
from ..ops.image import CACHES
from ..qmp.ready import ready
from .combinations import Feature, Have, Transport, features_of, refused
from .storage import DiskImage, How, Plan

# Seconds that two clocks may differ: the guest's own hardware clock, which it may look at any time, jumps by as much.
CLOCKS: Final = 10.0
FOREVER: Final = 2.0**53  # s: a Unix time that is not to come, and that JSON has


class Need(Struct, frozen=True, kw_only=True):
    """What a machine that runs needs of a node that it is to go to.

    :ivar parcel: itself, with its secrets
    :ivar images: of its disks, that have their place on this host
    :ivar cpu: what its guest sees of its CPUs; None: its QEMU cannot tell
    :ivar firmware: bytes of its UEFI, and of its variables; None: it has none
    :ivar until: Unix time of the end of this node's own certificate
    :ivar paused: its guest stands still, and is to there
    :ivar blockers: what keeps it here, wherever it is to go
    """

    parcel: Parcel
    images: tuple[DiskImage, ...] = ()
    cpu: CpuModel | None = None
    firmware: tuple[int, int] | None = None
    until: float = FOREVER
    paused: bool = False
    blockers: tuple[Blocker, ...] = ()


class There(Struct, frozen=True, kw_only=True):
    """What the other node says of itself.

    :ivar node: its name
    :ivar boot_id: the kernel's name for its boot
    :ivar fit: what it has for the machine
    :ivar seen: what it sees of the images, by its paths
    :ivar now: Unix time, by its clock
    :ivar until: Unix time of the end of its certificate
    :ivar ahead: seconds that its clock is ahead of ours at least, or behind, as far as that could be seen
    """

    node: str
    boot_id: str
    fit: Fitness
    seen: dict[str, Seen] = {}
    now: float = 0.0
    until: float = FOREVER
    ahead: float = 0.0


class Manner(Struct, frozen=True, kw_only=True):
    """How a machine is to go over.

    :ivar source: the settings of the QEMU that it leaves
    :ivar target: of the one that it goes to
    :ivar transport: what it goes over
    :ivar tls: QEMU's own connection is encrypted
    :ivar have: what the source is known to have
    :ivar copy: images that are not there may be copied
    :ivar deadline: seconds that it may take
    :ivar once: all of the memory has to go in one round: see :func:`.loses_writes`
    """

    source: Settings = Settings()
    target: Settings = Settings()
    transport: Transport = Transport.TCP
    tls: bool = False
    have: Collection[Have] = ()
    copy: bool = False
    deadline: float = 0.0
    once: bool = False


def compare(need: Need, there: There, disks: Plan, manner: Manner) -> list[Blocker]:
    """Tell all that is in the way; nothing: it can go."""
    found = [*need.blockers, *there.fit.blockers]
    for look in _LOOKS:
        found += look(need, there, manner)
    return [*found, *_disks(disks, manner), *_caches(need, there, disks)]


def losing(version: tuple[int, ...]) -> str:
    """Say why all has to go in one round.

    :param version: of the source's QEMU
    """
    return "without KVM, QEMU {}.{} loses what a guest writes after the first round".format(*version)


def goes_along(disks: Plan) -> bool:
    """Whether any image goes along."""
    return any(part.how in (How.COPY, How.MIRROR) for part in disks.parts)


# -- one by one -------------------------------------------------------------------------------------------------------


def _acceleration(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    here, theirs = need.parcel.accelerator, there.fit.accelerator
    if theirs and theirs != here:
        reason = f" ({there.fit.reason})" if there.fit.reason else ""
        why = f"it runs with {here.upper()} here, and would with {theirs.upper()} on {there.node}{reason}"
        yield Blocker("acceleration", "acceleration", why, "choose a node where it is the same")


def _cpu(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    here, theirs = need.cpu, there.fit.cpu
    if here is None or theirs is None:
        return
    where = f"the CPU that QEMU {_text(there.fit.version)} makes of {here.model} on {there.node}"
    remedy = "at its next start, give it a cpu.model that both nodes have in full, such as qemu64"
    if lacking := sorted(here.flags - theirs.flags):
        off = f"{remedy}, or switch these off (cpu.features)"
        yield Blocker("cpu-flags", "cpu.model", f"{where} lacks what its guest may use: {', '.join(lacking)}", off)
    if here.vendor != theirs.vendor:
        yield Blocker("cpu-vendor", "cpu.model", f"{where} is {theirs.vendor}, and here it is {here.vendor}", remedy)
    if theirs.address_bits < here.address_bits:
        why = f"{where} addresses {theirs.address_bits} bits of memory, and here it is {here.address_bits}"
        yield Blocker("address-bits", "cpu.features", why, "at its next start, set phys-bits to what both have")


def _firmware(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    here, theirs = need.firmware, there.fit.firmware
    if here and theirs and here != theirs:
        why = f"here it has {here[0]} bytes and {here[1]} of variables, on {there.node} {theirs[0]} and {theirs[1]}"
        yield Blocker("firmware", "firmware", why, "install the same ovmf on both nodes")


def _clock(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    if abs(there.ahead) > CLOCKS:
        way = "ahead of" if there.ahead > 0 else "behind"
        why = f"the clock there is {abs(there.ahead):.0f} s {way} this node's"
        yield Blocker("clock", there.node, why, "set both by NTP (timedatectl set-ntp true)")


def _certificates(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    for node, until in (("this node", need.until), (there.node, there.until)):
        if until < there.now + manner.deadline:
            end = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
            why = f"its certificate ends on {end}, which the migration may not be over by"
            yield Blocker("certificate", node, why, "drover cert renew, on that node")


def _combination(need: Need, there: There, manner: Manner) -> Iterator[Blocker]:
    version = there.fit.version
    if version is None:
        return
    capabilities = source_settings(manner.source).capabilities | manner.target.capabilities
    features, others = features_of(capabilities, manner.source.parameters | manner.target.parameters)
    if manner.tls:
        features |= {Feature.TLS}
    for each in refused(
        features, manner.transport, need.parcel.version[:2], version[:2], have=manner.have, others=others
    ):
        yield Blocker("combination", "migration", each.why, each.do)
    if manner.once and Feature.BITMAPS in features:
        why = f"{Feature.BITMAPS}: {losing(need.parcel.version)}, and with bitmaps to send it makes others"
        yield Blocker("combination", "migration", why, "remove the bitmaps, or give it KVM, or QEMU 9.0 or later")


def _disks(disks: Plan, manner: Manner) -> Iterator[Blocker]:
    for each in disks.blockers:
        yield Blocker(each.code, each.disk, each.text, each.todo)
    going = [part.image.path for part in disks.parts if part.how in (How.COPY, How.MIRROR)]
    if going and not manner.copy:
        remedy = "say that disks are to be copied (--copy-disks)"
        yield Blocker("disk", ", ".join(going), "not there on the other node", remedy)


def _caches(need: Need, there: There, disks: Plan) -> Iterator[Blocker]:
    caches = {disk.id: disk.cache for disk in need.parcel.spec.disks}
    for part in disks.parts:
        seen, cache = there.seen.get(part.path), caches.get(part.image.disk, "")
        if seen is not None and seen.buffered and cache and CACHES[cache][0]:
            why = f"the file system of {part.path} there does without O_DIRECT, and cache = '{cache}' wants it"
            yield Blocker("disk", part.image.disk, why, "keep it elsewhere, or give it another cache at its next start")


def _text(version: tuple[int, int, int] | None) -> str:
    return ".".join(map(str, version or ()))


_LOOKS: Final[tuple[Callable[[Need, There, Manner], Iterator[Blocker]], ...]] = (
    *(_acceleration, _cpu, _firmware, _clock, _certificates, _combination),
)

ready(There)
