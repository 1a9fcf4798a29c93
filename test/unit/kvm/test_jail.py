"""What a QEMU's own root directory is made of; one that runs: `test/live/test_jail.py`."""

import os
from pathlib import Path

from drover.kvm.jail import Jail, rooted_elsewhere
from drover.kvm.spec import Spec, parse


def parts(tmp_path: Path, emulator: str = "/usr/bin/qemu-system-x86_64", **fields: object) -> list[list[str]]:
    """Folders, files, mounts, below the root."""
    spec: Spec = parse({"name": "vm", **fields})
    (tmp_path / "a b").mkdir(exist_ok=True)
    words = Jail(tmp_path / "root", emulator=emulator, private=tmp_path / "a b", spec=spec).words()
    assert words[-4] == str(tmp_path / "root")
    return [part.replace(str(tmp_path / "root"), "").split("\n") for part in words[-3:]]


def test_the_systems(tmp_path: Path) -> None:
    folders, files, mounts = parts(tmp_path)
    assert {"/usr", "/proc", "/etc", "/dev", f"{tmp_path}/a b"} <= set(folders)
    assert {"/dev/null", "/etc/hosts"} <= set(files)
    assert not {"/etc", "/dev", "/etc/passwd", "/sys"}.intersection(line.split()[0] for line in mounts)
    assert "/usr /usr none rbind,ro,nosuid 0 0" in mounts
    assert "/dev/null /dev/null none bind,nosuid 0 0" in mounts
    assert mounts[-1].startswith("proc /proc proc ")


def test_only_one_folder_can_be_written_to(tmp_path: Path) -> None:
    _, _, mounts = parts(tmp_path)
    private = f"{tmp_path}/a\\040b"
    writable = [line.split()[0] for line in mounts if ",ro" not in line and not line.startswith(("/dev/", "proc "))]
    assert writable == [private]
    assert f"{private} {private} none bind,nosuid,nodev,noexec 0 0" in mounts


def test_an_emulators_own_place(tmp_path: Path) -> None:
    (tmp_path / "opt" / "bin").mkdir(parents=True)
    for place, bound in (("opt/bin", "opt"), ("opt", "opt")):
        program = tmp_path / place / "qemu"
        program.touch()
        assert str(tmp_path / bound) in parts(tmp_path, str(program))[0]


def test_what_the_specification_names(tmp_path: Path) -> None:
    tls, socket, bios = tmp_path / "tls", tmp_path / "nbd", tmp_path / "bios"
    tls.mkdir()
    socket.touch()
    bios.touch()
    disks = [{"source": f"nbd+unix:///a?socket={socket}", "format": "raw"}]
    usb = [{"vendor": "1234", "product": "5678"}]
    folders, files, mounts = parts(
        tmp_path, vnc={"tls_dir": str(tls)}, disks=disks, firmware={"code": str(bios)}, usb=usb
    )
    assert str(tls) in folders
    assert {str(socket), str(bios)} <= set(files)
    assert "/sys /sys none rbind,ro,nosuid 0 0" in mounts


def test_our_root_is_the_hosts() -> None:
    assert not rooted_elsewhere(os.getpid())
