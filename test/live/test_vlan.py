"""What the host's kernel here may lack, tried under the guest's: a bridge that filters VLANs, and vhost."""

from pathlib import Path

import pytest

from drover.testing.image import default_cache, guest_image
from drover.testing.machine import Machine
from machines import qemu_of
from python_disk import python_disk, run_inside

pytestmark = pytest.mark.live

PROGRAM = Path(__file__).parent / "guest_vlans.py"
PVID_UNTAGGED = 0x2 | 0x4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_vlan_of_a_bridge_and_vhost(tmp_path: Path) -> None:
    image = guest_image()
    (kernel,) = default_cache().glob("linux-image-*.deb")
    disk = python_disk(tmp_path, image, kernel, [PROGRAM])
    with Machine(qemu=qemu_of("10.0"), memory=512) as machine:
        machine.wait_ready()
        said = run_inside(machine, disk, PROGRAM.name, timeout=200).splitlines()
    assert said[:-2] == [
        "filters True",
        f"vlans [(7, {PVID_UNTAGGED})]",
        "sent [7] []",
        "got [True]",
        f"default [(1, {PVID_UNTAGGED})]",
    ]
    assert "/dev/vhost-net: No such file or directory: the kernel's module vhost_net is not loaded" in said[-2]
    assert said[-1] == "vhost 2 descriptors"
