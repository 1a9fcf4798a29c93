"""Images: opened with all that they stand on or not at all, made whole or not at all, looked at without QEMU."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from drover.errors import ArgumentError, ImageError, ImageSlow
from drover.kvm import images
from drover.kvm.images import ImageInfo, Layer, create_image, image_info, open_chain

MIB = 1 << 20


def make(path: Path, format: str, *options: str, size: str = "1M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, path, size], check=True)
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Layer]:
    """A chain: two overlays over a raw image."""
    base = make(tmp_path / "base.raw", "raw")
    middle = make(tmp_path / "middle.qcow2", "qcow2", "-b", str(base), "-F", "raw")
    top = make(tmp_path / "top.qcow2", "qcow2", "-b", str(middle), "-F", "qcow2", size="2M")
    return [Layer(top, "qcow2"), Layer(middle, "qcow2"), Layer(base, "raw")]


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def flags(fd: int) -> tuple[bool, bool]:
    """Whether it may be written to, and whether it is O_DIRECT."""
    words = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    value = int(words[words.index("flags:") + 1], 8)
    return value & os.O_ACCMODE == os.O_RDWR, bool(value & os.O_DIRECT)


# -- chains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "direct"), [("none", True), ("writeback", False), ("directsync", True)])
def test_only_the_topmost_image_may_be_written_to(three: list[Layer], cache: str, direct: bool) -> None:
    before = descriptors()
    with open_chain(three, cache=cache) as chain:
        assert [flags(fd) for fd in chain.fds] == [(True, direct), (False, direct), (False, direct)]
        assert [opened.driver for opened in chain.images] == ["file"] * 3
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in chain.fds] == [str(layer.path) for layer in three]
        assert not any(os.get_inheritable(fd) for fd in chain.fds)
    assert descriptors() == before
    with open_chain(three, read_only=True) as chain:
        assert not any(flags(fd)[0] for fd in chain.fds)


def test_base_images_that_may_not_be_written_to(three: list[Layer]) -> None:
    """As nobody does, a base that many share may be on a read-only file system; here it is one that runs."""
    with open("/proc/self/exe", "rb") as running:
        base = os.readlink(f"/proc/self/fd/{running.fileno()}")
    top = make(Path(three[0].path).with_name("over.qcow2"), "qcow2", "-u", "-b", base, "-F", "raw")
    with pytest.raises(OSError, match="busy"):
        open_chain([Layer(base, "raw")], cache="writeback")
    with open_chain([Layer(top, "qcow2"), Layer(base, "raw")], cache="writeback") as chain:
        assert len(chain.fds) == 2


Change = Callable[[list[Layer]], list[Layer]]


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        (lambda it: it[:1], "path", "an image without a backing file, or with that one said"),
        (lambda it: it[:2], "backing[0].path", "an image without a backing file, or with that one said"),
        (lambda it: it[1:2], "path", "an image without a backing file, or with that one said"),
        (lambda it: [*it, Layer(f"{it[0].path}2", "raw")], "backing[2].path", "none: '.*base.raw' has no backing file"),
        (lambda it: [it[2], it[2]], "backing[0].path", "a file that is in the chain once"),
        (lambda it: [it[0], it[1], it[0]], "backing[1].path", "a file that is in the chain once"),
        (lambda it: [it[0], Layer(it[1].path, "raw")], "backing[0].format", "'qcow2', as '.*top.qcow2' records"),
        (lambda it: [it[0], it[1], Layer(it[2].path, "qcow2")], "backing[1].path", "an image in qcow2 format"),
        (lambda it: [it[0], Layer(it[1].path, "vmdk"), it[2]], "backing[0].format", "one of raw, qcow2"),
        (lambda it: [it[0], Layer("/dev/null", "qcow2"), it[2]], "backing[0].path", "a file or a block device"),
        (lambda it: it * 100, "backing", "at most 199 images beneath one"),
        (lambda it: [], "backing", "at most 199 images beneath one"),
    ],
)
def test_a_chain_that_is_not_as_the_headers_have_it(
    three: list[Layer], change: Change, field: str, allowed: str
) -> None:
    make(Path(f"{three[0].path}2"), "raw")
    before = descriptors()
    with pytest.raises(ArgumentError, match=allowed) as caught:
        open_chain(change(three))
    assert caught.value.field == field
    assert descriptors() == before


def test_an_image_that_is_not_there(three: list[Layer]) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        open_chain([*three[:2], Layer("/nowhere", "raw")])
    with pytest.raises(ArgumentError, match="one of none, writeback"):
        open_chain(three, cache="fast")
    assert descriptors() == before


def test_a_fifo_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArgumentError, match="a file or a block device"):
        open_chain([Layer(tmp_path / "fifo", "raw")])


def test_data_that_lies_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    path = make(tmp_path / "a.qcow2", "qcow2", "-o", f"data_file={secret},data_file_raw=on")
    with pytest.raises(ArgumentError, match="without an external data file"):
        open_chain([Layer(path, "qcow2")])
    with pytest.raises(ArgumentError, match="without an external data file"):
        image_info(path, "qcow2")


# -- what an image is ------------------------------------------------------------------------------------------------


def test_what_an_image_is(three: list[Layer]) -> None:
    top, middle, base = (image_info(*layer) for layer in three)
    assert (top.size, top.cluster_size) == (2 * MIB, 65536)
    assert (top.backing_file, top.backing_format) == (str(three[1].path), "qcow2")
    assert (middle.size, middle.backing_file, middle.backing_format) == (MIB, str(three[2].path), "raw")
    allocated = os.stat(three[2].path).st_blocks * 512
    assert base == ImageInfo(path=str(three[2].path), format="raw", size=MIB, allocated=allocated, length=MIB)


@pytest.mark.parametrize("cluster", ["512", "4k", "2M"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_an_image_of_any_kind(tmp_path: Path, compat: str, cluster: str) -> None:
    base = make(tmp_path / "base", "raw", size="3M")
    backing = ["-b", str(base), "-F", "raw"]
    path = make(tmp_path / "a", "qcow2", "-o", f"compat={compat},cluster_size={cluster}", *backing, size="5M")
    info = image_info(path, "qcow2")
    assert (info.size, info.backing_file, info.backing_format) == (5 * MIB, str(base), "raw")
    assert info.cluster_size == {"512": 512, "4k": 4096, "2M": 2 * MIB}[cluster]


def test_a_backing_file_of_which_no_format_is_recorded(tmp_path: Path) -> None:
    """QEMU would guess it; here it is said."""
    base = make(tmp_path / "base", "raw")
    top = make(tmp_path / "top", "qcow2", "-b", str(base), "-F", "raw")
    data = bytearray(top.read_bytes())
    place = data.index((0xE2792ACA).to_bytes(4, "big"))
    data[place : place + 4] = (0x12345678).to_bytes(4, "big")  # an extension that nobody knows
    top.write_bytes(data)
    assert image_info(top, "qcow2").backing_format is None
    open_chain([Layer(top, "qcow2"), Layer(base, "raw")]).close()


@pytest.mark.parametrize(
    ("place", "value", "allowed"),
    [
        (0, b"QFI\xfa", "an image in qcow2 format"),
        (4, (4).to_bytes(4, "big"), "version 2 or 3"),
        (20, (40).to_bytes(4, "big"), "header is in order"),
        (16, (1024).to_bytes(4, "big"), "names its backing file"),
        (16, (0).to_bytes(4, "big"), "names its backing file"),
        (8, (1 << 40).to_bytes(8, "big"), "names its backing file"),
        (108, (1 << 30).to_bytes(4, "big"), "header extensions are in order"),
    ],
)
def test_a_broken_header(three: list[Layer], place: int, value: bytes, allowed: str) -> None:
    top = Path(three[0].path)
    data = bytearray(top.read_bytes())
    if place == 108:
        place = int.from_bytes(data[100:104], "big") + 4
    data[place : place + len(value)] = value
    top.write_bytes(data)
    with pytest.raises(ArgumentError, match=allowed):
        image_info(top, "qcow2")


@pytest.mark.parametrize("size", [0, 3, 4, 71, 103])
def test_a_header_that_is_cut_off(three: list[Layer], size: int) -> None:
    top = Path(three[0].path)
    top.write_bytes(top.read_bytes()[:size])
    with pytest.raises(ArgumentError, match="qcow2"):
        image_info(top, "qcow2")


def test_an_image_of_qcow2_is_raw_where_that_is_said(three: list[Layer]) -> None:
    """A guest may have written that header."""
    assert image_info(three[0].path, "raw").size == os.stat(three[0].path).st_size
    with pytest.raises(ArgumentError, match="one of raw, qcow2"):
        image_info(three[0].path, "auto")


# -- made ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_made_whole(tmp_path: Path, format: str) -> None:
    info = create_image(tmp_path / "new", format, 3 * MIB)
    assert info == image_info(tmp_path / "new", format)
    assert info.size == 3 * MIB
    assert os.listdir(tmp_path) == ["new"]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert (tmp_path / "new").stat().st_nlink == 1
    open_chain([Layer(tmp_path / "new", format)]).close()


def test_made_on_another_that_nobody_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the one beneath that: its name may lead anywhere."""
    bad = make(tmp_path / "bad.qcow2", "qcow2", "-u", "-b", "nbd:unix:/nowhere", "-F", "raw", size="7M")
    monkeypatch.chdir(tmp_path)
    info = create_image("top.qcow2", "qcow2", backing=Layer("bad.qcow2", "qcow2"))
    assert (info.size, info.backing_file, info.backing_format) == (7 * MIB, str(bad), "qcow2")
    assert create_image("more.qcow2", "qcow2", 8 * MIB, backing=Layer("bad.qcow2", "qcow2")).size == 8 * MIB
    with pytest.raises(ArgumentError, match="an image without a backing file"):
        open_chain([Layer("top.qcow2", "qcow2"), Layer("bad.qcow2", "qcow2")])


