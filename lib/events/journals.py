"""The journals of several instances, read by who has no loop and no daemon: one after the other, and as they grow."""

import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import pyinotify

from ..kvm.paths import Paths
from .segment import Entry, newest, read

# Instances by their uuids: what each is called.
Names = Mapping[str, str]

_PAGE: Final = 500  # events that are read at one stroke
# Seconds between two looks for what inotify did not tell.
_LOOK: Final = 5.0
# Seconds in which one that has gone may come back under another name.
_RENAMED: Final = 1.0
_MASK: Final = (
    pyinotify.IN_MODIFY | pyinotify.IN_CREATE | pyinotify.IN_DELETE | pyinotify.IN_MOVED_TO | pyinotify.IN_MOVED_FROM
)


class Journals:
    """What machines said, and say.

    :param names: finds the instances
    :param after: the number of the last event that is known, of each of them
    """

    def __init__(self, paths: Paths, names: Callable[[], Names], after: int = 0) -> None:
        self._paths = paths
        self._find = names
        self.names = names()
        self._after = dict.fromkeys(self.names, after)

    def skip(self) -> None:
        """Leave out all that there is by now."""
        self._after = {uuid: newest(self._paths.events(uuid)) for uuid in self.names}

    def first(self, uuid: str) -> int:
        """The number of the oldest event that is kept of one."""
        return read(self._paths.events(uuid), limit=1).first

    def read(self) -> Iterator[tuple[str, Entry]]:
        """What there is that was not read yet, in the order of time, each with its instance's name."""
        return self._read(self.names)

    def follow(self, *, until_gone: bool = False) -> Iterator[tuple[str, Entry]]:
        """The same, and whatever comes.

        :param until_gone: until there is none of the instances any more
        """
        ears = _Ears(self._paths)
        try:
            changed: Iterable[str] = self.names
            while self.names or not until_gone:
                yield from self._read(changed)
                changed, is_known = ears.wait()
                if not is_known:
                    self._find_again()
                    changed = self.names
        finally:
            ears.close()

    def _read(self, uuids: Iterable[str]) -> Iterator[tuple[str, Entry]]:
        journals = [self._read_one(uuid, self.names[uuid]) for uuid in uuids if uuid in self.names]
        return heapq.merge(*journals, key=lambda each: each[1].at)

    def _read_one(self, uuid: str, name: str) -> Iterator[tuple[str, Entry]]:
        while events := read(self._paths.events(uuid), after=self._after.get(uuid, 0), limit=_PAGE).events:
            for entry in events:
                self._after[uuid] = entry.number
                yield name, entry

    def _find_again(self) -> None:
        """Know who is there, and called what, by now."""
        names = self._find()
        if self.names.keys() - names.keys():
            time.sleep(_RENAMED)  # it may be on its way
            names = self._find()
        self.names = names


class _Ears:
    """What inotify tells of journals and instances."""

    def __init__(self, paths: Paths) -> None:
        self._instances = os.fspath(paths.instances)
        self._changed: set[str] = set()
        self._is_known = True
        journals = paths.events("x").parent
        for folder in (journals, paths.instances):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        manager = pyinotify.WatchManager()
        self._notifier = pyinotify.Notifier(manager, self._heard)
        with suppress(pyinotify.WatchManagerError):  # there are too many: what is not heard is looked at sometimes
            manager.add_watch(self._instances, _MASK, quiet=False)
            manager.add_watch(os.fspath(journals), _MASK, rec=True, auto_add=True, quiet=False)

    def wait(self) -> tuple[set[str], bool]:
        """Wait for a change, or for a while.

        :returns: whose journals have changed; whether that, and who is there, is all known
        """
        self._changed, self._is_known = set(), False
        if self._notifier.check_events(int(_LOOK * 1000)):
            self._is_known = True
            self._notifier.read_events()
            self._notifier.process_events()
        return self._changed, self._is_known

    def close(self) -> None:
        """Hear nothing more."""
        self._notifier.stop()

    def _heard(self, event: Any) -> None:
        if event.mask & pyinotify.IN_Q_OVERFLOW or event.path == self._instances or event.mask & pyinotify.IN_ISDIR:
            self._is_known = False
        else:
            self._changed.add(os.path.basename(event.path))
