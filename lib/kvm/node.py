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

from msgspec import Struct, structs

from ..errors import (
    DroverError,
    InstanceBusy,
    InstanceExists,
    InstanceNotFound,
    MemorySaved,
    Overtaken,
    RecordError,
    WrongState,
)
from . import aside, memory_file, room
from .boot import Outcome, Tell, start_all, stop_all
from .clone import Cloned, clone
from .clone import Tell as Copied
from .condition import Condition
from .deadlines import ANSWER_TIMEOUT, SHUTDOWN_TIMEOUT
from .ending import running
from .handover import Arrival, Settings
from .host import Host
from .instance import Instance
from .keys import Keys, are_placed
from .ledger import Ledger, opened
from .lock import LOCK_TIMEOUT, locked
from .parcel import Parcel
from .paths import Paths, check_name
from .record import Document, Passage, load, save, sync_folder
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
        return self.host.paths.names

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
        return self._put(Document(spec=completed(spec)))

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
            if document.saved is not None and document.saved.path:
                memory_file.remove(Path(document.saved.path), memory_file.head_of(document.saved))
            shutil.rmtree(gone)

    def accept(
        self,
        parcel: Parcel,
        uri: str,
        *,
        epoch: int,
        other: str,
        settings: Settings = Settings(),  # noqa: B008
        emulator: str = "",
        home: Sequence[str] = (),
        process: str = "",
        keys: Keys | None = None,
        paused: bool = False,
        exports: bool = False,
    ) -> Arrival:
        """Make an instance that arrives from another node, and have a QEMU wait for its machine.

        It is not started here but by that, and belongs to the other node until :meth:`Instance.finish_passage`. May
        be repeated.

        :param uri: where to listen: ``tcp:192.0.2.7:0``, ``unix:/path``
        :param epoch: of the passage
        :param other: the node that it comes from
        :param emulator: the QEMU that is to wait, where it is another one than the specification's
        :param home: where the daemon answers that has its owner record
        :param process: the process that waits, as that record names it
        :param keys: of TLS; None: it comes in the clear
        :param paused: its guest is to stand still
        :param exports: it is ready only once it exports disks
        :raises InstanceExists: there is one of this name here, which has not gone elsewhere
        :raises Overtaken: it arrives already, or has gone, by a later passage
        :raises NoRoom: there is not the memory for it that others have not been promised
        :raises StartFailed: QEMU did not come up; nothing of it stays
        """
        spec = structs.replace(parcel.spec, emulator=emulator) if emulator else parcel.spec
        name = spec.name
        passage = Passage(
            way="in", epoch=epoch, other=other, home=tuple(home), process=process, board=parcel.board,
            tls=keys is not None, paused=paused,
        )  # fmt: skip
        self.host.check(spec)
        self.host.tree.expect()
        with locked(self.host.paths.locks, name, "accept"):
            found = self._arriving(name, epoch)
        if found is None:
            document = Document(
                spec=spec, machine=parcel.machine, places=parcel.places, generation=parcel.generation, passage=passage,
                epoch=epoch,
            )  # fmt: skip
            with room.let_in(self.host.paths, spec):
                if (self.host.paths.instance(name).state).exists():
                    self.delete(name)  # it has gone elsewhere, and comes back
                self._put(document)
        instance = Instance(self.host, name)
        try:
            return instance.await_arrival(uri, epoch=epoch, settings=settings, keys=keys, exports=exports)
        except (DroverError, OSError) as error:
            if found is None:
                self._undo(name, epoch, error)
            raise

    def abort_passage(self, name: str, *, epoch: int) -> str:
        """End a passage; see :meth:`Instance.abort_passage`. Of an instance that was to arrive here nothing stays."""
        instance = self.instance(name)
        became = instance.abort_passage(epoch=epoch)
        document = load(self.host.paths.instance(name).document)
        if document.passage is not None and document.passage.way == "in":
            self.delete(name)
        return became

    def survey(self, *, timeout: float = ANSWER_TIMEOUT) -> list[Report]:
        """How all instances are. One that hangs keeps no other waiting.

        :param timeout: seconds for each QEMU to answer
        """
        return self._each(lambda instance: Report(name=instance.name, condition=instance.show(timeout=timeout)))

    def adopt(self, *, timeout: float = ANSWER_TIMEOUT, look: bool = True) -> list[Report]:
        """After a restart of ours: find every machine that runs, untouched, and mend what was left unfinished.

        :param timeout: seconds for each QEMU to answer
        :param look: report how they are, too; without it a QEMU that runs, and at which nothing was left unfinished,
            is not asked at all
        """
        self._sweep()

        def adopt(instance: Instance) -> Report:
            if not look and self._is_well(instance.name):
                return Report(name=instance.name)
            notices = instance.mend(timeout=timeout)
            condition = instance.show(timeout=timeout) if look else None
            return Report(name=instance.name, condition=condition, notices=notices)

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
        :raises MemorySaved: it is saved, with its disks in the middle of something
        :raises InstanceExists: there is one of the new name
        :raises FileExistsError: there is something where a copy was to be
        :raises ArgumentError: a disk can be neither copied nor shared
        :raises OSError: an image could not be copied, as where there is no space
        """
        self.host.paths.instance(new)
        if new == name:
            raise InstanceExists(new)
        with self._stopped(name, "clone") as ledger, locked(self.host.paths.locks, new, f"clone of {name}"):
            if ledger.document.saved is not None:
                raise MemorySaved(name)
            notices = clone(self.host.paths, ledger.document, new, disks, linked=linked, tell=tell)
        return Cloned(Instance(self.host, new), notices)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _put(self, document: Document) -> Instance:
        """Have an instance of this document.

        :raises InstanceExists: there is one of its name
        """
        name = document.spec.name
        paths = self.host.paths.instance(name)
        with locked(self.host.paths.locks, name, "create"):
            if paths.state.exists():
                raise InstanceExists(name)
            folder = paths.state.with_name(f"{aside.PREFIX}{name}")
            aside.discard(folder)
            aside.begin(folder, ())
            save(folder / paths.document.name, document)
            os.rename(folder, paths.state)
            sync_folder(paths.state.parent)
        return Instance(self.host, name)

    def _arriving(self, name: str, epoch: int) -> Passage | None:
        """The passage by which it arrives already; None where it may begin to.

        :raises InstanceExists: it is here
        :raises Overtaken: by a later one
        """
        try:
            document = load(self.host.paths.instance(name).document)
        except FileNotFoundError:
            return None
        passage = document.passage
        if passage is None or passage.way in ("out", "torn"):
            raise InstanceExists(name)
        if document.epoch > epoch or (passage.way == "in") != (passage.epoch == epoch):
            raise Overtaken(name, epoch, str(passage))
        return passage if passage.way == "in" else None

    def _undo(self, name: str, epoch: int, error: BaseException) -> None:
        try:
            self.abort_passage(name, epoch=epoch)
        except (DroverError, OSError) as failure:
            error.add_note(f"undo of the arrival failed: {failure}")

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

    def _is_well(self, name: str) -> bool:
        """Whether its QEMU is there, and nobody has begun what is not done; looked at without its lock."""
        paths = self.host.paths.instance(name)
        try:
            document = load(paths.document)
        except (RecordError, OSError):
            return False
        unfinished = document.pending is not None or are_placed(paths.private)
        process = None if unfinished else running(self.host, Ledger(paths, document))
        if process is None:
            return False
        process.close()
        return True

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
