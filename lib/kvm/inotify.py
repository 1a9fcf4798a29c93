"""inotify, with errors that say what to do: a user may have only so many of it, which others use up, too."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyinotify

# It prints by itself, past our log's format, of what it raises too, and of events that came before a watch went.
pyinotify.log.setLevel(logging.CRITICAL)
_HELP: Final = "this user may have no more of it: see fs.inotify.max_user_instances and max_user_watches in sysctl"


def new_manager() -> Any:
    """Something to watch folders with.

    :raises OSError: there is no more of it
    """
    try:
        return pyinotify.WatchManager()
    except OSError as error:
        raise OSError(f"inotify: {error}; {_HELP}") from error


def watch(manager: Any, folder: Path, mask: int) -> int:
    """Watch a folder.

    :returns: the number of the watch
    :raises OSError: it cannot be watched, or there are no more watches
    """
    path = os.fspath(folder)
    try:
        found: dict[str, int] = manager.add_watch(path, mask, quiet=False)
    except pyinotify.WatchManagerError as error:
        raise OSError(f"inotify: {error}; if there is nothing wrong with the folder, {_HELP}") from error
    return found[path]


def forget(manager: Any, number: int) -> None:
    """Watch no more what this number is of, if it is watched still."""
    with suppress(pyinotify.WatchManagerError):
        manager.rm_watch(number, quiet=False)
