"""What else is plugged into the board: console, agents, balloon, random numbers, watchdog, USB, devices of the host."""

from collections.abc import Collection, Mapping
from typing import Final

from ...errors import NoFreeSlot
from ..parcel import Board
from ..spec import Spec, UsbDevice
from ..spec.checks import USB_PORTS
from .board import write_listener
from .launch import Writer
from .places import Places

_USB_BUS: Final = "xhci.0"
CONSOLE_LOG: Final = "console-log"  # its descriptor
_AGENT: Final = "org.qemu.guest_agent.0"  # by these names agents find their ports
_SPICE_AGENT: Final = "com.redhat.spice.0"

# The device models of USB.
USB_DRIVERS: Final = {"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd", "host": "usb-host"}


def write_serial(out: Writer) -> None:
    """The serial console, and where it is written down. Where nobody is connected, it is dropped.

    Somebody who is connected and does not read makes the guest wait, after some 200 characters.
    """
    serial = out.spec.serial
    if serial is None:
        return
    log = {"logfile": out.fdset(CONSOLE_LOG, CONSOLE_LOG), "logappend": "on"} if serial.log else {}
    write_listener(out, "serial", **log)
    out.device("isa-serial", id="serial", chardev="serial")


def write_agents(out: Writer, places: Places) -> None:
    """The channels of agents in the guest, on one controller."""
    spice = out.spec.spice is not None and out.spec.spice.agent
    if not (out.spec.agent or spice):
        return
    out.device("virtio-serial-pci", id="vserial", **places.fixed("vserial"))
    if out.spec.agent:
        write_listener(out, "agent")
        out.device("virtserialport", id="agent", bus="vserial.0", nr=1, chardev="agent", name=_AGENT)
    if spice:
        out.pairs("-chardev", "spicevmc", id="spice-agent", name="vdagent")
        out.device("virtserialport", id="spice-agent", bus="vserial.0", nr=2, chardev="spice-agent", name=_SPICE_AGENT)


def write_balloon(out: Writer, places: Places) -> None:
    """The balloon, which lets go by itself where the guest would run out of memory."""
    memory = out.spec.memory
    if memory.balloon:
        out.device(
            "virtio-balloon-pci", id="balloon", deflate_on_oom=True,
            free_page_reporting=memory.free_page_reporting,
            guest_stats_polling_interval=memory.guest_stats or None, **places.fixed("balloon"),
        )  # fmt: skip


def write_rng(out: Writer, places: Places) -> None:
    """The host's random numbers."""
    if out.spec.rng:
        out.object("rng-builtin", "rng-source")
        out.device("virtio-rng-pci", id="rng", rng="rng-source", **places.fixed("rng"))


def write_watchdog(out: Writer, places: Places) -> None:
    """The watchdog. That of q35 is there, but may not act before it is told."""
    watchdog = out.spec.watchdog
    if watchdog is None:
        return
    if watchdog.model == "itco":
        out.add("-global", "ICH9-LPC.noreboot=false")
    else:
        out.device("i6300esb", id="watchdog", **places.fixed("watchdog"))
    out.add("-action", f"watchdog={watchdog.action}")


def write_vsock(out: Writer, places: Places) -> None:
    """Sockets between guest and host."""
    if out.spec.vsock_cid:
        fd = out.fd("vsock")
        out.device("vhost-vsock-pci", id="vsock", guest_cid=out.spec.vsock_cid, vhostfd=fd, **places.fixed("vsock"))


def write_tpm(out: Writer) -> None:
    """The TPM: a connection to swtpm, which runs beside QEMU."""
    if out.spec.tpm is not None:
        out.pairs("-chardev", "socket", id="tpm", fd=out.fd("tpm"))
        out.pairs("-tpmdev", "emulator", id="tpm", chardev="tpm")
        out.device(f"tpm-{out.spec.tpm.model}", id="tpm", tpmdev="tpm")


def write_usb(out: Writer, places: Places) -> None:
    """USB devices on one controller; where there is a screen, a tablet, whose pointer is where the client's is.

    Their ports are said: QEMU would put a hub of its own before the last one that is free.
    """
    if not has_usb(out.spec, out.given.board):
        return
    devices = list(out.spec.usb)
    if out.spec.screen and all(device.type != "tablet" for device in devices):
        devices.insert(0, UsbDevice(id="tablet", type="tablet"))
    out.device("qemu-xhci", id="xhci", p2=USB_PORTS, p3=USB_PORTS, **places.fixed("xhci"))
    ports = _usb_ports([device.id for device in devices], out.given.places)
    for device in devices:
        port = ports[device.id]
        out.device(USB_DRIVERS[device.type], id=device.id, bus=_USB_BUS, port=port, **usb_host(device))
        out.note("usb", device.id, _USB_BUS, port)


def _usb_ports(devices: list[str], before: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The port of each USB device: where it was before, or else the first that is free."""
    where = {name: before.get(name, ("", "")) for name in devices}
    ports = {name: port for name, (bus, port) in where.items() if bus == _USB_BUS and port.isdecimal()}
    for name in devices:
        if name not in ports:
            ports[name] = free_usb_port(ports.values())
    return ports


def free_usb_port(taken: Collection[str]) -> str:
    """The first port that is free.

    :raises NoFreeSlot: there is none
    """
    for port in range(1, USB_PORTS + 1):
        if str(port) not in taken:
            return str(port)
    raise NoFreeSlot("usb", {"ports": USB_PORTS})


def has_usb(spec: Spec, board: Board | None) -> bool:
    """Whether there is a USB controller: one that was there at the boot stays."""
    return board.usb if board is not None else spec.has_usb


def usb_host(device: UsbDevice) -> dict[str, int]:
    """Which of the host's devices it is, as properties of the device model."""
    if device.vendor:
        return {"vendorid": int(device.vendor, 16), "productid": int(device.product, 16)}
    return {"hostbus": device.bus, "hostaddr": device.address} if device.bus else {}


def write_vfio(out: Writer, places: Places) -> None:
    """PCI devices of the host."""
    for device in out.spec.vfio:
        out.device(
            "vfio-pci", id=device.id, host=device.host or None, sysfsdev=device.mediated or None,
            rombar=None if device.rom else 0, bootindex=device.boot_index, **places.of(device.id),
        )  # fmt: skip
        place = places.of(device.id)
        out.note("vfio", device.id, place["bus"], place["addr"])


def write_panic(out: Writer) -> None:
    """By which a guest says that it has panicked."""
    out.device("pvpanic", id="panic")
