"""Disks, network cards, and what else is plugged into the board."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from ...ops.image import CACHES, block_nodes
from ..spec import Disk, Nic, Spec
from .launch import Built, DiskNeed, Launch, device
from .places import Places

SCSI: Final = "scsi0"
CONSOLE_LOG: Final = "console-log"
# An agent finds its port by this name.
_AGENT_PORT: Final = "org.qemu.guest_agent.0"


def serial(launch: Launch, spec: Spec) -> None:
    """The first serial port: the console. Bytes that nobody reads are QEMU's to drop, not the guest's to wait for."""
    log = ""
    if spec.serial_log:
        launch.add("-add-fd", f"fd={{fd:{CONSOLE_LOG}}},set=0,opaque=drover:{CONSOLE_LOG}")
        log = ",logfile=/dev/fdset/0,logappend=on"
    launch.add("-chardev", f"socket,id=serial,fd={{fd:serial}},server=on,wait=off{log}")
    launch.add(*device("isa-serial", chardev="serial"))


def helpers(launch: Launch, spec: Spec, places: Places) -> None:
    """What a guest under us always has, as far as it is wanted: they stay as long as the machine."""
    if spec.agent:
        launch.add(*device("virtio-serial-pci", id="vserial", **places.helper()))
        launch.add("-chardev", "socket,id=agent,fd={fd:agent},server=on,wait=off")
        launch.add(*device("virtserialport", bus="vserial.0", nr=1, chardev="agent", name=_AGENT_PORT))
    if spec.memory.balloon:
        reporting = True if spec.memory.free_page_reporting else None
        launch.add(*device("virtio-balloon-pci", id="balloon", free_page_reporting=reporting, **places.helper()))
    if spec.rng:
        launch.option("-object", qom_type="rng-builtin", id="rng")
        launch.add(*device("virtio-rng-pci", rng="rng", **places.helper()))
    if any(disk.bus == "virtio-scsi" for disk in spec.disks):
        launch.add(*device("virtio-scsi-pci", id=SCSI, **places.helper()))


def disks(launch: Launch, spec: Spec, places: Places, host_devices: Collection[str]) -> None:
    """Each by a descriptor that we open: QEMU itself has no right to the image."""
    target = 0
    for number, disk in enumerate(spec.disks, 1):
        _nodes(launch, disk, number, "host_device" if disk.id in host_devices else "file")
        if disk.bus == "virtio-scsi":
            place: dict[str, Any] = {"driver": "scsi-hd", "bus": f"{SCSI}.0", "channel": 0, "scsi_id": target, "lun": 0}
            built = Built(id=disk.id, kind="disk", bus=f"{SCSI}.0", addr=f"{target}:0")
            target += 1
        else:
            place = {"driver": "virtio-blk-pci", **places.slot()}
            built = Built(id=disk.id, kind="disk", bus=str(place["bus"]), addr=str(place["addr"]))
        launch.add(*_disk(disk, place))
        launch.devices.append(built)


def _nodes(launch: Launch, disk: Disk, number: int, protocol: str) -> None:
    fd = f"disk.{disk.id}"
    launch.disks.append(
        DiskNeed(fd=fd, path=disk.source, format=disk.format, read_only=disk.read_only, direct=CACHES[disk.cache][0])
    )
    launch.add("-add-fd", f"fd={{fd:{fd}}},set={number},opaque=drover:{disk.id}")
    for node in block_nodes(
        disk.id, disk.format, protocol, f"/dev/fdset/{number}", read_only=disk.read_only, cache=disk.cache,
        discard=disk.discard, aio=disk.aio,
    ):  # fmt: skip
        if node["node-name"] == disk.id and disk.detect_zeroes != "off":
            node["detect-zeroes"] = disk.detect_zeroes
        launch.option("-blockdev", **node)


def _disk(disk: Disk, place: dict[str, Any]) -> tuple[str, str]:
    driver = place.pop("driver")
    return device(
        driver, id=disk.id, drive=disk.id, serial=disk.serial or None, bootindex=disk.boot_index,
        werror=disk.werror, rerror=disk.rerror, write_cache="on" if CACHES[disk.cache][2] else "off", **place,
    )  # fmt: skip


def nics(launch: Launch, spec: Spec, places: Places) -> None:
    """Each with the network that it stands on."""
    for nic in spec.nics:
        place = places.slot()
        launch.option("-netdev", **_netdev(nic))
        several = {"mq": True, "vectors": 2 * nic.queues + 2} if nic.queues > 1 else {}
        launch.add(*device(nic.model, id=nic.id, netdev=nic.id, mac=nic.mac or None, **several, **place))
        launch.devices.append(Built(id=nic.id, kind="nic", bus=str(place["bus"]), addr=str(place["addr"])))


def _netdev(nic: Nic) -> dict[str, object]:
    if nic.mode == "user":
        return {"type": "user", "id": nic.id}
    return {"type": "tap", "id": nic.id, "fds": ":".join(f"{{fd:nic.{nic.id}.{pair}}}" for pair in range(nic.queues))}


def screen(launch: Launch, spec: Spec, places: Places, private: Path) -> None:
    """The screen, if there is one, and a pointer that needs no capture."""
    if spec.vnc is None:
        launch.add("-display", "none")
        return
    launch.add("-vnc", f"unix:{str(private / 'vnc').replace(',', ',,')}")
    launch.add(*device("VGA", id="screen", **places.screen()))
    launch.add(*device("qemu-xhci", id="xhci", **places.helper()), *device("usb-tablet", id="tablet", bus="xhci.0"))
