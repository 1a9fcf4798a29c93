"""What a QEMU binary is and can do: asked of the binary itself by QMP once, then read from a cache.

A document in the cache names the files that its answers depend on, each with its times and size:
the binary; what it executes, where it is a script; the folders of the modules that it loaded. As
long as all are as they were, the document is true. Anything else, a document of another format or
a broken one among it, is no document, and the binary is asked again.
"""

import difflib
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from msgspec import DecodeError, Raw, Struct, convert, json

from ..errors import ArgumentError, BinaryError
from ..qmp.ready import ready
from ..qmp.schema import Schema
from .cache import alone, cache_file, replace
from .trial import Trial

PROBE_TIMEOUT: Final = 10.0  # s; it takes 0.2 s: more is a host that swaps, or a program that hangs
FORMAT: Final = 1  # of the cache's documents
_LOCK_TIMEOUT: Final = 2 * PROBE_TIMEOUT  # s; who holds the lock longer does not work on it any more
_NEAR: Final = 5  # names in an error
_KEPT: Final = 4  # documents, of 0.3 MB each, that a process keeps decoded


class MachineType(Struct, frozen=True, omit_defaults=True):
    """A kind of machine that a QEMU can be.

    :ivar name: with its version, where it has one, such as ``pc-q35-7.2``
    :ivar max_cpus: the most virtual CPUs that it can have
    :ivar hotpluggable_cpus: whether CPUs can be added while it runs
    :ivar alias: the name without a version, of the newest one, such as ``q35``; empty for the others
    :ivar default_ram_id: the name of its memory, which a memory backend has to have; empty where there is none
    :ivar default_cpu_type: the QOM type of its CPUs unless something else is said; empty where there is none
    :ivar deprecated: whether a later QEMU will not have it
    :ivar numa_mem_supported: whether a NUMA node's memory can be said by its size alone
    """

    name: str
    max_cpus: int
    hotpluggable_cpus: bool
    alias: str = ""
    default_ram_id: str = ""
    default_cpu_type: str = ""
    deprecated: bool = False
    numa_mem_supported: bool = False


class Binary(Struct, frozen=True):
    """A QEMU binary.

    :ivar path: absolute, without symbolic links
    :ivar key: changes whenever the binary does
    :ivar version: such as ``(7, 2, 22)``
    :ivar package: what its distributor says of this build; may be empty
    :ivar target: the architecture that it emulates, such as ``x86_64``
    :ivar machines: all machine types by their names; aliases: :meth:`machine`
    :ivar devices: what ``-device`` and ``device_add`` know, and what is only ever built in
    :ivar cpu_models: what ``-cpu`` knows
    :ivar commands: of its QMP monitor
    :ivar accelerators: such as ``kvm`` and ``tcg``; that it knows one does not mean that it works here
    """

    path: str
    key: str
    version: tuple[int, int, int]
    package: str
    target: str
    machines: dict[str, MachineType]
    devices: frozenset[str]
    cpu_models: frozenset[str]
    commands: frozenset[str]
    accelerators: frozenset[str]

    def has_device(self, name: str) -> bool:
        """Whether there is a device of this driver name, such as ``virtio-blk-pci``."""
        return name in self.devices

    def machine(self, name: str) -> MachineType:
        """The machine type of this name or alias.

        :raises ArgumentError: there is none; names those that are spelt alike
        """
        found = self.machines.get(name) or next((kind for kind in self.machines.values() if kind.alias == name), None)
        if found is None or not name:
            raise ArgumentError("machine.type", name, f"{self.path} has {self._near(name)}")
        return found

    def resolve_machine(self, name: str) -> str:
        """The full name of a machine type, to be kept with a machine: an alias means another one in a later QEMU.

        :raises ArgumentError: there is none
        """
        return self.machine(name).name

    def _near(self, name: str) -> str:
        names = sorted({*self.machines, *(kind.alias for kind in self.machines.values() if kind.alias)})
        near = difflib.get_close_matches(name, names, _NEAR, 0.5)
        return ", ".join(near or [kind.alias for kind in self.machines.values() if kind.alias]) + ", ..."


