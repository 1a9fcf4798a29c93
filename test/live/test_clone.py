"""Clones: what of an instance they have, that both run side by side, and that one which fails leaves nothing."""

import errno
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover.errors import ArgumentError, DroverError, ImageError, InstanceExists, InstanceNotFound, WrongState
from drover.kvm import aside
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import Spec, parse
from drover.kvm.state import State
from instances import Guest, bare, bootable

MIB = 1 << 20


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def qemu_io(image: Path, format: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", format, *words, str(image)], check=True, stdout=subprocess.DEVNULL)


class Storage:
    """A folder with the images of an instance ``vm``: an overlay on a base, a raw one with holes, the base alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.root, self.data = folder / "base.qcow2", folder / "vm.qcow2", folder / "data.raw"
        qemu_img("create", "-q", "-f", "qcow2", self.base, "16M")
        qemu_io(self.base, "qcow2", "write -P 0x62 0 4k", "write -P 0x62 1M 4k")
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.base, "-F", "qcow2", self.root)
        qemu_io(self.root, "qcow2", "write -P 0x72 0 4k")
        with self.data.open("wb") as file:
            file.write(b"d" * 4096)
            file.seek(4 * MIB)
            file.write(b"e" * 4096)
            file.truncate(6 * MIB)
        self.first = self.files()

    def disks(self) -> list[dict[str, Any]]:
        base = {"source": str(self.base), "format": "qcow2"}
        return [
            {"id": "root", "source": str(self.root), "format": "qcow2", "backing": [base]},
            {"id": "data", "source": str(self.data), "format": "raw"},
            {"id": "shared", "read_only": True, **base},
            {"id": "cd", "kind": "cdrom"},
        ]

    def files(self) -> set[str]:
        return set(os.listdir(self.folder))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    (tmp_path / "images").mkdir()
    return Storage(tmp_path / "images")


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = Path("/run") / f"drover-small-{os.getpid()}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def spec_of(node: Node, name: str) -> Spec:
    return node.instance(name).show().document.spec


def nothing_of(node: Node, name: str) -> bool:
    folder = node.host.paths.instances
    return name not in node.names and not (folder / f".new-{name}").exists()


# -- what it is -------------------------------------------------------------------------------------------------------


def test_what_it_has(node: Node, storage: Storage) -> None:
    """The same but for name, uuid, addresses of cards, TPM and the host's boot; told what both cannot have at once."""
    more: dict[str, Any] = {
        "autostart": True, "autostart_order": 3, "firmware": {"type": "uefi"}, "tpm": {}, "vsock_cid": 7,
        "nics": [{"mac": "52:54:00:aa:bb:cc", "forwards": ["tcp:127.0.0.1:2222-:22"], "ip": "10.0.0.5"}, {}],
        "vnc": {"listen": "127.0.0.1:5917"}, "usb": [{"vendor": "1234", "product": "abcd"}, {"type": "tablet"}],
        "vfio": [{"host": "0000:01:00.0"}], "cloud_init": {"meta_data": "instance-id: i"},
    }  # fmt: skip
    node.create(parse(bare("10.0", disks=storage.disks(), **more)))
    clone, notices = node.clone("vm", "vm2")
    old, new = spec_of(node, "vm"), spec_of(node, "vm2")
    assert clone.show().state is State.STOPPED
    assert old.uuid != new.uuid
    assert not {nic.mac for nic in old.nics} & {nic.mac for nic in new.nics}
    assert all(nic.mac for nic in new.nics)
    assert (new.autostart, new.autostart_order, old.autostart) == (False, 3, True)
    assert [disk.source.rpartition("/")[2] for disk in new.disks] == ["vm2.qcow2", "vm2-data.raw", "base.qcow2", ""]
    same = {"nics", "disks", "name", "uuid", "autostart"}
    for field in set(Spec.__struct_fields__) - same:
        assert getattr(old, field) == getattr(new, field)
    for word in ("TPM", "autostart", "meta_data", "vsock_cid 7", "nics[0].ip", "2222", "5917", "usb[0]", "vfio[0]"):
        assert len([text for text in notices if word in text]) == 1, word
    assert not any("usb[1]" in text for text in notices)
    assert any("base.qcow2, which must not change" in text for text in notices)
    assert (storage.folder / "vm2.qcow2").stat().st_mode & 0o777 == 0o600


def test_firmware_and_places(node: Node, version: str) -> None:
    """The board's version and each device's place are pinned as before, and the variables of UEFI come along."""
    vm = node.create(parse(bare(version, nics=[{"id": "a"}, {"id": "b"}], firmware={"type": "uefi"}, tpm={})))
    vm.start()
    vm.kill()
    nvram = node.host.paths.instance("vm").nvram
    nvram.write_bytes(nvram.read_bytes()[:-1] + b"!")
    clone = node.clone("vm", "vm2").instance
    old, new = vm.show().document, clone.show().document
    assert old.places
    assert (new.places, new.machine, new.generation) == (old.places, f"pc-q35-{version}", 0)
    paths = node.host.paths
    assert paths.instance("vm2").nvram.read_bytes() == nvram.read_bytes()
    assert not paths.tpm(new.spec.uuid).exists()
    clone.start()
    assert clone.show().state is State.RUNNING
    assert any(paths.tpm(new.spec.uuid).iterdir())
    clone.kill()
    again = clone.show().document.places
    assert [again[nic] for nic in "ab"] == [old.places[nic] for nic in "ab"]


@pytest.mark.slow
def test_side_by_side(node: Node, version: str, storage: Storage) -> None:
    """Both run at once: each with its own disks, that hold the same, and both with the one that is read only."""
    vm = node.create(parse(bootable(version, disks=storage.disks()[:3])))
    clone = node.clone("vm", "vm2", disks={"data": str(storage.folder / "other.raw")}).instance
    assert (storage.folder / "other.raw").stat().st_blocks < MIB // 512
    with booted(vm, clone) as guests:
        _check_side_by_side(guests)
    for name in ("vm", "vm2"):
        qemu_img("check", "-q", storage.folder / f"{name}.qcow2")


def _check_side_by_side(guests: list[Guest]) -> None:
    said = [guest.run("md5sum /dev/vda /dev/vdb /dev/vdc") for guest in guests]
    sums = [re.findall(r"^[0-9a-f]{32}", text, re.MULTILINE) for text in said]
    assert sums[0] == sums[1]
    assert len(set(sums[0])) == 3
    for guest in guests:
        assert "b" * 9 in guest.run("dd if=/dev/vda bs=4k count=1 skip=256 | head -c 9")  # of the base, beneath it
    for guest, letter in zip(guests, "vw", strict=True):
        for disk in "ab":
            fill(guest, letter, disk)
    for guest, letter in zip(guests, "vw", strict=True):
        for disk in "ab":
            assert letter * 9 in first_bytes(guest, disk)


def fill(guest: Guest, letter: str, disk: str) -> None:
    guest.run(f"tr '\\0' {letter} </dev/zero | dd of=/dev/vd{disk} bs=4k count=1 iflag=fullblock conv=fsync")


def first_bytes(guest: Guest, disk: str) -> str:
    return guest.run(f"dd if=/dev/vd{disk} iflag=direct bs=4k count=1 | head -c 9")


@contextmanager
def booted(*instances: Instance) -> Iterator[list[Guest]]:
    """Start them all, and be at their consoles; at the end none runs."""
    with ExitStack() as stack:
        guests = []
        for vm in instances:
            vm.start()
            stack.callback(vm.kill)
            guests.append(Guest(vm))  # before the next one's start: what a guest says while nobody listens is lost
            stack.callback(guests[-1].close)
        yield guests


@pytest.mark.slow
def test_linked(node: Node, version: str, storage: Storage) -> None:
    """Overlays on what is read only; two of them run at once, beside the one that they stand on."""
    disks = [storage.disks()[0] | {"read_only": True}]
    node.create(parse(bootable(version, "tmpl", disks=disks)))
    for name in ("one", "two"):
        notices = node.clone("tmpl", name, linked=True).notices
        assert any("vm.qcow2, which must not change" in text for text in notices)
    [disk] = spec_of(node, "one").disks
    assert (disk.source, disk.format, disk.read_only) == (str(storage.folder / "one-vm.qcow2"), "qcow2", False)
    assert [image.source for image in disk.backing] == [str(storage.root), str(storage.base)]
    kept = storage.root.read_bytes()
    with booted(*map(node.instance, ("tmpl", "one", "two"))) as guests:
        for guest, letter in zip(guests[1:], "vw", strict=True):
            fill(guest, letter, "a")
        for guest, letter in zip(guests, "rvw", strict=True):
            assert letter * 9 in first_bytes(guest, "a")
    assert storage.root.read_bytes() == kept


def test_linked_to_what_is_written(node: Node, storage: Storage) -> None:
    node.create(parse(bare("10.0", disks=storage.disks())))
    with pytest.raises(ArgumentError, match=r"disks\[0\]\.read_only: False.* linked clone"):
        node.clone("vm", "vm2", linked=True)
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first, True)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_state_and_names(node: Node, version: str) -> None:
    vm = node.create(parse(bare(version)))
    node.create(parse(bare(version, "there")))
    for new in ("there", "vm"):
        with pytest.raises(InstanceExists):
            node.clone("vm", new)
    with pytest.raises(ArgumentError, match="name"):
        node.clone("vm", "no/name")
    with pytest.raises(InstanceNotFound):
        node.clone("nobody", "vm2")
    vm.start()
    with pytest.raises(WrongState, match="running"):
        node.clone("vm", "vm2")
    assert vm.show().state is State.RUNNING
    assert nothing_of(node, "vm2")


