"""The store in a file: what becomes of it when processes race, are killed, or the disk is full."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import HistoryGone, RecordError, StoreBusy, StoreError, StoreFull
from drover.store import sqlite
from drover.store.records import Record
from drover.store.sqlite import SCHEMA, SqliteStore

TOP = Path(__file__).resolve().parents[3]

# Adds to one number by compare-and-swap.
# All of them open it as they come, and begin at one stroke, however long each took to start.
ADDER = """
import sys, time
from pathlib import Path
from drover.errors import RevisionConflict
from drover.store.sqlite import SqliteStore
won = lost = 0
with SqliteStore(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.001)
    while won < int(sys.argv[2]):
        record = store.get("sum")
        try:
            store.put("sum", b"%d" % (int(record.value) + 1 if record else 1), expect=record.revision if record else 0)
            won += 1
        except RevisionConflict:
            lost += 1
print(won, lost)
"""

# Writes the same number under two keys, one change after the other, and says so after each.
WRITER = """
import sys
from pathlib import Path
from drover.store.sqlite import SqliteStore
with SqliteStore(Path(sys.argv[1])) as store:
    record = store.get("a")
    number = int(record.value[:9]) if record else 0
    while True:
        number += 1
        value = b"%09d" % number + bytes(number * 7919 % 30000)
        store.txn({"a": value, "b": value, "old": None if number % 2 else b""})
        sys.stdout.write("%d\\n" % number)
        sys.stdout.flush()
"""

HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(1000)
"""


def python(script: str, *words: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]


