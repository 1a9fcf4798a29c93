"""Whether a file on one node is one on another: the very same by a lock, or the same content by a digest."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drover.errors import ImageError
from drover.kvm import likeness
from drover.kvm.copying import lock_of
from drover.kvm.likeness import digest, marked, see

MIB = 1 << 20


def in_another_process(path: Path, mark: int | None) -> str:
    """What one on another node sees."""
    code = f"from drover.kvm.likeness import see; found = see({str(path)!r}, {mark}); print(found.kind, found.same)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_very_same_file_is_known_by_its_lock(tmp_path: Path) -> None:
    one, copy, link = tmp_path / "one", tmp_path / "copy", tmp_path / "link"
    one.write_bytes(b"content")
    copy.write_bytes(b"content")
    link.symlink_to(one)
    with marked([str(one), str(one), str(tmp_path / "none")]) as marks:
        assert list(marks) == [str(one)]
        mark = marks[str(one)]
        assert in_another_process(one, mark) == "file True"
        assert in_another_process(link, mark) == "file True"
        assert in_another_process(copy, mark) == "file False"
        assert in_another_process(one, mark + 2) == "file False"
        assert in_another_process(one, None) == "file False"
    assert in_another_process(one, mark) == "file False"


def test_a_lock_on_all_of_a_file_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    lock = lock_of(fcntl.F_RDLCK, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock[:16] + bytes(8) + lock[24:])  # a length of 0: to the end
    with marked([str(path)]) as marks:
        assert not see(str(path), marks[str(path)]).same
    os.close(fd)


def test_marks_are_never_the_same(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.touch()
    places = set()
    for _ in range(20):
        with marked([str(path)]) as marks:
            places |= set(marks.values())
    assert len(places) == 20
    assert all(place > 1 << 59 for place in places)


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    kinds = {name: see(str(tmp_path / name)) for name in ("file", "dangling", "fifo", "none")}
    assert {name: found.kind for name, found in kinds.items()} == {
        "file": "file", "dangling": "other", "fifo": "other", "none": "",
    }  # fmt: skip
    assert kinds["file"].length == 5
    assert all(found.folder and found.free > 0 for found in kinds.values())
    assert len({found.storage for found in kinds.values()}) == 1
    assert see(str(tmp_path / "no" / "folder")) == likeness.Seen()
    assert see(str(tmp_path / "file" / "beneath")) == likeness.Seen()


def test_a_digest_is_of_the_content_and_not_of_its_holes(tmp_path: Path) -> None:
    sparse, full, other, longer = (tmp_path / name for name in ("sparse", "full", "other", "longer"))
    data = b"x" * 1000 + bytes(3 * MIB) + b"y" * 5
    full.write_bytes(data)
    with sparse.open("wb") as file:
        file.write(data[:1000])
        file.seek(len(data) - 5)
        file.write(data[-5:])
    other.write_bytes(data[:-1] + b"z")
    longer.write_bytes(data + b"\0")
    assert os.stat(sparse).st_blocks < os.stat(full).st_blocks
    digests = [digest(str(path)) for path in (sparse, full, other, longer)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_block_that_moves_changes_the_digest(tmp_path: Path) -> None:
    paths = []
    for place in (0, 1, 2):
        path = tmp_path / str(place)
        path.write_bytes(bytes(place * MIB) + b"x" * MIB + bytes((2 - place) * MIB))
        paths.append(path)
    assert len({digest(str(path)) for path in paths}) == 3


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"a" * MIB)
    read: list[int] = []
    first = digest(str(path), read.append)
    assert sum(read) == MIB
    assert digest(str(path), read.append) == first
    assert sum(read) == MIB
    path.write_bytes(b"b" * MIB)
    assert digest(str(path), read.append) != first
    assert sum(read) == 2 * MIB


def test_a_file_that_changes_while_it_is_read_has_none(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"a" * MIB)

    def change(size: int) -> None:
        with path.open("ab") as file:
            file.write(b"b")

    with pytest.raises(ImageError, match="it changed while it was read"):
        digest(str(path), change)


def test_what_can_be_done_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to, made, past the host's cache; and whether a QEMU writes to it."""
    path = tmp_path / "file"
    path.touch()
    found = see(str(path))
    assert (found.barred, found.written, found.trouble) == (False, False, "")
    assert see("/sys/devices/system/cpu/online").buffered
    held = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, lock_of(fcntl.F_RDLCK, 101))  # as a QEMU that writes to it
        assert see(str(path)).written
    finally:
        os.close(held)
    assert not see(str(path)).written
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert see(str(path)).barred
    assert see(str(tmp_path / "none")).barred