def test_path_that_is_taken(node: Node, storage: Storage) -> None:
    """Whatever is there stays as it is, be it a link into nowhere; and what was made before is gone."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    for make in (lambda path: path.write_bytes(b"mine"), lambda path: path.symlink_to("/nowhere")):
        taken = storage.folder / "vm2-data.raw"
        make(taken)
        with pytest.raises(FileExistsError) as caught:
            node.clone("vm", "vm2")
        assert caught.value.filename == str(taken)
        assert (storage.files(), nothing_of(node, "vm2")) == (storage.first | {taken.name}, True)
        assert taken.is_symlink() or taken.read_bytes() == b"mine"
        taken.unlink()


def test_path_that_is_taken_meanwhile(node: Node, storage: Storage) -> None:
    """By somebody who was faster, while we copied."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    taken = storage.folder / "vm2-data.raw"
    with pytest.raises(FileExistsError):
        node.clone("vm", "vm2", tell=lambda done, of: taken.write_bytes(b"mine") and None)
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first | {taken.name}, True)
    assert taken.read_bytes() == b"mine"


def test_what_is_said_of_disks(node: Node, storage: Storage) -> None:
    node.create(parse(bare("10.0", disks=storage.disks())))
    other = str(storage.folder / "other")
    for disks, field in (
        ({"nobody": other}, "disks"),
        ({"cd": other}, r"disks\[3\]\.source.*empty"),
        ({"data": "relative"}, r"disks\[1\]\.source.*absolute"),
        ({"data": "nbd://host/export"}, r"disks\[1\]\.source.*absolute"),
        ({"data": other, "root": f"{storage.folder}/./other"}, r"disks\[1\]\.source.*disks\[0\]"),
        ({"data": f"{other}\nline"}, r"disks\[1\]\.source"),
    ):
        with pytest.raises(ArgumentError, match=field):
            node.clone("vm", "vm2", disks=disks)
    with pytest.raises(FileNotFoundError) as caught:
        node.clone("vm", "vm2", disks={"data": str(storage.folder / "none" / "other")})
    assert caught.value.filename == str(storage.folder / "none" / "other")
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first, True)
    node.clone("vm", "vm2", disks={"shared": other})
    assert (storage.folder / "other").read_bytes() == storage.base.read_bytes()


