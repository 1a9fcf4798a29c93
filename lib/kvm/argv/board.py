"""The board: machine, acceleration, CPUs, memory, firmware, what it boots."""

from typing import Any, Final

from ...ops.chain import Layer
from ...ops.image import file_node
from ..spec import CpuSpec, MemorySpec
from .launch import DiskNeed, Writer, escape
from .places import Places

MONITORS: Final = ("control", "events", "people")
# What a guest may make QEMU do in the host. Setting a uid is not among it, so that is done before QEMU starts.
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# MiB for translated code, instead of up to 1 GiB: QEMU takes half the memory, at little cost.
_TB_SIZE: Final = 32
_TB_SIZE_PER_CPU: Final = 8  # each virtual CPU translates into a part of its own
_TB_SIZE_HOTPLUG: Final = 256  # a new one takes a part that is free: QEMU aborts where there is none (tcg/region.c)
_TB_SIZE_MAX: Final = 1024  # QEMU's own choice
_HUGE: Final = {"2MiB": 2 << 20, "1GiB": 1 << 30}
_MEMORY: Final = "ram"


def write_machine(out: Writer) -> None:
    """What it is; that it stands still until it is told to run, and when it is at its end."""
    spec = out.spec
    out.add("-nodefaults", "-no-user-config", "-S", "-action", "shutdown=pause,panic=pause", "-sandbox", _SANDBOX)
    if out.given.incoming:
        out.add("-incoming", "defer")
    out.pairs("-name", guest=spec.name, debug_threads="on")
    if spec.uuid:
        out.add("-uuid", spec.uuid)
    machine = {"memory-backend": _MEMORY}
    if spec.firmware.type == "uefi":
        machine |= {"pflash0": "firmware-code", "pflash1": "firmware-vars"}
    if spec.firmware.secure_boot:
        machine["smm"] = "on"
    out.pairs("-machine", out.given.machine, **machine)
    if out.given.accelerator == "kvm":
        out.add("-accel", "kvm")
    else:
        least = _TB_SIZE_HOTPLUG if spec.cpu.count < spec.cpu.max else _TB_SIZE
        size = min(_TB_SIZE_MAX, max(least, _TB_SIZE_PER_CPU * spec.cpu.max))
        out.add("-accel", f"tcg,tb-size={size}")
    out.add("-rtc", f"base={spec.machine.rtc}")


def cpu_model(cpu: CpuSpec, accelerator: str) -> str:
    """QEMU's name of the model that a machine's CPUs are of."""
    return cpu.model or ("host" if accelerator == "kvm" else "max")


def cpu_words(cpu: CpuSpec, accelerator: str) -> str:
    """The model, with what is switched on and off of it, as QEMU's ``-cpu`` takes it."""
    features = (f"{name}={'on' if on else 'off'}" for name, on in cpu.features.items())
    return ",".join([cpu_model(cpu, accelerator), *features])


def write_cpu(out: Writer) -> None:
    """Model, features, and how the CPUs are arranged."""
    cpu = out.spec.cpu
    out.add("-cpu", cpu_words(cpu, out.given.accelerator))
    sockets, cores, threads = cpu.topology
    count = out.given.board.vcpus if out.given.board else cpu.count
    out.pairs(
        "-smp", cpus=str(count), maxcpus=str(cpu.max), sockets=str(sockets), cores=str(cores), threads=str(threads)
    )


def write_memory(out: Writer) -> None:
    """The memory and what it is made of."""
    memory = out.spec.memory
    size = out.given.board.memory if out.given.board else memory.size
    room = f",slots={memory.slots},maxmem={memory.max}B" if memory.slots or memory.max > size else ""
    out.add("-m", f"size={size}B{room}")
    kind, made_of = memory_backend(memory)
    out.object(kind, _MEMORY, size=size, **made_of)


def memory_backend(memory: MemorySpec) -> tuple[str, dict[str, Any]]:
    """What the guest's memory is made of: a type of object, and its properties."""
    if memory.hugepages != "off":
        # all of them at once: a page that is missing later would kill QEMU
        huge = {"hugetlb": True, "hugetlbsize": _HUGE[memory.hugepages], "prealloc": True}
        return "memory-backend-memfd", {"share": memory.shared, **huge}
    if memory.shared:
        return "memory-backend-memfd", {"share": True}
    return "memory-backend-ram", {}


def write_firmware(out: Writer) -> None:
    """The firmware and its variables."""
    firmware = out.spec.firmware
    if firmware.type == "bios":
        if firmware.code:
            out.add("-bios", firmware.code)
        return
    for part, path, read_only in (("code", out.given.firmware_code, True), ("vars", out.given.firmware_vars, False)):
        fd, node = f"firmware.{part}", f"firmware-{part}"
        out.need(DiskNeed(fds=(fd,), layers=(Layer(path, "raw"),), read_only=read_only, cache="writeback"))
        common = {"read-only": read_only}
        filename = out.fdset(fd, fd)
        out.json("-blockdev", {"driver": "file", "node-name": file_node(node), "filename": filename, **common})
        out.json("-blockdev", {"driver": "raw", "node-name": node, "file": file_node(node), **common})
    if firmware.secure_boot:
        # only code in system management mode may write the variables, which must not survive in a sleeping machine
        out.add("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")


def write_boot(out: Writer) -> None:
    """A kernel, or in which order devices are tried: only those are that have a place in it."""
    boot = out.spec.boot
    out.add("-boot", f"strict=on,menu={'on' if boot.menu else 'off'}")
    for option, value in (("-kernel", boot.kernel), ("-initrd", boot.initrd), ("-append", boot.cmdline)):
        if value:
            out.add(option, value)


def write_smbios(out: Writer) -> None:
    """What the guest reads of its hardware."""
    said = out.spec.smbios
    names = ("manufacturer", "product", "version", "serial", "sku", "family")
    if values := [f"{name}={escape(value)}" for name in names if (value := getattr(said, name))]:
        out.add("-smbios", ",".join(["type=1", *values]))
    if said.oem_strings:
        out.add("-smbios", ",".join(["type=11", *(f"value={escape(value)}" for value in said.oem_strings)]))


def write_monitors(out: Writer) -> None:
    """QMP monitors, on sockets that listen before QEMU is there: one serves one client at a time."""
    for name in MONITORS:
        write_listener(out, name)
        out.pairs("-mon", chardev=name, mode="control")


def write_listener(out: Writer, name: str, **more: str) -> None:
    """A character device on a socket that we have bound."""
    out.pairs("-chardev", "socket", id=name, fd=out.fd(name), server="on", wait="off", **more)


def write_buses(out: Writer, places: Places) -> None:
    """Root ports and bridges."""
    for number in range(places.root_ports):
        out.device("pcie-root-port", id=f"rp{number}", chassis=number + 1, **places.root_port(number))
    for number in range(out.spec.machine.bridges):
        name = f"br{number}"
        if out.spec.machine.q35:
            out.device("pcie-pci-bridge", id=name, **places.fixed(name))
        else:
            out.device("pci-bridge", id=name, chassis_nr=number + 1, **places.fixed(name))
