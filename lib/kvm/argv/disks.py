"""Disks: block nodes from the bottom up, then the devices on them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from ...ops.chain import Layer
from ...ops.image import CACHES, file_node
from ...ops.slots import SCSI_TARGETS
from ..spec import Disk, Spec
from .launch import DiskNeed, Writer
from .places import Places

SEED: Final = "seed"  # the disk for cloud-init, its node and its descriptor
_NBD_PORT: Final = 10809


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
        _Node(f"{disk.id}.{n}", f"disk.{disk.id}.{n}", image.source, image.format, True)
        for n, image in enumerate(disk.backing, 1)
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
    for name in dict.fromkeys(disk.iothread for disk in spec.disks if disk.iothread):
        out.object("iothread", name)
    controllers = scsi_controllers(spec)
    for name, thread in controllers.items():
        out.device("virtio-scsi-pci", id=name, iothread=thread or None, **places.fixed(name))
    if needs_ahci(spec):
        out.device("ich9-ahci", id="ahci", **places.fixed("ahci"))
    for need in disk_needs(spec):
        out.need(need)
    targets = _scsi_targets(spec, controllers, out.given.places)
    sata = [disk.id for disk in spec.disks if disk.bus == "sata"]
    for disk in spec.disks:
        _write_nodes(out, disk)
        if disk.bus == "virtio-blk":
            place = places.of(disk.id)
            _write_device(out, disk, "virtio-blk-pci", {**place, "iothread": disk.iothread or None})
            out.note("disk", disk.id, **place)
        elif disk.bus == "virtio-scsi":
            bus, target = targets[disk.id]
            where = {"bus": bus, "channel": 0, "scsi_id": target, "lun": 0}
            _write_device(out, disk, "scsi-cd" if disk.cdrom else "scsi-hd", where)
            out.note("disk", disk.id, bus, f"{target}:0")
        else:
            bus = f"{'ide' if spec.machine.q35 else 'ahci'}.{sata.index(disk.id)}"
            _write_device(out, disk, "ide-cd" if disk.cdrom else "ide-hd", {"bus": bus, "unit": 0})
            out.note("disk", disk.id, bus, "0")


def needs_ahci(spec: Spec) -> bool:
    """Whether the machine needs a SATA controller: q35 has one."""
    return not spec.machine.q35 and any(disk.bus == "sata" for disk in spec.disks)


def scsi_controllers(spec: Spec) -> dict[str, str]:
    """SCSI controllers and the thread that each has; the first one has none, the next ones as disks need them."""
    threads = ["", *dict.fromkeys(disk.iothread for disk in spec.disks if disk.bus == "virtio-scsi" and disk.iothread)]
    used = any(disk.bus == "virtio-scsi" for disk in spec.disks)
    number = max(spec.machine.scsi_controllers, len(threads) if used else 0)
    return {f"scsi{n}": threads[n] if n < len(threads) else "" for n in range(number)}


def _scsi_targets(
    spec: Spec, controllers: Mapping[str, str], before: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, int]]:
    """Bus and target of each SCSI disk: where it was before, or else the first that is free."""
    disks = [disk for disk in spec.disks if disk.bus == "virtio-scsi"]
    buses = {thread: f"{name}.0" for name, thread in reversed(list(controllers.items()))}
    kept: dict[str, tuple[str, int]] = {}
    for disk in disks:
        bus, addr = before.get(disk.id, ("", ""))
        target, _, lun = addr.partition(":")
        if bus == buses[disk.iothread] and lun == "0" and target.isdecimal():
            kept[disk.id] = (bus, int(target))
    free = {bus: _free(bus, list(kept.values())) for bus in buses.values()}
    return {disk.id: kept.get(disk.id) or (bus := buses[disk.iothread], free[bus].pop(0)) for disk in disks}


def _free(bus: str, taken: Sequence[tuple[str, int]]) -> list[int]:
    return [target for target in range(SCSI_TARGETS) if (bus, target) not in taken]


def _write_device(out: Writer, disk: Disk, driver: str, where: Mapping[str, Any]) -> None:
    properties: dict[str, Any] = {**where, "bootindex": disk.boot_index, "serial": disk.serial or None}
    if disk.source:
        properties |= {"drive": disk.id, "write_cache": "on" if CACHES[disk.cache][2] else "off"}
        if not disk.cdrom:
            properties |= {"werror": disk.werror, "rerror": disk.rerror}
    out.device(driver, id=disk.id, **properties)


def _write_nodes(out: Writer, disk: Disk) -> None:
    """The chain from its bottom: each image is a protocol node and a format node on it."""
    direct, no_flush, _ = CACHES[disk.cache]
    below: str | None = None
    for node in reversed(_chain(disk)):
        common = {
            "read-only": node.read_only,
            "discard": disk.discard,
            "cache": {"direct": direct, "no-flush": no_flush},
        }
        file = file_node(node.name)
        out.json("-blockdev", {"node-name": file, **_protocol(out, disk, node), **common})
        top: dict[str, Any] = {"driver": node.format, "node-name": node.name, "file": file, **common}
        if node.name == disk.id and disk.detect_zeroes != "off":
            top["detect-zeroes"] = disk.detect_zeroes
        if node.format == "qcow2":
            top["backing"] = below  # null: there is nothing beneath, whatever the header says
        out.json("-blockdev", top)
        below = node.name


def _protocol(out: Writer, disk: Disk, node: _Node) -> dict[str, Any]:
    """The arguments of a protocol node that say where the image is."""
    if node.source.startswith("nbd"):
        return {"driver": "nbd", **_nbd(node.source)}
    if node.source.startswith("rbd:"):
        pool, _, image = node.source.removeprefix("rbd:").rpartition("/")
        return {"driver": "rbd", "pool": pool, "image": image}
    driver = "host_device" if node.fd in out.given.block_devices else "file"
    return {"driver": driver, "filename": out.fdset(node.fd, node.name), "aio": disk.aio}


def _nbd(source: str) -> dict[str, Any]:
    url = urlsplit(source)
    export = unquote(url.path.removeprefix("/"))
    if url.scheme == "nbd+unix":
        return {"server": {"type": "unix", "path": parse_qs(url.query)["socket"][0]}, "export": export}
    server = {"type": "inet", "host": url.hostname, "port": str(url.port or _NBD_PORT)}
    return {"server": server, "export": export}


def write_seed(out: Writer, places: Places) -> None:
    """The small disk that cloud-init reads."""
    if out.spec.cloud_init is None:
        return
    out.need(DiskNeed(fds=(SEED,), layers=(Layer(out.given.seed, "raw"),), read_only=True, cache="writeback"))
    file = {"node-name": file_node(SEED), "driver": "file", "filename": out.fdset(SEED, SEED), "read-only": True}
    out.json("-blockdev", file)
    out.json("-blockdev", {"node-name": SEED, "driver": "raw", "file": file_node(SEED), "read-only": True})
    out.device("virtio-blk-pci", id=SEED, drive=SEED, **places.of(SEED))