def test_places_that_are_no_good(node: Node, storage: Storage, small: Path) -> None:
    """Each is told by its path, leaves nothing, and does not stand in the way of the next try."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    (storage.folder / "loop").symlink_to("loop")
    for place, number in (
        (small / "x", errno.EROFS),
        (storage.data / "x", errno.ENOTDIR),
        (storage.folder / ("x" * 256), errno.ENAMETOOLONG),
        (storage.folder / "loop" / "x", errno.ELOOP),
        (storage.folder / "none" / "x", errno.ENOENT),
        (Path("/") / "/".join(["x"] * 2500), errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            node.clone("vm", "vm2", disks={"data": str(place)})
        assert caught.value.filename == str(place)
        assert (storage.files(), nothing_of(node, "vm2")) == (storage.first | {"loop"}, True)
    long = storage.folder / ("ü" * 127)
    node.clone("vm", "vm2", disks={"data": str(long)})
    assert long.read_bytes() == storage.data.read_bytes()


def test_images_that_are_no_good(node: Node, storage: Storage) -> None:
    """One in another format, and one whose data lies elsewhere: a copy would write to the old one's data."""
    node.create(parse(bare("10.0", disks=[{"source": str(storage.data), "format": "qcow2"}])))
    outside = storage.folder / "outside.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={storage.folder}/elsewhere", outside, "1M")
    node.create(parse(bare("10.0", "two", disks=[{"source": str(outside), "format": "qcow2"}])))
    before = storage.files()
    with pytest.raises(ArgumentError, match="qcow2"):
        node.clone("vm", "vm2")
    with pytest.raises(ArgumentError, match="external data file"):
        node.clone("two", "vm2")
    assert (storage.files(), nothing_of(node, "vm2")) == (before, True)


