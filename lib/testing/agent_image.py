"""The test guest with a guest agent in it: the host's own ``qemu-ga``, and the libraries that it needs.

The kernel takes several archives as one initramfs, so this is the plain guest's with another one behind
it. What the plain guest costs, in size and at boot, stays as it is.
"""

import gzip
import hashlib
import os
import re
import stat
from pathlib import Path

from drover.testing import archive
from drover.testing.archive import Entry, locked, newc, run, scratch, tool
from drover.testing.image import GuestImage, default_cache, guest_image

_GUEST = Path(__file__).resolve().parent / "guest"
# What the agent runs in the guest, and where it looks for it.
_SCRIPTS = {"agent": "bin/agent", "shutdown": "sbin/shutdown", "chpasswd": "bin/chpasswd", "hwclock": "sbin/hwclock"}
_USERS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n",
    "etc/group": b"root:x:0:\nguest:x:1000:\n",
    "etc/shadow": b"root:*:19000:0:99999:7:::\nguest:*:19000:0:99999:7:::\n",
    "etc/os-release": b'ID=drover\nNAME="Drover test guest"\nPRETTY_NAME="Drover test guest"\nVERSION_ID=1\n',
}


def agent_image(cache: Path | None = None) -> GuestImage:
    """Return the guest image with an agent, built first if its inputs are new; see :func:`~.image.guest_image`.

    :raise ImageError: a tool or package is missing (named)
    """
    cache = cache or default_cache()
    base = guest_image(cache)
    parts = [Path(tool("qemu-ga", "qemu-guest-agent"))]
    parts += _libraries(parts[0])
    folder = cache / f"agent-{_digest(base, parts)}"
    if not folder.is_dir():
        with locked(cache / "lock"):
            if not folder.is_dir():
                _build(cache, folder, base, parts)
    return GuestImage(base.kernel, folder / "initrd.gz", base.version)


def _libraries(program: Path) -> list[Path]:
    """The libraries of a program and its loader, by the names under which they are looked for."""
    lines = run(tool("ldd", "libc-bin"), str(program)).splitlines()
    return [Path(found[1]) for line in lines if (found := re.search(r"(?:=>|^)\s*(/\S+) \(0x", line))]


def _digest(base: GuestImage, parts: list[Path]) -> str:
    digest = hashlib.sha256(base.initrd.parent.name.encode())
    scripts = [_GUEST / name for name in _SCRIPTS]
    for part in (*scripts, Path(__file__), Path(archive.__file__), *parts):
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(cache: Path, folder: Path, base: GuestImage, parts: list[Path]) -> None:
    program, *libraries = parts
    files = {"bin/qemu-ga": program} | {os.fspath(path).lstrip("/"): path for path in libraries}
    files |= {place: _GUEST / name for name, place in _SCRIPTS.items()}
    entries: list[Entry] = [(name, stat.S_IFREG | 0o755, path.read_bytes()) for name, path in files.items()]
    entries += [(name, stat.S_IFREG | 0o600, data) for name, data in _USERS.items()]
    with scratch(cache) as work:
        image = work / "image"
        image.mkdir()
        more = gzip.compress(newc([*_folders(entries), *entries]), mtime=0)
        (image / "initrd.gz").write_bytes(base.initrd.read_bytes() + more)
        image.rename(folder)


def _folders(entries: list[Entry]) -> list[Entry]:
    """The folders in which the entries lie, those above first."""
    names = {os.fspath(parent) for name, _, _ in entries for parent in Path(name).parents} - {"."}
    names |= {"root", "home", "home/guest"}
    return [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(names)]
