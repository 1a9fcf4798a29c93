"""The memory that is promised to machines that arrive: two of them never share what one of them would take."""

import os
import threading
from pathlib import Path

import pytest

from drover.errors import NoRoom
from drover.kvm.paths import Paths
from drover.kvm.process import current_boot
from drover.kvm.record import SWITCHED, UPGRADE, Document, Intent, Passage, Runtime, Way, load, save
from drover.kvm.room import BESIDE, PAGES, Lack, Room, let_in, look, wanted
from drover.kvm.spec import Spec, completed, parse
from drover.kvm.usage import process_usage

MIB = 1 << 20
TIB = 1 << 40


def spec(name: str, size: int = 64 * MIB, hugepages: str = "off") -> Spec:
    return completed(parse({"name": name, "memory": {"size": size, "hugepages": hugepages}}))


def put(paths: Paths, wanted: Spec, way: Way | None, pid: int = 0, start_time: int = 0) -> None:
    """An instance, on its way or not."""
    runtime = Runtime(generation=1, boot_id=current_boot(), spec=wanted, pid=pid, start_time=start_time)
    passage = Passage(way=way, epoch=1, other="there") if way else None
    folder = paths.instance(wanted.name).state
    folder.mkdir(parents=True)
    save(folder / "instance.json", Document(spec=wanted, passage=passage, runtime=runtime))
    assert paths.instance(wanted.name).document == folder / "instance.json"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run")


def test_what_one_takes() -> None:
    assert wanted(spec("a")) == {"off": 64 * MIB + BESIDE}
    assert wanted(spec("a", hugepages="2MiB")) == {"off": BESIDE, "2MiB": 64 * MIB}


def test_what_there_is_not_enough_of() -> None:
    room = Room(free={"off": 100, "2MiB": 8}, promised={"b": {"off": 40}, "c": {"off": 0, "2MiB": 4}})
    assert room.lacks({"off": 60, "2MiB": 4}) == []
    assert room.lacks({"off": 61}) == [Lack(pages="off", wanted=61, free=100, promised={"b": 40})]
    assert [lack.pages for lack in room.lacks({"off": 101, "2MiB": 5, "1GiB": 1})] == ["off", "2MiB", "1GiB"]


def test_promised_is_what_those_that_arrive_have_not_taken_yet(paths: Paths) -> None:
    mine = process_usage(os.getpid())  # this process stands for a QEMU
    assert mine is not None
    put(paths, spec("half", TIB), "in", os.getpid(), mine.start_time)
    ways: dict[str, Way | None] = {"new": "in", "here": None, "leaves": "out", "gone": "gone"}
    for name, way in ways.items():
        put(paths, spec(name), way)
    put(paths, spec("dead"), "in", os.getpid(), 1)  # another one had its pid
    room = look(paths, but="new")
    assert room.promised.keys() == {"half", "dead"}
    assert TIB + BESIDE - 2000 * MIB < room.promised["half"]["off"] < TIB + BESIDE - 10 * MIB
    assert room.promised["dead"] == {"off": 64 * MIB + BESIDE}
    assert look(paths).promised["new"] == {"off": 64 * MIB + BESIDE}


def test_promised_to_a_second_qemu_is_what_it_has_not_taken_until_it_is_the_machine(paths: Paths) -> None:
    mine = process_usage(os.getpid())
    assert mine is not None
    for name, step, pid in (("first", "", 0), ("second", "send", os.getpid()), ("over", SWITCHED, os.getpid())):
        put(paths, spec(name, TIB), None)
        document = load(paths.instance(name).document)
        document.pending = Intent(operation=UPGRADE, step=step)
        if pid:
            document.other = Runtime(
                generation=2, boot_id=current_boot(), spec=spec(name, TIB), pid=pid, start_time=mine.start_time
            )
        save(paths.instance(name).document, document)
    promised = look(paths).promised
    assert promised.keys() == {"first", "second"}
    assert promised["first"] == {"off": TIB + BESIDE}
    assert TIB + BESIDE - 2000 * MIB < promised["second"]["off"] < TIB + BESIDE - 10 * MIB


def test_of_two_at_once_one_gets_in(paths: Paths) -> None:
    """Each would fit alone; neither has taken anything yet when the other one asks."""
    size = look(paths).free["off"] * 6 // 10 // MIB * MIB
    both, came, refused = threading.Barrier(2), list[str](), list[NoRoom]()

    def come(name: str) -> None:
        both.wait(10)
        try:
            with let_in(paths, spec(name, size)):
                put(paths, spec(name, size), "in")
                came.append(name)
        except NoRoom as error:
            refused.append(error)

    threads = [threading.Thread(target=come, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(came) == len(refused) == 1
    assert refused[0].promised == {came[0]: size + BESIDE}
    assert f"promised to {came[0]}" in str(refused[0])
    with let_in(paths, spec("c")):  # a small one fits beside it
        pass


def test_huge_pages_are_of_the_kernel() -> None:
    room = look(Paths(Path("/nowhere"), Path("/nowhere")))
    assert room.free.keys() == {"off", *PAGES}
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    assert room.free["2MiB"] <= free * PAGES["2MiB"]
