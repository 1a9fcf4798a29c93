"""An instance's document in the hands of whoever holds its lock: every change is on disk before its first effect."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from ..errors import InstanceNotFound
from .lock import LOCK_TIMEOUT, locked
from .paths import InstancePaths, Paths
from .record import Document, Intent, load, runtime_of, save
from .spec import Spec
from .witness import witness


class Ledger:
    """The document of one instance, open for change.

    :ivar paths: where everything of it lies
    :ivar document: as it is; :meth:`save` makes it last
    """

    def __init__(self, paths: InstancePaths, document: Document) -> None:
        self.paths = paths
        self.document = document

    @property
    def name(self) -> str:
        """The instance's."""
        return self.paths.name

    def begin(self, operation: str, *, lasting: bool = True, **arguments: Any) -> None:
        """Write down what is about to be changed, before anything is.

        :param lasting: see :func:`.record.save`; not, where all that is to be mended ends with the host
        :param arguments: what whoever finds it unfinished needs to know; JSON values
        """
        self.document.pending = Intent(operation=operation, arguments=arguments, since=time.time())
        save(self.paths.document, self.document, lasting=lasting)
        witness().step(operation)

    def step(self, step: str, **arguments: Any) -> None:
        """Write down which step of it comes next, and what is known by now."""
        if self.document.pending is not None:
            self.document.pending.step = step
            self.document.pending.arguments.update(arguments)
        self.save()
        witness().step(step)

    def commit(self) -> None:
        """Write down the result, and that nothing is under way any more: in one write."""
        self.document.pending = None
        self.save()

    def change_specs(self, change: Callable[[Spec], Spec], *, next_start: bool = True) -> None:
        """Change what runs, and what is wanted at the next start, in the same way. Not written yet.

        :param next_start: whether the latter, too
        """
        runtime = runtime_of(self.document)
        runtime.spec = change(runtime.spec)
        if next_start:
            self.document.spec = change(self.document.spec)

    def save(self) -> None:
        """Write the document as it is."""
        save(self.paths.document, self.document)


@contextmanager
def opened(paths: Paths, name: str, operation: str, timeout: float = LOCK_TIMEOUT) -> Iterator[Ledger]:
    """Lock an instance and read its document.

    :param operation: what for
    :param timeout: seconds to wait for the lock
    :raises InstanceNotFound: there is no such instance
    :raises InstanceBusy: somebody else works on it
    :raises RecordError: its document cannot be used
    """
    mine = paths.instance(name)
    if not mine.document.exists():
        raise InstanceNotFound(name)
    with locked(paths.locks, name, operation, timeout):
        try:
            document = load(mine.document)
        except FileNotFoundError:
            raise InstanceNotFound(name) from None
        if document.spec.name != name:  # a rename is that of the folder; here it comes to its end
            document.spec = replace(document.spec, name=name)
        yield Ledger(mine, document)
