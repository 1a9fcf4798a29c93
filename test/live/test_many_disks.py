"""Disks on all slots of a pc's board and of its bridges, each in the guest; and the answer where there are no more."""

import os
from pathlib import Path

import pytest

from drover.errors import NoFreeSlot
from drover.kvm.instance import Instance
from drover.kvm.spec import parse
from instances import VERSIONS, Guest, agree, bootable, temporary_node

pytestmark = [pytest.mark.live, pytest.mark.slow]

MOST = 200  # a bound for a loop that an error is to end


def fill(vm: Instance, folder: Path) -> tuple[int, NoFreeSlot]:
    """Plug disks in until there is no slot, each when the guest works with the one before.

    :returns: how many went in, and what was said of the next one
    """
    for number in range(MOST):
        image = folder / f"{number}.raw"
        image.touch(0o600)
        os.truncate(image, 1 << 20)
        try:
            disk = vm.add_disk(source=str(image), format="raw", cache="writeback")
        except NoFreeSlot as full:
            return number, full
        vm.wait_driver(disk.id)
    raise AssertionError(f"{MOST} disks, and no end")


@pytest.mark.parametrize("version", VERSIONS)
def test_bridges(version: str, tmp_path: Path) -> None:
    with temporary_node() as node:
        machine = {"type": "pc", "bridges": 2}
        vm = node.create(parse(bootable(version, memory={"size": "512MiB"}, machine=machine)))
        vm.start()
        guest = Guest(vm)
        count, answer = fill(vm, tmp_path)
        assert count > 2 * 31
        assert answer.full["br0"] == answer.full["br1"] == 31
        guest.until("echo n=$(ls /sys/block | grep -c ^vd)=", f"n={count}=", there=True)
        assert len(agree(vm)) == count
        guest.close()
