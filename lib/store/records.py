"""Records by key, changed by compare-and-swap: what every store does, whatever it is kept in.

The model is etcd's, for that is one of the stores. A *revision* counts all changes of a store; those that are made
together have one revision, and a record has that of its last change. A revision says more than a value: a record that
was changed and changed back is another one.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, Self

from msgspec import Struct

from ..errors import ArgumentError

MAX_KEY: Final = 512  # characters; it is an index, not a document
MAX_VALUE: Final = 1 << 20  # bytes. etcd takes 1.5 MiB in a request, all told
MAX_CHANGES: Final = 100  # keys in one transaction; etcd takes 128 operations, compares apart
_KEY: Final = re.compile(f"[!-~]{{1,{MAX_KEY}}}")
_PREFIX: Final = re.compile(f"[!-~]{{0,{MAX_KEY}}}")


class Record(Struct, frozen=True):
    """What lies under a key.

    :ivar value: anything
    :ivar revision: of its last change, 1 or more
    """

    value: bytes
    revision: int


class Change(Struct, frozen=True):
    """What became of a key.

    :ivar key: which
    :ivar revision: of the change
    :ivar value: what lies there now; None: nothing any more
    """

    key: str
    revision: int
    value: bytes | None


class Watch(ABC):
    """The changes below a prefix; a context manager. One thread polls it.

    Of several changes of one key since the last call only the last is sure to be told. So whoever follows a watch
    comes to know how things are, not all that they were.

    :ivar revision: up to which all changes have been told
    """

    revision: int

    @abstractmethod
    def poll(self, timeout: float) -> list[Change]:
        """What has changed since the last call, in the order of revisions; waits until something has.

        :param timeout: how long to wait at most, in seconds; 0 only looks
        :returns: empty when nothing has; as much as fits a bound, and the next call tells the rest
        :raises HistoryGone: too much was removed meanwhile: read everything anew
        :raises StoreError: the store cannot be read
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Store(ABC):
    """A store of records, safe to share between threads; a context manager.

    Every call either did all of it or nothing, and what it did survives a crash of the host, unless it raises a bare
    :class:`~drover.errors.StoreError`: then ask what has become of it.

    :ivar name: which one, for people
    """

    name: str

    @abstractmethod
    def revision(self) -> int:
        """The revision of the last change, whatever it was of; 0 before the first.

        Take it before :meth:`range` and watch from it: no change falls between them.
        """

    @abstractmethod
    def get(self, key: str) -> Record | None:
        """The record of a key; None where there is none."""

    @abstractmethod
    def range(
        self, prefix: str, *, before: str = "", limit: int | None = None, last_first: bool = False
    ) -> list[tuple[str, Record]]:
        """The records whose keys begin with a prefix, in the order of their keys, as they were at one moment.

        :param before: only keys that sort before this one
        :param limit: at most so many
        :param last_first: in the opposite order
        """

    @abstractmethod
    def count(self, prefix: str) -> int:
        """How many records there are whose keys begin with a prefix."""

    @abstractmethod
    def watch(self, prefix: str, after: int) -> Watch:
        """Follow what changes below a prefix.

        :param after: the revision after which
        """

    @abstractmethod
    def txn(self, changes: Mapping[str, bytes | None], *, expect: Mapping[str, int] | None = None) -> int:
        """Change several records at once, or none of them.

        :param changes: by key, the new value; None removes what is there
        :param expect: by key, be it changed or not, the revision that it has to have; 0: it must not exist
        :returns: the revision of the change; the store's, where nothing was to be changed
        :raises RevisionConflict: one of them has another revision
        :raises StoreFull: there is no room
        :raises StoreBusy: others have it locked
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it. What was changed stays."""

    def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """Change one record.

        :param expect: the revision that it has to have; 0: it must not exist; None: whatever there is
        :returns: its new revision
        :raises RevisionConflict: it has another one
        """
        return self.txn({key: value}, expect=None if expect is None else {key: expect})

    def delete(self, key: str, *, expect: int | None = None) -> int:
        """Remove one record. Where there is none, nothing is done.

        :param expect: the revision that it has to have; None: whatever there is
        :returns: the revision of the change
        :raises RevisionConflict: it has another one
        """
        return self.txn({key: None}, expect=None if expect is None else {key: expect})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_key(key: str) -> None:
    """See that a key is one.

    :raises ArgumentError: it is not
    """
    if not _KEY.fullmatch(key):
        raise ArgumentError("key", key, f"1 to {MAX_KEY} characters of printable ASCII, without blanks")


def check_prefix(prefix: str) -> None:
    """See that keys can begin with it.

    :raises ArgumentError: none can
    """
    if not _PREFIX.fullmatch(prefix):
        raise ArgumentError("prefix", prefix, f"up to {MAX_KEY} characters of printable ASCII, without blanks")


def check_txn(changes: Mapping[str, bytes | None], expect: Mapping[str, int]) -> None:
    """See that a transaction keeps to the bounds, which are those of all stores.

    :raises ArgumentError: it does not
    """
    for key in (*changes, *expect):
        check_key(key)
    if len(changes) > MAX_CHANGES or len(expect) > MAX_CHANGES:
        raise ArgumentError("changes", max(len(changes), len(expect)), f"up to {MAX_CHANGES} keys at once")
    if (size := sum(len(value or b"") for value in changes.values())) > MAX_VALUE:
        raise ArgumentError("value", size, f"up to {MAX_VALUE} bytes, all values together")
