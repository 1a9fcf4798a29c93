"""What the demo needs of this host, found before anything begins: programs, the right to make taps, a machine type."""

import errno
import os
import re
import shutil
import subprocess
from typing import Final, NamedTuple

from drover.errors import DroverError
from drover.kvm.taps import open_tap

# QEMU's names of the versioned types behind `q35` and `pc`.
_VERSIONED: Final = {"q35": r"pc-q35-(\d+)\.(\d+)", "pc": r"pc-i440fx-(\d+)\.(\d+)"}
_HELP_TIMEOUT: Final = 60.0  # seconds: 0.1 on an idle machine

_TUN_ADVICE: Final = {
    errno.ENOENT: "there is no /dev/net/tun: `modprobe tun`, or give the container --device /dev/net/tun",
    errno.ENODEV: "the kernel has no tun driver behind /dev/net/tun: `modprobe tun` on the host",
    errno.ENXIO: "the kernel has no tun driver behind /dev/net/tun: `modprobe tun` on the host",
    errno.EACCES: "no right to open /dev/net/tun: run it as root",
    errno.EPERM: "no right to make a tap device: run it as root (in a container, with --cap-add NET_ADMIN)",
}


class NeedError(DroverError):
    """The demo cannot run here; the message says what to do."""


class Options(NamedTuple):
    """What the command line asks for.

    :ivar kind: ``q35`` or ``pc``
    :ivar machine_type: the versioned one of that kind that both QEMUs know
    :ivar qemu: path of the first QEMU
    :ivar target_qemu: path of the second one
    :ivar memory: of the guest, in MiB
    :ivar keep: leave the guest running at the end
    """

    kind: str
    machine_type: str
    qemu: str
    target_qemu: str
    memory: int
    keep: bool


def find_options(kind: str, qemu: str, target_qemu: str | None, memory: int, keep: bool) -> Options:
    """Check that all is there, and work out what was not said.

    :raises NeedError: something is missing
    """
    _require_tap()
    here = _find_qemu(qemu)
    there = _find_qemu(target_qemu or qemu)
    return Options(kind, _common_type(kind, here, there), here, there, memory, keep)


def _require_tap() -> None:
    try:
        open_tap().close()
    except OSError as error:
        raise NeedError(_TUN_ADVICE.get(error.errno or 0, f"cannot make a tap device: {error}")) from error


def _find_qemu(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        advice = "not an executable file" if os.sep in name else "not found; install the Debian package qemu-system-x86"
        raise NeedError(f"{name}: {advice}")
    return path


def _common_type(kind: str, here: str, there: str) -> str:
    """The newest versioned machine type that both know: what moves must be the same machine on both sides."""
    known = _machine_types(kind, here)
    common = known if there == here else known & _machine_types(kind, there)
    if not common:
        raise NeedError(f"{here} and {there} have no versioned machine type of kind {kind} in common")
    return max(common)[1]


def _machine_types(kind: str, qemu: str) -> set[tuple[tuple[int, int], str]]:
    """The versioned types of a kind: version and name. Asked by the option that needs no machine to answer."""
    try:
        done = subprocess.run(
            [qemu, "-machine", "help"], capture_output=True, text=True, check=True, timeout=_HELP_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip()
        raise NeedError(f"{qemu} is no QEMU that works: {said}") from error
    words = (line.split(maxsplit=1)[0] for line in done.stdout.splitlines() if line.strip())
    found = (re.fullmatch(_VERSIONED[kind], word) for word in words)
    return {((int(match[1]), int(match[2])), match[0]) for match in found if match}
