"""The journal: numbers that never repeat, torn tails, bounds, disks that are full, readers beside the writer."""

import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.events.journal import LIMIT, PENDING_LIMIT, SKIP, Journal
from drover.events.segment import Entry, newest, read, segments, wait
from drover.qmp.messages import Event


def events(count: int, size: int = 10, name: str = "STOP") -> list[Event]:
    return [Event(name, {"text": "x" * size, "at": place}, 1.5, place) for place in range(count)]


def fill(journal: Journal, count: int, generation: int = 1, size: int = 10) -> None:
    journal.extend(events(count, size), generation, 2.5)
    journal.commit(journal.take())


def everything(folder: Path) -> list[Entry]:
    found: list[Entry] = []
    after = 0
    while more := read(folder, after=after, limit=100).events:
        found += more
        after = more[-1].number
    return found


def newest_segment(folder: Path) -> Path:
    return segments(folder)[-1][1]


def test_what_comes_back(tmp_path: Path) -> None:
    """Over two ends in peace: every event once, in order, with all that was known of it."""
    folder = tmp_path / "j"
    for run in (1, 2, 3):
        journal = Journal(folder)
        fill(journal, 5, run)
        fill(journal, 2, run)
        journal.close()
    found = everything(folder)
    assert [it.number for it in found] == list(range(1, 22))
    assert [it.generation for it in found] == [1] * 7 + [2] * 7 + [3] * 7
    assert found[8] == Entry(number=9, at=2.5, generation=2, name="STOP", data={"text": "x" * 10, "at": 1}, stamp=1.5)
    assert newest(folder) == 21
    assert read(folder, after=21).events == []
    assert [it.number for it in read(folder, after=4, limit=3).events] == [5, 6, 7]


def test_never_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert not journal.waits
    journal.close()
    assert not (tmp_path / "j").exists()
    assert newest(tmp_path / "j") == 0
    assert read(tmp_path / "j").first == 1


@pytest.mark.parametrize(
    "tail", [b"", b'{"number":6,"at', b'{"number":6}', b"\0" * 5000 + b"\n", b"\xff\xfe\n\n\nnothing"]
)
def test_torn_tail(tmp_path: Path, tail: bytes) -> None:
    """Nobody said that it was the end: what is whole stays, the rest goes, and it is told that some may be missing."""
    journal = Journal(tmp_path)
    fill(journal, 5)
    with newest_segment(tmp_path).open("ab") as file:
        file.write(tail)
    again = Journal(tmp_path)
    assert again.ends_in_gap
    assert again.number == 5 + SKIP
    again.commit(again.take())
    fill(again, 2)
    again.close()
    found = everything(tmp_path)
    assert [it.number for it in found] == [1, 2, 3, 4, 5, 5 + SKIP, 6 + SKIP, 7 + SKIP]
    assert (found[5].name, found[5].data) == ("lost", {"reason": "killed", "since": 2.5})


@pytest.mark.parametrize("tail", [b"\0" * 5000 + b"\n", b"\xff\xfe\n\n\nnothing", b'{"number":6,"at'])
def test_torn_tail_before_the_next_writer(tmp_path: Path, tail: bytes) -> None:
    """A reader finds the newest event though nobody has cut off yet what is torn."""
    fill(Journal(tmp_path), 5)
    with newest_segment(tmp_path).open("ab") as file:
        file.write(tail)
    assert newest(tmp_path) == 5
    assert [it.number for it in everything(tmp_path)] == [1, 2, 3, 4, 5]


def test_every_cut(tmp_path: Path) -> None:
    """Wherever the last write was cut, the events in front of the cut are there."""
    journal = Journal(tmp_path / "whole")
    fill(journal, 3)
    data = newest_segment(tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / newest_segment(tmp_path / "whole").name).write_bytes(data[:length])
        again = Journal(folder)
        again.close()
        found = everything(folder)
        assert [it.number for it in found[:-1]] == list(range(1, data[:length].count(b"\n") + 1))
        assert found[-1].name == "lost"


