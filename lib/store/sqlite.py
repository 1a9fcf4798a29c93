"""A store in one file, by SQLite: several processes of a host share it, and no crash of theirs or the host's spoils it.

Of a record that was removed, the key and the revision of that are kept for a while, so that watchers hear of it.
Watchers in the process that changes something are woken; those in others look every few milliseconds.
"""

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from ..errors import HistoryGone, RecordError, RevisionConflict, StoreBusy, StoreError, StoreFull
from .lookout import Lookout
from .records import MAX_CHANGES, Change, Record, Store, Watch, check_key, check_prefix, check_txn

T = TypeVar("T")

SCHEMA: Final = 1
BUSY_TIMEOUT: Final = 10.0  # s. A change takes some ms: more is a disk that hangs, or a process stopped while it writes
_RETRY: Final = 0.02  # s; while another process makes the file
KEPT_REMOVALS: Final = 10_000  # some 1 MB; a watcher that is further behind reads everything anew
_FORGET_EVERY: Final = 1_000  # removals by this process: the oldest are dropped rarely, and not one at each change
_BATCH: Final = 1_000  # changes that one poll tells; more than MAX_CHANGES, for those of one revision stay together
_WAL_KEPT: Final = 16 << 20  # bytes; SQLite makes it shorter again once it is in the file
_APPLICATION: Final = 0x44727653  # "DrvS", in the header: what tells our file from another program's

_TABLES: Final = (
    "CREATE TABLE records (key TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL)",
    "CREATE INDEX records_by_revision ON records (revision)",
    "CREATE TABLE removals (key TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL)",
    "CREATE INDEX removals_by_revision ON removals (revision)",
    "CREATE TABLE state (revision INTEGER NOT NULL, known_after INTEGER NOT NULL)",
    "INSERT INTO state VALUES (0, 0)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
_PUT: Final = (
    "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
    "SET revision = excluded.revision, value = excluded.value"
)
# Below a prefix: after 127 there is no ASCII, of which all keys are.
_COUNT: Final = "SELECT count(*) FROM records WHERE key >= :prefix AND key < :prefix || char(127)"
_RANGE: Final = (
    "SELECT key, value, revision FROM records "
    "WHERE key >= :prefix AND key < :prefix || char(127) AND (:before = '' OR key < :before) "
    "ORDER BY key {} LIMIT :most"
)
_FIRST, _LAST = _RANGE.format("ASC"), _RANGE.format("DESC")
_CHANGES: Final = (
    "SELECT key, revision, value FROM records "
    "WHERE revision > :after AND key >= :prefix AND key < :prefix || char(127) UNION ALL "
    "SELECT key, revision, NULL FROM removals "
    "WHERE revision > :after AND key >= :prefix AND key < :prefix || char(127) "
    "ORDER BY revision LIMIT :most"
)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteStore(Store):
    """The store in a file, which is made if there is none, readable by us alone.

    Where the disk is full, all of it can be read while it is open, and nothing be changed, not even removed.
    Not to be used by a child that was forked while it was open: that opens it anew.

    :ivar lookout: for those who wait for a change
    :param path: the file; two more lie beside it while it is open, and after a crash
    :param busy_timeout: seconds to wait while others write
    :raises RecordError: the file is no store, is broken, or a newer Drover's; it was left as it is
    :raises StoreError: it cannot be opened
    """

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.name = str(path)
        self._busy_timeout = busy_timeout
        # One to write and one to read: a reader does not wait for the disk of whoever writes.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self.lookout = Lookout(self.revision)
        self._removals = _FORGET_EVERY  # what earlier processes have removed counts, too
        with self._told():
            _make_file(path)
            self._writer = self._open()
            try:
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise

    def revision(self) -> int:
        return int(self._read(lambda db: db.execute("SELECT revision FROM state").fetchone()[0]))

    def get(self, key: str) -> Record | None:
        check_key(key)
        query = "SELECT value, revision FROM records WHERE key = ?"
        row = self._read(lambda db: db.execute(query, (key,)).fetchone())
        return Record(*row) if row else None

    def range(
        self, prefix: str, *, before: str = "", limit: int | None = None, last_first: bool = False
    ) -> list[tuple[str, Record]]:
        check_prefix(prefix)
        query, most = _LAST if last_first else _FIRST, -1 if limit is None else limit
        rows = self._read(lambda db: db.execute(query, {"prefix": prefix, "before": before, "most": most}).fetchall())
        return [(key, Record(value, revision)) for key, value, revision in rows]

    def count(self, prefix: str) -> int:
        check_prefix(prefix)
        return int(self._read(lambda db: db.execute(_COUNT, {"prefix": prefix}).fetchone()[0]))

    def txn(self, changes: Mapping[str, bytes | None], *, expect: Mapping[str, int] | None = None) -> int:
        expect = expect or {}
        check_txn(changes, expect)
        with self._told(), self._writing, _transaction(self._writer) as db:
            self._compare(db, expect)
            revision, removed = _change(db, changes)
            if removed:
                self._forget_removals(db, removed)
        self.lookout.tell(revision)
        return revision

    def watch(self, prefix: str, after: int) -> "SqliteWatch":
        check_prefix(prefix)
        return SqliteWatch(self, prefix, after)

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def changes(self, prefix: str, after: int) -> tuple[int, list[Change]]:
        """What a watch asks for: the changes after a revision, and the revision up to which these are all.

        :raises HistoryGone: they are not known any more
        """

        def look(db: sqlite3.Connection) -> tuple[int, int, list[Any]]:
            return *db.execute("SELECT revision, known_after FROM state").fetchone(), db.execute(
                _CHANGES, {"prefix": prefix, "after": after, "most": _BATCH}
            ).fetchall()

        now, known_after, rows = self._read(look)
        if after < known_after:
            raise HistoryGone(self.name, after, known_after)
        if len(rows) == _BATCH:  # the last revision may be cut in two: the next call tells it
            rows = [row for row in rows if row[1] < rows[-1][1]]
            now = rows[-1][1]
        return now, [Change(*row) for row in rows]

    def _compare(self, db: sqlite3.Connection, expect: Mapping[str, int]) -> None:
        for key, expected in expect.items():
            row = db.execute("SELECT revision FROM records WHERE key = ?", (key,)).fetchone()
            found = row[0] if row else 0
            if found != expected:
                raise RevisionConflict(self.name, key, expected, found)

    def _forget_removals(self, db: sqlite3.Connection, removed: int) -> None:
        """Drop the oldest removals, if there are too many by now."""
        self._removals += removed
        if self._removals < _FORGET_EVERY:
            return
        self._removals = 0
        query = "SELECT revision FROM removals ORDER BY revision DESC LIMIT 1 OFFSET ?"
        if bound := db.execute(query, (KEPT_REMOVALS,)).fetchone():
            db.execute("DELETE FROM removals WHERE revision <= ?", bound)
            db.execute("UPDATE state SET known_after = ?", bound)

    def _read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Several looks at one moment: a transaction that reads sees nothing of what is written meanwhile."""
        with self._told(), self._reading, _transaction(self._reader, "DEFERRED") as db:
            return look(db)

    def _open(self) -> sqlite3.Connection:
        """A connection to a file that is ours and up to date, made so if it is empty."""
        db = self._connect()
        try:
            with _transaction(db, "DEFERRED"):
                found = self._check(db)
            if not found:
                self._use_log(db)
                with _transaction(db):
                    if not self._check(db):  # nobody else was quicker
                        for line in _TABLES:
                            db.execute(line)
        except BaseException:
            db.close()
            raise
        return db

    def _use_log(self, db: sqlite3.Connection) -> None:
        """Have the file written by way of a log (WAL), from now on: whoever reads does not wait, nor is waited for."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # while another process does the same, SQLite says so at once, whatever its timeout
                if _code(error) not in _BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.name, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT}")
            db.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> bool:
        """Whether there is a store in the file; False: nothing at all is."""
        version, application, tables = (
            db.execute(query).fetchone()[0]
            for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
        )
        if not tables and not version:
            return False
        if application != _APPLICATION:
            raise RecordError(self.name, "it is a database of another program's")
        if version > SCHEMA:
            raise RecordError(self.name, f"its schema is {version}, and this Drover knows {SCHEMA}: use a newer one")
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = _code(error)
            # the other one: no room for the file through which processes share the log, which opening makes
            if code == sqlite3.SQLITE_FULL or _exact(error) == sqlite3.SQLITE_IOERR_SHMSIZE:
                raise StoreFull(self.name) from error
            if code in _BUSY:
                raise StoreBusy(self.name, self._busy_timeout) from error
            if code in _BROKEN:
                raise RecordError(self.name, f"it is broken: {error}") from error
            raise StoreError(
                self.name, f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
            ) from error


