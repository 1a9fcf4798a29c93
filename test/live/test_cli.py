"""The command line as a whole: how it answers, what it exits with, what it says to do next."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from commands import DROVER, Host, host_with
from instances import bare
from terminal import terminal


@pytest.fixture(params=["alone", "daemon"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Without a node daemon, and with one."""
    with host_with(daemon=request.param == "daemon") as found:
        yield found


def test_answers_for_programs(host: Host) -> None:
    """YAML has what JSON has; a wide table has more columns than a table."""
    host("create", host.write(bare("7.2", "a", nics=[{"id": "n"}])))
    host("start", "a")
    yaml = pytest.importorskip("yaml", reason="pip install kvm-drover, which needs PyYAML")
    for words in (("list",), ("show", "a"), ("verify", "a"), ("start", "a")):
        told = json.loads(host(*words, "-o", "json"))
        assert yaml.safe_load(host(*words, "-o", "yaml")) == told, words
    [row] = json.loads(host("list", "-o", "json"))
    assert (row["qemu"], row["nics"], row["accelerator"]) == ("7.2.22", 1, "tcg")
    narrow, wide = host("list"), host("list", "-o", "wide")
    assert row["uuid"] in wide
    assert row["uuid"] not in narrow


def test_a_dry_run_does_nothing(host: Host) -> None:
    """It says what would be done, and fails where that would."""
    image = host.top / "d.raw"
    image.write_bytes(bytes(1 << 20))
    host("create", host.write(bare("10.0", "a", nics=[{"id": "n"}])))
    assert json.loads(host("kill", "a", "--dry-run", "-o", "json"))["state"] == "stopped"
    assert host.run("detach", "nic", "a", "n", "--dry-run").returncode == 4
    host("start", "a")
    host("attach", "disk", "a", str(image), "--format", "raw", "--id", "d")
    before = host("show", "a", "-o", "json")
    told = json.loads(host("resize", "disk", "a", "d", "512KiB", "--shrink", "--dry-run", "-o", "json"))
    assert (told["dry_run"], told["has"], told["lost"]) == (True, 1 << 20, 1 << 19)
    assert "at least the" in host.run("resize", "disk", "a", "d", "512KiB", "--dry-run").stderr
    assert "take d" in host("detach", "disk", "a", "d", "--dry-run")
    assert "take n" in host("detach", "nic", "a", "n", "--dry-run")
    assert "which is running" in host("kill", "a", "--dry-run")
    for words, text in (
        ("delete a --dry-run", "drover stop a stops it"),
        ("delete a --yes", "drover stop a stops it"),
        ("detach disk a n --dry-run", "one of its disk devices: d"),
    ):
        done = host.run(*words.split())
        assert (done.returncode, text in done.stderr) == (3 if "detach" in words else 4, True), done.stderr
    assert host("show", "a", "-o", "json") == before
    assert image.stat().st_size == 1 << 20
    host("kill", "a")
    assert str(image) in host("delete", "a", "--dry-run")
    assert "a" in host("list")


def test_a_delete_is_confirmed(host: Host) -> None:
    """Where nobody can be asked it has to be said; at a terminal one is asked."""
    host("create", host.write(bare("7.2", "web1")))
    refused = host.run("delete", "web1")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    for key, status in (("n", 1), ("y", 0)):
        with terminal(["delete", "web1"], host.top, **host.env) as screen:
            screen.see("Forget web1", "[y/N]")
            screen.enter(key)
            screen.see(f"EXIT {status}")
    assert json.loads(host("list", "-o", "json")) == []


def test_what_to_do_next(host: Host) -> None:
    """Each error exits with its kind, and says how to go on."""
    host("create", host.write(bare("7.2", "web1")))
    host("start", "web1")
    for words, status, text in (
        ("show web2", 3, "did you mean web1?\n  drover list shows what there is\n"),
        ("detach nic web1 x", 3, "one of its nic devices: none\n  drover show web1 lists its devices\n"),
        ("rename web1 x", 4, "drover stop web1 stops it"),
        ("create " + host.write(bare("7.2", "web1")), 4, "such an instance already"),
        ("strat web1", 2, "There is no command 'strat'. Did you mean stats or start"),
        ("attach dsk web1", 2, "There is no command 'dsk'. Did you mean disk?"),
        ("start", 2, "Missing argument 'NAME'"),
    ):
        done = host.run(*words.split())
        assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr


def test_a_terminal(host: Host) -> None:
    """A table is as wide as the terminal, a state has its colour, unless somebody would rather not; a pipe has all."""
    name = "a-machine-" + "x" * 50
    host("create", host.write(bare("7.2", name)))
    host("kill", name)
    image = "/" + "d" * 200
    host("create", host.write(bare("7.2", "b", disks=[{"id": "d", "source": image, "format": "raw"}])))
    assert image in host("show", "b")
    with terminal(["show", "b"], host.top, **host.env) as screen:
        assert "ddd…" in screen.see("EXIT 0")
    host("create", host.write(bare("7.2", "c")))
    host("start", "c")
    for more, colour in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal(["list"], host.top, **host.env, **more) as screen:
            screen.see("EXIT 0")
            assert ("\x1b[32m" in screen.screen(colours=True)) == colour
    assert "\x1b" not in host("list")


LOADED = "import sys; from drover.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"


@pytest.mark.parametrize("words", [["--help"], ["attach", "--help"], ["list"]])
def test_what_is_typed_often_loads_little(words: list[str]) -> None:
    """Nothing of weight, with a daemon."""
    with host_with(daemon=True) as host:
        done = subprocess.run(
            [sys.executable, "-c", LOADED, *words],
            env=os.environ | host.env,
            capture_output=True,
            text=True,
            check=True,
        )
    heavy = {"aiohttp", "asyncio", "rich", "textual", "yaml", "pyroute2", "prompt_toolkit"}
    assert set(done.stderr.split()) & heavy == set()
    assert ("http.client" in done.stderr.split()) == (words == ["list"])


@pytest.mark.alone
def test_list_is_fast() -> None:
    """With a daemon, the whole process: 100 ms on an idle machine, which this bounds generously."""
    import time

    with host_with(daemon=True) as host:
        took = []
        for _ in range(10):
            began = time.monotonic()
            subprocess.run([*DROVER, "list"], env=os.environ | host.env, check=True, capture_output=True)
            took.append(time.monotonic() - began)
    assert min(took) < 0.2, took
