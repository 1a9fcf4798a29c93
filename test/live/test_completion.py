"""Completion in real shells: commands, options, names of instances and of their devices, and never an error."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import TOP, Host, host_with
from instances import bare
from terminal import Terminal

SCRIPTS = TOP / "daemons" / "completion"
SHELLS = {
    "bash": (["bash", "--norc", "-i"], "PS1='> '; source {}", "bash/drover"),
    "zsh": (["zsh", "-f", "-i"], "PS1='> '; autoload -U compinit; compinit -u -D; source {}", "zsh/_drover"),
    "fish": (["fish", "--no-config", "-i"], "function fish_prompt; echo '> '; end; source {}", "fish/drover.fish"),
}


@pytest.fixture(params=["alone", "daemon"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """With one instance, which has two disks, and `drover` on its path."""
    with host_with(daemon=request.param == "daemon") as found:
        folder = found.top / "bin"
        folder.mkdir()
        program = folder / "drover"
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'from drover.cli.main import main; main()' \"$@\"\n")
        program.chmod(0o755)
        found.env["PATH"] = f"{folder}:{os.environ['PATH']}"
        disks = []
        for name in ("alpha", "beta"):
            (found.top / name).write_bytes(bytes(1 << 20))
            disks.append({"id": name, "source": str(found.top / name), "format": "raw"})
        found("create", found.write(bare("10.0", "web1", disks=disks)))
        found("start", "web1")
        yield found


@pytest.mark.parametrize("shell", list(SHELLS))
def test_in_a_shell(host: Host, shell: str) -> None:
    words, setting_up, script = SHELLS[shell]
    assert shutil.which(shell), f"apt-get install {shell}"
    home = {"HOME": str(host.top), "LC_ALL": "C.UTF-8", "TERM": "screen"}
    screen = Terminal(f"drover-test-{os.getpid()}-{shell}")
    try:
        screen.start(words, host.env | home)
        screen.enter(setting_up.format(shlex.quote(str(SCRIPTS / script))))
        screen.enter("clear")
        screen.see(">")
        screen.type("drover deta")
        screen.press("Tab")
        screen.see_last("> drover detach")
        screen.type("di")
        screen.press("Tab")
        screen.see_last("> drover detach disk")
        screen.type("we")
        screen.press("Tab")
        screen.see_last("> drover detach disk web1")
        screen.type("be")
        screen.press("Tab")
        screen.see_last("> drover detach disk web1 beta")
        screen.type("--dry")
        screen.press("Tab")
        screen.see_last("> drover detach disk web1 beta --dry-run")
        screen.press("Enter")
        screen.see("It would take beta")
    finally:
        screen.stop()


def completed(host: Host, line: str) -> tuple[list[str], str]:
    """What may come at the end of a line, and what is said on standard error."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_DROVER_COMPLETE": "bash_complete"}
    done = subprocess.run(["drover"], env=os.environ | host.env | asked, capture_output=True, text=True, check=False)
    return [text.partition(",")[2] for text in done.stdout.split()], done.stderr


def test_what_is_offered(host: Host) -> None:
    for line, offered in (
        ("drover star", ["start", "start-all"]),
        ("drover set ", ["balloon", "link", "medium", "nic", "throttle", "vcpus"]),
        ("drover start ", ["web1"]),
        ("drover resize disk web1 ", ["alpha", "beta"]),
        ("drover detach nic web1 ", []),
        ("drover detach disk nosuch ", []),
        ("drover attach disk web1 x --format q", ["qcow2"]),
        ("drover delete --y", ["--yes"]),
        ("drover run web", ["web1"]),
    ):
        assert completed(host, line) == (offered, ""), line


def test_it_never_fails_aloud(tmp_path: Path) -> None:
    """Without folders, with what is no record, with a daemon that hangs: nothing is offered, and nothing said."""
    with host_with(daemon=False) as host:
        host.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        assert completed(host, "drover start ") == ([], "")
        host("create", host.write(bare("7.2", "a")))
        document = host.top / "state" / "instances" / "a" / "instance.json"
        kept = document.read_bytes()
        document.write_text("{")
        assert completed(host, "drover detach disk a ") == ([], "")
        document.write_bytes(kept)
        with socket.socket(socket.AF_UNIX) as hanging:
            hanging.bind(str(host.top / "run" / "noded.sock"))
            hanging.listen()
            began = time.monotonic()
            assert completed(host, "drover start ") == ([], "")
            assert time.monotonic() - began < 20
        (host.top / "run" / "noded.sock").unlink()


@pytest.mark.parametrize(("shell", "path"), [(shell, row[2]) for shell, row in SHELLS.items()])
def test_what_is_installed(shell: str, path: str) -> None:
    """Is what `drover completion` prints."""
    with host_with(daemon=False) as host:
        assert host("completion", shell) == (SCRIPTS / path).read_text(), f"drover completion {shell} >{path}"


@pytest.mark.alone
def test_it_is_quick() -> None:
    """From the press to the answer: 150 ms on an idle machine, which this bounds generously."""
    with host_with(daemon=True) as host:
        host.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        took = []
        for _ in range(10):
            began = time.monotonic()
            completed(host, "drover start ")
            took.append(time.monotonic() - began)
    assert min(took) < 0.3, took
