"""A model of one QEMU's devices, strict: it does what QEMU does, and refuses what it does not know.

It answers commands and sends events like the real one as far as hotplug, power and
migration go, without a guest, a thread or a clock. The scripted port and the fake
server in this room both stand on it.
"""

from collections.abc import Callable
from typing import Any, Final

from .block_model import BlockModel
from .cd_model import CdModel
from .memory_model import CPU, MemoryModel
from .migration_model import MigrationModel
from .mirror_model import BitmapModel, MirrorModel
from .nbd_model import ExportModel, NbdServerModel
from .recorded import Checker, recorded_schema

Arguments = dict[str, Any]
Emit = Callable[[str, Arguments], None]

VERSIONS: Final = {"7.2": (7, 2, 22), "10.0": (10, 0, 2)}
PERIPHERAL: Final = "/machine/peripheral"


class Refused(Exception):
    """QEMU's answer is an error: its class and text."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.error_class = error_class
        self.desc = desc


class QemuModel:
    """The devices of one QEMU.

    :param machine: ``q35`` (two root ports) or ``pc``
    :param version: one of :data:`VERSIONS`
    :param guest: what the guest does when asked to let go: ``obeys``, ``refuses`` (by
        DEVICE_UNPLUG_GUEST_ERROR), ``refuses-ost`` (by ACPI_DEVICE_OST) or ``ignores``
    """

    def __init__(self, machine: str = "q35", version: str = "7.2", guest: str = "obeys") -> None:
        self.machine = machine
        self.version = version
        self.guest = guest
        self.status = "running"
        self.fds: set[str] = set()
        self.fdsets: dict[int, str] = {}
        self.netdevs: dict[str, Arguments] = {}
        self.devices: dict[str, Arguments] = {"scsi0": {"driver": "virtio-scsi-pci", "bus": self.root, "addr": "01.0"}}
        if machine == "q35":
            for number in range(2):
                port = {"driver": "pcie-root-port", "bus": "pcie.0", "addr": f"{number + 2:02x}.0"}
                self.devices[f"rp{number}"] = port
        self.pending: set[str] = set()
        self.migration = MigrationModel(self)
        self.block = BlockModel(self, Refused)
        self.nodes, self.sizes = self.block.nodes, self.block.sizes
        self.mirrors = MirrorModel(self.block, Refused, version)
        self.bitmaps = BitmapModel(Refused)
        self.exports = ExportModel(self, Refused)
        self.cds = CdModel(self, Refused)
        self.memory = MemoryModel(self, Refused)
        self.nbd_servers: dict[str, NbdServerModel] = {}  # elsewhere, by address
        self.emit: Emit = lambda name, data: None
        self._checker = Checker(version)

    @property
    def root(self) -> str:
        """Name of the root bus."""
        return "pcie.0" if self.machine == "q35" else "pci.0"

    def left(self) -> dict[str, Any]:
        """Everything that a flow can leave behind, to compare before and after."""
        return {
            "fds": set(self.fds),
            "fdsets": dict(self.fdsets),
            "netdevs": dict(self.netdevs),
            "nodes": dict(self.nodes),
            "jobs": set(self.block.jobs),
            "exports": dict(self.exports.exports),
            "objects": dict(self.memory.objects),
            "devices": dict(self.devices),
            "open trays": set(self.cds.open_trays),
        }

    def execute(self, command: str, arguments: Arguments | None, has_fd: bool = False) -> Any:
        """Do what QEMU would and return what it would.

        :param has_fd: a descriptor came along
        :raises Refused: QEMU refuses
        :raises WrongArguments: QEMU would not understand, or the model does not know the command
        """
        self._checker.check(command, arguments)
        given = dict(arguments or {})
        name = f"_do_{command.replace('-', '_')}"
        places = (self, self.migration, self.block, self.mirrors, self.exports, self.memory, self.cds)
        handler = next((getattr(place, name) for place in places if hasattr(place, name)), None)
        if handler is None:
            raise AssertionError(f"the model does not know the command '{command}'")
        if command in ("getfd", "add-fd") and not has_fd:
            raise Refused("No file descriptor supplied via SCM_RIGHTS")
        return handler(given)

    # -- facts -----------------------------------------------------------

    def _do_query_commands(self, _: Arguments) -> list[Arguments]:
        return [
            {"name": entity["name"]} for entity in recorded_schema(self.version) if entity["meta-type"] == "command"
        ]

    def _do_query_qmp_schema(self, _: Arguments) -> list[Arguments]:
        return list(recorded_schema(self.version))

    def _do_query_version(self, _: Arguments) -> Arguments:
        major, minor, micro = VERSIONS[self.version]
        return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "model"}

    def _do_query_status(self, _: Arguments) -> Arguments:
        if self.status == "finish-migrate":  # seen once, as in the moment after "completed"
            self.status = "postmigrate"
            return {"running": False, "status": "finish-migrate"}
        return {"running": self.status == "running", "status": self.status}

    # -- power -----------------------------------------------------------

    def _do_stop(self, _: Arguments) -> Arguments:
        if self.status == "running":
            self.status = "paused"
            self.emit("STOP", {})
        return {}

    def _do_cont(self, _: Arguments) -> Arguments:
        if self.status != "running":
            self.status = "running"
            self.emit("RESUME", {})
        return {}

    def _do_system_powerdown(self, _: Arguments) -> Arguments:
        self.emit("POWERDOWN", {})
        return {}

    def _do_system_reset(self, _: Arguments) -> Arguments:
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        for device in sorted(self.pending):
            self._gone(device)
        return {}

    def _do_quit(self, _: Arguments) -> Arguments:
        self.status = "shutdown"
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        return {}

    # -- descriptors -----------------------------------------------------

    def _do_getfd(self, given: Arguments) -> Arguments:
        self.fds.add(given["fdname"])
        return {}

    def _do_closefd(self, given: Arguments) -> Arguments:
        if given["fdname"] not in self.fds:
            raise Refused(f"File descriptor named '{given['fdname']}' not found")
        self.fds.remove(given["fdname"])
        return {}

    def _do_add_fd(self, given: Arguments) -> Arguments:
        number: int = given.get("fdset-id", next(n for n in range(1000) if n not in self.fdsets))
        self.fdsets[number] = given.get("opaque", "")
        return {"fdset-id": number, "fd": 100 + number}

    def _do_remove_fd(self, given: Arguments) -> Arguments:
        if given["fdset-id"] not in self.fdsets:
            raise Refused(f"File descriptor named 'fdset-id:{given['fdset-id']}' not found")
        del self.fdsets[given["fdset-id"]]
        return {}

    def _do_query_fdsets(self, _: Arguments) -> list[dict[str, Any]]:
        return [{"fdset-id": number, "fds": [{"opaque": opaque}]} for number, opaque in self.fdsets.items()]

    # -- networks --------------------------------------------------------

    def _do_netdev_add(self, given: Arguments) -> Arguments:
        if given["id"] in self.netdevs:
            raise Refused(f"Duplicate ID '{given['id']}'")
        names = given["fds"].split(":") if given["type"] == "tap" else []
        for name in [*names, *filter(None, given.get("vhostfds", "").split(":"))]:
            if name not in self.fds:
                raise Refused(f"File descriptor named '{name}' has not been found")
            self.fds.remove(name)
        self.netdevs[given["id"]] = given
        return {}

    def _do_netdev_del(self, given: Arguments) -> Arguments:
        if given["id"] not in self.netdevs:
            raise Refused(f"Device '{given['id']}' not found", "DeviceNotFound")
        del self.netdevs[given["id"]]
        return {}

    # -- devices ---------------------------------------------------------

    def _do_device_add(self, given: Arguments) -> Arguments:
        name, bus = given["id"], given.get("bus")
        if name in self.devices:
            raise Refused(f"Duplicate device ID '{name}'")
        if self.memory.check_device(given):
            self.devices[name] = given
            return {}
        if bus == "pcie.0":
            raise Refused("Bus 'pcie.0' does not support hotplugging")
        if bus not in (self.root, "scsi0.0", *self.devices):
            raise Refused(f"Bus '{bus}' not found")
        for field, known in (("netdev", self.netdevs), ("drive", self.nodes)):
            if field in given and given[field] not in known:
                raise Refused(f"Property '{given['driver']}.{field}' can't find value '{given[field]}'")
        place = _place_of(given)
        for other, device in self.devices.items():
            if _place_of(device) == place:
                raise Refused(f"PCI: slot in use by {other}")
        self.devices[name] = given
        return {}

    def _do_device_del(self, given: Arguments) -> Arguments:
        name = given["id"]
        if name not in self.devices:
            raise Refused(f"Device '{name}' not found", "DeviceNotFound")
        path = f"{PERIPHERAL}/{name}"
        if self.guest == "refuses":
            self.emit("DEVICE_UNPLUG_GUEST_ERROR", {"device": name, "path": path})
        elif self.guest == "refuses-ost":
            info = {"device": name, "slot": "1", "slot-type": "DIMM", "source": 3}
            self.emit("ACPI_DEVICE_OST", {"info": info | {"status": 132}})
            self.emit("ACPI_DEVICE_OST", {"info": info | {"status": 130}})
        elif self.guest == "obeys":
            self._gone(name)
        else:
            self.pending.add(name)
        return {}

    def _gone(self, name: str) -> None:
        self.pending.discard(name)
        driver = self.devices.pop(name)["driver"]
        path = f"{PERIPHERAL}/{name}"
        if driver == CPU:
            self.emit("DEVICE_DELETED", {"path": f"{path}/lapic"})
            return
        if "virtio" in driver:
            self.emit("DEVICE_DELETED", {"path": f"{path}/virtio-backend"})
        self.emit("DEVICE_DELETED", {"device": name, "path": path})

    def _do_qom_list(self, given: Arguments) -> list[Arguments]:
        path = given["path"]
        if path == "/machine":
            return [{"name": "memory", "type": "MemorySizeConfiguration"}]
        if path == PERIPHERAL:
            found = [{"name": name, "type": f"child<{device['driver']}>"} for name, device in self.devices.items()]
            return [{"name": "type", "type": "string"}, *found]
        if path == f"{PERIPHERAL}/scsi0/virtio-backend/scsi0.0":
            return [{"name": f"child[{n}]", "type": "link<scsi-hd>"} for n, _ in enumerate(self._on_scsi())]
        raise Refused(f"Device '{path}' not found", "DeviceNotFound")

    def _do_qom_get(self, given: Arguments) -> Any:
        path, field = given["path"], given["property"]
        if path.startswith(f"{PERIPHERAL}/scsi0/virtio-backend/scsi0.0/child["):
            return self._on_scsi()[int(path.rpartition("[")[2][:-1])][field]
        if (path, field) == ("/machine", "memory"):
            return self.memory.machine_memory()
        device = self.devices.get(path.removeprefix(f"{PERIPHERAL}/"))
        if device is None:
            raise Refused(f"Device '{path}' not found", "DeviceNotFound")
        if field == "mac" and "netdev" in device:
            return device.get("mac", "52:54:00:12:34:56")
        if field not in device:
            raise Refused(f"Property '{device['driver']}.{field}' not found")
        return device[field]

    def _on_scsi(self) -> list[Arguments]:
        return [device for device in self.devices.values() if device.get("bus") == "scsi0.0"]

    def _do_query_pci(self, _: Arguments) -> list[Arguments]:
        host = (0x8086, 0x29C0) if self.machine == "q35" else (0x8086, 0x1237)
        return [{"bus": 0, "devices": [_pci("", 0, *host), *self._on_bus(self.root)]}]

    def _on_bus(self, bus: str) -> list[Arguments]:
        entries = []
        for name, device in self.devices.items():
            if device.get("bus") != bus:
                continue
            slot = int(device["addr"].split(".")[0], 16)
            if device["driver"] == "pcie-root-port":
                bridge = {"bus": {"number": 0, "secondary": slot, "subordinate": slot}, "devices": self._on_bus(name)}
                entries.append(_pci(name, slot, 0x1B36, 0x000C) | {"pci_bridge": bridge})
            else:
                entries.append(_pci(name, slot, 0x1AF4, 0x1000))
        return entries


def _place_of(device: Arguments) -> list[Any]:
    return [device.get(name) for name in ("bus", "addr", "scsi-id", "lun")]


def _pci(name: str, slot: int, vendor: int, device: int) -> Arguments:
    return {"qdev_id": name, "slot": slot, "function": 0, "id": {"vendor": vendor, "device": device}}
