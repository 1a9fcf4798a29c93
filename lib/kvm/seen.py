"""What a machine that runs really has: asked of QEMU, and read of its process and of the host. Nothing is changed."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct

from ..errors import CommandError
from ..monitor.connection import QmpConnection
from ..ops.nodes import BlockNode, BlockTree
from ..ops.throttle import Limits
from ..ops.virtio import DriverState
from . import netlink
from .ledger import Ledger
from .process import Process

_PERIPHERAL: Final = "/machine/peripheral"
_OPAQUE: Final = "drover:"
_TAP: Final = "iff:"  # of a tap's descriptor in /proc/PID/fdinfo

FileId = tuple[int, int]


class Held(Struct, kw_only=True):
    """A device that QEMU has.

    :ivar driver: QEMU's name of its model
    :ivar bus: where it sits, and `addr` on it, as the record writes them
    :ivar netdev: of a network card: its back end, and its address
    :ivar host: of a PCI device of the host: its address there
    :ivar node: of a disk: its topmost image
    :ivar limits: of a disk
    """

    driver: str
    bus: str = ""
    addr: str = ""
    netdev: str = ""
    mac: str = ""
    host: str = ""
    node: BlockNode | None = None
    limits: Limits = Limits()


class Tap(Struct, kw_only=True):
    """An interface of the host that QEMU has open.

    :ivar queues: how many descriptors of it
    :ivar up: it is switched on
    :ivar bridge: what it is a port of; empty: of none
    """

    queues: int = 0
    up: bool = False
    bridge: str = ""


class Machine(Struct, kw_only=True):
    """What QEMU says of the machine.

    :ivar type: with its version
    :ivar memory: that the guest has, in bytes
    :ivar devices: by id
    :ivar idle: block nodes that nothing uses, and what each is
    :ivar fdsets: what each set of descriptors is marked with
    :ivar netdevs: the names of all back ends of cards
    :ivar given_up: ids of devices that the guest's driver has given up on
    """

    type: str
    accelerator: str
    cpus: int
    memory: int
    devices: dict[str, Held]
    idle: dict[str, str]
    fdsets: dict[int, str]
    netdevs: list[str]
    given_up: list[str]


class Body(Struct, kw_only=True):
    """What the host says of QEMU's process.

    :ivar uid: the user it runs as
    :ivar cgroup: the folder of its control group, as seen from the mount point
    :ivar own_root: its root directory is not ours
    :ivar files: what it has open, by device and inode
    :ivar taps: that it has open, by name
    :ivar sockets: that there are in the folder of the run
    """

    uid: int
    cgroup: str
    own_root: bool
    files: dict[FileId, str]
    taps: dict[str, Tap]
    sockets: list[str]


# -- QEMU -------------------------------------------------------------------------------------------------------------


def machine(vm: QmpConnection) -> Machine:
    """Ask QEMU.

    :raises MonitorError: it does not answer
    """
    memory = vm.query_memory()
    tree = vm.query_block_tree()
    return Machine(
        type=str(vm.qom_get("/machine", "type")).removesuffix("-machine"),
        accelerator="kvm" if vm.query_kvm().enabled else "tcg",
        cpus=len(vm.query_cpus()),
        memory=memory.base_memory + memory.plugged_memory,
        devices={name: _held(vm, tree, name, driver) for name, driver in vm.query_devices().items()},
        idle=_idle(vm, tree),
        fdsets={it["fdset-id"]: it["fds"][0].get("opaque", "") for it in vm.execute("query-fdsets") if it["fds"]},
        netdevs=_netdevs(vm),
        given_up=[name for name, state in vm.query_drivers().items() if state is DriverState.FAILED],
    )


def _held(vm: QmpConnection, tree: BlockTree, id: str, driver: str) -> Held:
    bus, addr = place(vm, id)
    held = Held(driver=driver, bus=bus, addr=addr, node=tree.of_device(id))
    held.netdev, held.mac, held.host = (str(_property(vm, id, name) or "") for name in ("netdev", "mac", "host"))
    if held.node is not None:
        held.limits = vm.query_disk_throttle(id)
    return held


def place(vm: QmpConnection, id: str) -> tuple[str, str]:
    """Where a device is: the bus, and the address on it as the record writes it."""
    bus = str(_property(vm, id, "parent_bus") or "").rpartition("/")[2]
    if (slot := _property(vm, id, "addr")) is not None:
        return bus, f"{int(slot) >> 3:02x}.{int(slot) & 7}"
    if (target := _property(vm, id, "scsi-id")) is not None:
        return bus, f"{target}:{_property(vm, id, 'lun')}"
    for name in ("port", "unit"):
        if (found := _property(vm, id, name)) is not None:
            return bus, str(found)
    return bus, ""


def _property(vm: QmpConnection, id: str, name: str) -> Any:
    """None where a device has no such property."""
    try:
        return vm.qom_get(f"{_PERIPHERAL}/{id}", name)
    except CommandError:
        return None


def _idle(vm: QmpConnection, tree: BlockTree) -> dict[str, str]:
    """Nodes that no device, export or job stands on, directly or by others."""
    graph = vm.execute("x-debug-query-block-graph")
    drivers = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    used = {drivers.get(edge["child"]) for edge in graph["edges"] if edge["parent"] not in drivers}
    reached = {below.name for name in used if name in tree.nodes for below in tree.nodes[name].walk()}
    return {name: f"{node.driver} {node.filename}" for name, node in tree.nodes.items() if name not in reached}


def _netdevs(vm: QmpConnection) -> list[str]:
    """QMP has no command that lists them; the human monitor has."""
    lines = str(vm.execute("human-monitor-command", {"command-line": "info network"})).splitlines()
    found = [line.lstrip(" \\").partition(": ") for line in lines if line.strip()]
    return [name for name, _, about in found if "type=nic" not in about.split(",")]


# -- the host ---------------------------------------------------------------------------------------------------------


def body(ledger: Ledger, process: Process) -> Body:
    """Read what the host knows of QEMU's process.

    :raises OSError: it has ended meanwhile, or is another user's
    """
    folder = f"/proc/{process.pid}"
    with open(f"{folder}/status", encoding="utf-8") as status:
        uid = next(int(line.split()[1]) for line in status if line.startswith("Uid:"))
    with open(f"{folder}/cgroup", encoding="utf-8") as groups:
        cgroup = next((line[3:].strip() for line in groups if line.startswith("0::")), "")
    files, taps = dict[FileId, str](), dict[str, Tap]()
    for fd in os.listdir(f"{folder}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            _look_at(folder, fd, files, taps)
    for name, tap in taps.items():
        tap.up, tap.bridge = netlink.state_of(name) or (False, "")
    own_root = not os.path.samefile(f"{folder}/root", "/")
    return Body(
        uid=uid, cgroup=cgroup, own_root=own_root, files=files, taps=taps, sockets=sorted(_sockets(ledger))
    )  # fmt: skip


def _look_at(folder: str, fd: str, files: dict[FileId, str], taps: dict[str, Tap]) -> None:
    found = os.stat(f"{folder}/fd/{fd}")
    if stat.S_ISREG(found.st_mode):
        files[found.st_dev, found.st_ino] = os.readlink(f"{folder}/fd/{fd}")
    elif stat.S_ISBLK(found.st_mode):
        files[0, found.st_rdev] = os.readlink(f"{folder}/fd/{fd}")
    elif stat.S_ISCHR(found.st_mode):
        with open(f"{folder}/fdinfo/{fd}", encoding="utf-8") as info:
            for line in info:
                if line.startswith(_TAP) and (name := line.removeprefix(_TAP).strip()):
                    taps.setdefault(name, Tap()).queues += 1


def file_id(path: str) -> FileId | None:
    """By which an image is known among :attr:`Body.files`; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (0, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def _sockets(ledger: Ledger) -> Iterator[str]:
    with suppress(FileNotFoundError):
        for entry in os.scandir(ledger.paths.run):
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                yield entry.name


def marked(opaque: str) -> str:
    """Whose a set of descriptors is, by its mark; empty: not ours."""
    return opaque.removeprefix(_OPAQUE) if opaque.startswith(_OPAQUE) else ""


def limits_text(limits: Limits) -> str:
    """Limits in words: those that are set."""
    default = Limits()
    said = {name: getattr(limits, name) for name in limits.__struct_fields__}
    return ", ".join(f"{name} {value}" for name, value in said.items() if value != getattr(default, name)) or "none"