def start(script: str, *words: object) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}
    return subprocess.Popen(python(script, *words), stdout=subprocess.PIPE, text=True, env=env)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def held(path: Path) -> Iterator[None]:
    """Another process is in the middle of a change."""
    SqliteStore(path).close()
    with start(HOLDER, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


def test_processes_race_and_no_change_is_lost(path: Path) -> None:
    """They also open it, and make it, at the same time."""
    begin = path.with_name("begin")
    racers = [start(ADDER, path, 100, begin) for _ in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    begin.touch()
    won = lost = 0
    for racer in racers:
        said, _ = racer.communicate()
        assert racer.returncode == 0
        won, lost = won + int(said.split()[0]), lost + int(said.split()[1])
    assert won == 400
    with SqliteStore(path) as store:
        assert store.get("sum") == Record(b"%d" % won, won)
    assert lost, "they have not raced at all"


def test_killed_in_the_middle_of_changes(path: Path) -> None:
    """Twenty times: each change is there wholly or not at all, and one that was said to be made is."""
    said = 0
    for times in range(20):
        with start(WRITER, path) as writer:
            assert writer.stdout is not None
            said = int(writer.stdout.readline())
            time.sleep(0.001 * times)
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                said = int(line) if line.endswith("\n") else said
        with SqliteStore(path) as store:
            a, b = store.get("a"), store.get("b")
            assert a is not None
            assert a == b
            number = int(a.value[:9])
            assert a.value == b"%09d" % number + bytes(number * 7919 % 30000)
            assert number in (said, said + 1)
            assert (store.get("old") is None) == bool(number % 2)
            assert store.revision() == a.revision == number
    assert said > 20, "it was killed before it could change much"
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_files_are_ours_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        with SqliteStore(path) as store:
            store.put("a", b"")
            files = {it.name: stat.S_IMODE(it.stat().st_mode) for it in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert files == {"store": 0o600, "store-wal": 0o600, "store-shm": 0o600}


def test_rights_that_somebody_gave_are_taken_back(path: Path) -> None:
    SqliteStore(path).close()
    path.chmod(0o644)
    SqliteStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_change_waits_for_the_disk(path: Path) -> None:
    with SqliteStore(path) as store:
        for db in (store._writer, store._reader):
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_newer_one_is_left_alone(path: Path) -> None:
    with SqliteStore(path) as store:
        store.put("a", b"")
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(RecordError, match=f"its schema is {SCHEMA + 1}") as caught:
        SqliteStore(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", ["CREATE TABLE t (x)", "PRAGMA user_version = 7"])
def test_another_programs_is_left_alone(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    db.execute(statement)
    db.close()
    before = path.read_bytes()
    with pytest.raises(RecordError, match="another program's"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("a letter to somebody, of more than a hundred bytes, so that it could be a header " * 3)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="it is broken"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_page_that_is_broken_is_told(path: Path) -> None:
    with SqliteStore(path) as store:
        store.put("a", bytes(100_000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with SqliteStore(path) as store, pytest.raises(RecordError, match="it is broken"):
        store.range("")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        SqliteStore(tmp_path / "none" / "store")


def test_closed(path: Path) -> None:
    store = SqliteStore(path)
    store.close()
    with pytest.raises(StoreError):
        store.get("a")
    with pytest.raises(StoreError):
        store.put("a", b"")


@pytest.mark.usefixtures("held")
def test_others_write_for_too_long(path: Path) -> None:
    """Neither to open it nor to read needs to wait for them."""
    with SqliteStore(path, busy_timeout=0.2) as store:
        began = time.monotonic()
        with pytest.raises(StoreBusy) as caught:
            store.put("a", b"")
        assert 0.2 <= time.monotonic() - began < 5
        assert caught.value.timeout == 0.2
        assert store.get("a") is None


def test_a_disk_that_is_full(path: Path) -> None:
    """The file may not grow: SQLite's own bound gives the error of a full disk at the same places."""
    with SqliteStore(path) as store:
        store.put("a", b"1")
        store._writer.execute("PRAGMA max_page_count = 20")
        with pytest.raises(StoreFull) as caught:
            store.txn({"a": b"2", "b": bytes(200_000)}, expect={"a": 1})
        assert caught.value.store == str(path)
        assert store.range("") == [("a", Record(b"1", 1))]
        assert store.put("a", b"3", expect=1) == 2


def on_small_disk(script: str, folder: Path) -> list[str]:
    """Run it where the folder is a file system of a megabyte, in a mount namespace of its own; the lines it prints."""
    shell = f'mount -t tmpfs -o size=1m small {folder} && exec "$@"'
    env = os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user may have a mount namespace here")
    words = [*unshare, "sh", "-c", shell, "sh", *python(script, folder)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_small_disk_that_is_full(path: Path) -> None:
    """What was there stays, and can be read; nothing can be removed from it either, before there is room again."""
    script = """
    import sys
    from pathlib import Path
    from drover.errors import StoreFull
    from drover.store.sqlite import SqliteStore
    path, other = Path(sys.argv[1]) / "store", Path(sys.argv[1]) / "other"
    other.write_bytes(bytes(200_000))
    with SqliteStore(path) as store:
        number = 0
        try:
            while number < 100:
                store.put(f"k/{number}", bytes(50_000))
                number += 1
        except StoreFull as error:
            print(error)
        assert store.count("k/") == number == store.revision()
    with SqliteStore(path) as store:
        assert [len(it.value) for _, it in store.range("k/")] == [50_000] * number
        print(number)
        try:
            store.txn({f"k/{it}": None for it in range(number)})
        except StoreFull as error:
            print(error)
        assert store.count("k/") == number
        other.unlink()
        store.delete("k/0")
        assert store.count("k/") == number - 1
    """
    error, number, *more = on_small_disk(script, path.parent)
    assert error == f"{path}: no room to write it: the disk is full, or a quota is; nothing was changed"
    assert 2 <= int(number) < 20
    assert more == [error]


def test_opened_on_a_full_disk(path: Path) -> None:
    """To open it needs a little room, for the files beside it."""
    script = """
    import sys
    from pathlib import Path
    from drover.errors import StoreFull
    from drover.store.sqlite import SqliteStore
    path, other = Path(sys.argv[1]) / "store", Path(sys.argv[1]) / "other"
    with SqliteStore(path) as store:
        store.put("a", b"1")
    with other.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    for name in ("store", "new"):
        try:
            SqliteStore(Path(sys.argv[1]) / name)
        except StoreFull as error:
            print(error.store)
    other.unlink()
    with SqliteStore(path) as store:
        print(store.get("a").value)
    """
    assert on_small_disk(script, path.parent) == [str(path), str(path.with_name("new")), "b'1'"]


def test_removals_are_forgotten_at_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "KEPT_REMOVALS", 20)
    monkeypatch.setattr(sqlite, "_FORGET_EVERY", 10)
    with SqliteStore(path) as store:
        for number in range(60):
            store.put("w/a", b"%d" % number)
            store.delete("w/a")
            store.put(f"w/{number}", b"")
            store.delete(f"w/{number}")
        with store.watch("w/", 0) as watch, pytest.raises(HistoryGone) as caught:
            watch.poll(0)
        with store.watch("w/", caught.value.first) as watch:
            assert 20 <= len(watch.poll(0)) <= 30
        assert caught.value.after == 0
