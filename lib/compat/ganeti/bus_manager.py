"""Ganeti's ``hypervisor/hv_kvm/bus_manager.py``: which slots and targets are free, from its own records.

Drover itself asks QEMU instead (:mod:`drover.ops.slots`), which also sees what is in no
record; :meth:`~drover.QmpConnection.hot_add_nic` and the like choose a place by that.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bitarray import bitarray

from ...ops.slots import BusKind, PciBus
from .errors import NoFreeSlots

HOTPLUG_TARGET_DISK = "disk"
HT_SCSI_DEVICE_TYPES = frozenset({"scsi-generic", "scsi-block", "scsi-cd", "scsi-hd"})


class BusAllocation(NamedTuple):
    """A place for a device.

    :ivar bus: its bus, as QEMU names it
    :ivar bus_type: ``pci`` or ``scsi``
    :ivar device_params: where on the bus, as arguments of ``device_add``
    """

    bus: str
    bus_type: str
    device_params: Mapping[str, Any] = MappingProxyType({})

    def to_kvm_info(self) -> dict[str, Any]:
        """Bus and place, as arguments of ``device_add``."""
        return {"bus": self.bus, **self.device_params}


class BusAllocator(ABC):
    """Which places of one bus are free."""

    @property
    @abstractmethod
    def bus_type(self) -> str:
        """``pci`` or ``scsi``."""

    @abstractmethod
    def initialize_from_device_info(self, device_infos: Iterable[Mapping[str, Any]]) -> None:
        """Mark what these devices have as taken; those on other buses do not count."""

    @abstractmethod
    def get_next_allocation(self) -> BusAllocation:
        """Return the first free place; it stays free until :meth:`reserve`.

        :raises NoFreeSlots: there is none
        """

    @abstractmethod
    def release(self, allocation: BusAllocation) -> None:
        """Give a place back.

        :raises KeyError: nobody has it
        """

    @abstractmethod
    def reserve(self, allocation: BusAllocation) -> None:
        """Take a place."""


class _NumberedAllocator(BusAllocator):
    """A bus whose places are numbers.

    :param max_slots: how many there are
    :param reserved_slots: how many of the first ones are not given out
    """

    BUS_TYPE: str
    _BUS: str

    def __init__(self, max_slots: int, reserved_slots: int) -> None:
        kind = BusKind(reserved_slots, max(0, max_slots - reserved_slots))
        self._slots = PciBus(self._BUS, kind, bitarray(max_slots))
        self._slots.used.setall(0)

    @property
    def bus_type(self) -> str:
        return self.BUS_TYPE

    def initialize_from_device_info(self, device_infos: Iterable[Mapping[str, Any]]) -> None:
        for info in device_infos:
            if info.get("bus") == self._BUS:
                self._mark(self._number(info))

    def get_next_allocation(self) -> BusAllocation:
        for slot in self._slots.free():
            return BusAllocation(self._BUS, self.BUS_TYPE, self._params(slot))
        raise NoFreeSlots(f"No free slots available on {self._BUS}: all {self._slots.kind.slots} are taken")

    def release(self, allocation: BusAllocation) -> None:
        slot = self._number(allocation.device_params)
        if not (0 <= slot < len(self._slots.used) and self._slots.used[slot]):
            raise KeyError(slot)
        self._slots.used[slot] = 0

    def reserve(self, allocation: BusAllocation) -> None:
        self._mark(self._number(allocation.device_params))

    def _mark(self, slot: int) -> None:
        if 0 <= slot < len(self._slots.used):  # others are never given out
            self._slots.used[slot] = 1

    @abstractmethod
    def _number(self, params: Mapping[str, Any]) -> int:
        """The place in arguments of ``device_add``."""

    @abstractmethod
    def _params(self, slot: int) -> dict[str, Any]:
        """The arguments of ``device_add`` for a place."""


class PCIAllocator(_NumberedAllocator):
    """Slots of the PCI root bus of an i440fx machine. Parameters: how many, and how many are kept for others."""

    _PCI_BUS = _BUS = "pci.0"
    BUS_TYPE = "pci"

    def _number(self, params: Mapping[str, Any]) -> int:
        return int(params["addr"].partition(".")[0], 16)  # "0xc", or "0c.0" with a function

    def _params(self, slot: int) -> dict[str, Any]:
        return {"addr": hex(slot)}


class SCSIAllocator(_NumberedAllocator):
    """Targets of a SCSI controller. Parameters: how many, and how many are kept for others."""

    _SCSI_BUS = _BUS = "scsi.0"
    BUS_TYPE = "scsi"

    def _number(self, params: Mapping[str, Any]) -> int:
        return int(params["scsi-id"])

    def _params(self, slot: int) -> dict[str, Any]:
        return {"channel": 0, "scsi-id": slot, "lun": 0}


class BusAllocatorManager:
    """The allocators of a machine, and which device goes to which.

    :param allocators: at most one of each bus type
    """

    _DISK_TARGET = HOTPLUG_TARGET_DISK
    _SCSI_DEVICE_TYPES = HT_SCSI_DEVICE_TYPES

    def __init__(self, allocators: Iterable[BusAllocator]) -> None:
        self.allocators = {allocator.bus_type: allocator for allocator in allocators}

    def get_next_allocation(self, dev_type: str, hv_dev_type: str) -> BusAllocation:
        """Return the first free place for a device.

        :param dev_type: ``disk`` or ``nic``
        :param hv_dev_type: Ganeti's name of its model, such as ``paravirtual`` or ``scsi-hd``
        :raises NoFreeSlots: there is none
        :raises RuntimeError: the machine has no such bus
        """
        scsi = dev_type == self._DISK_TARGET and hv_dev_type in self._SCSI_DEVICE_TYPES
        return self._allocator(SCSIAllocator.BUS_TYPE if scsi else PCIAllocator.BUS_TYPE).get_next_allocation()

    def commit(self, allocation: BusAllocation) -> None:
        """Take a place."""
        self._allocator(allocation.bus_type).reserve(allocation)

    def release(self, allocation: BusAllocation) -> None:
        """Give a place back."""
        self._allocator(allocation.bus_type).release(allocation)

    def _allocator(self, bus_type: str) -> BusAllocator:
        if bus_type not in self.allocators:
            raise RuntimeError(f"{bus_type} allocator is not available")
        return self.allocators[bus_type]
