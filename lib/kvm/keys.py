"""The keys of a migration, where QEMU finds them: a folder in the one that it may write to, for as long as it has them.

That the folder is there says that QEMU may have them: whoever comes next and finds no passage has it forget them
(:mod:`.mend`). QEMU could put anything in the place of what is in its own folder, so nothing there is followed.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..qmp.ready import ready
from .spec import Secret

_FOLDER: Final = "migration-keys"


class Keys(Struct, frozen=True, kw_only=True):
    """What one side of a migration shows, and whom it believes.

    :ivar files: by the names that QEMU looks for
    :ivar peer: whom the other side's certificate has to name, in QEMU's words
    """

    files: Mapping[str, Secret]
    peer: str


def folder_of(private: Path) -> Path:
    """Where they lie, if there are any.

    :param private: the folder that QEMU may write to
    """
    return private / _FOLDER


def are_placed(private: Path) -> bool:
    """Whether QEMU may have keys."""
    return os.path.lexists(folder_of(private))


def place(private: Path, keys: Keys, uid: int | None) -> Path:
    """Put keys where QEMU can read them, and nobody else but us. Those that were there go.

    :param private: the folder that QEMU may write to
    :param uid: whom QEMU runs as; None: us
    :returns: the folder
    :raises OSError: they could not be written; none stays
    """
    sweep(private)
    above = os.open(private, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.mkdir(_FOLDER, 0o700, dir_fd=above)
        inside = os.open(_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            _fill(private, inside, keys, uid)
        finally:
            os.close(inside)
    except BaseException:
        sweep(private)
        raise
    finally:
        os.close(above)
    return folder_of(private)


def _fill(private: Path, inside: int, keys: Keys, uid: int | None) -> None:
    if os.fstat(inside).st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "somebody else has put a folder there", os.fspath(folder_of(private)))
    for name, text in keys.files.items():
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inside)
        with open(fd, "w", encoding="ascii") as file:
            file.write(text.secret)
            if uid is not None:
                os.fchown(fd, uid, uid)
    if uid is not None:  # last: from here on QEMU may write to it
        os.fchown(inside, uid, uid)


def sweep(private: Path) -> None:
    """Remove them. May be repeated."""
    folder = folder_of(private)
    if folder.is_symlink() or folder.is_file():
        folder.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


ready(Keys)
