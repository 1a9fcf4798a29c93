"""Disks: block nodes from the bottom up, then the devices on them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from ...errors import ArgumentError
from ...ops.chain import Layer
from ...ops.image import CACHES, backing_node, common_options, file_node, format_node
from ...ops.nbd import parse_nbd
from ...ops.slots import SCSI_TARGETS
from ..parcel import Board
from ..spec import Disk, Spec
from ..spec.checks import SATA_PORTS
from .launch import DiskNeed, Writer
from .places import Places

SEED: Final = "seed"  # the disk for cloud-init, its node and its descriptor


class _Unit(NamedTuple):
    """A place on SCSI."""

    bus: str
    target: int
    lun: int


class _Node(NamedTuple):
    """One image of a chain: the node on it, the descriptor's name, what it is."""

    name: str
    fd: str
    source: str
    format: str
    read_only: bool


def _chain(disk: Disk) -> list[_Node]:
    """Topmost first; a disk without a medium has none."""
    if not disk.source:
        return []
    top = _Node(disk.id, f"disk.{disk.id}", disk.source, str(disk.format), disk.read_only or disk.cdrom)
    below = (
        _Node(backing_node(disk.id, depth), f"disk.{disk.id}.{depth}", image.source, image.format, True)
        for depth, image in enumerate(disk.backing, 1)
    )
    return [top, *below]


def disk_needs(spec: Spec) -> tuple[DiskNeed, ...]:
    """The images of a specification's disks that have to be opened; known before there is a command line."""
    needs = []
    for disk in spec.disks:
        local = [node for node in _chain(disk) if node.source.startswith("/")]
        if local:
            needs.append(
                DiskNeed(
                    fds=tuple(node.fd for node in local),
                    layers=tuple(Layer(node.source, node.format) for node in local),
                    read_only=local[0].read_only,
                    cache=disk.cache,
                )
            )
    return tuple(needs)


def write_disks(out: Writer, places: Places) -> None:
    """All disks, with their threads and controllers."""
    spec = out.spec
    controllers = scsi_controllers(spec, out.given.board)
    for name in dict.fromkeys([*(disk.iothread for disk in spec.disks), *controllers.values()]):
        if name:
            out.object("iothread", name)
    for name, thread in controllers.items():
        out.device("virtio-scsi-pci", id=name, iothread=thread or None, **places.fixed(name))
    if needs_ahci(spec):
        out.device("ich9-ahci", id="ahci", **places.fixed("ahci"))
    for need in disk_needs(spec):
        out.need(need)
    units = _scsi_places(spec, controllers, out.given.places)
    sata = _sata_places(spec, out.given.places)
    for disk in spec.disks:
        _write_nodes(out, disk)
        if disk.bus == "virtio-blk":
            place = places.of(disk.id)
            _write_device(out, disk, "virtio-blk-pci", {**place, "iothread": disk.iothread or None})
            out.note("disk", disk.id, place["bus"], place["addr"])
        elif disk.bus == "virtio-scsi":
            bus, target, lun = units[disk.id]
            where = {"bus": bus, "channel": 0, "scsi_id": target, "lun": lun}
            _write_device(out, disk, "scsi-cd" if disk.cdrom else "scsi-hd", where)
            out.note("disk", disk.id, bus, f"{target}:{lun}")
        else:
            _write_device(out, disk, "ide-cd" if disk.cdrom else "ide-hd", {"bus": sata[disk.id], "unit": 0})
            out.note("disk", disk.id, sata[disk.id], "0")


