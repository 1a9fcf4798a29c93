"""The bus allocators, where Ganeti's go wrong."""

import pytest

from drover.compat.ganeti import BusAllocation, BusAllocatorManager, HotplugError, PCIAllocator, SCSIAllocator


def test_an_allocation_without_params_is_a_place_all_the_same() -> None:
    assert BusAllocation("pci.0", "pci").to_kvm_info() == {"bus": "pci.0"}


def test_a_scsi_target_can_be_released() -> None:
    scsi = SCSIAllocator(16, reserved_slots=0)
    first = scsi.get_next_allocation()
    scsi.reserve(first)
    scsi.release(first)
    assert scsi.get_next_allocation() == first
    assert first.to_kvm_info() == {"bus": "scsi.0", "channel": 0, "scsi-id": 0, "lun": 0}


def test_a_place_that_nobody_has_cannot_be_released() -> None:
    pci = PCIAllocator(32, 12)
    with pytest.raises(KeyError):
        pci.release(pci.get_next_allocation())


def test_a_full_bus_is_a_hotplug_error_and_still_a_runtime_error() -> None:
    pci = PCIAllocator(14, 12)
    pci.initialize_from_device_info([{"bus": "pci.0", "addr": "0c.0"}, {"bus": "pci.0", "addr": "0xd"}])
    with pytest.raises(HotplugError, match=r"pci\.0: all 2 are taken"):
        pci.get_next_allocation()
    with pytest.raises(RuntimeError):
        pci.get_next_allocation()


def test_devices_of_other_buses_and_slots_beyond_do_not_count() -> None:
    pci = PCIAllocator(32, 12)
    pci.initialize_from_device_info([{"bus": "br0", "addr": "0xc"}, {"driver": "x"}, {"bus": "pci.0", "addr": "0x40"}])
    assert pci.get_next_allocation().device_params == {"addr": "0xc"}


def test_the_manager_commits_and_releases() -> None:
    manager = BusAllocatorManager([PCIAllocator(32, 12)])
    place = manager.get_next_allocation("disk", "paravirtual")
    manager.commit(place)
    assert manager.get_next_allocation("nic", "paravirtual") != place
    manager.release(place)
    assert manager.get_next_allocation("nic", "paravirtual") == place
    with pytest.raises(RuntimeError, match="scsi allocator is not available"):
        manager.get_next_allocation("disk", "scsi-hd")
