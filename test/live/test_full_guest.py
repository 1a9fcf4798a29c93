"""What no cloud has, seen by a guest with Debian's full kernel: USB, SATA, an emulated card, a watchdog."""

import os
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.testing.image import guest_image
from instances import SHELL, Guest, bare

pytestmark = pytest.mark.live

KINDS = [
    pytest.param("7.2-q35"),
    pytest.param("7.2-pc", marks=pytest.mark.slow),
    pytest.param("10.0-q35", marks=pytest.mark.slow),
    pytest.param("10.0-pc", marks=pytest.mark.slow),
]
USB = "cat /sys/bus/usb/devices/*/product"


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it(node: Node, kind: str, tmp_path: Path) -> None:
    version, _, machine = kind.partition("-")
    image = guest_image(kernel="full")
    disk = tmp_path / "disk.raw"
    disk.touch(0o600)
    os.truncate(disk, 8 << 20)
    document = bare(version) | {
        "memory": {"size": "512MiB"},
        "machine": {"type": machine, "usb": True},
        "boot": {"kernel": str(image.kernel), "initrd": str(image.initrd), "cmdline": SHELL},
        "disks": [{"source": str(disk), "format": "raw", "bus": "sata", "serial": "sata-1", "cache": "writeback"}],
        "nics": [{"model": "e1000", "mac": "52:54:00:00:00:0e"}],
        "usb": [{"type": "mouse"}],
        "watchdog": {"action": "pause"},
    }
    vm = node.create(parse(document))
    vm.start()
    guest = Guest(vm)
    guest.until(USB, "QEMU USB Mouse", there=True)
    keyboard = vm.add_usb(type="keyboard")
    guest.until(USB, "QEMU USB Keyboard", there=True)
    vm.remove_usb(keyboard.id)
    guest.until(USB, "QEMU USB Keyboard", there=False)
    guest.until("ls -l /sys/block/sda", "ata", there=True)
    guest.until("cat /sys/class/net/eth0/address", "52:54:00:00:00:0e", there=True)
    nic = vm.add_nic(model="e1000e")
    guest.until("cat /sys/class/net/*/address", nic.mac, there=True)
    with QmpConnection(vm.host.paths.instance("vm").socket("people")) as qmp:
        mark = qmp.event_mark()
        guest.until("watchdog -F -t 100 -T 2 /dev/watchdog & sleep 1; echo be''gun", "begun", there=True)
        qmp.wait_event("WATCHDOG", since=mark, timeout=60)
        assert qmp.query_status().status == "watchdog"
    guest.close()
