"""Files copied with their holes, within a file system and from one to another; QEMU is kept from writing meanwhile."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.kvm import copying
from drover.kvm.copying import copy_file, data_size, keep_from_writing

MIB = 1 << 20


@pytest.fixture(params=[(None, None), ("/dev/shm", "/dev/shm"), (None, "/dev/shm"), ("/dev/shm", None)])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders: on disk, in memory, and one each, where the kernel does not copy from one to the other."""
    first, second = request.param
    with tempfile.TemporaryDirectory(dir=first or tmp_path) as one:
        with tempfile.TemporaryDirectory(dir=second or tmp_path) as other:
            yield Path(one), Path(other)


def sparse(path: Path) -> bytes:
    """A file of 41 MiB and a half sector, with data in front of a hole, in it, and a hole at its end."""
    size = 41 * MIB + 256
    with path.open("wb") as file:
        for place, data in ((0, os.urandom(3 * MIB)), (20 * MIB, os.urandom(70_000)), (30 * MIB, b"x")):
            file.seek(place)
            file.write(data)
        file.truncate(size)
    return path.read_bytes()


def copied(source: Path, target: Path) -> list[int]:
    told: list[int] = []
    with source.open("rb") as one, target.open("xb") as other:
        copy_file(one.fileno(), other.fileno(), told.append)
        assert sum(told) == data_size(one.fileno())
    return told


def test_holes(folders: tuple[Path, Path]) -> None:
    """The same bytes, and no more of the storage."""
    one, other = folders
    data = sparse(one / "a")
    copied(one / "a", other / "b")
    assert (other / "b").read_bytes() == data
    assert (other / "b").stat().st_blocks * 512 < 4 * MIB
    assert (other / "b").stat().st_blocks <= (one / "a").stat().st_blocks + 16


@pytest.mark.parametrize("size", [0, 1, 5000, 16 * MIB, 16 * MIB + 1])
@pytest.mark.parametrize("hole", [False, True])
def test_sizes(folders: tuple[Path, Path], size: int, hole: bool) -> None:
    one, other = folders
    (one / "a").write_bytes(b"" if hole else b"d" * size)
    os.truncate(one / "a", size)
    copied(one / "a", other / "b")
    assert (other / "b").read_bytes() == (one / "a").read_bytes()
    assert (other / "b").stat().st_blocks == 0 or not hole


def test_beyond_what_is_synced_at_once(folders: tuple[Path, Path]) -> None:
    one, other = folders
    data, place = os.urandom(2 * MIB), copying._SYNC - MIB
    with (one / "a").open("wb") as file:
        file.seek(place)
        file.write(data)
    copied(one / "a", other / "b")
    with (other / "b").open("rb") as file:
        file.seek(place)
        assert file.read() == data
    assert (other / "b").stat().st_blocks <= (one / "a").stat().st_blocks + 16


def test_shared_blocks(tmp_path: Path) -> None:
    """Where the file system can, nothing is copied; the copy is the same anywhere."""
    data = sparse(tmp_path / "a")
    with (tmp_path / "a").open("rb") as one, (tmp_path / "try").open("xb") as other:
        can_share = copying._share_blocks(one.fileno(), other.fileno())
    steps = copied(tmp_path / "a", tmp_path / "b")
    assert len(steps) == 1 or not can_share
    assert (tmp_path / "b").read_bytes() == data


def test_source_that_is_cut(tmp_path: Path) -> None:
    """It is told, and no end is made up."""
    (tmp_path / "a").write_bytes(b"d" * 10_000)
    with (tmp_path / "a").open("rb") as one, (tmp_path / "b").open("xb") as other:
        with pytest.raises(OSError, match="shorter"):
            copying._copy_range(one.fileno(), other.fileno(), 0, 20_000, lambda size: None)


def test_no_space() -> None:
    with open("/dev/full", "wb", buffering=0) as full, tempfile.TemporaryFile() as one:
        one.write(b"d" * 10_000)
        one.flush()
        with pytest.raises(OSError, match="No space left") as caught:
            copying._copy_range(one.fileno(), full.fileno(), 0, 10_000, lambda size: None)
    assert caught.value.errno == errno.ENOSPC


def qemu_io(image: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    words = ["qemu-io", "-f", "raw", *options, str(image)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def test_qemu_does_not_write_meanwhile(tmp_path: Path) -> None:
    """By QEMU's own locks: it may read, and write again when we have closed the image."""
    image = tmp_path / "a"
    image.write_bytes(bytes(MIB))
    with image.open("rb") as file:
        assert keep_from_writing(file.fileno())
        refused = qemu_io(image, "-c", "write 0 512")
        assert (refused.returncode, "write" in refused.stderr and "lock" in refused.stderr) == (1, True)
        assert qemu_io(image, "-r", "-c", "read 0 512").returncode == 0
    assert qemu_io(image, "-c", "write 0 512").returncode == 0


def test_qemu_that_could_write(tmp_path: Path) -> None:
    """One that has the image open is found; one that only reads is none."""
    image = tmp_path / "a"
    image.write_bytes(bytes(MIB))
    for options, free in ((["-r"], True), ([], False)):
        words = ["qemu-io", "-f", "raw", *options, str(image)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"read 0 512\n")
            process.stdin.flush()
            while b"read 512" not in process.stdout.readline():
                pass  # by then it has the image open
            with image.open("rb") as file:
                assert keep_from_writing(file.fileno()) is free
            process.stdin.close()
