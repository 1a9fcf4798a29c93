"""Who may catch the faults of a guest's memory."""

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import NotSupported
from drover.kvm import faults

GROUP, OTHERS = 70998, 70999
OLD, NEW = (7, 2, 22), (10, 0, 2)


@pytest.fixture
def knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    knob = tmp_path / "knob"
    knob.write_text("0\n")
    monkeypatch.setattr(faults, "_ANYBODY", knob)
    return knob


@pytest.fixture
def device() -> Iterator[Path]:
    """The real one; as it was, afterwards."""
    device = Path(faults.DEVICE)
    if os.geteuid() or not device.exists():
        pytest.skip("it takes root and /dev/userfaultfd")
    before = device.stat().st_mode
    yield device
    assert device.stat().st_mode == before


def may_open(gid: int) -> bool:
    """Whether somebody of a group, who is nobody else, may open the device."""
    words = ["sh", "-c", f": <>{faults.DEVICE}"]  # not our own Python, which may lie where others may not go
    done = subprocess.run(words, user=gid, group=gid, extra_groups=[], check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def test_let_and_not_let(device: Path, knob: Path) -> None:
    """Each for itself, as often as one likes; whoever is in nobody's group sees nothing of it."""
    mode = stat.S_IMODE(device.stat().st_mode)
    assert not may_open(GROUP)
    for gid in (GROUP, GROUP, OTHERS):
        faults.grant(gid)
    assert (may_open(GROUP), may_open(OTHERS), may_open(OTHERS + 1)) == (True, True, False)
    for _ in range(2):
        faults.take_back(OTHERS)
    assert (may_open(GROUP), may_open(OTHERS)) == (True, False)
    faults.take_back(GROUP)
    faults.take_back(None)
    faults.grant(None)
    assert not may_open(GROUP)
    assert stat.S_IMODE(device.stat().st_mode) == mode
    knob.write_text("1\n")
    faults.grant(GROUP)  # anybody may by another way
    assert stat.S_IMODE(device.stat().st_mode) == mode


def test_what_others_have_said_stays(device: Path, knob: Path) -> None:
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 6, 1234), (0x04, 0, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF),
               (0x20, 0, 0xFFFFFFFF)]  # fmt: skip
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(device, "system.posix_acl_access", packed)
    try:
        faults.grant(GROUP)
        assert may_open(GROUP)
        faults.take_back(GROUP)
        assert os.getxattr(device, "system.posix_acl_access") == packed
    finally:
        plain = b"".join(struct.pack("<HHI", *entry) for entry in entries if entry[0] in (0x01, 0x04, 0x20))
        os.setxattr(device, "system.posix_acl_access", struct.pack("<I", 2) + plain)


def test_why_not(knob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "QEMU 7.2" in faults.lack(OLD, rootless=False)
    monkeypatch.setattr(faults, "DEVICE", str(tmp_path / "none"))
    assert "there is no" in faults.lack(NEW, rootless=False)
    (tmp_path / "none").touch()
    assert faults.lack(NEW, rootless=True) == faults.lack(NEW, rootless=False) == ""
    with pytest.raises(NotSupported, match="sysctl -w vm.unprivileged_userfaultfd=1"):
        faults.check(OLD, rootless=False)
    knob.write_text("1\n")
    assert faults.lack(OLD, rootless=True) == ""
    knob.unlink()
    faults.check(OLD, rootless=True)
