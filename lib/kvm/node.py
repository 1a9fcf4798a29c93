"""All instances of one host: made, found, copied, removed, and adopted after a restart of ours."""

import difflib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ..errors import DroverError, InstanceBusy, InstanceExists, InstanceNotFound, RecordError, WrongState
from . import aside
from .boot import Outcome, Tell, start_all, stop_all
from .clone import Cloned, clone
from .clone import Tell as Copied
from .condition import Condition
from .host import Host
from .instance import ANSWER_TIMEOUT, SHUTDOWN_TIMEOUT, Instance
from .ledger import Ledger, opened
from .lock import LOCK_TIMEOUT, locked
from .paths import Paths, check_name
from .record import Document, load, save, sync_folder
from .spec import Spec, completed
from .state import State

# Each waits for its own QEMU: so many may hang before the others have to wait for them.
_AT_ONCE: Final = 16
# Leftovers of a create or delete that was cut off: no instance's name begins so.
_ASIDE: Final = "."


class Report(Struct, kw_only=True):
    """What became of one instance among many.

    :ivar condition: how it is; None where that could not be found out
    :ivar notices: what was done, in words
    :ivar error: why it failed; None if it did not
    """

    name: str
    condition: Condition | None = None
    notices: Sequence[str] = ()
    error: DroverError | OSError | None = None


