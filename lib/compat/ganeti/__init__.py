"""Ganeti's KVM monitor interface (``ganeti.hypervisor.hv_kvm.monitor``), over Drover.

::

    from drover.compat.ganeti import QmpConnection     # was: from ganeti.hypervisor.hv_kvm.monitor import …

- :mod:`.monitor`      as it is from Ganeti 3.1 on, and ``Execute`` of before
- :mod:`.legacy`       as it was from 2.12 to 3.0, where that differs
- :mod:`.bus_manager`  which slots are free, from Ganeti's own records
- :mod:`.errors`       Ganeti's errors, and how Drover's become those
- :mod:`.messages`     messages and events; :mod:`.sockets`, raw sockets below QmpConnection
- :mod:`.raw`          what Drover's session keeps to itself; :mod:`.flows`, hotplug with Ganeti's payloads

What differs from Ganeti on purpose is in ``doc/switch-from-ganeti.md``.
"""

from .bus_manager import BusAllocation, BusAllocator, BusAllocatorManager, PCIAllocator, SCSIAllocator
from .errors import (
    GenericError,
    HotplugError,
    HypervisorError,
    NoFreeSlots,
    ProgrammerError,
    QmpCommandNotSupported,
    QmpDataError,
    QmpTimeoutError,
)
from .legacy import MonitorSocket
from .messages import QmpEvent, QmpMessage, QmpTimestamp
from .monitor import QmpConnection
from .sockets import QemuMonitorSocket, UnixFileSocketConnection

__all__ = [
    "QmpConnection",
    "QemuMonitorSocket",
    "UnixFileSocketConnection",
    "MonitorSocket",
    "QmpMessage",
    "QmpEvent",
    "QmpTimestamp",
    "GenericError",
    "HypervisorError",
    "HotplugError",
    "NoFreeSlots",
    "ProgrammerError",
    "QmpCommandNotSupported",
    "QmpDataError",
    "QmpTimeoutError",
    "BusAllocation",
    "BusAllocator",
    "BusAllocatorManager",
    "PCIAllocator",
    "SCSIAllocator",
]
