"""Free places, from what QEMU says of its buses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drover.errors import ArgumentError, HotplugError, NoFreeSlot
from drover.ops.reservations import Reservations
from drover.ops.slots import Place, ScsiPlace, enumerated, mark_used, pci_buses, pci_place, scsi_place

I440FX, Q35 = (0x8086, 0x1237), (0x8086, 0x29C0)
ROOT_PORT, PCI_BRIDGE, PCIE_PCI, NIC = (0x1B36, 0x000C), (0x1B36, 0x0001), (0x1B36, 0x000E), (0x1AF4, 0x1000)


def device(slot: int, identity: tuple[int, int], name: str = "", behind: list[Any] | None = None) -> dict[str, Any]:
    found = {"slot": slot, "function": 0, "qdev_id": name, "id": {"vendor": identity[0], "device": identity[1]}}
    if behind is not None:
        found["pci_bridge"] = {"bus": {"secondary": slot}, "devices": behind}
    return found


def machine(*devices: dict[str, Any], host: tuple[int, int] = I440FX) -> list[dict[str, Any]]:
    return [{"bus": 0, "devices": [device(0, host), *devices]}]


def free(reply: list[dict[str, Any]]) -> dict[str, list[int]]:
    return {bus.name: list(bus.free()) for bus in pci_buses(reply)}


def test_the_i440fx_root_bus_takes_hotplug() -> None:
    assert free(machine(device(1, NIC), device(3, NIC))) == {"pci.0": [2, *range(4, 32)]}


def test_a_bridge_behind_it_has_its_first_slot_reserved() -> None:
    found = free(machine(device(2, PCI_BRIDGE, "br0", [device(1, NIC), device(5, NIC)])))
    assert found["br0"] == [2, 3, 4, *range(6, 32)]


def test_the_q35_root_bus_does_not_and_its_ports_have_one_slot() -> None:
    reply = machine(
        device(1, ROOT_PORT, "rp0", []),
        device(2, ROOT_PORT, "rp1", [device(0, NIC)]),
        device(3, ROOT_PORT, "", []),
        device(4, ROOT_PORT, "rp2", [device(0, PCIE_PCI, "br0", [device(7, NIC)])]),
        host=Q35,
    )
    assert free(reply) == {
        "pcie.0": [],
        "rp0": [0],
        "rp1": [],
        "": [],
        "rp2": [],
        "br0": [*range(1, 7), *range(8, 32)],
    }


def test_unknown_bridges_and_unknown_hosts_offer_nothing() -> None:
    assert free(machine(device(1, (0x1234, 0x5678), "odd", [])))["odd"] == []
    assert free(machine(host=(1, 2))) == {}


def test_before_the_firmware_numbered_the_buses() -> None:
    reply = machine(device(1, ROOT_PORT, "rp0", []), host=Q35)
    assert enumerated(reply)
    reply[0]["devices"][1]["pci_bridge"]["bus"]["secondary"] = 0
    assert not enumerated(reply)
    buses = pci_buses(reply)
    mark_used(buses, [("rp0", 0), ("elsewhere", 3)])
    assert [list(bus.free()) for bus in buses] == [[], []]


@pytest.mark.parametrize("numbers", [(255, 255, 255), (1, 255, 255), (1, 2, 0)])
def test_while_the_firmware_numbers_the_buses(numbers: tuple[int, ...]) -> None:
    """What is at a bridge is not to be believed before each has a number of its own."""
    ports = [device(slot, ROOT_PORT, f"rp{slot}", []) for slot in (1, 2, 3)]
    for port, number in zip(ports, numbers, strict=True):
        port["pci_bridge"]["bus"]["secondary"] = number
    assert not enumerated(machine(*ports, host=Q35))


def test_a_bridge_that_is_behind_another_has_a_number_too() -> None:
    inner = device(0, PCIE_PCI, "br0", [])
    inner["pci_bridge"]["bus"]["secondary"] = 9
    reply = machine(device(4, ROOT_PORT, "rp2", [inner]), host=Q35)
    assert enumerated(reply)
    inner["pci_bridge"]["bus"]["secondary"] = 4
    assert not enumerated(reply)
    inner["pci_bridge"]["bus"]["secondary"] = 9
    del inner["pci_bridge"]["devices"]  # as QEMU says it where it finds no bus of that number
    assert not enumerated(reply)


@given(st.sets(st.integers(1, 31)))
def test_the_lowest_free_slot_is_taken_and_a_full_bus_is_named(used: set[int]) -> None:
    buses = pci_buses(machine(*(device(slot, NIC) for slot in used)))
    reservations = Reservations()
    if len(used) == 31:
        with pytest.raises(NoFreeSlot, match=r"pci\.0 \(31 of 31 used\)"):
            with pci_place(reservations, reservations.ticket(), buses, "d"):
                pass
        return
    with pci_place(reservations, reservations.ticket(), buses, "d") as place:
        assert place == Place("pci.0", min(set(range(1, 32)) - used))


def test_two_flows_never_hold_one_slot() -> None:
    reservations = Reservations()
    buses = pci_buses(machine())
    ticket = reservations.ticket()
    with pci_place(reservations, ticket, buses, "a") as first, pci_place(reservations, ticket, buses, "b") as second:
        assert (first.addr, second.addr) == ("01.0", "02.0")
    # what was given back after the ticket was drawn may be missing in an answer as old as the ticket
    with pci_place(reservations, ticket, buses, "c") as third:
        assert third.slot == 3
    with pci_place(reservations, reservations.ticket(), buses, "d") as fourth:
        assert fourth.slot == 1


def test_a_chosen_place_is_checked() -> None:
    reservations = Reservations()
    buses = pci_buses(machine(device(2, PCI_BRIDGE, "br0", [])))
    with pci_place(reservations, 0, buses, "d", "br0", "1f") as place:
        assert place == Place("br0", 31)
    for bus, addr, complaint in (("br9", None, "pci.0, br0"), ("br0", "zz", "hexadecimal"), (None, "05", "pci.0")):
        with pytest.raises(ArgumentError, match=complaint):
            with pci_place(reservations, 0, buses, "d", bus, addr):
                pass


def test_machines_that_take_no_hotplug_at_all() -> None:
    with pytest.raises(NoFreeSlot, match="no bus that takes hotplug"):
        with pci_place(Reservations(), 0, pci_buses(machine(host=Q35)), "d"):
            pass


def test_names_are_held_by_one_call() -> None:
    reservations = Reservations()
    with reservations.name("a"), reservations.name("b"):
        with pytest.raises(HotplugError, match="another call"):
            with reservations.name("a"):
                pass
    with reservations.name("a"):
        pass


def test_what_goes_wrong_while_they_are_held_is_not_taken_for_a_lack_of_room() -> None:
    reservations, buses = Reservations(), pci_buses(machine())
    held = [
        reservations.name("a"),
        pci_place(reservations, 0, buses, "a"),
        scsi_place(reservations, 0, "a", "scsi0.0", []),
    ]
    for context in held:
        with pytest.raises(KeyError):
            with context:
                raise KeyError
    assert not reservations._held


@given(st.sets(st.tuples(st.integers(0, 255), st.integers(0, 3)), max_size=255))
def test_a_scsi_target_without_units_is_taken(used: set[tuple[int, int]]) -> None:
    left = sorted(set(range(256)) - {target for target, _ in used})
    with scsi_place(Reservations(), 0, "d", "scsi0.0", used) as place:
        assert place == ScsiPlace("scsi0.0", left[0], 0)
        assert place.addr == f"{left[0]}:0"


def test_a_full_scsi_bus() -> None:
    with pytest.raises(NoFreeSlot, match=r"scsi0\.0 \(256 of 256 used\)"):
        with scsi_place(Reservations(), 0, "d", "scsi0.0", [(target, 7) for target in range(256)]):
            pass
    with scsi_place(Reservations(), 0, "d", "scsi0.0", [(target, 7) for target in range(256)], "255:16383") as place:
        assert place == ScsiPlace("scsi0.0", 255, 16383)


def test_two_flows_never_hold_one_unit() -> None:
    reservations = Reservations()
    ticket = reservations.ticket()
    with scsi_place(reservations, ticket, "a", "scsi0.0", []) as first:
        with scsi_place(reservations, ticket, "b", "scsi0.0", []) as second:
            assert (first.addr, second.addr) == ("0:0", "1:0")


@pytest.mark.parametrize("addr", ["", "3", "3:", ":0", "256:0", "0:16384", "-1:0", "3:0:0", "a:b", "03.0"])
def test_what_is_no_target_and_lun(addr: str) -> None:
    with pytest.raises(ArgumentError, match="a SCSI target below 256 and a LUN below 16384"):
        with scsi_place(Reservations(), 0, "d", "scsi0.0", [], addr):
            pass
