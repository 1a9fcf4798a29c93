"""A machine whose QEMU was replaced under it, as by an update, is told of."""

import json
import os
import shutil
from pathlib import Path

import pytest

from commands import Host, host_with
from instances import bare
from machines import qemu_of


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "daemon"])
@pytest.mark.parametrize("how", ["over it", "aside", "taken away"])
def test_one_that_was_replaced(daemon: bool, how: str) -> None:
    with host_with(daemon) as host:
        emulator = host.top / "bin" / "qemu"
        emulator.parent.mkdir()
        shutil.copy(qemu_of("7.2"), emulator)
        for name in ("lib", "share"):  # where it looks for its modules and its firmware
            (host.top / name).symlink_to(f"/usr/{name}")
        host("create", host.write(bare("7.2", "a", emulator=str(emulator))))
        assert marked(host) == (False, False)
        host("start", "a")
        assert marked(host) == (False, False)
        replaced(emulator, how)
        if daemon:  # it looks now and then, and when something happens
            host("pause", "a")
        assert marked(host) == (True, True)
        host("kill", "a")
        assert marked(host) == (False, False)


def replaced(emulator: Path, how: str) -> None:
    """What an update does, or a person."""
    new = emulator.with_name("new")
    shutil.copy(emulator, new)
    if how == "taken away":
        emulator.unlink()
        return
    if how == "aside":
        os.rename(emulator, emulator.with_name("old"))
    os.rename(new, emulator)


def marked(host: Host) -> tuple[bool, bool]:
    """Whether a program is told, and whether a person is."""
    row = json.loads(host("list", "-o", "json"))[0]
    return row["outdated"], "drover upgrade" in host("list", "-o", "wide")
