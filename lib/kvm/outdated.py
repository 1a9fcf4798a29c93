"""Whether a machine runs a QEMU whose file was replaced since, as by an update: what was cured there is not here."""

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .record import Runtime  # of which a list needs nothing else

_DELETED: Final = " (deleted)"  # what the kernel writes behind the path of a file that has no name any more
_PROGRAM: Final = b"\x7fELF"


def is_outdated(runtime: "Runtime | None") -> bool:
    """Whether another file is now where a machine's QEMU was started from.

    Where that cannot be told, as of another user's process, it is not said.
    """
    if runtime is None or not runtime.pid:
        return False
    running = f"/proc/{runtime.pid}/exe"
    try:
        path, file = os.readlink(running), os.stat(running)
    except OSError:
        return False
    if path.endswith(_DELETED):
        return True
    return _differs(path, file) or (path != runtime.emulator and _differs(runtime.emulator, file, program=True))


def _differs(path: str, file: os.stat_result, *, program: bool = False) -> bool:
    """Whether there is another file at a path.

    :param program: only where that is a program itself, and no script that starts one
    """
    try:
        if os.path.samestat(os.stat(path), file):
            return False
        if not program:
            return True
        with open(path, "rb") as found:
            return found.read(len(_PROGRAM)) == _PROGRAM
    except OSError:
        return False  # it was moved, or is seen under another name from in there
