"""An instance made like another one: what is the same, what is not, and the images that are copied."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from ..errors import ArgumentError, DroverError, ImageError, InstanceExists
from . import aside
from .copying import More, copy_file, data_size, keep_from_writing
from .images import Chain, Layer, make_overlay, open_chain
from .instance import Instance
from .paths import Paths
from .record import Document, save, sync_folder
from .record import replace as write
from .spec import BackingImage, Disk, Spec, completed, dump, load
from .spec.devices import Format

# Called with bytes: what is copied, and of how much.
Tell = Callable[[int, int], None]

_BOTH: Final = "both instances have it, and cannot run at once"


class Cloned(NamedTuple):
    """A clone that is there.

    :ivar notices: what is to be known about it, in words
    """

    instance: Instance
    notices: list[str]


class _Job(Struct, frozen=True):
    """An image that is to be made.

    :ivar field: the disk's source in the specification
    :ivar disk: as the old instance has it
    :ivar path: of the new image
    :ivar overlay: it stands on the old one, which is not copied
    """

    field: str
    disk: Disk
    path: str
    overlay: bool


class _Plan(Struct):
    """What a clone comes to."""

    jobs: list[_Job] = []
    notices: list[str] = []


def clone(
    paths: Paths, document: Document, new: str, disks: Mapping[str, str], *, linked: bool, tell: Tell
) -> list[str]:
    """Make the instance `new`; who calls holds the locks of both. All happens, or nothing of it stays.

    :param document: of the old one, which does not run
    :param disks: paths of images, or other sources, by the ids of disks
    :param linked: overlays instead of copies
    :param tell: told how far it is
    :returns: notices, in words
    """
    old, there = paths.instance(document.spec.name), paths.instance(new)
    if there.state.exists():
        raise InstanceExists(new)
    folder = there.state.with_name(f"{aside.PREFIX}{new}")
    aside.discard(folder)
    plan = _Plan()
    spec = _specification(plan, document.spec, new, disks, linked)
    with ExitStack() as opened:
        chains = [_open(opened, plan, job) for job in plan.jobs]
        try:
            files = aside.begin(folder, [job.path for job in plan.jobs])
            _fill(plan.jobs, files, chains, tell)
            aside.place(files)
            if old.nvram.exists():
                write(folder / there.nvram.name, old.nvram.read_bytes())
            kept = Document(spec=spec, machine=document.machine, places=document.places)
            save(folder / there.document.name, kept)
            os.rename(folder, there.state)
        except BaseException as error:
            _undo(folder, error)
            raise
    sync_folder(there.state.parent)
    with suppress(OSError):  # it is there; what bears two names yet, the next one sees to
        aside.settle(there.state)
    return plan.notices


# -- what it is ---------------------------------------------------------------------------------------------------


def _specification(plan: _Plan, spec: Spec, new: str, disks: Mapping[str, str], linked: bool) -> Spec:
    """That of the clone, checked as any other.

    :raises ArgumentError: a disk can be neither copied nor shared, or what is said of one cannot be
    """
    ids = [disk.id for disk in spec.disks]
    for name in disks:
        if name not in ids:
            raise ArgumentError("disks", name, f"the id of a disk of {spec.name}: {', '.join(ids) or 'it has none'}")
    made = [_disk(plan, spec.name, new, n, disk, disks.get(disk.id, ""), linked) for n, disk in enumerate(spec.disks)]
    taken: dict[str, str] = {}
    for job in plan.jobs:
        if (other := taken.setdefault(os.path.normpath(job.path), job.field)) != job.field:
            raise ArgumentError(job.field, job.path, f"it is the path of {other}, too: say another one")
    plan.notices += _notices(spec)
    nics = [replace(nic, mac="") for nic in spec.nics]
    wanted = completed(replace(spec, name=new, uuid="", autostart=False, disks=tuple(made), nics=tuple(nics)))
    load(dump(wanted), "json")  # is it one?
    return wanted


def _disk(plan: _Plan, old: str, new: str, number: int, disk: Disk, said: str, linked: bool) -> Disk:
    """A disk of the clone; what is to be done for it goes into the plan.

    :param said: the path of its image, or its source; empty where nothing was said
    """
    field = f"disks[{number}].source"
    overlay = linked and disk.local and not disk.cdrom
    if overlay and not disk.read_only:
        allowed = "it has to be true for a linked clone, as nothing may write to an image on which another one stands"
        raise ArgumentError(f"disks[{number}].read_only", False, allowed)
    if not said and (not disk.source or ((disk.read_only or disk.cdrom) and not overlay)):
        return disk
    if not disk.source:
        raise ArgumentError(field, said, f"the drive {disk.id} is empty: there is nothing to copy")
    is_file = disk.local and stat.S_ISREG(os.stat(disk.source).st_mode)
    if not said and not is_file:
        raise ArgumentError(field, disk.source, f"only files are copied: say which source {new} has for {disk.id}")
    if not is_file and not overlay:
        _check_source(field, disk, said)
        plan.notices.append(f"disk {disk.id} is {said}, as it is: nothing was copied from {disk.source}")
        return replace(disk, source=said)
    path = said or _beside(disk.source, old, new)
    if not path.startswith("/"):
        raise ArgumentError(field, path, "an absolute path: where the new image is to be")
    aside.check_free(path)
    plan.jobs.append(_Job(field, disk, path, overlay))
    if disk.backing and not overlay:
        plan.notices.append(
            f"disk {disk.id} of both stands on {disk.backing[0].source}, which must not change any more"
        )
    if not overlay:
        return replace(disk, source=path)
    plan.notices.append(f"disk {disk.id} stands on {disk.source}, which must not change any more")
    backing = (BackingImage(source=disk.source, format=_format(disk)), *disk.backing)
    return replace(disk, source=path, format="qcow2", read_only=False, backing=backing)


def _beside(source: str, old: str, new: str) -> str:
    """Where a copy lies of which nothing is said: the old instance's name becomes the new one's."""
    path = Path(source)
    rest = path.name.removeprefix(old)
    named_so = rest != path.name and not rest[:1].isalnum()
    return str(path.with_name(new + rest if named_so else f"{new}-{path.name}"))


def _check_source(field: str, disk: Disk, said: str) -> None:
    """Of a disk that is no file: the other source can be used as the old one is.

    :raises ArgumentError: it cannot
    :raises OSError: it is not there
    """
    same = said == disk.source
    if said.startswith("/"):
        with open_chain(_layers(replace(disk, source=said)), read_only=True, cache="writeback"):
            here = os.stat(said)
        if disk.local:
            there = os.stat(disk.source)
            same = os.path.samestat(here, there) or (stat.S_ISBLK(here.st_mode) and here.st_rdev == there.st_rdev)
    if same:
        raise ArgumentError(field, said, "both instances would write to it")


def _notices(spec: Spec) -> Iterator[str]:
    """What both have, or the clone has not."""
    if spec.tpm is not None:
        yield "its TPM is a new one, which opens nothing that the guest has sealed with the old one"
    if spec.autostart:
        yield "its autostart is off"
    if spec.cloud_init is not None and spec.cloud_init.meta_data:
        yield "cloud_init.meta_data is kept: with the same instance-id cloud-init does not begin anew"
    if spec.vsock_cid:
        yield f"vsock_cid {spec.vsock_cid}: {_BOTH}"
    for n, nic in enumerate(spec.nics):
        if nic.ip:
            yield f"nics[{n}].ip {nic.ip}: both instances have it"
        for forward in nic.forwards:
            yield f"nics[{n}].forwards {forward}: {_BOTH}"
    for field, screen in (("vnc", spec.vnc), ("spice", spec.spice)):
        if screen is not None and screen.listen:
            yield f"{field}.listen {screen.listen}: {_BOTH}"
    for n, usb in enumerate(spec.usb):
        if usb.type == "host":
            yield f"usb[{n}], {usb.id}, is a device of the host: {_BOTH}"
    for n, vfio in enumerate(spec.vfio):
        yield f"vfio[{n}] {vfio.host or vfio.mediated}: {_BOTH}"
    if spec.extra_args:
        yield "extra_args are kept: what they name, both instances have"


# -- what is made -------------------------------------------------------------------------------------------------


def _open(opened: ExitStack, plan: _Plan, job: _Job) -> Chain:
    """The old image with all that it stands on, as the specification says, kept from being written to.

    :raises ArgumentError: it is no such image
    :raises ImageError: somebody may write to it
    """
    chain = opened.enter_context(open_chain(_layers(job.disk), read_only=True, cache="writeback"))
    top = chain.images[0]
    if not keep_from_writing(top.held.fd):
        raise ImageError(job.path, f"a program has {top.path} open to write")
    beneath = top.header and top.header.backing_file
    moved = os.path.dirname(job.path) != os.path.dirname(top.path)
    if beneath and not beneath.startswith("/") and moved and not job.overlay:
        plan.notices.append(
            f"{job.path} stands on {beneath}, as its header says, seen from {os.path.dirname(top.path)}: "
            "Drover finds it by the specification, other programs do not"
        )
    return chain


def _fill(jobs: list[_Job], files: list[aside.NewFile], chains: list[Chain], tell: Tell) -> None:
    sources = [chain.images[0].held.fd for chain in chains]
    of = sum(data_size(fd) for job, fd in zip(jobs, sources, strict=True) if not job.overlay)
    done = 0

    def more(size: int) -> None:
        nonlocal done
        done += size
        tell(done, of)

    for job, file, source in zip(jobs, files, sources, strict=True):
        try:
            _make(job, file.first, source, more)
        except DroverError:
            raise
        except OSError as error:  # of no call's own file, or of one whose name nobody knows
            raise OSError(error.errno, error.strerror, job.path) from error


def _make(job: _Job, first: str, source: int, more: More) -> None:
    fd = os.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if job.overlay:
            make_overlay(first, _layers(job.disk)[0], shown=job.path)
            os.fsync(fd)
        else:
            copy_file(source, fd, more)
    finally:
        os.close(fd)


def _undo(folder: Path, error: BaseException) -> None:
    """After a failure. What cannot be removed now, the next adoption removes."""
    try:
        aside.discard(folder)
    except (DroverError, OSError) as failure:
        error.add_note(f"undo of the clone failed: {failure}")


def _format(disk: Disk) -> Format:
    """That of a disk which has a source."""
    assert disk.format is not None
    return disk.format


def _layers(disk: Disk) -> list[Layer]:
    return [Layer(disk.source, _format(disk)), *(Layer(image.source, image.format) for image in disk.backing)]
