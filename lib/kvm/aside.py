"""The folder of an instance that is still being made, and the files elsewhere that are made with it.

An instance is there when its folder gets its name; before that the folder is called ``.new-NAME``. What is made
elsewhere meanwhile, such as images, is listed in it before the first of them is: so whoever comes after a crash removes
what is there, and never a file that somebody else has made. A file is made under a name that nobody guesses, and linked
to its own one, which takes nobody's place. That first name stays until the instance is there: by it the file is known.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import RecordError
from ..qmp.ready import ready
from .record import replace, sync_folder

PREFIX: Final = ".new-"
_LIST: Final = "files.json"
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_HINT: Final = 40  # characters of a file's name that its first one shows


class NewFile(Struct, frozen=True):
    """A file that is being made.

    :ivar path: its name
    :ivar first: the name that it has until the instance is there
    """

    path: str
    first: str


def begin(folder: Path, paths: Sequence[str]) -> list[NewFile]:
    """Make the folder, and write down which files are going to be made.

    :param folder: there is none
    """
    files = []
    for path in map(Path, paths):
        first = path.with_name(f".{path.name[:_HINT]}.{secrets.token_hex(8)}.new")
        files.append(NewFile(str(path), str(first)))
    folder.mkdir(mode=0o700, parents=True)
    if files:
        replace(folder / _LIST, msgspec.json.encode(files))
    sync_folder(folder.parent)
    return files


def place(files: Sequence[NewFile]) -> None:
    """Give the files, which are made now, their names.

    :raises FileExistsError: there is something already; it stays as it is
    """
    for file in files:
        try:
            os.link(file.first, file.path, follow_symlinks=False)
        except FileExistsError:
            raise _exists(file.path) from None
    for parent in {Path(file.path).parent for file in files}:
        sync_folder(parent)


def check_free(path: str) -> None:
    """Look whether a file can be made there, as far as that can be seen; :func:`place` is where it counts.

    :raises FileExistsError: there is something
    :raises OSError: nothing can be there, or we may not look
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    raise _exists(path)


def _exists(path: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is something already", path)


def is_unfinished(folder: Path) -> bool:
    """Whether :func:`settle` has something to do for an instance that is there."""
    return (folder / _LIST).exists()


def unsettled(folder: Path) -> list[str]:
    """The files that :func:`discard` would remove."""
    return [file.path for file in _listed(folder) if _same(file)]


def settle(folder: Path) -> None:
    """The instance is there: its files lose their first names. May be repeated.

    :raises OSError: one could not be; it is still known
    """
    for file in _listed(folder):
        _unlink(file.first)
    with suppress(FileNotFoundError):
        (folder / _LIST).unlink()


def discard(folder: Path) -> None:
    """The instance will not be there: remove the files that were made for it, then its folder. May be repeated.

    :raises OSError: something could not be removed; it is still known
    """
    for file in _listed(folder):
        if _same(file):
            _unlink(file.path)
        _unlink(file.first)
    if folder.exists():
        shutil.rmtree(folder)


def _listed(folder: Path) -> list[NewFile]:
    path = folder / _LIST
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[NewFile])
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        raise RecordError(str(path), f"it cannot be read: {error}") from error


def _same(file: NewFile) -> bool:
    """Both names are those of one file: what bears the second one is ours, for no other one can be in the first's."""
    named, first = _stat(file.path), _stat(file.first)
    return named is not None and first is not None and os.path.samestat(named, first)


def _unlink(path: str) -> None:
    if _stat(path) is not None:  # asked first: a file system that is read only refuses to remove what is not there
        os.unlink(path)


def _stat(path: str) -> os.stat_result | None:
    """None: nothing is there, or can be."""
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise


ready(NewFile)
