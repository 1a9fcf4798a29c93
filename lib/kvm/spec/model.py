"""The specification of an instance: what is said of the machine as a whole. Its devices: :mod:`.devices`."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from .devices import Disk, Nic, Serial, Spice, Tpm, UsbDevice, VfioDevice, Vnc, Watchdog
from .types import Count, Cpus, Line, Name, Path, Size, Text, Uuid, Word

# Of 32 bits; the highest means any.

_LAST_CID: Final = 2**32 - 2


class MachineSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What kind of board it is.

    :ivar type: ``q35``, ``pc``, or one with its version, such as ``pc-q35-7.2``
    :ivar root_ports: PCIe root ports that stay free for hotplug (q35)
    :ivar bridges: PCI bridges for hotplug
    :ivar scsi_controllers: virtio-scsi controllers, of which each takes 256 disks
    :ivar usb: a USB controller, though nothing is on it yet; there is one anyway for USB devices and a screen
    :ivar rtc: what the clock shows at the start
    :ivar video: the graphics card; ``auto`` is ``std`` where there is VNC or SPICE, else none
    """

    type: Annotated[
        str,
        Meta(
            pattern=r"^(q35|pc|pc-q35-\d+\.\d+|pc-i440fx-\d+\.\d+)$",
            description="q35, pc, or a versioned type of theirs such as pc-q35-7.2",
        ),
    ] = "q35"
    root_ports: Annotated[int, Meta(ge=0, le=112)] = 16
    bridges: Annotated[int, Meta(ge=0, le=4)] = 0
    scsi_controllers: Annotated[int, Meta(ge=0, le=4)] = 1
    usb: bool = False
    rtc: Literal["utc", "localtime"] = "utc"
    video: Literal["auto", "none", "std", "virtio", "qxl"] = "auto"

    @property
    def q35(self) -> bool:
        """It has PCI Express."""
        return "q35" in self.type


class CpuSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The virtual CPUs.

    :ivar model: as QEMU names it; empty is ``host`` under KVM, ``max`` under TCG
    :ivar features: CPU flags by name, on or off
    :ivar count: how many there are at the start
    :ivar max: how many there can be; 0 is `count`
    :ivar sockets: with `cores` and `threads`, how they are arranged; 0 is chosen: one socket of many cores
    :ivar cores: in a socket
    :ivar threads: in a core
    :ivar pinning: the host's CPUs for each virtual one, in order
    """

    model: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$", description="the name of a CPU model")] = ""
    features: dict[Word, bool] = {}
    count: Count = 1
    max: Annotated[int, Meta(ge=0, le=4096)] = 0
    sockets: Annotated[int, Meta(ge=0, le=4096)] = 0
    cores: Annotated[int, Meta(ge=0, le=4096)] = 0
    threads: Annotated[int, Meta(ge=0, le=4096)] = 0
    pinning: tuple[Cpus, ...] = ()

    @property
    def topology(self) -> tuple[int, int, int]:
        """Sockets, cores, threads: what is not said is one, but for the cores, or else the sockets, that make `max`."""
        threads = self.threads or 1
        cores = self.cores or max(1, self.max // ((self.sockets or 1) * threads))
        return self.sockets or max(1, self.max // (cores * threads)), cores, threads


class MemorySpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory. Sizes in bytes.

    :ivar size: at the start
    :ivar max: up to where it can be plugged in; 0 is `size`
    :ivar slots: for DIMMs that are plugged in
    :ivar hugepages: the size of the host's pages that it is made of
    :ivar shared: other processes can map it too, as vhost-user needs it
    :ivar balloon: a device by which the guest gives memory back
    :ivar free_page_reporting: by which it does so by itself
    :ivar guest_stats: seconds between two questions to the guest of how it uses its memory, by the balloon; 0: none
    """

    size: Size = 512 << 20
    max: Size = 0
    slots: Annotated[int, Meta(ge=0, le=256)] = 0
    hugepages: Literal["off", "2MiB", "1GiB"] = "off"
    shared: bool = False
    balloon: bool = True
    free_page_reporting: bool = True
    guest_stats: Annotated[int, Meta(ge=0, le=3600)] = 0


class FirmwareSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What starts the guest's system.

    :ivar type: SeaBIOS or OVMF
    :ivar secure_boot: only signed systems start (``uefi`` on q35)
    :ivar code: the firmware itself; empty is what the host has installed
    :ivar vars_template: what its variables are at first; empty is what belongs to `code`
    """

    type: Literal["bios", "uefi"] = "bios"
    secure_boot: bool = False
    code: Path = ""
    vars_template: Path = ""


class BootSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it starts.

    :ivar kernel: a Linux that is started directly
    :ivar initrd: for it
    :ivar cmdline: for it
    :ivar menu: the firmware offers a choice
    """

    kernel: Path = ""
    initrd: Path = ""
    cmdline: Line = ""
    menu: bool = False