def test_bound(tmp_path: Path) -> None:
    """The oldest go; what is kept is whole, and its first number is told."""
    limit = 200_000
    journal = Journal(tmp_path, limit=limit)
    for _ in range(100):
        fill(journal, 100)
        assert sum(path.stat().st_size for _, path in segments(tmp_path)) < limit * 1.1
    journal.close()
    page = read(tmp_path, limit=20_000)
    numbers = [it.number for it in page.events]
    assert page.first > 1
    assert numbers == list(range(page.first, 10_001))
    assert sum(path.stat().st_size for _, path in segments(tmp_path)) > limit // 2


def test_place_in_large_segments(tmp_path: Path) -> None:
    """Any number is found, and what comes after it, though lines have any length."""
    journal = Journal(tmp_path)
    for place in range(300):
        fill(journal, 1 + place % 7, size=place * 37 % 9000)
    last = journal.number
    journal.close()
    for after in range(0, last, 11):
        assert [it.number for it in read(tmp_path, after=after, limit=3).events] == list(
            range(after + 1, min(after + 4, last + 1))
        )


def test_readers_beside_the_writer(tmp_path: Path) -> None:
    """Two readers that go on from where they were see every number once, while segments come and go."""
    journal = Journal(tmp_path, limit=LIMIT)
    seen: list[list[int]] = [[], []]
    total = 20_000

    def follow(numbers: list[int]) -> None:
        after = 0
        while after < total and wait(tmp_path, after=after, timeout=10):
            numbers += [it.number for it in read(tmp_path, after=after, limit=700).events]
            after = numbers[-1]

    threads = [threading.Thread(target=follow, args=(numbers,)) for numbers in seen]
    for thread in threads:
        thread.start()
    for _ in range(total // 50):
        fill(journal, 50, size=400)
    for thread in threads:
        thread.join(30)
    assert len(segments(tmp_path)) > 2
    assert seen == [list(range(1, total + 1))] * 2


def test_too_fast(tmp_path: Path) -> None:
    """What comes while too much waits for the disk is dropped, counted, and told where it is missing."""
    journal = Journal(tmp_path, limit=10 * PENDING_LIMIT)
    size = PENDING_LIMIT // 100
    for _ in range(120):
        journal.extend(events(1, size), 1, 2.5)
    dropped = journal.dropped
    assert 0 < dropped < 30
    journal.note("ended", {}, 1)
    journal.close()
    found = everything(tmp_path)
    lost = found[-2]
    assert [it.number for it in found[:-2]] == list(range(1, 121 - dropped))
    assert (lost.name, lost.number, lost.data["count"], lost.data["reason"]) == ("lost", 120, dropped, "too-fast")
    assert (found[-1].name, found[-1].number) == ("ended", 121)


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = Path("/run") / f"drover-journal-{os.getpid()}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_full_disk(small: Path) -> None:
    """It goes on, counts what found no room, and tells when there is some."""
    journal = Journal(small / "j")
    while journal.fault is None:
        seen = everything(small / "j")
        fill(journal, 50, size=200)
    for _ in range(10):
        fill(journal, 50, size=200)
    assert journal.waits
    assert 10 * 50 < journal.dropped <= 11 * 50
    reserve = journal.number
    before = everything(small / "j")
    subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
    journal.commit(None)
    assert journal.fault is None
    assert not journal.waits
    fill(journal, 3)
    journal.close()
    after = everything(small / "j")
    assert before[: len(seen)] == seen
    assert after[: len(before)] == before
    assert after[-4].name == "lost"
    assert [it.number for it in after[-4:]] == list(range(reserve, reserve + 4))
    told = 0
    for one, other in itertools.pairwise(after):  # every number is an event's, or one of those that are counted
        count = other.data["count"] if other.name == "lost" else 1
        assert other.number - one.number == count
        if other.name == "lost":
            told += count
            assert "No space" in other.data["reason"]
    assert told == journal.dropped
    assert not Journal(small / "j").ends_in_gap


def test_what_comes_before_a_run(tmp_path: Path) -> None:
    """Only where the end of the run before was written is nothing missing."""
    journal = Journal(tmp_path)
    assert journal.goes_on_with(1)
    assert not journal.goes_on_with(2)
    fill(journal, 1, 1)
    assert not journal.goes_on_with(2)
    journal.note("ended", {}, 1)
    assert journal.goes_on_with(2)
    assert not journal.goes_on_with(3)
    journal.close()
    assert Journal(tmp_path).goes_on_with(2)
