"""Logs that are cut while somebody writes to them as fast as he can: bounded, and only the middle is lost."""

import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from drover.kvm import logs

LIMIT = 256 << 10
FLOOD = (
    "import os, sys, time\n"
    "fd, end, number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), time.time() + 2, 0\n"
    "while time.time() < end:\n"
    "    os.write(fd, b'%08d\\n' % number); number += 1\n"
    "print(number - 1)\n"
)


@pytest.fixture(params=["ext4 or xfs", "tmpfs"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "tmpfs":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder) / "console.log"
        return
    with (tmp_path / "try").open("wb") as file:
        file.write(bytes(3 * 65536))
        file.flush()
        if not logs._collapse(file.fileno(), 65536, 65536):
            pytest.skip("the file system of temporary files cannot take a range out of a file")
    yield tmp_path / "console.log"


def numbers(data: bytes) -> list[int]:
    """Of the lines that are whole."""
    return [int(it) for it in re.findall(rb"(?<=\n)\d{8}(?=\n)", b"\n" + data)]


def consecutive(found: list[int]) -> bool:
    return all(one + 1 == after for one, after in itertools.pairwise(found))


def test_cut_while_it_is_written_to(log: Path) -> None:
    cuts = 0
    with subprocess.Popen([sys.executable, "-c", FLOOD, str(log)], stdout=subprocess.PIPE, text=True) as writer:
        while writer.poll() is None:
            cuts += bool(logs.bound(log, LIMIT))
            time.sleep(0.005)
        last = int(writer.communicate()[0])
    assert cuts >= 5
    logs.bound(log, LIMIT)
    data, beside = log.read_bytes(), log.with_name("console.log.1").read_bytes()
    head, mark, tail = data.partition(b"\n-- drover took out what was here")
    assert mark
    tail = tail[tail.index(b"\n") + 1 :]
    assert len(data) <= LIMIT
    first = numbers(head)
    assert first[0] == 0
    assert consecutive(first)
    assert len(head) >= LIMIT // 16 - 128
    # the newest of the middle, and what came behind it
    aside = beside[beside.index(b"\n", beside.find(b"-- drover")) + 1 :] if b"-- drover" in beside else beside
    if log.is_relative_to("/dev/shm"):
        assert consecutive(numbers(aside))
        assert (numbers(tail) or numbers(aside))[-1] == last
    else:
        newest = numbers(aside + tail)
        assert consecutive(newest)
        assert newest[-1] == last
        assert len(newest) * 9 > LIMIT // 2


def test_long_since_nobody_watched(log: Path) -> None:
    """What was taken out is no longer than the log may be, however much it was."""
    log.write_bytes(b"".join(b"%08d\n" % number for number in range(LIMIT)))
    assert logs.bound(log, LIMIT) > 7 * LIMIT
    assert log.stat().st_size <= LIMIT
    assert log.with_name("console.log.1").stat().st_size <= LIMIT + 128
    assert logs.bound(log, LIMIT) == 0


def test_start(tmp_path: Path) -> None:
    """A run finds room for its beginning; what was there is put aside only where there is none."""
    log = tmp_path / "qemu.log"
    with ExitStack() as lent:
        for generation in (1, 2):
            fd = logs.opened(lent, log)
            logs.begin(fd, generation)
            os.write(fd, b"words of %d\n" % generation)
    assert logs.of_last_run(log.read_text()) == "words of 2\n"
    assert "words of 1" in log.read_text()
    log.write_bytes(bytes(logs.LIMIT // 2))
    with ExitStack() as lent:
        logs.opened(lent, log)
    assert (log.stat().st_size, log.with_name("qemu.log.1").stat().st_size) == (0, logs.LIMIT // 2)
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_end_goes_on_elsewhere(tmp_path: Path) -> None:
    """From the beginning of a line on; what is there already is not written again."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(b"first\nsecond\nthird")
    there.write_bytes(b"")
    assert logs.tail(here, 100) == b"first\nsecond\nthird"
    assert logs.tail(here, 9) == b"third"
    assert logs.tail(tmp_path / "none", 9) == b""
    for _ in range(2):
        logs.take_over(there, logs.tail(here, 14))
    logs.take_over(there, b"")
    assert there.read_bytes() == b"second\nthird"
