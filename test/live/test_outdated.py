"""A machine whose QEMU was replaced under it, as by an update, is told of."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from commands import Host, host_with
from instances import bare
from machines import qemu_of
from waiting import wait_for


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


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "daemon"])
def test_one_that_goes_over_to_what_has_taken_its_place(daemon: bool) -> None:
    """It is told as a move between two nodes is: how far it is, and at the end what it took."""
    with host_with(daemon) as host:
        emulator = host.top / "bin" / "qemu"
        emulator.parent.mkdir()
        shutil.copy(qemu_of("7.2"), emulator)
        for name in ("lib", "share"):
            (host.top / name).symlink_to(f"/usr/{name}")
        host("create", host.write(bare("7.2", "a", emulator=str(emulator))))
        host("start", "a")
        assert "a runs on QEMU 7.2" in host("upgrade", "a")
        replaced(emulator, "over it")
        wait_for(lambda: marked(host) == (True, True), 30)  # a daemon looks now and then
        told = host("upgrade", "a")
        assert re.search(r"^a runs on QEMU 7\.2\.\d+ now, after [\d.]+ s; it stood still for \d+ ms", told)
        wait_for(lambda: marked(host) == (False, False), 30)
        replaced(emulator, "over it")
        told = json.loads(host("upgrade", "a", "-o", "json"))
        assert (told["moved"], told["notices"], told["rounds"] > 0) == (True, [], True)
        assert told["steps"].keys() >= {"prepare", "memory", "switchover", "commit", "finish"}
        assert 0 < told["blackout"] < told["seconds"]
        if daemon:
            jobs = [job for job in json.loads(host("jobs", "-o", "json")) if job["kind"] == "upgrade"]
            steps = [[step["name"] for step in job["steps"]] for job in jobs]
            assert all({"prepare", "memory", "send", "switchover", "switched"} <= set(names) for names in steps[:2])


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