def test_nothing_of_others_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("precious")
    with pytest.raises(FileExistsError):
        create_image(tmp_path / "new", "raw", MIB)
    os.symlink("nowhere", tmp_path / "link")
    with pytest.raises(FileExistsError):
        create_image(tmp_path / "link", "raw", MIB)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # somebody comes in between
    with pytest.raises(FileExistsError):
        create_image(tmp_path / "new", "raw", MIB)
    assert (tmp_path / "new").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["link", "new"]


def test_not_made(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "raw")
    for arguments, expected in (
        (("vmdk", MIB), ArgumentError),
        (("raw", None), ArgumentError),
        (("raw", 0), ArgumentError),
        (("raw", 1000), ArgumentError),
        (("qcow2", 1 << 63), ImageError),
    ):
        with pytest.raises(expected):
            create_image(tmp_path / "new", *arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="only under a qcow2 image"):
        create_image(tmp_path / "new", "raw", MIB, backing=Layer(base, "raw"))
    with pytest.raises(FileNotFoundError):
        create_image(tmp_path / "none" / "new", "raw", MIB)
    with pytest.raises(ImageError, match="qemu-utils"):
        create_image(tmp_path / "new", "raw", MIB, qemu_img="no-such-program")
    assert os.listdir(tmp_path) == ["base"]


def test_a_program_that_hangs(tmp_path: Path) -> None:
    slow = tmp_path / "qemu-img"
    slow.write_text('#!/bin/sh\necho half >"$5"\nexec sleep 60\n')
    slow.chmod(0o700)
    before = descriptors()
    with pytest.raises(ImageSlow, match=r"cannot make .*new: qemu-img was not ready within 0.3 s"):
        create_image(tmp_path / "new", "raw", MIB, timeout=0.3, qemu_img=str(slow))
    assert os.listdir(tmp_path) == ["qemu-img"]
    assert descriptors() == before


def test_cut_off_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        create_image(tmp_path / "new", "qcow2", MIB)
    assert not os.listdir(tmp_path)
