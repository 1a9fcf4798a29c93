"""The cache of what is known of QEMU binaries, without a QEMU."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Raw, json

from drover.errors import ArgumentError, BinaryError
from drover.kvm import binary as module
from drover.kvm.binary import Binary, MachineType, find_binary, probe_binary, schema_of
from drover.kvm.binary import _Document as Document
from drover.kvm.binary import _Stamp as Stamp
from drover.kvm.cache import alone

MACHINES = [
    MachineType("pc-q35-7.2", 288, True, alias="q35", default_ram_id="pc.ram"),
    MachineType("pc-q35-7.1", 288, True, default_ram_id="pc.ram"),
    MachineType("pc-i440fx-7.2", 255, True, alias="pc", default_ram_id="pc.ram"),
    MachineType("none", 1, False),
]
SCHEMA = b'[{"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"}]'


def a_binary(path: Path, version: tuple[int, int, int] = (7, 2, 22)) -> Binary:
    """What some QEMU could be."""
    return Binary(
        os.fspath(path), "k", version, "", "x86_64", {kind.name: kind for kind in MACHINES},
        frozenset({"virtio-blk-pci"}), frozenset({"max"}), frozenset({"stop"}), frozenset({"tcg"}),
    )  # fmt: skip


class Asked(list[Path]):
    """Answers for a QEMU, and remembers each time that it is asked."""

    also: Path | None = None  # what the answer depends on too

    def __call__(self, path: Path) -> Document:
        self.append(path)
        depends = [path, *([self.also] if self.also else [])]
        return Document(module.FORMAT, [Stamp.of(os.fspath(each)) for each in depends], a_binary(path), Raw(SCHEMA))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """How often a QEMU would have been started."""
    found = Asked()
    monkeypatch.setattr(module, "_ask", found)
    return found


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A file that could be one."""
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where a cache will be."""
    return tmp_path / "state" / "cache"


def document_of(cache: Path) -> Path:
    """The only document in a cache."""
    (found,) = cache.glob("*.json")
    return found


def test_is_asked_once(asked: Asked, qemu: Path, cache: Path) -> None:
    first = probe_binary(os.fspath(qemu), cache)
    assert probe_binary(os.fspath(qemu), cache) == first == a_binary(qemu)
    assert schema_of(first, cache).commands == {"stop"}
    assert asked == [qemu]
    assert cache.stat().st_mode & 0o077 == 0


def test_one_file_by_all_its_names(asked: Asked, qemu: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = qemu.with_name("qemu-link")
    link.symlink_to(qemu)
    monkeypatch.setenv("PATH", os.fspath(qemu.parent))
    monkeypatch.chdir(qemu.parent)
    for name in ("qemu-link", "./qemu-link", os.fspath(qemu)):
        assert probe_binary(name, cache).path == os.fspath(qemu)
    assert len(asked) == 1


def touch(path: Path) -> None:
    """Another date."""
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    """Another size, the same date."""
    times = path.stat()
    path.write_text("#!/bin/sh\n#\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def swap(path: Path) -> None:
    """Another file of the same size and date."""
    times = path.stat()
    other = path.with_name("other")
    other.write_text("#!/bin/zh\n")
    other.chmod(0o755)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [touch, grow, swap])
def test_is_asked_again_when_it_has_changed(
    asked: Asked, qemu: Path, cache: Path, change: Callable[[Path], None]
) -> None:
    probe_binary(os.fspath(qemu), cache)
    change(qemu)
    probe_binary(os.fspath(qemu), cache)
    probe_binary(os.fspath(qemu), cache)
    assert len(asked) == 2


def test_is_asked_again_when_its_modules_have_changed(asked: Asked, qemu: Path, cache: Path) -> None:
    asked.also = qemu.parent / "modules"
    asked.also.mkdir()
    probe_binary(os.fspath(qemu), cache)
    (asked.also / "hw-display-qxl.so").touch()
    probe_binary(os.fspath(qemu), cache)
    (asked.also / "hw-display-qxl.so").unlink()
    asked.also.rmdir()
    asked.also = None
    probe_binary(os.fspath(qemu), cache)
    assert len(asked) == 3


# What may be in the cache and is no document of ours.
BROKEN = [
    b"",
    b"\xff\xfe not text",
    b"[]",
    json.encode({"format": module.FORMAT}),
    json.encode({"format": module.FORMAT + 1, "stamps": [], "binary": None, "schema": None}),
]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_document(asked: Asked, qemu: Path, cache: Path, content: bytes) -> None:
    probe_binary(os.fspath(qemu), cache)
    whole = document_of(cache).read_bytes()
    document_of(cache).write_bytes(content)
    assert probe_binary(os.fspath(qemu), cache).machines
    assert len(asked) == 2
    assert len(document_of(cache).read_bytes()) == len(whole)


def test_half_a_document(asked: Asked, qemu: Path, cache: Path) -> None:
    probe_binary(os.fspath(qemu), cache)
    document = document_of(cache)
    whole = document.read_bytes()
    for size in range(0, len(whole), 37):
        document.write_bytes(whole[:size])
        assert module._read(document, qemu) is None


def test_document_of_another_file(asked: Asked, qemu: Path, cache: Path) -> None:
    probe_binary(os.fspath(qemu), cache)
    other = qemu.with_name("other")
    other.write_bytes(qemu.read_bytes())
    other.chmod(0o755)
    ours = document_of(cache)
    probe_binary(os.fspath(other), cache)
    (theirs,) = set(cache.glob("*.json")) - {ours}
    ours.replace(theirs)
    assert probe_binary(os.fspath(other), cache).path == os.fspath(other)
    assert len(asked) == 3


def test_newer_format_is_not_understood_at_all(asked: Asked, qemu: Path, cache: Path) -> None:
    probe_binary(os.fspath(qemu), cache)
    document = json.decode(document_of(cache).read_bytes())
    document_of(cache).write_bytes(json.encode({**document, "format": module.FORMAT + 1}))
    assert probe_binary(os.fspath(qemu), cache) == a_binary(qemu)
    assert len(asked) == 2


@pytest.mark.parametrize("blocker", ["file", "folder"])
def test_no_cache_to_be_had(asked: Asked, qemu: Path, cache: Path, blocker: str) -> None:
    cache.parent.mkdir()
    if blocker == "file":
        cache.write_text("in the way")
    else:  # where the document should be
        cache.mkdir()
        probe_binary(os.fspath(qemu), cache)
        document = document_of(cache)
        document.unlink()
        document.mkdir()
        asked.clear()
    assert probe_binary(os.fspath(qemu), cache) == probe_binary(os.fspath(qemu), cache)
    assert len(asked) == 2
    if blocker == "folder":
        assert not list(cache.glob(".*"))  # nothing half made is left


def test_many_at_once_ask_once(asked: Asked, qemu: Path, cache: Path) -> None:
    found: list[Binary] = []
    threads = [threading.Thread(target=lambda: found.append(probe_binary(os.fspath(qemu), cache))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(asked) == 1


def test_nobody_waits_for_one_who_hangs(asked: Asked, qemu: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_TIMEOUT", 0.02)
    probe_binary(os.fspath(qemu), cache)
    document = document_of(cache)
    document.unlink()
    with alone(document, 1):
        probe_binary(os.fspath(qemu), cache)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("name", "problem"),
    [("/none/such", "is not there"), ("/tmp", "is a directory"), ("none-such", "there is none in"), ("", "none in")],
)
def test_no_such_binary(name: str, problem: str) -> None:
    with pytest.raises(BinaryError, match=problem) as caught:
        find_binary(name)
    assert caught.value.path == name


def test_file_that_may_not_be_executed(qemu: Path) -> None:
    qemu.chmod(0o644)
    with pytest.raises(BinaryError, match="may not be executed"):
        find_binary(os.fspath(qemu))


def test_machine_types(qemu: Path) -> None:
    binary = a_binary(qemu)
    assert binary.resolve_machine("q35") == binary.resolve_machine("pc-q35-7.2") == "pc-q35-7.2"
    assert binary.machine("pc").max_cpus == 255
    assert binary.has_device("virtio-blk-pci")
    assert not binary.has_device("virtio-blk")


@pytest.mark.parametrize(("name", "near"), [("q53", "q35"), ("pc-q35-7.3", "pc-q35-7.2, pc-q35-7.1"), ("", "q35, pc")])
def test_no_such_machine_type(qemu: Path, name: str, near: str) -> None:
    with pytest.raises(ArgumentError, match=near) as caught:
        a_binary(qemu).machine(name)
    assert caught.value.field == "machine.type"
