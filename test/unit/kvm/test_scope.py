"""What a systemd says that gives no scope; a real one that gives some: `test/live/test_scope.py`."""

import socket
import time
from pathlib import Path

import pytest

from drover.errors import ScopeFailed
from drover.kvm import scope as scopes
from drover.kvm.scope import Scope, Systemd


class Refusing(Systemd):
    """Says no, so many times, and notes what it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__("")
        self.name = name
        self.asked = 0

    def start_scope(self, unit: str, pids: list[int], timeout: float) -> None:
        assert 0 < timeout <= scopes._TIMEOUT
        self.asked += 1
        raise ScopeFailed("StartTransientUnit", self.name, f"{unit} for {pids}")


def test_nobody_at_the_bus(tmp_path: Path) -> None:
    for address in (f"unix:path={tmp_path}/none", "", "nonsense"):
        with pytest.raises(ScopeFailed, match="systemd: StartTransientUnit: ."):
            Systemd(address).start_scope("a.scope", [1], 1)


def test_a_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ScopeFailed) as caught:
        Systemd.find()
    assert not caught.value.passing


def test_what_is_refused_is_a_notice() -> None:
    systemd = Refusing("org.freedesktop.DBus.Error.AccessDenied")
    group = Scope(systemd, Path("/sys/fs/cgroup"), "web1-1234", "web1-1234.vm")
    group.take_in(7, 8)
    assert group.notices == ["no control group: systemd: StartTransientUnit: drover-web1-1234.scope for [7, 8]"]
    assert (group.place, group.entrances, systemd.asked) == ("", ("", ""), 1)
    group.take_in(9, 10)  # such as a QEMU's, after its TPM's
    assert (len(group.notices), systemd.asked) == (1, 1)


def test_a_bus_that_is_silent(tmp_path: Path) -> None:
    """It takes the connection, and says nothing: the call ends in time."""
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        begun = time.monotonic()
        with pytest.raises(ScopeFailed, match="StartTransientUnit"):
            Systemd(f"unix:path={tmp_path}/bus").start_scope("a.scope", [1], 0.2)
        assert time.monotonic() - begun < 2


def test_one_that_is_ending_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "_TIMEOUT", 0.05)
    systemd = Refusing("org.freedesktop.systemd1.UnitExists")
    group = Scope(systemd, Path("/sys/fs/cgroup"), "web1-1234", "web1-1234.vm")
    group.take_in(7, 8)
    assert systemd.asked > 5
    assert len(group.notices) == 1
