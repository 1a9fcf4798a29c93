"""`drover top` on a screen: with a real daemon and real machines."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from textual.widgets import DataTable

from commands import Host, host_with
from drover.cli.top_screen import Shown, Top
from drover.node.client import Daemon
from instances import bare
from terminal import terminal


@pytest.fixture
def host() -> Iterator[Host]:
    """With two instances, of which one runs."""
    with host_with(daemon=True) as found:
        for name in ("web1", "db1"):
            found("create", found.write(bare("10.0", name)))
        found("start", "web1")
        yield found


async def see(top: Top, pilot: object, wanted: list[str]) -> None:
    """Wait until the table has these instances, in this order."""
    table = top.query_one("#table", DataTable)
    for _ in range(200):
        names = [str(row.value) for row in table.rows]
        if names == wanted:
            return
        await pilot.pause(0.1)  # type: ignore[attr-defined]
    raise AssertionError(names)


def test_keys(host: Host) -> None:
    """Orders, the filter, an instance shown: by a pilot in the place of a person."""

    async def fly() -> None:
        top = Top(Daemon(host.top / "run" / "noded.sock"), every=0.5, sort="name")
        async with top.run_test(size=(120, 30)) as pilot:
            await see(top, pilot, ["db1", "web1"])
            await pilot.press("n")
            await see(top, pilot, ["web1", "db1"])
            await pilot.press("s")
            await see(top, pilot, ["web1", "db1"])
            await pilot.press("slash", *"db")
            await see(top, pilot, ["db1"])
            await pilot.press("enter")
            assert top.selected() == "db1"
            await pilot.press("enter")
            while not isinstance(top.screen, Shown):
                await pilot.pause(0.05)
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(top.screen, Shown)
            await pilot.press("escape")
            await see(top, pilot, ["web1", "db1"])
            await pilot.press("q")

    asyncio.run(asyncio.wait_for(fly(), 60))


def test_on_a_terminal(host: Host) -> None:
    """States, figures and events as they come; q leaves."""
    with terminal(["top", "--every", "0.5", "--sort", "name"], host.top, **host.env) as screen:
        screen.see("2 instances: 1 running, 1 stopped", "web1", "MiB", "Leave")
        host("pause", "web1")
        screen.see("1 paused, 1 stopped", "web1 is paused")
        screen.press("q")
        assert "Leave" not in screen.see("EXIT 0")


def test_without_what_it_needs(host: Host) -> None:
    """It says what to install, or to start."""
    code = "import sys; sys.modules['textual'] = None; from drover.cli.main import main; main(['top'])"
    words, env = [sys.executable, "-c", code], os.environ | host.env
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install 'kvm-drover[top]'" in done.stderr) == (1, True), done.stderr
    with host_with(daemon=False) as other:
        done = other.run("top")
        assert (done.returncode, "no node daemon answers" in done.stderr) == (1, True)
        assert json.loads(other("list", "-o", "json")) == []
