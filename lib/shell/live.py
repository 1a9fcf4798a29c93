"""What there is in the running machine, by name: ids to complete with.

Each question has a short deadline, and its answer, also that there is none, is good for a moment: whoever types is
never held up by a QEMU that is busy or hangs.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from drover.errors import DroverError

# Seconds for a question; QEMU answers in a millisecond, and who pressed Tab is not kept waiting for longer.
DEADLINE: Final = 0.5
# Seconds that an answer is good for: the keys of one completion, not the next command.
FRESH: Final = 2.0
# Answers kept: one for each kind and path that is completed within that time, so a handful.
MAX_ANSWERS: Final = 64

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]

_NODES: Final = ("query-named-block-nodes", {"flat": True})
# Lines of HMP's `info network`: what the guest sees, and, indented, what is behind it.
_NETWORK: Final = re.compile(r"^[\s\\]*(\S+): index=", re.MULTILINE)
_BUS: Final = re.compile(r"^\s*bus: (\S+)", re.MULTILINE)


def _names(key: str) -> Callable[[Any], list[str]]:
    return lambda entries: [entry[key] for entry in entries if entry.get(key)]


def _children(entries: Any) -> list[str]:
    return [entry["name"] for entry in entries if entry["type"].startswith("child<")]


def _bitmaps(nodes: Any) -> list[str]:
    return [bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", ()) if bitmap.get("name")]


# Models that machines are commonly given. QEMU itself is not asked for all that it has: for that it loads all of its
# modules, and where these were upgraded under a running QEMU, it aborts over them and takes the guest along.
_DRIVERS: Final = frozenset((
    "AC97", "ahci", "e1000", "e1000e", "i6300esb", "ich9-usb-ehci1", "ide-cd", "ide-hd", "igb", "intel-hda",
    "ivshmem-plain", "megasas", "nec-usb-xhci", "nvme", "nvme-ns", "pc-dimm", "pci-bridge", "pcie-pci-bridge",
    "pcie-root-port", "pvpanic-pci", "qemu-xhci", "qxl", "rtl8139", "scsi-block", "scsi-cd", "scsi-generic",
    "scsi-hd", "secondary-vga", "tpm-crb", "tpm-tis", "usb-host", "usb-hub", "usb-kbd", "usb-mouse", "usb-net",
    "usb-storage", "usb-tablet", "VGA", "vfio-pci", "vhost-user-blk-pci", "vhost-user-fs-pci", "vhost-vsock-pci",
    "virtio-balloon-pci", "virtio-blk-pci", "virtio-gpu-pci", "virtio-iommu-pci", "virtio-keyboard-pci",
    "virtio-mem-pci", "virtio-net-pci", "virtio-rng-pci", "virtio-scsi-pci", "virtio-serial-pci",
    "virtio-tablet-pci", "virtio-vga", "virtserialport", "vmxnet3", "x3130-upstream", "xio3130-downstream",
))  # fmt: skip


def _drivers(entries: Any) -> list[str]:
    """The common ones, and those that the machine has already."""
    there = {entry["type"].removeprefix("child<").removesuffix(">") for entry in entries}
    return sorted(_DRIVERS | {name for name in there if "<" not in name and name not in ("container", "string")})


# How each kind is asked for: the command, its arguments, and the names in the answer.
KINDS: Final[Mapping[str, tuple[str, dict[str, Any], Callable[[Any], list[str]]]]] = {
    "device": ("qom-list", {"path": "/machine/peripheral"}, _children),
    "object": ("qom-list", {"path": "/objects"}, _children),
    "block": ("query-block", {}, _names("device")),
    "node": (*_NODES, _names("node-name")),
    "bitmap": (*_NODES, _bitmaps),
    "job": ("query-jobs", {}, _names("id")),
    "export": ("query-block-exports", {}, _names("id")),
    "chardev": ("query-chardev", {}, _names("label")),
    "netdev": ("human-monitor-command", {"command-line": "info network"}, _NETWORK.findall),
    "bus": ("human-monitor-command", {"command-line": "info qtree"}, _BUS.findall),
    "device type": ("qom-list", {"path": "/machine/peripheral"}, _drivers),
    "type": ("qom-list", {"path": "/machine/peripheral"}, _drivers),
}


class Live:
    """Names in the running machine.

    :param ask: runs a command with arguments, and returns its result or raises a `DroverError`
    :param clock: seconds; only differences mean anything
    """

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: dict[tuple[str, str], tuple[float, list[tuple[str, str]]]] = {}

    def forget(self) -> None:
        """Ask anew: something was done to the machine."""
        self._answers.clear()

    async def names(self, kind: str) -> list[tuple[str, str]]:
        """All names of a kind of :data:`KINDS`, each with the kind; empty where QEMU does not tell in time."""
        command, arguments, extract = KINDS[kind]
        return await self._asked((kind, ""), command, arguments, lambda found: [(n, kind) for n in extract(found)])

    async def children(self, path: str) -> list[tuple[str, str]]:
        """What is below a path of QOM, and the type of each: objects, whose names end in a slash, are first."""
        return await self._asked(("below", path), "qom-list", {"path": path or "/"}, _below)

    async def properties(self, path: str) -> list[tuple[str, str]]:
        """The properties at a path of QOM that are not objects, and their types."""
        return await self._asked(
            ("properties", path),
            "qom-list",
            {"path": path},
            lambda found: [(e["name"], e["type"]) for e in found if not e["type"].startswith("child<")],
        )

    async def options(self, driver: str) -> list[tuple[str, str]]:
        """What a device of type `driver` may be given, and the type of each."""
        return await self._asked(
            ("options", driver),
            "device-list-properties",
            {"typename": driver},
            lambda found: [(e["name"], e["type"]) for e in found if not e["type"].startswith("child<")],
        )

    async def _asked(
        self,
        key: tuple[str, str],
        command: str,
        arguments: dict[str, Any],
        extract: Callable[[Any], list[tuple[str, str]]],
    ) -> list[tuple[str, str]]:
        now = self._clock()
        answer = self._answers.get(key)
        if answer is not None and now - answer[0] < FRESH:
            return answer[1]
        while len(self._answers) >= MAX_ANSWERS:
            self._answers.pop(next(iter(self._answers)))
        try:
            found = extract(await self._ask(command, arguments))
        except (DroverError, LookupError, TypeError, AttributeError):  # or another QEMU's answer, of another shape
            found = []
        self._answers[key] = (now, found)
        return found


def _below(entries: Any) -> list[tuple[str, str]]:
    found = [(f"{e['name']}/", e["type"]) for e in entries if e["type"].startswith("child<")]
    return sorted(found)


_BLOCK: Final = ("node", "block")
# Which kinds of names an argument takes, by command and argument; a command of "" stands for all others.
_ARGUMENTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("device_add", "driver"): ("device type",),
    ("device_add", "id"): (),
    ("device-list-properties", "typename"): ("device type",),
    ("device_del", "id"): ("device",),
    ("device-sync-config", "id"): ("device",),
    ("object-del", "id"): ("object",),
    ("netdev_del", "id"): ("netdev",),
    ("set_link", "name"): ("netdev", "device"),
    ("chardev-remove", "id"): ("chardev",),
    ("chardev-change", "id"): ("chardev",),
    ("chardev-send-break", "id"): ("chardev",),
    ("block-export-del", "id"): ("export",),
    ("blockdev-add", "node-name"): (),
    ("blockdev-open-tray", "id"): ("device",),
    ("blockdev-close-tray", "id"): ("device",),
    ("blockdev-insert-medium", "id"): ("device",),
    ("blockdev-remove-medium", "id"): ("device",),
    ("blockdev-change-medium", "id"): ("device",),
    ("block_set_io_throttle", "id"): ("device",),
    ("eject", "id"): ("device",),
    ("block-dirty-bitmap-add", "name"): (),
    ("qom-list-properties", "typename"): ("type",),
    ("query-rx-filter", "name"): ("device", "netdev"),
    ("ringbuf-read", "device"): ("chardev",),
    ("ringbuf-write", "device"): ("chardev",),
    ("", "node-name"): ("node",),
    ("", "node"): _BLOCK,
    ("", "device"): _BLOCK,
    ("", "source"): _BLOCK,
    ("", "target"): _BLOCK,
    ("", "overlay"): _BLOCK,
    ("", "base-node"): ("node",),
    ("", "top-node"): ("node",),
    ("", "replaces"): ("node",),
    ("", "file"): ("node",),
    ("", "backing"): ("node",),
    ("", "drive"): _BLOCK,
    ("", "netdev"): ("netdev",),
    ("", "chardev"): ("chardev",),
    ("", "bus"): ("bus",),
    ("", "memdev"): ("object",),
    ("", "iothread"): ("object",),
    ("", "tls-creds"): ("object",),
}


def kinds_of(command: str, argument: str) -> tuple[str, ...]:
    """Which kinds of names the argument of that name takes; empty where it is no name of something there is."""
    found = _ARGUMENTS.get((command, argument))
    if found is not None:
        return found
    if command.startswith("job-") and argument == "id":
        return ("job",)
    if command.startswith("block-job-") and argument in ("device", "id"):
        return ("job",)
    if command.startswith("block-dirty-bitmap-") and argument == "name":
        return ("bitmap",)
    return _ARGUMENTS.get(("", argument), ())