class SqliteWatch(Watch):
    """A watch of :class:`SqliteStore`; it holds nothing."""

    def __init__(self, store: SqliteStore, prefix: str, after: int) -> None:
        self._store = store
        self._prefix = prefix
        self.revision = after

    def poll(self, timeout: float) -> list[Change]:
        deadline = time.monotonic() + timeout
        while True:
            self.revision, changes = self._store.changes(self._prefix, self.revision)
            if changes:
                return changes
            if not self._store.lookout.wait(self.revision, deadline - time.monotonic()):
                return []

    def close(self) -> None:
        pass


def _make_file(path: Path) -> None:
    """Before SQLite does, which would have everybody read it; the files beside it get the rights of this one."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(str(path)) from error
        raise StoreError(str(path), error.strerror or str(error)) from error
    try:
        if os.fstat(fd).st_mode & 0o077 and os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


@contextmanager
def _transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """All of it or nothing, and nobody else's in between.

    :param kind: ``IMMEDIATE``: it is the only one that writes, from its begin on, in any process; ``DEFERRED`` reads
    """
    db.execute(f"BEGIN {kind}")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite may have ended it by itself, as where the disk is full
            db.execute("ROLLBACK")
        raise


def _change(db: sqlite3.Connection, changes: Mapping[str, bytes | None]) -> tuple[int, int]:
    """Carry out changes.

    :returns: the revision that they make, and how many records are gone
    """
    revision = int(db.execute("SELECT revision FROM state").fetchone()[0]) + 1
    puts, removed = 0, 0
    for key, value in changes.items():
        if value is None:
            gone = db.execute("DELETE FROM records WHERE key = ?", (key,)).rowcount
            if gone:
                db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (key, revision))
            removed += gone
        else:
            db.execute(_PUT, (key, revision, value))
            db.execute("DELETE FROM removals WHERE key = ?", (key,))
            puts += 1
    if not puts and not removed:
        return revision - 1, 0
    db.execute("UPDATE state SET revision = ?", (revision,))
    return revision, removed


def _code(error: sqlite3.Error) -> int:
    """What kind of error it is: the low bits. The others tell where, as in `SQLITE_IOERR_SHMSIZE`."""
    return _exact(error) & 0xFF


def _exact(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


assert MAX_CHANGES < _BATCH
