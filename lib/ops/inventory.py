"""What a machine consists of, asked of QEMU itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, convert

from ..qmp.ready import ready
from .port import Port

# Where QOM keeps devices that were given an id.
PERIPHERAL: Final = "/machine/peripheral"
# The question for all block nodes, backing images not repeated inside of each.
QUERY_NODES: Final = ("query-named-block-nodes", {"flat": True})
# The question for all devices that have an id.
QUERY_DEVICES: Final = ("qom-list", {"path": PERIPHERAL})


class CpuInfo(Struct, frozen=True, rename="kebab"):
    """A virtual CPU.

    :ivar cpu_index: its number
    :ivar thread_id: the host thread that runs it
    :ivar qom_path: where it is in QOM
    :ivar props: topology: socket, core and thread numbers
    """

    cpu_index: int
    thread_id: int
    qom_path: str
    props: dict[str, Any] = {}
    target: str = ""


class MemoryInfo(Struct, frozen=True, rename="kebab"):
    """Guest memory, in bytes.

    :ivar base_memory: what the machine was started with
    :ivar plugged_memory: what was added while it ran
    """

    base_memory: int
    plugged_memory: int = 0


class Chardev(Struct, frozen=True, rename="kebab"):
    """A character device.

    :ivar filename: what it leads to, as QEMU describes it
    :ivar frontend_open: whether the device that it serves has it open, such as a guest its agent's port
    """

    label: str
    filename: str
    frontend_open: bool


class IoThread(Struct, frozen=True, rename="kebab"):
    """An I/O thread; `thread_id` is the host's, the polling times are in nanoseconds."""

    id: str
    thread_id: int
    poll_max_ns: int = 0
    poll_grow: int = 0
    poll_shrink: int = 0
    aio_max_batch: int = 0


class Kvm(Struct, frozen=True):
    """Whether this QEMU has KVM, and whether this machine runs under it."""

    present: bool
    enabled: bool


async def query_name(port: Port) -> str:
    """Return the machine's name (``query-name``); empty where it was given none."""
    name: str = (await port.execute("query-name")).get("name", "")
    return name


async def query_uuid(port: Port) -> str:
    """Return the machine's UUID (``query-uuid``); all zeros where it was given none."""
    uuid: str = (await port.execute("query-uuid"))["UUID"]
    return uuid


async def query_kvm(port: Port) -> Kvm:
    """Return whether the machine runs under KVM (``query-kvm``)."""
    return convert(await port.execute("query-kvm"), Kvm)


async def query_chardevs(port: Port) -> list[Chardev]:
    """Return the character devices (``query-chardev``)."""
    return convert(await port.execute("query-chardev"), list[Chardev])


async def query_iothreads(port: Port) -> list[IoThread]:
    """Return the I/O threads (``query-iothreads``)."""
    return convert(await port.execute("query-iothreads"), list[IoThread])


async def query_pci(port: Port) -> list[dict[str, Any]]:
    """Return the PCI buses and what is on them (``query-pci``)."""
    buses: list[dict[str, Any]] = await port.execute("query-pci")
    return buses


async def query_block(port: Port) -> list[dict[str, Any]]:
    """Return the block devices as the guest has them (``query-block``)."""
    devices: list[dict[str, Any]] = await port.execute("query-block")
    return devices


async def query_block_nodes(port: Port) -> list[dict[str, Any]]:
    """Return all block nodes, backing images not repeated inside of each (``query-named-block-nodes``)."""
    nodes: list[dict[str, Any]] = await port.execute(*QUERY_NODES)
    return nodes


async def query_cpus(port: Port) -> list[CpuInfo]:
    """Return the virtual CPUs without disturbing them (``query-cpus-fast``)."""
    return convert(await port.execute("query-cpus-fast"), list[CpuInfo])


async def query_memory(port: Port) -> MemoryInfo:
    """Return how much memory the guest has (``query-memory-size-summary``)."""
    return convert(await port.execute("query-memory-size-summary"), MemoryInfo)


async def query_memory_devices(port: Port) -> list[dict[str, Any]]:
    """Return memory devices: DIMMs, virtio-mem and the like (``query-memory-devices``)."""
    devices: list[dict[str, Any]] = await port.execute("query-memory-devices")
    return devices


async def query_devices(port: Port) -> dict[str, str]:
    """Return all devices that have an id, and the driver of each (``qom-list``)."""
    return devices_among(await port.execute(*QUERY_DEVICES))


def devices_among(entries: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The devices, and the driver of each, by what QEMU answers to :data:`QUERY_DEVICES`."""
    children = {entry["name"]: entry["type"] for entry in entries if entry["type"].startswith("child<")}
    return {name: kind.removeprefix("child<").removesuffix(">") for name, kind in children.items()}


async def has_device(port: Port, device: str) -> bool:
    """Return whether there is a device of this id, on whatever bus."""
    return device in await query_devices(port)


ready(Chardev, CpuInfo, IoThread, Kvm, MemoryInfo)