def _sata_places(spec: Spec, before: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The port, which is a bus, of each SATA disk: where it was before, or else the first that is free."""
    ports = [f"{'ide' if spec.machine.q35 else 'ahci'}.{n}" for n in range(SATA_PORTS)]
    disks = [disk.id for disk in spec.disks if disk.bus == "sata"]
    kept = {disk: before[disk][0] for disk in disks if disk in before and before[disk][0] in ports}
    free = (port for port in ports if port not in kept.values())
    return {disk: kept.get(disk) or next(free) for disk in disks}


def needs_ahci(spec: Spec) -> bool:
    """Whether the machine needs a SATA controller: q35 has one."""
    return not spec.machine.q35 and any(disk.bus == "sata" for disk in spec.disks)


def scsi_controllers(spec: Spec, board: Board | None) -> dict[str, str]:
    """SCSI controllers and the thread that each has; the first one has none, the next ones as disks need them.

    :param board: of a machine that arrives, which has those that it was booted with
    """
    if board is not None:
        return board.scsi
    threads = ["", *dict.fromkeys(disk.iothread for disk in spec.disks if disk.bus == "virtio-scsi" and disk.iothread)]
    used = any(disk.bus == "virtio-scsi" for disk in spec.disks)
    number = max(spec.machine.scsi_controllers, len(threads) if used else 0)
    return {f"scsi{n}": threads[n] if n < len(threads) else "" for n in range(number)}


def _scsi_places(spec: Spec, controllers: Mapping[str, str], before: Mapping[str, tuple[str, str]]) -> dict[str, _Unit]:
    """Where each SCSI disk is: where it was before, or else on the first target that is free."""
    disks = [disk for disk in spec.disks if disk.bus == "virtio-scsi"]
    buses = {thread: f"{name}.0" for name, thread in reversed(list(controllers.items()))}
    kept: dict[str, _Unit] = {}
    for disk in disks:
        bus, addr = before.get(disk.id, ("", ""))
        target, _, lun = addr.partition(":")
        if bus == buses[disk.iothread] and target.isdecimal() and lun.isdecimal():
            kept[disk.id] = _Unit(bus, int(target), int(lun))
    taken = {(unit.bus, unit.target) for unit in kept.values()}
    free = {bus: iter(n for n in range(SCSI_TARGETS) if (bus, n) not in taken) for bus in buses.values()}
    return {
        disk.id: kept.get(disk.id) or _Unit(bus := buses[disk.iothread], _next(free[bus], disk.id), 0) for disk in disks
    }


def _next(free: Iterator[int], disk: str) -> int:
    for target in free:
        return target
    raise ArgumentError("disks", disk, f"with at most {SCSI_TARGETS} disks on a virtio-scsi controller")


def _write_device(out: Writer, disk: Disk, driver: str, where: Mapping[str, Any]) -> None:
    properties: dict[str, Any] = {**where, "bootindex": disk.boot_index, "serial": disk.serial or None}
    if disk.source:
        properties |= {"drive": disk.id, "write_cache": "on" if CACHES[disk.cache][2] else "off"}
        if not disk.cdrom:
            properties |= {"werror": disk.werror, "rerror": disk.rerror}
    out.device(driver, id=disk.id, **properties)


def _write_nodes(out: Writer, disk: Disk) -> None:
    """The chain from its bottom: each image is a protocol node and a format node on it."""
    below: str | None = None
    for node in reversed(_chain(disk)):
        common = common_options(read_only=node.read_only, cache=disk.cache, discard=disk.discard)
        out.json("-blockdev", {"node-name": file_node(node.name), **_protocol(out, disk, node), **common})
        detect_zeroes = disk.detect_zeroes if node.name == disk.id else "off"
        out.json("-blockdev", format_node(node.name, node.format, common, detect_zeroes, below))
        below = node.name


def _protocol(out: Writer, disk: Disk, node: _Node) -> dict[str, Any]:
    """The arguments of a protocol node that say where the image is."""
    if node.source.startswith("nbd"):
        nbd = parse_nbd(node.source)
        return {"driver": "nbd", "server": _server(nbd.address), "export": nbd.export}
    if node.source.startswith("rbd:"):
        pool, _, image = node.source.removeprefix("rbd:").rpartition("/")
        return {"driver": "rbd", "pool": pool, "image": image}
    driver = "host_device" if node.fd in out.given.block_devices else "file"
    return {"driver": driver, "filename": out.fdset(node.fd, disk.id), "aio": disk.aio}


def _server(address: str) -> dict[str, str]:
    """An address of ours as QEMU's type ``SocketAddress``."""
    if address.startswith("unix:"):
        return {"type": "unix", "path": address.removeprefix("unix:")}
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return {"type": "inet", "host": host.removeprefix("[").removesuffix("]"), "port": port}


def write_seed(out: Writer, places: Places) -> None:
    """The small disk that cloud-init reads."""
    if out.spec.cloud_init is None:
        return
    out.need(DiskNeed(fds=(SEED,), layers=(Layer(out.given.seed, "raw"),), read_only=True, cache="writeback"))
    file = {"node-name": file_node(SEED), "driver": "file", "filename": out.fdset(SEED, SEED), "read-only": True}
    out.json("-blockdev", file)
    out.json("-blockdev", {"node-name": SEED, "driver": "raw", "file": file_node(SEED), "read-only": True})
    out.device("virtio-blk-pci", id=SEED, drive=SEED, **places.of(SEED))
