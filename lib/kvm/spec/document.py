"""The fields of a specification. Sizes are in bytes; on reading a text such as ``512MiB`` does as well.

Each field's line in these docstrings is its reference; :mod:`.checks` holds what is allowed.
"""

from msgspec import Struct


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of the document have in common: they cannot be changed, and know no other field."""


class Machine(Part, frozen=True, kw_only=True):
    """The main board.

    :ivar type: ``q35``, ``pc``, or a versioned type; an alias is pinned to its version at the first start
    :ivar root_ports: q35: PCIe slots that take hotplug, beside those that the devices below need
    """

    type: str = "q35"
    root_ports: int = 8


class Cpu(Part, frozen=True, kw_only=True):
    """The virtual CPUs.

    :ivar model: as QEMU's ``-cpu``; empty: ``host`` under KVM, ``max`` under TCG
    :ivar features: by name, on or off
    :ivar count: how many at the start
    :ivar max: how many there can be; 0: as many as at the start
    :ivar sockets, cores, threads: topology; 0: QEMU's choice
    :ivar pinning: the host's CPUs that each virtual CPU may run on, such as ``0-3,8``; the last one serves the rest
    """

    model: str = ""
    features: dict[str, bool] = {}
    count: int = 1
    max: int = 0
    sockets: int = 0
    cores: int = 0
    threads: int = 0
    pinning: list[str] = []


class Memory(Part, frozen=True, kw_only=True):
    """The guest's memory.

    :ivar size: in bytes
    :ivar max: in bytes, with what may be plugged in; 0: no more than `size`
    :ivar slots: how many DIMMs may be plugged in
    :ivar shared: other processes of the host may share it
    :ivar hugepages: taken from the host's huge pages of the default size
    :ivar balloon: the guest can be asked to do with less
    :ivar free_page_reporting: what the guest does not use is given back to the host
    """

    size: int = 512 << 20
    max: int = 0
    slots: int = 0
    shared: bool = False
    hugepages: bool = False
    balloon: bool = True
    free_page_reporting: bool = True


class Boot(Part, frozen=True, kw_only=True):
    """What runs first.

    :ivar kernel: a Linux kernel that QEMU boots directly; empty: the firmware looks for one
    :ivar initrd: its initramfs
    :ivar cmdline: its command line
    :ivar menu: the firmware lets one choose
    """

    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    menu: bool = False


class Disk(Part, frozen=True, kw_only=True):
    """A disk.

    :ivar id: of its device and its block node
    :ivar source: path of a file or block device
    :ivar format: ``raw`` or ``qcow2``: said, never probed, for a guest can write any header into a raw disk
    :ivar bus: ``virtio-blk`` or ``virtio-scsi``
    :ivar cache: ``none``, ``writeback``, ``writethrough``, ``directsync`` or ``unsafe``
    :ivar aio: ``threads``, ``native`` or ``io_uring``
    :ivar discard: ``unmap`` or ``ignore``
    :ivar detect_zeroes: ``off``, ``on`` or ``unmap``
    :ivar serial: what the guest sees as its serial number
    :ivar read_only: the guest cannot write to it
    :ivar boot_index: where it stands in the order in which the firmware tries; 0 comes first, None is not tried
    :ivar werror: on an error of a write: ``report``, ``ignore``, ``stop`` or ``enospc`` (stop when it is full)
    :ivar rerror: on an error of a read: ``report``, ``ignore`` or ``stop``
    """

    id: str
    source: str
    format: str
    bus: str = "virtio-blk"
    cache: str = "none"
    aio: str = "threads"
    discard: str = "unmap"
    detect_zeroes: str = "off"
    serial: str = ""
    read_only: bool = False
    boot_index: int | None = None
    werror: str = "enospc"
    rerror: str = "report"


class Nic(Part, frozen=True, kw_only=True):
    """A network card.

    :ivar id: of its device and its network backend
    :ivar mode: ``user`` (QEMU's own network, no rights needed) or ``bridge`` (a tap on a bridge of the host)
    :ivar link: the bridge
    :ivar mac: its address; made from the instance's uuid and the card's id where it is empty
    :ivar model: device model
    :ivar queues: pairs of queues
    """

    id: str
    mode: str = "user"
    link: str = ""
    mac: str = ""
    model: str = "virtio-net-pci"
    queues: int = 1


class Vnc(Part, frozen=True, kw_only=True):
    """The screen by VNC, on a unix socket in the instance's run folder."""


class Spec(Part, frozen=True, kw_only=True):
    """An instance.

    :ivar name: a letter or digit, then at most 62 letters, digits, '.' or '-'
    :ivar uuid: made when the instance is created, where it is empty
    :ivar emulator: the QEMU binary: a path, or a name that is looked for on the path
    :ivar acceleration: ``auto``, ``kvm`` or ``tcg``
    :ivar vnc: None: no screen
    :ivar serial_log: what the guest writes to its serial console is kept in a file
    :ivar agent: a port for a guest agent
    :ivar rng: a source of random numbers
    :ivar extra_args: more words for QEMU's command line, as a last resort: nothing of ours knows of them
    """

    name: str
    uuid: str = ""
    emulator: str = "qemu-system-x86_64"
    acceleration: str = "auto"
    machine: Machine = Machine()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    boot: Boot = Boot()
    disks: list[Disk] = []
    nics: list[Nic] = []
    vnc: Vnc | None = None
    serial_log: bool = True
    agent: bool = True
    rng: bool = True
    extra_args: list[str] = []
