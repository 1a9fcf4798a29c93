"""The test guest's kernel and initramfs, built from the distribution's packages and cached.

The kernel is the one that ``linux-image-cloud-amd64`` depends on, downloaded but not
installed; or that of ``linux-image-amd64``, which has drivers for what no cloud has:
SATA, USB, e1000, watchdogs. The initramfs holds the static busybox of ``busybox-static``,
the modules of that kernel which make virtio devices work, and ``guest/``.
No root is needed, except for apt's package lists where they were never fetched.

``python -m drover.testing.image`` builds it and prints where it is. :mod:`.agent_image` puts a guest agent into it.
"""

import gzip
import hashlib
import lzma
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drover.testing import archive
from drover.testing.archive import Entry, ImageError, locked, newc, run, scratch, tool

# What the guest loads, in this order, each after what it depends on. What the kernel has built in is passed over.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon", "virtio_mem", "virtio_console",
    "sd_mod", "virtio_scsi", "ext4", "crc32c_generic", "nvme", "evdev", "button", "pvpanic_mmio",
)  # fmt: skip
MORE_MODULES = (
    "ahci", "ata_piix", "sr_mod", "isofs", "xhci_pci", "usb_storage", "usbhid", "hid_generic",
    "e1000", "e1000e", "i6300esb",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the distribution's.

    :ivar package: depends on the newest one
    :ivar prefix: of its package's file in the cache
    :ivar modules: what the guest loads
    """

    package: str
    prefix: str
    modules: Sequence[str]


KERNELS = {
    "cloud": Kernel("linux-image-cloud-amd64", "", MODULES),
    "full": Kernel("linux-image-amd64", "full-", (*MODULES, *MORE_MODULES)),
}

_PACKAGE = Path(__file__).resolve().parents[1]
_GUEST = Path(__file__).resolve().parent / "guest"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest that QEMU can boot.

    :ivar kernel: for ``-kernel``
    :ivar initrd: for ``-initrd``
    :ivar version: the kernel's release, as ``uname -r`` prints it in the guest
    """

    kernel: Path
    initrd: Path
    version: str


def guest_image(cache: Path | None = None, kernel: str = "cloud") -> GuestImage:
    """Return the guest image, built first if its inputs are new. Safe in several processes at once.

    A cached kernel is kept until it is deleted from the cache, so that a
    finished image needs neither network nor apt.

    :param cache: where to keep it; else ``$DROVER_GUEST_CACHE``, else ``build/guest`` of the source tree, else
        ``drover/guest`` in the user's cache directory
    :param kernel: ``cloud``, or ``full``, which boots more slowly and has more drivers
    :raise ImageError: a tool or package is missing (named), or apt, gcc or dpkg failed (quoted)
    """
    cache, chosen = cache or default_cache(), KERNELS[kernel]
    busybox = _busybox()
    if (deb := _cached_kernel(cache, chosen)) and (found := _finished(cache, deb, busybox)):
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        deb = _cached_kernel(cache, chosen) or _download_kernel(cache, chosen)
        return _finished(cache, deb, busybox) or _build(cache, deb, busybox, chosen.modules)


def default_cache() -> Path:
    """Return where images are kept when the caller does not say."""
    if chosen := os.environ.get("DROVER_GUEST_CACHE"):
        return Path(chosen)
    if _PACKAGE.name == "lib":  # the source tree's name for it; installed, it is called drover
        return _PACKAGE.parent / "build" / "guest"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drover" / "guest"


# -- the cache -------------------------------------------------------------------------------------------------------


def _folder(cache: Path, deb: Path, busybox: Path) -> Path:
    digest = hashlib.sha256(deb.name.encode())
    for part in (_GUEST / "init", _GUEST / "helper.c", Path(__file__), Path(archive.__file__), busybox):
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return cache / f"image-{digest.hexdigest()[:16]}"


def _finished(cache: Path, deb: Path, busybox: Path) -> GuestImage | None:
    folder = _folder(cache, deb, busybox)
    if not folder.is_dir():
        return None
    return GuestImage(folder / "vmlinuz", folder / "initrd.gz", (folder / "version").read_text().strip())


def _busybox() -> Path:
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        # A dynamic one (package busybox) names its loader, and would not run in an initramfs without libraries.
        if path.is_file() and b"/ld-linux" not in path.read_bytes()[:4096]:
            return path
    raise ImageError("no static busybox in /bin or /usr/bin: install the Debian package busybox-static")


# -- the kernel ------------------------------------------------------------------------------------------------------


def _cached_kernel(cache: Path, kernel: Kernel) -> Path | None:
    return max(cache.glob(f"{kernel.prefix}linux-image-*.deb"), key=lambda deb: deb.stat().st_mtime, default=None)


def _download_kernel(cache: Path, kernel: Kernel) -> Path:
    apt = tool(
        "apt-get", f"apt (or put what {kernel.package} depends on into {cache}/{kernel.prefix}linux-image-….deb)"
    )
    # Without this, apt says at each download by root that its own user cannot write here.
    download = (apt, "-qq", "-o", "APT::Sandbox::User=root", "download")
    with scratch(cache) as work:
        try:
            run(*download, _newest(kernel.package), cwd=work)
        except ImageError as error:  # lists never fetched, or so old that the mirror has dropped what they name
            _update(apt, error)
            run(*download, _newest(kernel.package), cwd=work)
        (deb,) = work.glob("*.deb")
        return deb.rename(cache / f"{kernel.prefix}{deb.name}")


def _newest(package: str) -> str:
    depends = run(tool("apt-cache", "apt"), "depends", "--important", package)
    if found := re.search(r"Depends: (linux-image-\S+)", depends):
        return found[1]
    raise ImageError(f"{package} depends on no kernel: {depends.strip()}")


def _update(apt: str, error: ImageError) -> None:
    if os.geteuid() != 0:
        raise ImageError(f"{error}; run `apt-get update` as root and try again") from error
    run(apt, "-qq", "update")


# -- the image -------------------------------------------------------------------------------------------------------


def _build(cache: Path, deb: Path, busybox: Path, modules: Sequence[str]) -> GuestImage:
    with scratch(cache) as work:
        root, image = work / "root", work / "image"
        image.mkdir()
        run(tool("dpkg-deb", "dpkg"), "-x", str(deb), str(root))
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        version = kernel.name.removeprefix("vmlinuz-")
        kernel.rename(image / "vmlinuz")
        (image / "version").write_text(version + "\n")
        entries = _entries(_compile(work), busybox, _closure(_module_tree(root, version), modules))
        (image / "initrd.gz").write_bytes(gzip.compress(newc(entries), mtime=0))
        image.rename(_folder(cache, deb, busybox))
    found = _finished(cache, deb, busybox)
    assert found
    return found


def _compile(work: Path) -> bytes:
    helper = work / "helper"
    try:
        run(tool("gcc", "gcc"), "-std=gnu11", "-O2", "-static", "-s", "-o", str(helper), str(_GUEST / "helper.c"))
    except ImageError as error:
        if Path("/usr/include/stdio.h").exists():
            raise
        raise ImageError("no C library to compile with: install the Debian package libc6-dev") from error
    return helper.read_bytes()


def _module_tree(root: Path, version: str) -> Path:
    for lib in (root / "lib", root / "usr/lib"):  # Debian moves to the latter
        if (lib / "modules" / version).is_dir():
            return lib / "modules" / version
    raise ImageError(f"the kernel package holds no modules for {version}")


def _closure(tree: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Return the wanted modules and all that they need, uncompressed, in an order in which they load."""
    built_in = {_module_name(line) for line in (tree / "modules.builtin").read_text().split()}
    files = {_module_name(path.name): path for path in tree.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise ImageError(f"the kernel {tree.name} has no module {name}")
        data = _module(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            add(needed.replace("-", "_"))
        order[name] = data

    for name in wanted:
        add(name)
    return order


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _module(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _entries(helper: bytes, busybox: Path, modules: dict[str, bytes]) -> list[Entry]:
    folders = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "modules", "proc", "sys")]
    return [
        *folders,
        ("init", stat.S_IFREG | 0o755, (_GUEST / "init").read_bytes()),
        ("bin/helper", stat.S_IFREG | 0o755, helper),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}.ko\n" for name in modules).encode()),
        *((f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in modules.items()),
    ]


def main() -> int:
    """Build an image and print its paths; the exit code is 1 when that fails. An argument chooses the kernel."""
    try:
        image = guest_image(kernel=sys.argv[1] if sys.argv[1:] else "cloud")
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"kernel {image.kernel}\ninitrd {image.initrd}\nversion {image.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
