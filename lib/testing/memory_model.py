"""What the model of a QEMU knows of memory, vCPUs and objects made at run time."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

Arguments = dict[str, Any]
# Makes the error of the model, from a text and, where it is not the usual one, a class.
Refusal = Callable[..., Exception]

MIB: Final = 1 << 20
BASE: Final = 256 * MIB
MAXIMUM: Final = 2048 * MIB
SLOTS: Final = 2
MAX_CPUS: Final = 3
CPU: Final = "max-x86_64-cpu"
_PATH: Final = "/machine/peripheral"


class Machine(Protocol):
    """What of the rest of the machine counts here."""

    devices: dict[str, Arguments]


class MemoryModel:
    """A machine with room for two DIMMs and two more vCPUs, under KVM.

    :ivar objects: id to what ``object-add`` was given
    """

    def __init__(self, qemu: Machine, refused: Refusal) -> None:
        self.objects: dict[str, Arguments] = {}
        self._qemu = qemu
        self._refused = refused

    def check_device(self, given: Mapping[str, Any]) -> bool:
        """Whether a device that is to be added is one of these, which need no bus; refuses what QEMU would."""
        used = [device.get("memdev") for device in self._qemu.devices.values()]
        if "memdev" in given and (given["memdev"] not in self.objects or given["memdev"] in used):
            raise self._refused(f"can't use memory backend '{given['memdev']}'")
        if given["driver"] == "pc-dimm":
            if sum(device["driver"] == "pc-dimm" for device in self._qemu.devices.values()) >= SLOTS:
                raise self._refused("no slots where allocated")
            return True
        if given["driver"] == CPU:
            if given["core-id"] in self._cores():
                raise self._refused("CPU is already plugged")
            return True
        return False

    def _cores(self) -> dict[int, str]:
        cpus = {name: device for name, device in self._qemu.devices.items() if device["driver"] == CPU}
        return {0: "/machine/unattached/device[0]"} | {cpu["core-id"]: f"{_PATH}/{name}" for name, cpu in cpus.items()}

    def _do_object_add(self, given: Arguments) -> Arguments:
        if given["id"] in self.objects:
            raise self._refused(f"attempt to add duplicate property '{given['id']}' to object (type 'container')")
        self.objects[given["id"]] = given
        return {}

    def _do_object_del(self, given: Arguments) -> Arguments:
        if given["id"] not in self.objects:
            raise self._refused(f"object '{given['id']}' not found")
        used = [device.get(role) for device in self._qemu.devices.values() for role in ("memdev", "iothread")]
        if given["id"] in used:
            raise self._refused(f"object '{given['id']}' is in use, can not be deleted")
        del self.objects[given["id"]]
        return {}

    def _do_query_iothreads(self, _: Arguments) -> list[Arguments]:
        threads = [name for name, given in self.objects.items() if given["qom-type"] == "iothread"]
        return [{"id": name, "thread-id": number} for number, name in enumerate(threads, 1000)]

    def machine_memory(self) -> Arguments:
        """The machine's property `memory`."""
        return {"size": BASE, "max-size": MAXIMUM, "slots": SLOTS}

    def _do_query_memory_devices(self, _: Arguments) -> list[Arguments]:
        entries: list[Arguments] = []
        for name, device in self._qemu.devices.items():
            if "memdev" not in device:
                continue
            size = self.objects[device["memdev"]]["size"]
            data: Arguments = {"id": name, "memdev": f"/objects/{device['memdev']}", "node": device["node"]}
            if device["driver"] == "pc-dimm":
                entries.append({"type": "dimm", "data": data | {"size": size, "slot": len(entries)}})
            else:
                sizes = {"size": 0, "requested-size": 0, "max-size": size, "block-size": 2 * MIB}
                entries.append({"type": "virtio-mem", "data": data | sizes})
        return entries

    def _do_query_hotpluggable_cpus(self, _: Arguments) -> list[Arguments]:
        cores = self._cores()
        return [
            {"type": CPU, "vcpus-count": 1, "props": {"core-id": core}}
            | ({"qom-path": cores[core]} if core in cores else {})
            for core in reversed(range(MAX_CPUS))
        ]

    def _do_query_kvm(self, _: Arguments) -> Arguments:
        return {"present": True, "enabled": True}
