"""Machine, processors, memory, what boots, and the monitors."""

from typing import Final

from ..spec import Spec
from .launch import Launch

MONITORS: Final = ("control", "events", "people")
# Bytes of translated code that TCG keeps. Its own choice of 1 GiB takes as much memory, and makes a reboot slow.
_TRANSLATED: Final = 64  # MiB
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def machine(launch: Launch, spec: Spec, machine: str, accelerator: str) -> None:
    """What it is, and that it stands still until it is told to run, and when it is at its end."""
    launch.add("-nodefaults", "-no-user-config", "-S", "-action", "shutdown=pause,panic=pause", "-sandbox", _SANDBOX)
    launch.add("-name", f"guest={spec.name},debug-threads=on")
    if spec.uuid:
        launch.add("-uuid", spec.uuid)
    backend = ",memory-backend=ram"
    launch.add("-machine", f"{machine},usb=off{backend}")
    launch.add("-accel", f"tcg,tb-size={_TRANSLATED}" if accelerator == "tcg" else accelerator)


def processors(launch: Launch, spec: Spec, accelerator: str) -> None:
    """The virtual CPUs."""
    cpu = spec.cpu
    model = cpu.model or ("host" if accelerator == "kvm" else "max")
    features = "".join(f",{name}={'on' if wanted else 'off'}" for name, wanted in sorted(cpu.features.items()))
    launch.add("-cpu", f"{model}{features}")
    shape = f",sockets={cpu.sockets},cores={cpu.cores},threads={cpu.threads}" if cpu.sockets else ""
    launch.add("-smp", f"{cpu.count},maxcpus={cpu.max or cpu.count}{shape}")


def memory(launch: Launch, spec: Spec) -> None:
    """The guest's memory, and the room for more."""
    wanted = spec.memory
    room = f",slots={wanted.slots},maxmem={wanted.max}B" if wanted.slots else ""
    launch.add("-m", f"size={wanted.size}B{room}")
    kind = "memory-backend-memfd" if wanted.shared or wanted.hugepages else "memory-backend-ram"
    # what is shared must be asked for; huge pages too
    launch.option(
        "-object", qom_type=kind, id="ram", size=wanted.size, share=True if wanted.shared else None,
        hugetlb=True if wanted.hugepages else None,
    )  # fmt: skip


def boot(launch: Launch, spec: Spec) -> None:
    """What runs first."""
    wanted = spec.boot
    if wanted.menu:
        launch.add("-boot", "menu=on")
    for option, value in (("-kernel", wanted.kernel), ("-initrd", wanted.initrd), ("-append", wanted.cmdline)):
        if value:
            launch.add(option, value)


def monitors(launch: Launch) -> None:
    """Three, for one serves one client: for control, for whoever listens to events, and for people."""
    for name in MONITORS:
        launch.add("-chardev", f"socket,id={name},fd={{fd:{name}}},server=on,wait=off")
        launch.add("-mon", f"chardev={name},mode=control")