def test_image_that_somebody_writes(node: Node, version: str, storage: Storage) -> None:
    """Another instance runs on it: the copy would be of no moment that ever was."""
    disks = [{"source": str(storage.data), "format": "raw"}]
    node.create(parse(bare(version, disks=disks)))
    other = node.create(parse(bare(version, "other", disks=disks)))
    other.start()
    with pytest.raises(ImageError, match=r"open to write"):
        node.clone("vm", "vm2")
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first, True)
    other.kill()
    node.clone("vm", "vm2")


def test_relative_backing(node: Node, storage: Storage, tmp_path: Path) -> None:
    """Drover goes by the specification; that others look beside the copy is told."""
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", storage.root)
    node.create(parse(bare("10.0", disks=storage.disks()[:1])))
    for name, path, told in (("near", storage.folder / "b.qcow2", False), ("far", tmp_path / "b.qcow2", True)):
        clone, notices = node.clone("vm", name, disks={"root": str(path)})
        assert any("other programs do not" in text for text in notices) is told
        clone.start()
        clone.kill()


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    image.touch()
    os.truncate(image, MIB)
    words = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_disks_that_are_no_files(node: Node, version: str, tmp_path: Path) -> None:
    """They are not copied: the clone has the ones that are said, and never the old ones."""
    far = {"id": "far", "source": "nbd://127.0.0.1:1/x", "format": "raw"}
    with loop_device(tmp_path / "one") as one, loop_device(tmp_path / "two") as two:
        node.create(parse(bare(version, disks=[{"id": "near", "source": one, "format": "raw"}])))
        node.create(parse(bare(version, "farvm", disks=[far])))
        again = tmp_path / "again"
        os.mknod(again, 0o600 | 0o060000, os.stat(one).st_rdev)
        for said in ("", one, str(again)):
            with pytest.raises(ArgumentError, match=r"disks\[0\]\.source"):
                node.clone("vm", "vm2", disks={"near": said} if said else {})
        with pytest.raises(FileNotFoundError):
            node.clone("vm", "vm2", disks={"near": str(tmp_path / "nothing")})
        assert nothing_of(node, "vm2")
        clone, [notice] = node.clone("vm", "vm2", disks={"near": two})
        assert notice == f"disk near is {two}, as it is: nothing was copied from {one}"
        for vm in (node.instance("vm"), clone):
            vm.start()
        for vm in (node.instance("vm"), clone):
            vm.kill()
    for said in ("", far["source"], "nbd://"):
        with pytest.raises(ArgumentError, match=r"disks\[0\]\.source"):
            node.clone("farvm", "vm3", disks={"far": said} if said else {})
    node.clone("farvm", "vm3", disks={"far": "rbd:pool/copy"})
    assert spec_of(node, "vm3").disks[0].source == "rbd:pool/copy"


# -- all or nothing ---------------------------------------------------------------------------------------------------


def test_no_space(node: Node, storage: Storage, small: Path) -> None:
    """Nothing stays, neither there nor of the disk before it, and it can be done again elsewhere."""
    with storage.data.open("r+b") as file:
        file.write(b"d" * 9 * MIB)
    node.create(parse(bare("10.0", disks=storage.disks())))
    told: list[tuple[int, int]] = []
    with pytest.raises(OSError, match="No space left") as caught:
        node.clone("vm", "vm2", disks={"data": str(small / "d")}, tell=lambda *it: told.append(it))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small / "d"))
    assert MIB < told[-1][0] < told[-1][1]
    assert (storage.files(), os.listdir(small), nothing_of(node, "vm2")) == (storage.first, [], True)
    told.clear()
    node.clone("vm", "vm2", tell=lambda *it: told.append(it))
    assert told[-1][0] == told[-1][1] > 9 * MIB
    assert told == sorted(told)


def test_interrupted(node: Node, storage: Storage) -> None:
    node.create(parse(bare("10.0", disks=storage.disks())))

    def press(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        node.clone("vm", "vm2", tell=press)
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first, True)


STEPS = ("mkdir", "open", "copy_file_range", "fsync", "link", "rename", "unlink")