class _Stamp(Struct, frozen=True, array_like=True):
    """How a file was when a binary was asked."""

    path: str
    mtime_ns: int
    ctime_ns: int  # two builds may have one source's date, and one size
    size: int

    @classmethod
    def of(cls, path: str) -> "_Stamp":
        found = os.stat(path)
        return cls(path, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def holds(self) -> bool:
        try:
            return self == _Stamp.of(self.path)
        except OSError:
            return False


class _Document(Struct, frozen=True):
    format: int
    stamps: list[_Stamp]
    binary: Binary
    schema: Raw


_last: dict[Path, tuple[_Stamp, _Document | None]] = {}


class _Head(Struct, frozen=True):
    """What documents of all formats have."""

    format: int


def find_binary(name: str) -> Path:
    """The file of a QEMU.

    :param name: is looked for on the path; one with a ``/`` is a path itself
    :returns: absolute, without symbolic links
    :raises BinaryError: there is none
    """
    found = shutil.which(name)
    if found is not None:
        return Path(os.path.realpath(found))
    if "/" not in name:
        raise BinaryError(name, f"there is none in {os.environ.get('PATH', os.defpath)}")
    why = "is a directory" if os.path.isdir(name) else "may not be executed" if os.path.exists(name) else "is not there"
    raise BinaryError(name, f"it {why}")


def probe_binary(name: str, cache_dir: Path) -> Binary:
    """What a QEMU is and can do.

    It is asked if the cache does not know it as it is now; any number of processes may share a cache.

    :param name: as for :func:`find_binary`
    :param cache_dir: made when it is needed; where that cannot be written, nothing is kept
    :raises BinaryError: it is no QEMU that can be used; nothing of it is left running
    :raises BinarySlow: it did not answer in time
    """
    return _known(find_binary(name), cache_dir).binary


def schema_of(binary: Binary, cache_dir: Path) -> Schema:
    """What the QMP monitor of a QEMU understands, in every detail.

    :param cache_dir: the one that it was probed with
    :raises BinaryError: it is no QEMU any more, and the cache knows it no longer
    """
    return Schema(json.decode(_known(Path(binary.path), cache_dir).schema))


# -- the cache -----------------------------------------------------------------------------------


def _known(path: Path, cache_dir: Path) -> _Document:
    file = cache_file(cache_dir, path, ".json")
    if (known := _read(file, path)) is not None:
        return known
    with alone(file, _LOCK_TIMEOUT):
        if (known := _read(file, path)) is not None:  # somebody else asked it meanwhile
            return known
        document = _ask(path)
        replace(file, json.encode(document))
    return document


def _read(file: Path, path: Path) -> _Document | None:
    try:
        document = _decoded(file)
    except (OSError, DecodeError, UnicodeDecodeError):
        return None
    if document is None:
        return None
    true = document.binary.path == os.fspath(path) and all(stamp.holds() for stamp in document.stamps)
    return document if true else None


def _decoded(file: Path) -> _Document | None:
    """What a document of the cache says, which this process reads again once it is another; None: of another format."""
    stamp, (kept, document) = _Stamp.of(os.fspath(file)), _last.get(file, (None, None))
    if stamp != kept:
        data = file.read_bytes()
        right = json.decode(data, type=_Head).format == FORMAT
        document = json.decode(data, type=_Document) if right else None
        while len(_last) >= _KEPT:
            _last.pop(next(iter(_last)), None)
        _last[file] = stamp, document
    return document


# -- asking it -----------------------------------------------------------------------------------


def _ask(path: Path) -> _Document:
    before = _Stamp.of(os.fspath(path))
    with Trial(path, ["-machine", "none"], timeout=PROBE_TIMEOUT) as trial:
        try:
            devices = _types(trial, "device")  # loads all modules, some of which bring commands and machines
            version = trial.ask("query-version")
            facts: dict[str, Any] = {
                "path": os.fspath(path),
                "version": [version["qemu"][part] for part in ("major", "minor", "micro")],
                "package": version["package"],
                "target": trial.ask("query-target")["arch"],
                "machines": {each["name"]: _machine(each) for each in trial.ask("query-machines")},
                "devices": devices,
                "cpu_models": [each["name"] for each in trial.ask("query-cpu-definitions")],
                "commands": [each["name"] for each in trial.ask("query-commands")],
                "accelerators": [name.removesuffix("-accel") for name in _types(trial, "accel") if name != "accel"],
            }
            schema = Raw(json.encode(trial.ask("query-qmp-schema")))
            stamps = [before, *map(_Stamp.of, _depends_on(trial.pid, path))]
            key = hashlib.sha256(json.encode(stamps)).hexdigest()[:32]
            return _Document(FORMAT, stamps, convert({**facts, "key": key}, Binary), schema)
        except OSError as error:
            raise BinaryError(os.fspath(path), f"it was replaced while it was asked ({error})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BinaryError(os.fspath(path), f"it answers what no QEMU does ({error!r})") from error


def _types(trial: Trial, parent: str) -> list[str]:
    found = trial.ask("qom-list-types", {"implements": parent, "abstract": False})
    return sorted(each["name"] for each in found)


def _machine(answer: dict[str, Any]) -> dict[str, Any]:
    known = {name.replace("-", "_"): value for name, value in answer.items()}
    return {**known, "max_cpus": known["cpu_max"]}


def _depends_on(pid: int, path: Path) -> Iterable[str]:
    """What runs, where that is not the file itself, and the folders of the modules that it has loaded.

    Modules are told from libraries by their names: ``hw-display-qxl.so`` and ``libz.so.1``.
    """
    program = os.readlink(f"/proc/{pid}/exe")
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
    mapped = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.endswith(".so")}
    folders = {os.path.dirname(file) for file in mapped if not os.path.basename(file).startswith("lib")}
    return [*([program] if program != os.fspath(path) else []), *sorted(folders)]


ready(Binary, _Document, _Head)
