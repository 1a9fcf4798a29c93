"""Logs that others write to by a descriptor of ours: kept within bounds.

They are opened for appending, so that a log can be cut while it is written to: what comes next is written at its new
end.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final

# Bytes. A guest that boots prints some 50 kB to its console.
LIMIT: Final = 4 << 20


def opened(lent: ExitStack, path: Path) -> int:
    """Open a log for somebody else to write to; our copy of the descriptor is closed by `lent`."""
    rotate(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    lent.callback(os.close, fd)
    return fd


def rotate(path: Path, limit: int = LIMIT) -> bool:
    """Put what a log holds aside if it is too long, in the place of what was put aside before.

    What is written between the copy and the cut is lost.

    :param limit: in bytes
    :returns: whether it was
    """
    try:
        if path.stat().st_size <= limit:
            return False
    except FileNotFoundError:
        return False
    old = path.with_name(f"{path.name}.1")
    shutil.copyfile(path, old)
    os.chmod(old, 0o600)
    os.truncate(path, 0)
    return True
