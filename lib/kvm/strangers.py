"""What a QEMU has that is in no record: devices that can be written down, and what nothing needs."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import structs

from ..errors import ArgumentError
from ..ops.chain import Layer
from ..ops.image import FORMATS, backing_node
from ..ops.nbd import parse_nbd
from ..ops.nodes import BlockNode
from ..ops.storage import NEXT
from .argv.devices import CONSOLE_LOG, USB_DRIVERS
from .record import Runtime
from .seen import Body, Held, Machine, file_id, marked
from .spec import BackingImage, Disk, Nic, Spec, Throttle, UsbDevice, VfioDevice
from .spec.checks import is_reserved

_FIXED_SETS: Final = frozenset({CONSOLE_LOG, "seed", "firmware.code", "firmware.vars"})
_BUSES: Final[Mapping[str, str]] = {"virtio-blk-pci": "virtio-blk", "scsi-hd": "virtio-scsi"}
_MODELS: Final = ("virtio-net-pci", "e1000", "e1000e", "rtl8139")
_NODE: Final = re.compile(r"(.+?)(-next)?(-back\d+)?(-file)?")  # named after its disk
_FDSET: Final = "/dev/fdset/"


Listed = Disk | Nic | UsbDevice | VfioDevice
_KINDS: Final = {Disk: ("disks", "disk"), Nic: ("nics", "nic"), UsbDevice: ("usb", "usb"), VfioDevice: ("vfio", "vfio")}


def listed(spec: Spec) -> tuple[Listed, ...]:
    """All devices that a specification has a list for."""
    return (*spec.disks, *spec.nics, *spec.usb, *spec.vfio)


def kind_of(device: Listed) -> tuple[str, str]:
    """The list that a device is in, and how the record calls its kind."""
    return _KINDS[type(device)]


def strangers(runtime: Runtime, machine: Machine) -> list[str]:
    """The devices that are in no record, and no part of the machine itself; also those that were asked for as extra."""
    return [
        name
        for name in machine.devices
        if name not in runtime.devices and not is_reserved(name) and not _is_extra(name, runtime)
    ]


def _is_extra(id: str, runtime: Runtime) -> bool:
    named = re.compile(rf"\bid[\"=: ]+{re.escape(id)}\b")
    return any(named.search(word) for word in runtime.spec.extra_args)


# -- images -----------------------------------------------------------------------------------------------------------


def layers(disk: Disk) -> list[Layer]:
    """The images of a disk as it is said, topmost first."""
    if not disk.source:
        return []
    return [Layer(disk.source, str(disk.format)), *(Layer(image.source, image.format) for image in disk.backing)]


def chain(disk: Disk, held: Held, body: Body) -> list[Layer]:
    """The images of a disk as QEMU has them, topmost first.

    QEMU knows a file that it was given as a descriptor by no name, so that is told by its number in the file system.

    :param disk: as which it is known
    """
    nodes = list(_images(held.node))
    named = {_filename(node) for node in nodes}
    # what QEMU opened by a path is known by it; the others are, in their order, the images that we opened
    ours = [image for image in layers(disk) if str(image.path) not in named]
    known = {
        backing_node(f"{disk.id}{suffix}", depth): image for depth, image in enumerate(ours) for suffix in ("", NEXT)
    }
    return [_layer(node, known.get(node.name), body) for node in nodes]


def _images(node: BlockNode | None) -> Iterator[BlockNode]:
    while node is not None:
        yield node
        node = node.backing


def _filename(node: BlockNode) -> str:
    return node.children["file"].filename if "file" in node.children else node.filename


def _layer(node: BlockNode, known: Layer | None, body: Body) -> Layer:
    filename = _filename(node)
    if known is None:
        return Layer(filename, node.driver)
    path = str(known.path)
    if path.startswith("/"):
        is_same = file_id(path) in body.files
        return Layer(path if is_same else f"another file than {path}", node.driver)
    if path.startswith("nbd") and not _same_server(path, filename):
        return Layer(filename, node.driver)
    return Layer(path, node.driver)


def _same_server(ours: str, theirs: str) -> bool:
    try:
        return parse_nbd(ours) == parse_nbd(theirs)
    except ArgumentError:
        return False


# -- devices ----------------------------------------------------------------------------------------------------------


def describe(id: str, runtime: Runtime, machine: Machine, body: Body) -> Listed | None:
    """What a device that is in no record would be in a specification; None: nobody can tell."""
    held = machine.devices[id]
    if held.driver in _BUSES:
        return _describe_disk(id, held, runtime, body)
    if held.driver in _MODELS:
        return _describe_nic(id, held, runtime, machine, body)
    types = [kind for kind, driver in USB_DRIVERS.items() if driver == held.driver and kind != "host"]
    return UsbDevice(id=id, type=types[0]) if types else None  # type: ignore[arg-type]


def _describe_disk(id: str, held: Held, runtime: Runtime, body: Body) -> Disk | None:
    images = chain(Disk(id=id), held, body)
    unknown = _unknown_files(runtime, body)
    for depth, image in enumerate(images):
        if str(image.path).startswith(_FDSET):
            # a descriptor without a name: told where there is but one file that nobody knows
            images[depth] = Layer(unknown[0], image.format) if len(images) == len(unknown) == 1 else Layer("", "")
    read_only = held.node is not None and held.node.read_only
    disk = Disk(id=id, bus=_BUSES[held.driver], read_only=read_only, throttle=limits_of(held))  # type: ignore[arg-type]
    return shaped(disk, images)


def _is_source(image: Layer) -> bool:
    return str(image.path).startswith(("/", "nbd://", "nbd+unix://")) and image.format in FORMATS


def shaped(disk: Disk, images: list[Layer]) -> Disk | None:
    """The disk with other images; None where those are none that a specification can name."""
    if not images or not all(_is_source(image) for image in images):
        return None
    top, *below = images
    backing = [BackingImage(source=str(it.path), format=it.format) for it in below]  # type: ignore[arg-type]
    return structs.replace(disk, source=str(top.path), format=top.format, backing=tuple(backing))


def limits_of(held: Held) -> Throttle | None:
    """The limits that a disk has, as of a specification."""
    throttle = Throttle(**structs.asdict(held.limits))
    return None if throttle == Throttle() else throttle


def _unknown_files(runtime: Runtime, body: Body) -> list[str]:
    """Files that QEMU has open, and that are no disk's of the record, not booted, and not of the instance's folder."""
    spec = runtime.spec
    images = [str(layer.path) for disk in spec.disks for layer in layers(disk)]
    known = {file_id(path) for path in (*images, spec.boot.kernel, spec.boot.initrd, spec.firmware.code) if path}
    return [
        path for number, path in body.files.items()
        if number not in known and path.startswith("/") and not path.endswith("(deleted)")
        and f"/instances/{spec.name}/" not in path
    ]  # fmt: skip


def _describe_nic(id: str, held: Held, runtime: Runtime, machine: Machine, body: Body) -> Nic | None:
    taps = unknown_taps(runtime, body)
    others = [it for it in strangers(runtime, machine) if machine.devices[it].netdev]
    if others != [id] or len(taps) != 1 or not (bridge := body.taps[taps[0]].bridge):
        return None
    queues = body.taps[taps[0]].queues
    return Nic(id=id, mode="bridge", link=bridge, mac=held.mac, model=held.driver, queues=queues)  # type: ignore[arg-type]


def unknown_taps(runtime: Runtime, body: Body) -> list[str]:
    """The taps that QEMU has open and no device of the record has."""
    known = {device.tap for device in runtime.devices.values()}
    return [name for name in body.taps if name not in known]


# -- what nothing needs -----------------------------------------------------------------------------------------------


def leftovers(runtime: Runtime, machine: Machine, body: Body) -> dict[str, tuple[str, str]]:
    """What nothing needs, in words; of each what it is, and the id under which it can be removed, where it is ours."""
    found: dict[str, tuple[str, str]] = {}
    for node, about in machine.idle.items():
        found[f"node {node}"] = about, _owner(node, machine)
    for number, opaque in machine.fdsets.items():
        owner = marked(opaque)
        if owner not in runtime.devices and owner not in _FIXED_SETS and owner not in machine.devices:
            found[f"fdset {number}"] = opaque or "without a mark", owner
    used = {held.netdev for held in machine.devices.values()}
    idle = [name for name in machine.netdevs if name not in used]
    found |= {f"netdev {name}": ("no card is on it", name) for name in idle}
    if not any(machine.devices[it].netdev for it in strangers(runtime, machine)):
        taps = unknown_taps(runtime, body)
        found |= {f"tap {name}": ("it goes with its netdev", idle[0] if idle else "") for name in taps}
    return found


def _owner(node: str, machine: Machine) -> str:
    """The id of the disk that a node is named after, if that is not there: its nodes are a pair, in our way."""
    match = _NODE.fullmatch(node)
    assert match is not None
    disk = match[1]
    return disk if f"{disk}-file" in machine.idle and disk not in machine.devices else ""