class Node:
    """The instances of a host.

    :param paths: where everything lies; None for this user's own folders
    """

    def __init__(self, paths: Paths | None = None) -> None:
        self.host = Host(paths)

    @property
    def names(self) -> list[str]:
        """Of all instances."""
        folder = self.host.paths.instances
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(_ASIDE))

    def instance(self, name: str, *, lock_timeout: float = LOCK_TIMEOUT) -> Instance:
        """The instance of this name.

        :raises InstanceNotFound: there is none; names those that are spelt alike
        """
        check_name(name)
        if name not in self.names:
            raise InstanceNotFound(name, difflib.get_close_matches(name, self.names, 3))
        return Instance(self.host, name, lock_timeout=lock_timeout)

    def create(self, spec: Spec) -> Instance:
        """Make an instance, which does not run yet.

        :returns: it; what was chosen for it, such as its uuid, is in its specification now
        :raises InstanceExists: there is one of this name
        :raises ArgumentError: this user can have none like that
        """
        self.host.check(spec)
        paths = self.host.paths.instance(spec.name)
        with locked(self.host.paths.locks, spec.name, "create"):
            if paths.state.exists():
                raise InstanceExists(spec.name)
            folder = paths.state.with_name(f"{aside.PREFIX}{spec.name}")
            aside.discard(folder)
            aside.begin(folder, ())
            save(folder / paths.document.name, Document(spec=completed(spec)))
            os.rename(folder, paths.state)
            sync_folder(paths.state.parent)
        return Instance(self.host, spec.name)

    def delete(self, name: str) -> None:
        """Forget an instance that does not run. Its disks are not touched.

        :raises WrongState: it runs
        """
        with self._stopped(name, "delete"):
            paths = self.host.paths.instance(name)
            document = load(paths.document)
            aside.settle(paths.state)
            gone = paths.state.with_name(f"{_ASIDE}old-{document.spec.uuid}")
            os.rename(paths.state, gone)
            sync_folder(gone.parent)
            self._free(document.spec.uuid)
            shutil.rmtree(gone)

    def survey(self, *, timeout: float = ANSWER_TIMEOUT) -> list[Report]:
        """How all instances are. One that hangs keeps no other waiting.

        :param timeout: seconds for each QEMU to answer
        """
        return self._each(lambda instance: Report(name=instance.name, condition=instance.show(timeout=timeout)))

    def adopt(self, *, timeout: float = ANSWER_TIMEOUT) -> list[Report]:
        """After a restart of ours: find every machine that runs, untouched, and mend what was left unfinished.

        :param timeout: seconds for each QEMU to answer
        """
        self._sweep()

        def adopt(instance: Instance) -> Report:
            notices = instance.mend(timeout=timeout)
            return Report(name=instance.name, condition=instance.show(timeout=timeout), notices=notices)

        return self._each(adopt)

    def start_all(self, *, tell: Tell = lambda outcome: None) -> list[Outcome]:
        """At the host's boot: start the instances with ``autostart`` that do not run, the lowest order first.

        Each is followed by a pause of its ``autostart_delay``. One that fails keeps no other from its start.

        :param tell: called with each outcome when it is there
        """
        return start_all(self.host, self.names, tell)

    def stop_all(self, *, timeout: float = SHUTDOWN_TIMEOUT, tell: Tell = lambda outcome: None) -> list[Outcome]:
        """At the host's shutdown: shut down all that run, the highest ``autostart_order`` first.

        Those of one order are shut down at once, and the next order when none of them runs any more.

        :param timeout: seconds for each guest; one that has not shut down by then is ended as if the plug was pulled
        :param tell: called with each outcome when it is there
        """
        return stop_all(self.host, self.names, timeout, tell)

    def rename(self, name: str, new: str) -> Instance:
        """Give an instance that does not run another name. Its disks are not touched.

        :raises WrongState: it runs
        :raises InstanceExists: there is one of the new name
        """
        there = self.host.paths.instance(new)
        if new == name:
            return self.instance(name)
        with self._stopped(name, "rename"), locked(self.host.paths.locks, new, "rename"):
            here = self.host.paths.instance(name)
            if there.state.exists():
                raise InstanceExists(new)
            os.rename(here.state, there.state)
            sync_folder(there.state.parent)
        return Instance(self.host, new)

    def clone(
        self,
        name: str,
        new: str,
        *,
        disks: Mapping[str, str] = MappingProxyType({}),
        linked: bool = False,
        tell: Copied = lambda done, of: None,
    ) -> Cloned:
        """Make an instance like one that does not run: with a name, a uuid and MAC addresses of its own.

        Images that can be written to are copied; what stands beneath them, read-only disks and media are shared. All
        happens, or nothing of it stays.

        :param disks: for disks, by their ids, the path of the copy; of one that is no file, the source that the clone
            has instead, which is used as it is. A copy without a path lies beside the old one, named for the clone
        :param linked: the disks are overlays on the images of the old ones, which have to be read only
        :param tell: called with the bytes that are copied, and with how many there are
        :returns: the clone, and what is to be known about it
        :raises WrongState: `name` runs
        :raises InstanceExists: there is one of the new name
        :raises FileExistsError: there is something where a copy was to be
        :raises ArgumentError: a disk can be neither copied nor shared
        :raises OSError: an image could not be copied, as where there is no space
        """
        self.host.paths.instance(new)
        if new == name:
            raise InstanceExists(new)
        with self._stopped(name, "clone") as ledger, locked(self.host.paths.locks, new, f"clone of {name}"):
            notices = clone(self.host.paths, ledger.document, new, disks, linked=linked, tell=tell)
        return Cloned(Instance(self.host, new), notices)

    # -- how ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _stopped(self, name: str, operation: str) -> Iterator[Ledger]:
        instance = self.instance(name)
        instance.mend()
        with opened(self.host.paths, name, operation) as ledger:
            if ledger.document.runtime is not None:
                raise WrongState(name, State.RUNNING, State.STOPPED)
            yield ledger

    def _each(self, act: Callable[[Instance], Report]) -> list[Report]:
        def reported(name: str) -> Report:
            try:
                return act(Instance(self.host, name))
            except (DroverError, OSError) as error:
                return Report(name=name, error=error)

        with ThreadPoolExecutor(_AT_ONCE, "instances") as threads:
            return list(threads.map(reported, self.names))

    def _free(self, uuid: str) -> None:
        """What a deleted instance had beside its own folder."""
        shutil.rmtree(self.host.paths.tpm(uuid), ignore_errors=True)
        shutil.rmtree(self.host.paths.events(uuid), ignore_errors=True)
        if not self.host.rootless:
            self.host.uids.give_back(uuid)

    def _sweep(self) -> None:
        """Remove what a create, clone or delete that was cut off has left."""
        folder = self.host.paths.instances
        if not folder.is_dir():
            return
        for entry in folder.iterdir():
            if entry.name.startswith(f"{_ASIDE}old-"):
                self._free(entry.name.removeprefix(f"{_ASIDE}old-"))
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.startswith(aside.PREFIX):
                self._settle(entry, entry.name.removeprefix(aside.PREFIX), aside.discard)
            elif aside.is_unfinished(entry):
                self._settle(entry, entry.name, aside.settle)

    def _settle(self, folder: Path, name: str, how: Callable[[Path], None]) -> None:
        """Unless somebody is still at it. What cannot be removed now is left for the next time."""
        with suppress(InstanceBusy, RecordError, OSError), locked(self.host.paths.locks, name, "adopt", 0):
            how(folder)