def die_in(step: int, act: Callable[[], object], *, names: tuple[str, ...] = STEPS) -> bool:
    """Do it in a process that gets SIGKILL before its so-manieth call that changes files. Whether there are so many."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in names:
        setattr(os, name, counting(getattr(os, name)))
    act()
    os._exit(0)


@pytest.mark.parametrize("linked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_each_step(node: Node, storage: Storage, linked: bool) -> None:
    """Whenever we die: after the next adoption the clone is there as a whole, or nothing of it."""
    disks = [disk | {"read_only": linked} for disk in storage.disks()[:2]]
    node.create(parse(bare("10.0", disks=disks)))
    node.host.paths.instance("vm").nvram.write_bytes(b"variables")
    kept = {path: path.read_bytes() for path in storage.folder.iterdir()}
    whole = {"vm2.qcow2", "vm2-data.raw"}
    step, outcomes, died = 0, set[bool](), True
    while died:
        step += 1
        died = die_in(step, lambda: node.clone("vm", "vm2", linked=linked))
        assert [report.error for report in node.adopt()] == [None] * len(node.names)
        assert {path: path.read_bytes() for path in kept} == kept
        there = "vm2" in node.names
        outcomes.add(there)
        if there:
            assert storage.files() == storage.first | whole
            paths = node.host.paths.instance("vm2")
            assert sorted(os.listdir(paths.state)) == ["instance.json", "nvram.fd"]
            if not linked:
                assert (storage.folder / "vm2.qcow2").read_bytes() == kept[storage.root]
                assert (storage.folder / "vm2-data.raw").read_bytes() == kept[storage.data]
            node.delete("vm2")
            for name in whole:
                (storage.folder / name).unlink()
        assert storage.files() == storage.first
        assert os.listdir(node.host.paths.instances) == ["vm"]
    assert outcomes == {False, True}
    assert step > 30


@pytest.mark.parametrize("then", ["clone", "create"])
def test_made_anew_without_adoption(node: Node, storage: Storage, then: str) -> None:
    """What was left does not stand in the way, and is not forgotten either."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    assert die_in(1, lambda: node.clone("vm", "vm2"), names=("rename",))
    assert die_in(2, lambda: node.clone("vm", "vm2"), names=("link",))
    assert len(storage.files()) == len(storage.first) + 3
    if then == "clone":
        node.clone("vm", "vm2")
    else:
        node.create(parse(bare("10.0", "vm2")))
    made = {"vm2.qcow2", "vm2-data.raw"} if then == "clone" else set()
    assert storage.files() == storage.first | made


def test_deleted_without_adoption(node: Node, storage: Storage) -> None:
    """Its disks stay, under their own names alone."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    assert die_in(1, lambda: node.clone("vm", "vm2"), names=("unlink",))
    assert "vm2" in node.names
    assert len(storage.files()) == len(storage.first) + 4
    node.rename("vm2", "vm3")
    node.delete("vm3")
    assert storage.files() == storage.first | {"vm2.qcow2", "vm2-data.raw"}


def test_not_ours_any_more(node: Node, storage: Storage) -> None:
    """Somebody has put a file of his own where ours was left: it is his."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    assert die_in(2, lambda: node.clone("vm", "vm2"), names=("link",))
    left = storage.folder / "vm2.qcow2"
    left.unlink()
    left.write_bytes(b"mine")
    node.adopt()
    assert (storage.files(), left.read_bytes()) == (storage.first | {left.name}, b"mine")


def test_under_way_is_left_alone(node: Node, storage: Storage) -> None:
    """Who adopts removes nothing of a clone that somebody else is making."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    copying, go_on, errors = threading.Event(), threading.Event(), list[BaseException]()

    def wait(done: int, of: int) -> None:
        copying.set()
        assert go_on.wait(60)

    def make() -> None:
        try:
            node.clone("vm", "vm2", tell=wait)
        except (DroverError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    assert copying.wait(60)
    condition = node.instance("vm").show()
    assert (condition.state, condition.detail.partition(" ")[0]) == (State.BUSY, "clone")
    node._sweep()
    assert not nothing_of(node, "vm2")
    assert len(storage.files()) == len(storage.first) + 1
    go_on.set()
    thread.join()
    assert errors == []
    assert storage.files() == storage.first | {"vm2.qcow2", "vm2-data.raw"}


def test_list_that_cannot_be_read(node: Node, storage: Storage) -> None:
    """It is left as it is, and keeps nobody from the others."""
    node.create(parse(bare("10.0", disks=storage.disks())))
    assert die_in(2, lambda: node.clone("vm", "vm2"), names=("link",))
    files = node.host.paths.instances / f"{aside.PREFIX}vm2" / "files.json"
    kept = json.loads(files.read_bytes())
    files.write_bytes(b"{")
    assert [report.error for report in node.adopt()] == [None]
    with pytest.raises(DroverError, match="files.json"):
        node.clone("vm", "vm2")
    files.write_bytes(json.dumps(kept).encode())
    node.adopt()
    assert (storage.files(), nothing_of(node, "vm2")) == (storage.first, True)
