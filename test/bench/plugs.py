"""The figures of hotplug: from the call until the guest sees its new disk or card."""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from figures import binaries
from frame import CPU_MS, WALL_MS, Added, Clock, Column, Result, Side, Versus, measure
from lives import BARE, OURS, OneInstance
from peers import ganeti_monitor
from prompt import Lookout, wait_for_prompt

from instances import bootable

GANETI: Final = "Ganeti"
RETURN: Final = Column("return", "ms", 1e3)
BUS: Final = "rp0"
SIZE: Final = 8 << 20  # bytes
MAC: Final = "52:54:00:12:34:56"
_TUNSETIFF, _TAP = 0x400454CA, 0x1002 | 0x4000  # IFF_TAP | IFF_NO_PI, IFF_VNET_HDR


class Plugs(OneInstance):
    """A booted guest, which gets the same device in each round, and loses it again."""

    document = staticmethod(bootable)
    file = ""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name, version)
        self._boots = False
        self._plugged = False

    def setup(self) -> None:
        """Boot, the first time."""
        if not self._boots:
            super().setup()
            self._boots = True
            self.start()
            wait_for_prompt(self.serial)
            self.lookout = Lookout(self.serial)
            self.prepare()

    def run(self, clock: Clock, count: int) -> None:
        """Once; the guest may see it before the call has returned, or after."""
        self.lookout.look_for(self.file)
        cpu, begun = time.process_time(), time.perf_counter()
        self.plug()
        self._plugged = True
        returned = time.perf_counter()
        clock.notes[RETURN.name] = returned - begun
        cpu = time.process_time() - cpu
        clock.add(cpu, self.lookout.seen() - begun)

    def teardown(self) -> None:
        """Take it out again."""
        if self._plugged:
            self._plugged = False
            self.unplug()
            self.lookout.wait_gone(self.file)

    def close(self) -> None:
        """End the guest."""
        if self._boots:
            self._boots = False
            with suppress(AttributeError):
                self.lookout.close()
            super().teardown()

    def prepare(self) -> None:
        """What it takes before the first round."""

    def plug(self) -> None:
        """Add it."""
        raise NotImplementedError

    def unplug(self) -> None:
        """Take it away."""
        raise NotImplementedError

    def _unplug_by_hand(self) -> None:
        assert self.bare is not None
        self.bare("device_del", id="x")
        self.bare.wait_event("DEVICE_DELETED", device="x")

    def _ganeti(self) -> Any:
        """Not connected: each of its methods connects for itself, and one that is connected cannot do it again."""
        assert self.bare is not None
        return ganeti_monitor().QmpConnection(str(self.bare.socket("people")))


class Disks(Plugs):
    """A disk."""

    file = "/sys/block/vda"

    def prepare(self) -> None:
        """An image."""
        self.image = self.node.host.paths.state / "image"
        self.image.touch()
        os.truncate(self.image, SIZE)

    def plug(self) -> None:
        """Each in its way."""
        if self.name == OURS:
            self.vm.add_disk(id="x", source=str(self.image), format="raw", cache="writeback")
        elif self.name == BARE:
            assert self.bare is not None
            self.bare.plug_disk(str(self.image), BUS)
        else:
            self._plug_as_ganeti()

    def _plug_as_ganeti(self) -> None:
        """As its `HotAddDevice` does, which has the drive added by the human monitor, a program for each command."""
        monitor = self._ganeti()

        def drive_add(filename: str) -> None:
            line = f"drive_add dummy file={filename},if=none,id=x,format=raw,auto-read-only=off"
            monitor.Execute("human-monitor-command", {"command-line": line})

        monitor.CheckDiskHotAddSupport()
        disk = _With({"driver": "virtio-blk-pci", "id": "x", "bus": BUS})
        monitor.HotAddDisk(disk, "x", str(self.image), drive_add)
        monitor.HasDevice("x")

    def unplug(self) -> None:
        """Each in its way."""
        if self.name == OURS:
            self.vm.remove_disk("x")
            return
        self._unplug_by_hand()
        assert self.bare is not None
        if self.name == BARE:
            self.bare.drop_disk()


class Nics(Plugs):
    """A card, on a tap that was opened before."""

    file = "/sys/class/net/eth0"

    def prepare(self) -> None:
        """The tap."""
        self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._stack.callback(os.close, self.tap)
        fcntl.ioctl(self.tap, _TUNSETIFF, struct.pack("16sH22x", b"drvbench%d", _TAP))

    def plug(self) -> None:
        """Each in its way."""
        if self.name == OURS:
            self.vm.add_nic(id="x", mode="fd", mac=MAC, fds=[self.tap])
        elif self.name == BARE:
            assert self.bare is not None
            self.bare.plug_nic(self.tap, MAC, BUS)
        else:
            monitor = self._ganeti()
            monitor.CheckNicHotAddSupport()
            nic = _With({"driver": "virtio-net-pci", "id": "x", "bus": BUS})
            monitor.HotAddNic(nic, "x", [self.tap])
            monitor.HasDevice("x")

    def unplug(self) -> None:
        """Each in its way."""
        if self.name == OURS:
            self.vm.remove_nic("x")
            return
        self._unplug_by_hand()
        assert self.bare is not None
        self.bare("netdev_del", id="x")


class _With:
    """What Ganeti asks of a device."""

    mac = MAC

    def __init__(self, hvinfo: dict[str, str]) -> None:
        self.hvinfo = hvinfo


@dataclass(frozen=True)
class Plugging:
    """One of the figures."""

    name: str
    title: str
    side: type[Plugs]
    row: int = 8

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, with each QEMU."""
        names = [OURS, BARE]
        try:
            ganeti_monitor()
            names.append(GANETI)
        except ImportError:
            pass  # told as missing
        for version in binaries():
            sides: list[Side] = [self.side(name, version) for name in names]
            bars = (Added(OURS, 5, WALL_MS, BARE), Versus(OURS, 1.0, WALL_MS, GANETI))
            result = Result(self.row, self.name, f"{self.title}, QEMU {version}", "plug",
                            bars=bars, columns=(CPU_MS, WALL_MS, RETURN))  # fmt: skip
            yield measure(result, sides, 5 if quick else 31, 90.0, progress)


FIGURES: Final = (
    Plugging("disk", "a disk, from the call until the guest sees it", Disks),
    Plugging("nic", "a card, from the call until the guest sees it", Nics),
)
