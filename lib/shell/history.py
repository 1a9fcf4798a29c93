"""What was typed, kept in a file of one's own; lines that hold a secret are not."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prompt_toolkit.history import History

# Lines that are kept: as many as the shells of the system do.
MAX_KEPT: Final = 1_000
# Characters: a longer one was pasted, and is of no use a second time.
MAX_LENGTH: Final = 10_000


def history_path(title: str) -> Path:
    """Where the history of the shell `title` lies, by the rules of XDG."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "drover" / f"{title}_history"


class PrivateHistory(History):
    """A history in a file that only its owner can read. Where the file cannot be used, it lasts as long as we do.

    :param is_secret: tells a line that is not to be written
    """

    def __init__(self, path: Path, is_secret: Callable[[str], bool]) -> None:
        super().__init__()
        self._path = path
        self._is_secret = is_secret

    def load_history_strings(self) -> Iterable[str]:
        """The lines, newest first."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError:
            return []
        if len(lines) > 2 * MAX_KEPT:
            self._write(lines[-MAX_KEPT:], os.O_TRUNC)
        return [_unfold(line) for line in reversed(lines[-MAX_KEPT:])]

    def store_string(self, string: str) -> None:
        """Keep a line, unless it is secret."""
        if string.strip() and len(string) <= MAX_LENGTH and not self._is_secret(string):
            self._write([_fold(string)], os.O_APPEND)

    def _write(self, lines: list[str], how: int) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
                os.fchmod(fd, 0o600)
                file.writelines(f"{line}\n" for line in lines)
        except OSError:
            pass  # a home that cannot be written to is no reason not to talk to a machine


def _fold(text: str) -> str:
    """`text` in one line of the file."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _unfold(line: str) -> str:
    parts = line.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in parts)
