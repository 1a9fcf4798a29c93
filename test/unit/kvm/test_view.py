"""What a QEMU gets to see of the host: the system's, its own, what it opens by a path, and nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from drover.errors import ArgumentError
from drover.kvm.host import Host
from drover.kvm.paths import Paths
from drover.kvm.record import Runtime
from drover.kvm.root import Shown
from drover.kvm.spec import Spec, parse
from drover.kvm.view import check_visible, view

PRIVATE = Path("/run/drover/qemu/vm")


def spec(**fields: Any) -> Spec:
    return parse({"name": "vm", "chroot": True} | fields)


def paths(emulator: str = "/usr/bin/qemu-system-x86_64", accelerator: str = "tcg", **fields: Any) -> set[str]:
    return {shown.path for shown in view(spec(**fields), emulator, PRIVATE, accelerator)}


def test_the_least() -> None:
    shown = view(spec(), "/usr/bin/qemu-system-x86_64", PRIVATE, "tcg")
    assert [one for one in shown if one.writable] == [Shown(str(PRIVATE), nested=False, writable=True)]
    links = [one.path for one in shown if one.link]
    assert links == [path for path in ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin") if os.path.islink(path)]
    tops = {one.path.split("/")[1] for one in shown if one.path not in links}
    assert tops <= {"usr", "etc", "dev", "run", "bin", "lib", "lib32", "lib64", "libx32", "sbin"}
    assert {"/usr", "/dev/null", "/dev/urandom", "/etc/hosts", "/etc/ld.so.cache"} <= paths()
    assert not {"/etc", "/dev", "/sys", "/dev/kvm", "/etc/passwd", "/etc/shadow", "/etc/ceph"} & paths()
    assert all(os.path.exists(path) for path in paths() - {str(PRIVATE)})


def test_kvm() -> None:
    assert paths(accelerator="kvm") - paths() == {path for path in ("/dev/kvm",) if os.path.exists(path)}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"vnc": {"tls_dir": "/etc/pki/"}}, {"/etc/pki"}),
        ({"spice": {"tls_dir": "/etc/pki/spice", "listen": "[::1]:5999"}}, {"/etc/pki/spice"}),
        ({"firmware": {"code": "/srv/bios.bin"}}, {"/srv/bios.bin"}),
        ({"chroot_paths": ["/srv/roms", "/dev/bus/usb"]}, {"/srv/roms", "/dev/bus/usb"}),
        ({"disks": [{"source": "/srv/a.raw", "format": "raw"}]}, set()),
        ({"disks": [{"source": "nbd://[::1]/x", "format": "raw"}]}, set()),
        ({"disks": [{"source": "nbd+unix:///x?socket=/run/nbd.sock", "format": "raw"}]}, {"/run/nbd.sock"}),
        ({"disks": [{"source": "rbd:pool/image", "format": "raw"}]}, {"/etc/ceph"}),
        ({"usb": [{"type": "mouse"}]}, set()),
        ({"usb": [{"vendor": "1234", "product": "5678"}]}, {"/dev/bus/usb", "/sys"}),
        ({"vfio": [{"host": "0000:01:00.0"}]}, {"/dev/vfio", "/sys"}),
        ({"boot": {"kernel": "/boot/vmlinuz", "initrd": "/boot/initrd"}}, set()),
        ({"nics": [{"mode": "bridge", "link": "br0", "vhost": True}], "tpm": True, "cloud_init": {}}, set()),
    ],
)
def test_what_is_opened_by_a_path(fields: dict[str, Any], more: set[str]) -> None:
    assert paths(**fields) - paths() == more


def test_control_groups_are_not_in_sys() -> None:
    shown = view(spec(vfio=[{"host": "0000:01:00.0"}]), "/usr/bin/qemu", PRIVATE, "tcg")
    assert Shown("/sys", nested=False) in shown


@pytest.mark.parametrize("emulator", ["/usr/local/bin/qemu", "/bin/qemu", "/usr/libexec/qemu-kvm"])
def test_an_emulator_of_the_systems(emulator: str) -> None:
    assert paths(emulator) == paths()


def test_an_emulator_elsewhere(tmp_path: Path) -> None:
    for name in ("bin", "share", "lib", "secrets"):
        (tmp_path / name).mkdir()
    assert paths(f"{tmp_path}/bin/qemu") - paths() == {f"{tmp_path}/{name}" for name in ("bin", "share", "lib")}
    assert paths(f"{tmp_path}/secrets/qemu") - paths() == {f"{tmp_path}/secrets"}


@pytest.mark.parametrize("emulator", ["/qemu", "/opt/qemu", f"{Path.home()}/qemu"])
def test_an_emulator_beside_what_is_none_of_its_business(emulator: str) -> None:
    with pytest.raises(ArgumentError, match="in a folder of its own") as caught:
        paths(emulator)
    assert (caught.value.field, caught.value.value) == ("emulator", emulator)


def running(of: Spec) -> Runtime:
    """A machine whose process is this one."""
    return Runtime(generation=1, boot_id="", spec=of, pid=os.getpid())


@pytest.mark.parametrize(
    ("field", "device", "named", "value"),
    [
        ("disks", {"source": "nbd+unix:///x?socket=/absent/nbd", "format": "raw"}, "source", "/absent/nbd"),
        ("disks", {"source": "rbd:pool/image", "format": "raw"}, "source", "rbd:pool/image"),
        ("usb", {"vendor": "1234", "product": "5678"}, "type", "host"),
        ("vfio", {"host": "0000:01:00.0"}, "host", "0000:01:00.0"),
        ("vfio", {"mediated": "/sys/a"}, "mediated", "/sys/a"),
    ],
)
def test_what_is_not_there_cannot_be_plugged_in(field: str, device: dict[str, Any], named: str, value: str) -> None:
    """This process sees all of the host, but these are not there at all, or not on this kind of machine."""
    plugged = getattr(spec(**{field: [device]}), field)[0]
    runtime = running(spec())
    with pytest.raises(ArgumentError, match=r"chroot without .*: that has to be in chroot_paths") as caught:
        check_visible(runtime, plugged)
    assert caught.value.field == named
    assert value in str(caught.value.value)
    check_visible(replace(runtime, spec=replace(runtime.spec, chroot=False)), plugged)


def test_what_is_there_can_be_plugged_in(tmp_path: Path) -> None:
    (tmp_path / "nbd").touch()
    runtime = running(spec())
    fields = {
        "disks": [{"source": f"nbd+unix:///x?socket={tmp_path}/nbd", "format": "raw"}],
        "usb": [{"type": "mouse"}],
    }
    for device in (*spec(**fields).disks, *spec(**fields).usb):
        check_visible(runtime, device)


def test_an_ordinary_user_can_have_none(tmp_path: Path) -> None:
    host = Host(Paths(tmp_path, tmp_path))
    host.check(spec())
    host.rootless = True
    host.check(spec(chroot=False))
    with pytest.raises(ArgumentError, match="chroot: True is not allowed; only root can .* has to be false"):
        host.check(spec())