class CloudInit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What cloud-init in the guest finds on a small disk (NoCloud).

    :ivar user_data: such as a text that begins with ``#cloud-config``
    :ivar meta_data: empty is the instance's name and UUID
    :ivar network_config: empty is DHCP everywhere
    :ivar vendor_data: comes before the user's
    """

    user_data: Text = ""
    meta_data: Text = ""
    network_config: Text = ""
    vendor_data: Text = ""


class Smbios(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the guest reads of its "hardware". Empty is QEMU's own.

    :ivar manufacturer: who made it
    :ivar product: its name
    :ivar version: its version
    :ivar serial: its serial number
    :ivar sku: its number in a catalogue
    :ivar family: what it is one of
    :ivar oem_strings: free texts (type 11), by which systemd and cloud-init take credentials
    """

    manufacturer: Line = ""
    product: Line = ""
    version: Line = ""
    serial: Line = ""
    sku: Line = ""
    family: Line = ""
    oem_strings: tuple[Line, ...] = ()


class LimitSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What its processes may use of the host at most, where the host's control groups can limit that.

    :ivar cpus: whole CPUs' time, such as 1.5
    :ivar memory: of all of them; QEMU itself takes some 100 MiB beside the guest's. Beyond it the kernel kills QEMU
    :ivar threads: threads and processes; a vCPU is one, and requests to disks are others
    """

    cpus: Annotated[float, Meta(ge=0.01, le=4096)] | None = None
    memory: Size | None = None
    threads: Annotated[int, Meta(ge=1, le=4194304)] | None = None


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance, as it is wanted.

    :ivar name: of the instance
    :ivar uuid: made when the instance is, where it is empty
    :ivar emulator: the QEMU: looked for on the path, or a path itself
    :ivar acceleration: ``auto`` is KVM where it really works, else TCG
    :ivar autostart: start it when the node starts
    :ivar autostart_order: lower ones first
    :ivar autostart_delay: seconds to wait behind it
    :ivar restart: what to do when it ends by itself
    :ivar machine: the board
    :ivar cpu: the virtual CPUs
    :ivar memory: the guest's memory
    :ivar firmware: what starts first
    :ivar boot: how it starts
    :ivar tpm: a TPM
    :ivar disks: disks and CD drives
    :ivar nics: network cards
    :ivar serial: the serial console; ``false`` is none
    :ivar vnc: a screen by VNC
    :ivar spice: a screen by SPICE
    :ivar agent: a channel for the guest agent
    :ivar rng: the host's random numbers for the guest
    :ivar watchdog: a watchdog
    :ivar vsock_cid: the guest's number for vsock, from 3 on; 0 is none
    :ivar usb: USB devices
    :ivar vfio: PCI devices of the host
    :ivar cloud_init: what cloud-init in the guest finds
    :ivar smbios: what the guest reads of its hardware
    :ivar limits: what it may use of the host at most
    :ivar chroot: QEMU has a root directory of its own, with nothing of the host but what it needs
    :ivar chroot_paths: more of the host that is there, read only
    :ivar extra_args: more words for QEMU's command line, as a last resort: nothing checks them. A ``-device`` has to be
        JSON, for QEMU makes all that are not before the buses that are
    """

    name: Name
    uuid: Uuid = ""
    emulator: Annotated[
        str,
        Meta(
            pattern=r"^(/[^\x00\n]+|[A-Za-z0-9][A-Za-z0-9._+-]*)$",
            description="the name of a program or an absolute path",
        ),
    ] = "qemu-system-x86_64"
    acceleration: Literal["auto", "kvm", "tcg"] = "auto"
    autostart: bool = False
    autostart_order: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    autostart_delay: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    restart: Literal["never", "on-failure", "always"] = "never"
    machine: MachineSpec = MachineSpec()
    cpu: CpuSpec = CpuSpec()
    memory: MemorySpec = MemorySpec()
    firmware: FirmwareSpec = FirmwareSpec()
    boot: BootSpec = BootSpec()
    tpm: Tpm | None = None
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    serial: Serial | None = Serial()
    vnc: Vnc | None = None
    spice: Spice | None = None
    agent: bool = True
    rng: bool = True
    watchdog: Watchdog | None = None
    vsock_cid: Annotated[int, Meta(ge=0, le=_LAST_CID)] = 0
    usb: tuple[UsbDevice, ...] = ()
    vfio: tuple[VfioDevice, ...] = ()
    cloud_init: CloudInit | None = None
    smbios: Smbios = Smbios()
    limits: LimitSpec = LimitSpec()
    chroot: bool = False
    chroot_paths: tuple[Path, ...] = ()
    extra_args: tuple[Text, ...] = ()

    @property
    def screen(self) -> bool:
        """Somebody can look at it."""
        return self.vnc is not None or self.spice is not None

    @property
    def has_usb(self) -> bool:
        """It has a USB controller."""
        return bool(self.machine.usb or self.usb or self.screen)
