"""Images that are made on the other node: nothing is written over, and nothing of a try that failed stays."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ImageError
from drover.kvm.images import image_info
from drover.kvm.likeness import Seen
from drover.migration import disks, storage
from drover.migration.storage import DiskImage, How, Plan
from drover.ops.chain import Layer, open_chain

MIB = 1 << 20
ROOM = Seen(folder=True, free=1 << 40)


def disk_image(path: Path, **more: Any) -> DiskImage:
    known: dict[str, Any] = {
        "disk": "d", "depth": 0, "node": "d", "path": str(path), "inode": (1, 2), "format": "qcow2", "size": MIB,
        "length": 200_000, "allocated": 0, "still": False,
    }  # fmt: skip
    return DiskImage(**known | more)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A qcow2 image on a copy of another one, and a raw one."""
    images = [
        disk_image(tmp_path / "top", backing=("base", "qcow2"), options={"cluster_size": "131072", "compat": "0.10"}),
        disk_image(tmp_path / "base", depth=1, still=True, length=300_001),
        disk_image(tmp_path / "raw", disk="r", format="raw"),
    ]
    return storage.plan(images, {image.path: ROOM for image in images})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "arriving"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_images_are_made_as_they_are_to_be_opened(plan: Plan, folder: Path, tmp_path: Path) -> None:
    disks.make_images(plan, folder)
    top = image_info(tmp_path / "top", "qcow2")
    assert (top.size, top.cluster_size, top.backing_file, top.backing_format) == (MIB, 131072, "base", "qcow2")
    assert top.options["compat"] == "0.10"
    assert image_info(tmp_path / "base", "qcow2").length == 300_032
    assert image_info(tmp_path / "raw", "raw").size == MIB
    with open_chain([Layer(str(tmp_path / "top"), "qcow2"), Layer(str(tmp_path / "base"), "qcow2")]):
        pass
    assert os.stat(tmp_path / "raw").st_mode & 0o777 == 0o600
    disks.keep_images(folder)
    disks.keep_images(folder)
    assert names(tmp_path) == ["base", "raw", "top"]
    assert not folder.exists()
    disks.drop_images(folder)
    assert names(tmp_path) == ["base", "raw", "top"]


def test_nothing_stays_of_what_is_dropped(plan: Plan, folder: Path, tmp_path: Path) -> None:
    disks.make_images(plan, folder)
    disks.drop_images(folder)
    disks.drop_images(folder)
    assert names(tmp_path) == []
    assert not folder.exists()


def test_what_an_interrupted_try_has_left_is_made_anew(plan: Plan, folder: Path, tmp_path: Path) -> None:
    disks.make_images(plan, folder)
    (tmp_path / "raw").write_bytes(b"half of it")
    disks.make_images(plan, folder)
    assert (tmp_path / "raw").read_bytes() == bytes(MIB)
    disks.drop_images(folder)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["top", "base", "raw"])
def test_what_somebody_else_has_made_stays_and_nothing_else_does(
    name: str, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        disks.make_images(plan, folder)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"precious"
    assert not folder.exists()


def test_what_somebody_put_in_its_place_later_is_not_dropped(plan: Plan, folder: Path, tmp_path: Path) -> None:
    disks.make_images(plan, folder)
    (tmp_path / "raw").unlink()
    (tmp_path / "raw").write_bytes(b"precious")
    disks.drop_images(folder)
    assert names(tmp_path) == ["raw"]


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
def test_one_that_is_open_is_not_dropped(flags: int, plan: Plan, folder: Path, tmp_path: Path) -> None:
    """As by a QEMU that waits for its machine, which has no lock on it."""
    disks.make_images(plan, folder)
    user = os.open(tmp_path / "raw", flags)
    try:
        for _ in range(2):
            with pytest.raises(ImageError, match="has it open"):
                disks.drop_images(folder)
        assert names(tmp_path)[-3:] == ["base", "raw", "top"]
    finally:
        os.close(user)
    disks.drop_images(folder)
    assert names(tmp_path) == []


def test_where_there_are_no_leases_locks_have_to_do(
    plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def without(fd: int, command: int, argument: Any = 0) -> Any:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, argument)

    disks.make_images(plan, folder)
    monkeypatch.setattr(fcntl, "fcntl", without)
    words = ["qemu-io", "-f", "raw", str(tmp_path / "raw")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(b"write 0 512\n")
        user.stdin.flush()
        assert b"wrote" in user.stdout.readline()
        with pytest.raises(ImageError, match="has it open"):
            disks.drop_images(folder)
        assert names(tmp_path)[-3:] == ["base", "raw", "top"]
        user.stdin.close()
    disks.drop_images(folder)
    assert names(tmp_path) == []


def test_a_program_that_fails_leaves_nothing(plan: Plan, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        disks.make_images(plan, folder, qemu_img="false")
    assert names(tmp_path) == []


def test_a_backing_file_that_is_elsewhere_is_named_so(tmp_path: Path, folder: Path) -> None:
    here = tmp_path / "here"
    images = [
        disk_image(here / "top", backing=("../here/base", "raw")),
        disk_image(here / "base", depth=1, format="raw", still=True),
    ]
    paths = {str(here / name): str(tmp_path / name) for name in ("top", "base")}
    found = dict.fromkeys(paths.values(), ROOM)
    disks.make_images(storage.plan(images, found, paths=paths), folder)
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", tmp_path / "top"], capture_output=True, check=True
    ).stdout
    assert json.loads(said)["backing-filename"] == str(tmp_path / "base")


def test_a_plan_without_files_makes_none(tmp_path: Path, folder: Path) -> None:
    image = disk_image(tmp_path / "top")
    plan = storage.plan([image], {image.path: Seen(kind="file", same=True)})
    assert [part.how for part in plan.parts] == [How.SHARED]
    disks.make_images(plan, folder)
    assert names(tmp_path) == []
    disks.drop_images(folder)


def test_who_opens_an_image_while_it_is_looked_at_does_not_end_us(tmp_path: Path) -> None:
    """A lease that somebody breaks has the kernel send a signal, by itself a deadly one."""
    path = tmp_path / "image"
    path.touch()
    code = "import os, sys\nwhile True: os.close(os.open(sys.argv[1], os.O_RDONLY))"
    with subprocess.Popen([sys.executable, "-c", code, path]) as user:
        outcomes: Counter[str] = Counter()
        deadline = time.monotonic() + 30
        while min(outcomes["free"], outcomes["open"]) < 100 and time.monotonic() < deadline:
            try:
                disks._check_unused(str(path))
                outcomes["free"] += 1
            except ImageError:
                outcomes["open"] += 1
        user.kill()
    assert min(outcomes["free"], outcomes["open"]) >= 100, outcomes
