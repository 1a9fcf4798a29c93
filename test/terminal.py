"""A terminal of its own for a program under test, by tmux: keys in, the screen out."""

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "build" / "py"
# Seconds for the screen to show something: nothing takes longer than 1 on an idle machine.
PATIENCE = 45.0

_numbers = itertools.count()


class Terminal:
    """One window, 110 columns wide and 40 lines high."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self._name, "-f", "/dev/null", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, words: list[str], env: Mapping[str, str]) -> None:
        """Run a program in it; what it exits with is shown behind it."""
        sets = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
        line = " ".join(["env", *sets, *map(shlex.quote, words)]) + "; echo EXIT $?; sleep 1000"
        self._tmux("new-session", "-d", "-x", "110", "-y", "40", line)

    def stop(self) -> None:
        """End it, and what runs in it."""
        subprocess.run(["tmux", "-L", self._name, "kill-server"], check=False, capture_output=True)

    def type(self, text: str) -> None:
        """Type text as it is."""
        self._tmux("send-keys", "-l", "--", text)

    def paste(self, text: str) -> None:
        """Paste text, as a terminal does that brackets what is pasted."""
        self._tmux("set-buffer", "--", text)
        self._tmux("paste-buffer", "-p")

    def kill(self, number: int) -> None:
        """Send the program a signal."""
        shell = self._tmux("display-message", "-p", "#{pane_pid}").strip()
        (program,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(program), number)

    def press(self, *keys: str) -> None:
        """Press keys by their names: Enter, Tab, C-c, M-Enter …"""
        self._tmux("send-keys", *keys)

    def enter(self, line: str) -> None:
        """Type a line and press Enter."""
        self.type(line)
        self.press("Enter")

    def screen(self, colours: bool = False) -> str:
        """What is to be seen, lines without the blanks behind them."""
        text = self._tmux("capture-pane", "-p", "-J", *(["-e"] if colours else []))
        return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()

    def see(self, *texts: str, times: int = 1) -> str:
        """Wait until all of `texts` are on the screen, so many times; return the screen."""
        return self._wait(lambda screen: all(screen.count(text) >= times for text in texts), f"{texts} × {times}")

    def see_last(self, line: str) -> str:
        """Wait until this is the last line on the screen; return the screen."""
        return self._wait(lambda screen: screen.endswith("\n" + line) or screen == line, f"{line!r} at the end")

    def _wait(self, condition: Callable[[str], bool], wanted: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            screen = self.screen()
            if condition(screen):
                return screen
            assert time.monotonic() < deadline, f"no {wanted} on the screen:\n{screen}"
            time.sleep(0.05)


@contextmanager
def terminal(words: list[str], folder: Path, **env: str) -> Iterator[Terminal]:
    """A terminal in which `drover` runs with these words; its home is `folder`."""
    found = Terminal(f"drover-test-{os.getpid()}-{next(_numbers)}")
    program = [sys.executable, "-c", "from drover.cli.main import main; main()", *words]
    home = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(PACKAGE)}
    try:
        found.start(program, home | {"LC_ALL": "C.UTF-8"} | env)
        yield found
    finally:
        found.stop()
