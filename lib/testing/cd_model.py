"""The CD drives of a model: devices ``scsi-cd`` and ``ide-cd``, whose guest holds the tray shut or not."""

from collections.abc import Callable
from typing import Any, Final, Protocol

from drover.testing.block_model import Refusal

Arguments = dict[str, Any]

DRIVES: Final = ("scsi-cd", "ide-cd")


class Machine(Protocol):
    """What CD drives need of the machine."""

    devices: dict[str, Arguments]
    nodes: dict[str, Arguments]
    emit: Callable[[str, Arguments], None]


class CdModel:
    """The trays of a machine. A drive's medium is its ``drive``; ``locked`` is up to the guest.

    :ivar open_trays: ids of the drives whose tray is open
    :ivar locked: ids of those whose tray the guest holds shut
    """

    def __init__(self, qemu: Machine, refused: Refusal) -> None:
        self.open_trays: set[str] = set()
        self.locked: set[str] = set()
        self._qemu = qemu
        self._refused = refused

    def _drive(self, given: Arguments) -> str:
        name: str = given["id"]
        if self._qemu.devices.get(name, {}).get("driver") not in DRIVES:
            raise self._refused(f"Device '{name}' not found", "DeviceNotFound")
        return name

    def _move(self, name: str, opened: bool) -> None:
        if (name in self.open_trays) is not opened:
            self.open_trays ^= {name}
            self._qemu.emit("DEVICE_TRAY_MOVED", {"device": "", "id": name, "tray-open": opened})

    def _do_blockdev_open_tray(self, given: Arguments) -> Arguments:
        name = self._drive(given)
        if name not in self.locked or given.get("force"):
            self._move(name, True)
        return {}

    def _do_blockdev_close_tray(self, given: Arguments) -> Arguments:
        self._move(self._drive(given), False)
        return {}

    def _do_blockdev_remove_medium(self, given: Arguments) -> Arguments:
        name = self._drive(given)
        if name not in self.open_trays:
            raise self._refused(f"Tray of device '{name}' is not open")
        self._qemu.devices[name] = self._qemu.devices[name] | {"drive": ""}
        return {}

    def _do_blockdev_insert_medium(self, given: Arguments) -> Arguments:
        name, node = self._drive(given), given["node-name"]
        if name not in self.open_trays:
            raise self._refused("Tray of the device is not open")
        if self._qemu.devices[name]["drive"]:
            raise self._refused(f"There already is a medium in device '{name}'")
        if node not in self._qemu.nodes:
            raise self._refused(f"Node '{node}' not found")
        if any(device.get("drive") == node for device in self._qemu.devices.values()):
            raise self._refused(f"Node '{node}' is already in use")
        self._qemu.devices[name] = self._qemu.devices[name] | {"drive": node}
        return {}
