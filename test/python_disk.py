"""A disk with this Python, what it has installed, and Drover: for what has to be tried under the guest's kernel."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import bitarray
import msgspec
import pyroute2

from drover import QmpConnection
from drover.testing.image import GuestImage
from drover.testing.machine import Machine

TOP = Path(__file__).resolve().parents[1]
MODULES = ("stp", "llc", "bridge", "veth", "tun", "vhost_iotlb", "vhost", "tap", "vhost_net")
_UNUSED = shutil.ignore_patterns("__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip", "config-*", "*.a")
_SIZE = "256M"  # of the file, which is sparse


def python_disk(folder: Path, image: GuestImage, kernel: Path, programs: Iterable[Path]) -> Path:
    """Make the image of a file system. :func:`run_inside` runs a program on it.

    :param folder: to make it in
    :param image: the guest that it is for
    :param kernel: the guest's kernel as a package; :data:`MODULES` of it are in ``/modules``
    :param programs: files for ``/programs``
    """
    root = folder / "root"
    for name in ("proc", "sys", "dev", "tmp", "modules", "programs", "usr/bin"):
        (root / name).mkdir(parents=True)
    binary = Path(sys.executable).resolve()
    library = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(library, root / library.relative_to("/"), symlinks=False, ignore=_UNUSED)
    packages = root / "packages"
    for package in (bitarray, msgspec, pyroute2):
        source = Path(package.__file__).parent
        shutil.copytree(source, packages / source.name, ignore=_UNUSED, dirs_exist_ok=True)
    shutil.copytree(TOP / "lib", packages / "drover", ignore=_UNUSED)
    for file in (binary, Path(shutil.which("setpriv") or "/usr/bin/setpriv")):
        shutil.copy(file, root / "usr/bin" / file.name)
    for file in _libraries(binary, *root.rglob("*.so")):
        (root / file.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.relative_to("/"))
    (root / "python").symlink_to(f"usr/bin/{binary.name}")
    for program in programs:
        shutil.copy(program, root / "programs")
    _unpack_modules(kernel, image.version, root / "modules")
    disk = folder / "python.ext4"
    subprocess.run(["mkfs.ext4", "-q", "-d", root, disk, _SIZE], check=True)
    shutil.rmtree(root)
    return disk


def run_inside(machine: Machine, disk: Path, program: str, timeout: float) -> str:
    """Run a program of such a disk in a guest; return what it printed. Timeout in seconds."""
    with QmpConnection(machine.qmp, timeout=30) as vm:
        vm.hot_add_disk(os.fspath(disk), id="python")
        machine.console.wait_for_disk("vda")
        machine.console.run("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
        for name in ("proc", "sys", "dev"):
            machine.console.run(f"mount --bind /{name} /mnt/{name}")
        return machine.console.run(f"PYTHONPATH=/packages chroot /mnt /python -B /programs/{program}", timeout)


def _libraries(*programs: Path) -> set[Path]:
    """The shared libraries of programs, under the names by which they are looked for, and the loader."""
    shown = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    words = [word for line in shown.splitlines() if "(0x" in line for word in line.split() if word.startswith("/")]
    return {Path(word) for word in words if Path(word).exists()}


def _unpack_modules(kernel: Path, version: str, to: Path) -> None:
    tree = to / "unpacked"
    subprocess.run(["dpkg-deb", "-x", kernel, tree], check=True)
    found = {path.stem: path for path in (tree / "lib/modules" / version).rglob("*.ko")}
    for name in MODULES:
        if name in found:  # some kernels have some of them built in
            shutil.copy(found[name], to / f"{name}.ko")
    shutil.rmtree(tree)
