"""What an instance's QEMU gets to see of the host in a root directory of its own.

Most of what it uses is opened by us and passed to it: images, kernels, taps, sockets. That is not shown. What is: the
system's programs and libraries, what host names are looked up in, a few device nodes; what QEMU opens by a path; and
the one folder that it may write to.
"""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import ArgumentError
from ..ops.nbd import parse_nbd
from .record import Runtime
from .root import Shown, sees
from .spec import Disk, Spec, UsbDevice, VfioDevice

# Where programs and libraries are, in links to /usr or in folders of their own.
_PROGRAMS: Final = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
# What libraries read, each where it is there: of names of hosts, of the clock, of how TLS is to be.
_SYSTEM: Final = (
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/crypto-policies", "/etc/gnutls"),
    *("/etc/nsswitch.conf", "/etc/host.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/gai.conf"),
    *("/etc/services", "/etc/protocols"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/userfaultfd"),
)
_SYSFS: Final = "/sys"  # without what is mounted in it: control groups, tracing
# What belongs to a program in a folder `bin` beside it.
_BIN: Final = frozenset({"bin", "sbin", "libexec"})
_INSTALLED: Final = (*_BIN, "lib", "lib32", "lib64", "share")


def view(spec: Spec, emulator: str, private: Path, accelerator: str) -> list[Shown]:
    """All that an instance's QEMU sees.

    :param spec: with a chroot
    :param emulator: its program, without symbolic links
    :param private: the folder that it may write to
    :param accelerator: ``kvm`` or ``tcg``
    :raises ArgumentError: the emulator cannot be shown without what is none of its business
    """
    there = [*_SYSTEM, *(["/dev/kvm"] if accelerator == "kvm" else [])]
    wanted = {*(path for path in there if os.path.exists(path)), *_installation(emulator), *_opened(spec)}
    wanted |= {os.path.normpath(path) for path in spec.chroot_paths}
    programs = [Shown(path, link=os.path.islink(path)) for path in _PROGRAMS if os.path.exists(path)]
    shown = [Shown(path, nested=path != _SYSFS) for path in wanted]
    return [*programs, *shown, Shown(os.fspath(private), nested=False, writable=True)]


def _opened(spec: Spec) -> Iterator[str]:
    """What QEMU opens by its path."""
    for screen in (spec.vnc, spec.spice):
        if screen is not None and screen.tls_dir:
            yield os.path.normpath(screen.tls_dir)
    if spec.firmware.type == "bios" and spec.firmware.code:
        yield os.path.normpath(spec.firmware.code)
    for device in (*spec.disks, *spec.usb, *spec.vfio):
        yield from _opened_for(device)


def _opened_for(device: Any) -> Iterator[str]:
    """What QEMU opens by its path for a device."""
    match device:
        case Disk(source=source) if source.startswith("nbd"):
            address = parse_nbd(source).address
            if address.startswith("unix:"):
                yield os.path.normpath(address.removeprefix("unix:"))
        case Disk(source=source) if source.startswith("rbd:"):
            yield "/etc/ceph"
        case UsbDevice(type="host"):
            yield from ("/dev/bus/usb", _SYSFS)
        case VfioDevice():
            yield from ("/dev/vfio", _SYSFS)


def _installation(emulator: str) -> list[str]:
    """Where a QEMU is that is not one of the system's: its own folder, or that of all that is installed with it."""
    if emulator.startswith(tuple(f"{path}/" for path in _PROGRAMS)):
        return []
    folder = os.path.dirname(emulator)
    if os.path.basename(folder) in _BIN:
        above = os.path.dirname(folder)
        return [path for name in _INSTALLED if os.path.isdir(path := os.path.join(above, name))]
    if folder.count("/") < 2 or _is_home(folder):
        allowed = f"in a chroot it has to be in a folder of its own, or in one called bin: it would see all of {folder}"
        raise ArgumentError("emulator", emulator, allowed)
    return [folder]


def _is_home(folder: str) -> bool:
    try:
        return os.path.realpath(pwd.getpwuid(os.stat(folder).st_uid).pw_dir) == folder
    except KeyError:  # its owner is in no passwd
        return False


def check_visible(runtime: Runtime, device: Any) -> None:
    """See that the QEMU of an instance that runs finds what it has to open for a device.

    :param device: one that is to be plugged in, as in a specification
    :raises ArgumentError: it is in a root directory in which that is not
    """
    if not runtime.spec.chroot:
        return
    if missing := [path for path in _opened_for(device) if not sees(runtime.pid, path)]:
        paths = " and ".join(missing)
        allowed = f"its QEMU runs in a chroot without {paths}: that has to be in chroot_paths, from a start on"
        raise ArgumentError(*_named(device), allowed)


def _named(device: Any) -> tuple[str, str]:
    """The field of a device for which QEMU opens something, and what stands there."""
    match device:
        case UsbDevice(type=type):
            return "type", type
        case VfioDevice(host=host, mediated=mediated):
            return ("host", host) if host else ("mediated", mediated)
    return "source", device.source
